"""Forward pass of attention within the samples of a packed batch, with the column means of the probabilities.

In half precision, if importance is wanted and the keys of every sample fit one tile, there is one pass: a program owns a
sample and a head, keeps its keys and values on the processor, and adds up the column sums of its blocks of queries.
Otherwise there are two: in the first a program owns a block of queries and uses FlashAttention's running softmax, in the
second a program owns a block of keys and sums its columns from the log-sum-exp. There are no atomics, so sums have a fixed
order and runs repeat bit by bit.

With a bias or a window there are two passes as well. With a window, a program visits only the blocks that its own block can
see: positions rise within a sample, so these follow each other, and memory and work are linear in the number of tokens.

In float32 there are always two passes, in tiles of one size, so that a sample's results do not depend on the samples beside
it. In half precision they depend on these by less than the rounding of the results: from 129 keys on the longest sample
chooses the tile, and a batch too small for the device takes two passes.

Probabilities are computed by ``exp2`` of scores in units of log 2. The log-sum-exp returned is natural.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configurations, launching
from .places import placed_scores, places_of, queries_seeing, rows_in_reach
from .tiles import LOG2_E, fill_rows, load_rows, sample_span, store_rows


@triton.jit
def attend_at_once(
    p_q,
    p_k,
    p_v,
    p_out,
    p_logsumexp,
    p_importance,
    queries,
    keys,
    q_row_stride,
    k_row_stride,
    v_row_stride,
    out_row_stride,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NEED_IMPORTANCE: tl.constexpr,
):
    """All results of a head of a sample with at most BLOCK_K keys, which stay on the processor."""
    columns = tl.arange(0, BLOCK_K)
    b_k = load_rows(p_k, k_row_stride, 0, keys, BLOCK_K, HEAD_DIM, BLOCK_D)  # [BLOCK_K, BLOCK_D]
    b_v = load_rows(p_v, v_row_stride, 0, keys, BLOCK_K, HEAD_DIM, BLOCK_D)  # [BLOCK_K, BLOCK_D]
    b_sums = tl.zeros([BLOCK_K], tl.float32)
    for first in range(0, queries, BLOCK_Q):
        rows = first + tl.arange(0, BLOCK_Q)
        b_q = load_rows(p_q, q_row_stride, first, queries, BLOCK_Q, HEAD_DIM, BLOCK_D)  # [BLOCK_Q, BLOCK_D]
        b_s = tl.dot(b_q, tl.trans(b_k)) * (scale * LOG2_E)  # [BLOCK_Q, BLOCK_K]
        b_s = tl.where(columns[None, :] < keys, b_s, float("-inf"))
        b_max = tl.max(b_s, 1)  # [BLOCK_Q]
        b_p = tl.exp2(b_s - b_max[:, None])  # [BLOCK_Q, BLOCK_K]
        b_norm = tl.sum(b_p, 1)  # [BLOCK_Q]
        b_p *= (1.0 / b_norm)[:, None]
        if NEED_IMPORTANCE:
            b_sums += tl.sum(tl.where(rows[:, None] < queries, b_p, 0.0), 0)
        b_out = tl.dot(b_p.to(b_v.dtype), b_v)  # [BLOCK_Q, BLOCK_D]
        store_rows(p_out, out_row_stride, first, queries, b_out, BLOCK_Q, HEAD_DIM, BLOCK_D)
        tl.store(p_logsumexp + rows, (b_max + tl.log2(b_norm)) / LOG2_E, mask=rows < queries)
    if NEED_IMPORTANCE:
        tl.store(p_importance + columns, b_sums / tl.maximum(queries, 1).to(tl.float32), mask=columns < keys)


@triton.jit(do_not_specialize=["total_q", "total"])
def attention_one_pass(
    p_q,
    p_k,
    p_v,
    p_out,
    p_logsumexp,
    p_importance,
    p_cu_seqlens_q,
    p_cu_seqlens,
    p_stays,
    total_q,
    total,
    q_row_stride,
    q_head_stride,
    k_row_stride,
    k_head_stride,
    v_row_stride,
    v_head_stride,
    out_row_stride,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NEED_IMPORTANCE: tl.constexpr,
    HAS_STAYS: tl.constexpr,
):
    """Program (head, sample): all results of a head of a sample with at most BLOCK_K keys of a half type."""
    head = tl.program_id(0).to(tl.int64)
    sample = tl.program_id(1)
    q_begin, queries = sample_span(p_cu_seqlens_q, sample, total_q)
    k_begin, keys = sample_span(p_cu_seqlens, sample, total)
    p_q += q_begin * q_row_stride + head * q_head_stride
    p_k += k_begin * k_row_stride + head * k_head_stride
    p_v += k_begin * v_row_stride + head * v_head_stride
    p_out += q_begin * out_row_stride + head * HEAD_DIM
    p_logsumexp += head * total_q + q_begin
    p_importance += head * total + k_begin
    columns = tl.arange(0, BLOCK_K)
    tl.device_assert(keys <= BLOCK_K, "max_seqlen must be at least the longest sample")
    skipped = keys == 0
    if HAS_STAYS:
        skipped |= tl.load(p_stays + sample) == 0
    if skipped:
        fill_rows(p_out, out_row_stride, p_logsumexp, 0, queries, BLOCK_Q, HEAD_DIM, BLOCK_D)
        if NEED_IMPORTANCE:
            tl.store(p_importance + columns, tl.zeros([BLOCK_K], tl.float32), mask=columns < keys)
        return

    # Up to 128 keys a sample takes the tile of its own length, and no more time or another rounding beside longer ones.
    if BLOCK_K == 128 and BLOCK_D > 16:  # for the narrowest heads, a second tile takes registers that are not there
        if keys <= 64:
            attend_at_once(
                *(p_q, p_k, p_v, p_out, p_logsumexp, p_importance, queries, keys),
                *(q_row_stride, k_row_stride, v_row_stride, out_row_stride, scale),
                *(HEAD_DIM, BLOCK_D, BLOCK_Q, 64, NEED_IMPORTANCE),
            )
            return
    attend_at_once(
        *(p_q, p_k, p_v, p_out, p_logsumexp, p_importance, queries, keys),
        *(q_row_stride, k_row_stride, v_row_stride, out_row_stride, scale),
        *(HEAD_DIM, BLOCK_D, BLOCK_Q, BLOCK_K, NEED_IMPORTANCE),
    )


@triton.jit(do_not_specialize=["reach", "window", "total_q", "total"])
def attention_streaming(
    p_q,
    p_k,
    p_v,
    p_out,
    p_logsumexp,
    p_cu_seqlens_q,
    p_cu_seqlens,
    p_stays,
    p_positions_q,
    p_positions,
    p_bias,
    reach,
    window,
    total_q,
    total,
    q_row_stride,
    q_head_stride,
    k_row_stride,
    k_head_stride,
    v_row_stride,
    v_head_stride,
    out_row_stride,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_STAYS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """Program (query blocks, head, sample): out and log-sum-exp for any number of keys.

    Program p of P owns the blocks of queries p, p + P, p + 2 P and so on.
    """
    head = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(2)
    q_begin, queries = sample_span(p_cu_seqlens_q, sample, total_q)
    k_begin, keys = sample_span(p_cu_seqlens, sample, total)
    p_q += q_begin * q_row_stride + head * q_head_stride
    p_k += k_begin * k_row_stride + head * k_head_stride
    p_v += k_begin * v_row_stride + head * v_head_stride
    p_out += q_begin * out_row_stride + head * HEAD_DIM
    p_logsumexp += head * total_q + q_begin
    p_positions_q += q_begin
    p_positions += k_begin
    p_bias += head * (2 * reach + 1)
    skipped = keys == 0
    if HAS_STAYS:
        skipped |= tl.load(p_stays + sample) == 0
    if skipped:
        for first in range(tl.program_id(0) * BLOCK_Q, queries, tl.num_programs(0) * BLOCK_Q):
            last = tl.minimum(first + BLOCK_Q, queries)
            fill_rows(p_out, out_row_stride, p_logsumexp, first, last, BLOCK_Q, HEAD_DIM, BLOCK_D)
        return

    for first in range(tl.program_id(0) * BLOCK_Q, queries, tl.num_programs(0) * BLOCK_Q):
        rows = first + tl.arange(0, BLOCK_Q)
        b_q = load_rows(p_q, q_row_stride, first, queries, BLOCK_Q, HEAD_DIM, BLOCK_D)  # [BLOCK_Q, BLOCK_D]
        # A query may have seen no key yet, and infinity less infinity is no number.
        b_max = tl.full([BLOCK_Q], -3e38 if HAS_WINDOW else float("-inf"), tl.float32)
        b_norm = tl.zeros([BLOCK_Q], tl.float32)
        b_out = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
        begin, end = 0, keys
        if HAS_WINDOW:
            begin, end = rows_in_reach(p_positions_q, first, queries, p_positions, keys, window, BLOCK_Q, BLOCK_K)
        if HAS_BIAS or HAS_WINDOW:
            b_positions_q = tl.load(p_positions_q + rows, mask=rows < queries, other=0)
        for key in range(begin, end, BLOCK_K):
            columns = key + tl.arange(0, BLOCK_K)
            b_k = load_rows(p_k, k_row_stride, key, keys, BLOCK_K, HEAD_DIM, BLOCK_D)  # [BLOCK_K, BLOCK_D]
            b_v = load_rows(p_v, v_row_stride, key, keys, BLOCK_K, HEAD_DIM, BLOCK_D)  # [BLOCK_K, BLOCK_D]
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * (scale * LOG2_E)  # [BLOCK_Q, BLOCK_K]
            if HAS_BIAS or HAS_WINDOW:
                b_positions = tl.load(p_positions + columns, mask=columns < keys, other=0)
                b_distance = b_positions[None, :] - b_positions_q[:, None]
                b_s = placed_scores(b_s, b_distance, p_bias, reach, window, HAS_BIAS, HAS_WINDOW)
            b_s = tl.where(columns[None, :] < keys, b_s, float("-inf"))
            b_new_max = tl.maximum(b_max, tl.max(b_s, 1))
            b_p = tl.exp2(b_s - b_new_max[:, None])  # [BLOCK_Q, BLOCK_K]
            b_shrink = tl.exp2(b_max - b_new_max)
            b_norm = b_norm * b_shrink + tl.sum(b_p, 1)
            b_out = b_out * b_shrink[:, None]
            b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out, input_precision=PRECISION)
            b_max = b_new_max
        if HAS_WINDOW:  # a query that sees no key gets zeros
            b_max = tl.where(b_norm == 0, 0.0, b_max)
            b_norm = tl.where(b_norm == 0, 1.0, b_norm)
        b_out *= (1.0 / b_norm)[:, None]
        store_rows(p_out, out_row_stride, first, queries, b_out, BLOCK_Q, HEAD_DIM, BLOCK_D)
        tl.store(p_logsumexp + rows, (b_max + tl.log2(b_norm)) / LOG2_E, mask=rows < queries)


@triton.jit(do_not_specialize=["reach", "window", "total_q", "total"])
def attention_column_means(
    p_q,
    p_k,
    p_logsumexp,
    p_importance,
    p_cu_seqlens_q,
    p_cu_seqlens,
    p_stays,
    p_positions_q,
    p_positions,
    p_bias,
    reach,
    window,
    total_q,
    total,
    q_row_stride,
    q_head_stride,
    k_row_stride,
    k_head_stride,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_STAYS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """Program (key block, head, sample): column means of a block of keys, from the queries' log-sum-exp."""
    first = tl.program_id(0) * BLOCK_K
    head = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(2)
    q_begin, queries = sample_span(p_cu_seqlens_q, sample, total_q)
    k_begin, keys = sample_span(p_cu_seqlens, sample, total)
    tl.device_assert(keys <= tl.num_programs(0) * BLOCK_K, "max_seqlen must be at least the longest sample")
    if first >= keys:
        return
    p_q += q_begin * q_row_stride + head * q_head_stride
    p_k += k_begin * k_row_stride + head * k_head_stride
    p_logsumexp += head * total_q + q_begin
    p_importance += head * total + k_begin
    p_positions_q += q_begin
    p_positions += k_begin
    p_bias += head * (2 * reach + 1)
    columns = first + tl.arange(0, BLOCK_K)
    if HAS_STAYS:
        if tl.load(p_stays + sample) == 0:
            tl.store(p_importance + columns, tl.zeros([BLOCK_K], tl.float32), mask=columns < keys)
            return

    b_k = load_rows(p_k, k_row_stride, first, keys, BLOCK_K, HEAD_DIM, BLOCK_D)  # [BLOCK_K, BLOCK_D]
    b_sums = tl.zeros([BLOCK_K], tl.float32)
    b_positions = columns
    if HAS_BIAS or HAS_WINDOW:
        b_positions = tl.load(p_positions + columns, mask=columns < keys, other=0)
    begin, end = 0, queries
    if HAS_WINDOW:
        begin, end = rows_in_reach(p_positions, first, keys, p_positions_q, queries, window, BLOCK_K, BLOCK_Q)
    for query in range(begin, end, BLOCK_Q):
        rows = query + tl.arange(0, BLOCK_Q)
        b_q = load_rows(p_q, q_row_stride, query, queries, BLOCK_Q, HEAD_DIM, BLOCK_D)  # [BLOCK_Q, BLOCK_D]
        # Beyond the last query, infinity makes every probability zero.
        b_logsumexp = tl.load(p_logsumexp + rows, mask=rows < queries, other=float("inf"))
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION) * (scale * LOG2_E)  # [BLOCK_K, BLOCK_Q]
        if HAS_BIAS or HAS_WINDOW:
            b_positions_q = tl.load(p_positions_q + rows, mask=rows < queries, other=0)
            b_distance = b_positions[:, None] - b_positions_q[None, :]
            b_s = placed_scores(b_s, b_distance, p_bias, reach, window, HAS_BIAS, HAS_WINDOW)
        b_sums += tl.sum(tl.exp2(b_s - (b_logsumexp * LOG2_E)[None, :]), 1)
    b_count = queries_seeing(p_positions_q, queries, b_positions, window, HAS_WINDOW)
    tl.store(p_importance + columns, b_sums / b_count, mask=columns < keys)


def ragged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens: Tensor,
    stays: Tensor | None,
    max_seqlen: int,
    scale: float,
    need_importance: bool,
    positions_q: Tensor | None = None,
    positions: Tensor | None = None,
    bias: Tensor | None = None,
    buckets: Tensor | None = None,
    window: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    cu_seqlens_q, cu_seqlens = cu_seqlens_q.contiguous(), cu_seqlens.contiguous()
    total_q, heads, head_dim = q.shape
    total, batch = k.shape[0], cu_seqlens.shape[0] - 1
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    logsumexp = q.new_empty(heads, total_q, dtype=torch.float32)
    importance = q.new_empty(heads, total if need_importance else 0, dtype=torch.float32)
    width = launching.padded_width(head_dim)
    constants: dict[str, int | str] = {"HEAD_DIM": head_dim, "BLOCK_D": width, "HAS_STAYS": stays is not None}
    flags = cu_seqlens if stays is None else stays.contiguous()  # stands in for a pointer that is not read
    strides = (*q.stride()[:2], *k.stride()[:2], *v.stride()[:2])

    architecture = configurations.architecture_of(q.device)
    keys = launching.padded_width(max_seqlen, configurations.FEWEST_KEYS)
    places, placed = places_of(cu_seqlens, total, positions_q, positions, bias, buckets, window)
    is_placed = any(placed.values())
    at_once = need_importance and not is_placed  # without importance, small blocks of keys take less time
    tile = configurations.one_pass(architecture, keys, width, q.element_size()) if at_once else None
    # One pass with fewer programs than processors would take longer than a program for each block of queries.
    fills_device = batch * heads >= configurations.processors_of(q.device)
    if tile is not None and (fills_device or max_seqlen <= tile.rows):
        launching.launch(
            attention_one_pass,
            (heads, batch),
            *(q, k, v, out, logsumexp, importance, cu_seqlens_q, cu_seqlens, flags, total_q, total),
            *(*strides, out.stride(0), scale),
            tile=tile,
            BLOCK_Q=tile.rows,
            BLOCK_K=tile.columns,
            NEED_IMPORTANCE=need_importance,
            **constants,
        )
        return out, importance, logsumexp

    tile = configurations.streaming(architecture, width, q.element_size(), is_placed)
    constants |= {"PRECISION": configurations.precision(architecture), **placed}
    launching.launch(
        attention_streaming,
        (triton.cdiv(max_seqlen, tile.rows), heads, batch),
        *(q, k, v, out, logsumexp, cu_seqlens_q, cu_seqlens, flags, *places, total_q, total),
        *(*strides, out.stride(0), scale),
        tile=tile,
        BLOCK_Q=tile.rows,
        BLOCK_K=tile.columns,
        **constants,
    )
    if need_importance:
        launching.launch(
            attention_column_means,
            (triton.cdiv(max_seqlen, tile.columns), heads, batch),
            *(q, k, logsumexp, importance, cu_seqlens_q, cu_seqlens, flags, *places, total_q, total),
            *(*strides[:4], scale),
            tile=tile,
            BLOCK_Q=tile.rows,
            BLOCK_K=tile.columns,
            **constants,
        )
    return out, importance, logsumexp

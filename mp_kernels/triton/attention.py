"""Forward pass of attention within the samples of a packed batch, with the column means of the probabilities.

In half precision, if importance is wanted and the keys of every sample fit one tile, there is one pass: a program owns a
sample and a head, keeps its keys and values on the processor, and adds up the column sums of its blocks of queries.
Otherwise there are two: in the first a program owns a block of queries and uses FlashAttention's running softmax, in the
second a program owns a block of keys and sums its columns from the log-sum-exp. There are no atomics, so sums have a fixed
order and runs repeat bit by bit.

With a bias or a window there are two passes as well. With a window, a program visits only the blocks that its own block can
see: positions rise within a sample, so these follow each other, and memory and work are linear in the number of tokens.

In float32 there are always two passes, in tiles of one size, so that a sample's results do not depend on the samples beside
it. In half precision they depend on these by less than the rounding of the results: beside a sample of more than 128 keys,
and in a batch too small for the device, all take two passes.

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
    b_closed = tl.where(columns < keys, 0.0, float("-inf"))  # [BLOCK_K], added by the instruction that scales
    b_sums = tl.zeros([BLOCK_K], tl.float32)
    for first in range(0, queries, BLOCK_Q):
        rows = first + tl.arange(0, BLOCK_Q)
        b_q = load_rows(p_q, q_row_stride, first, queries, BLOCK_Q, HEAD_DIM, BLOCK_D)  # [BLOCK_Q, BLOCK_D]
        b_s = tl.dot(b_q, tl.trans(b_k)) * (scale * LOG2_E) + b_closed[None, :]  # [BLOCK_Q, BLOCK_K]
        b_max = tl.max(b_s, 1)  # [BLOCK_Q]
        b_p = tl.exp2(b_s - b_max[:, None])  # [BLOCK_Q, BLOCK_K]
        b_norm = tl.sum(b_p, 1)  # [BLOCK_Q]
        b_p *= tl.where(rows < queries, 1.0 / b_norm, 0.0)[:, None]
        if NEED_IMPORTANCE:
            b_sums += tl.sum(b_p, 0)
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
    BLOCK_Q_OF_32: tl.constexpr,
    BLOCK_Q_OF_64: tl.constexpr,
    NEED_IMPORTANCE: tl.constexpr,
    HAS_STAYS: tl.constexpr,
):
    """Program (head, sample): all results of a head of a sample with at most BLOCK_K keys of a half type.

    Samples of at most 32 keys, and those of at most 64, have blocks of BLOCK_Q_OF_32 and BLOCK_Q_OF_64 queries; 0: they take
    the next tile.
    """
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

    # A sample takes the tile of its own length, and no more time or another rounding beside longer ones.
    if BLOCK_Q_OF_32 > 0 and keys <= 32:
        attend_at_once(
            *(p_q, p_k, p_v, p_out, p_logsumexp, p_importance, queries, keys),
            *(q_row_stride, k_row_stride, v_row_stride, out_row_stride, scale),
            *(HEAD_DIM, BLOCK_D, BLOCK_Q_OF_32, 32, NEED_IMPORTANCE),
        )
    elif BLOCK_Q_OF_64 > 0 and keys <= 64:
        attend_at_once(
            *(p_q, p_k, p_v, p_out, p_logsumexp, p_importance, queries, keys),
            *(q_row_stride, k_row_stride, v_row_stride, out_row_stride, scale),
            *(HEAD_DIM, BLOCK_D, BLOCK_Q_OF_64, 64, NEED_IMPORTANCE),
        )
    else:
        attend_at_once(
            *(p_q, p_k, p_v, p_out, p_logsumexp, p_importance, queries, keys),
            *(q_row_stride, k_row_stride, v_row_stride, out_row_stride, scale),
            *(HEAD_DIM, BLOCK_D, BLOCK_Q, BLOCK_K, NEED_IMPORTANCE),
        )


@triton.jit
def attend_block(
    b_q,
    b_positions_q,
    b_max,
    b_norm,
    b_out,
    p_k,
    p_v,
    p_positions,
    p_bias,
    key,
    keys,
    reach,
    window,
    k_row_stride,
    v_row_stride,
    factor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    """Running maximum, norm and output of a block of queries after the keys from ``key`` on, which IS_WHOLE says all exist.

    Scores are scaled in the instruction that subtracts the maximum, so ``factor`` must be positive.
    """
    columns = key + tl.arange(0, BLOCK_K)
    b_k = load_rows(p_k, k_row_stride, key, keys, BLOCK_K, HEAD_DIM, BLOCK_D, IS_WHOLE)  # [BLOCK_K, BLOCK_D]
    b_v = load_rows(p_v, v_row_stride, key, keys, BLOCK_K, HEAD_DIM, BLOCK_D, IS_WHOLE)  # [BLOCK_K, BLOCK_D]
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BLOCK_Q, BLOCK_K]
    if HAS_BIAS or HAS_WINDOW:
        b_positions = tl.load(p_positions + columns, mask=columns < keys, other=0)
        b_distance = b_positions[None, :] - b_positions_q[:, None]
        b_s = placed_scores(b_s * factor, b_distance, p_bias, reach, window, HAS_BIAS, HAS_WINDOW)
        factor = 1.0
    if not IS_WHOLE:
        b_s = tl.where(columns[None, :] < keys, b_s, float("-inf"))
    b_new_max = tl.maximum(b_max, tl.max(b_s, 1) * factor)
    b_p = tl.exp2(b_s * factor - b_new_max[:, None])  # [BLOCK_Q, BLOCK_K]
    b_shrink = tl.exp2(b_max - b_new_max)
    b_norm = b_norm * b_shrink + tl.sum(b_p, 1)
    b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * b_shrink[:, None], input_precision=PRECISION)
    return b_new_max, b_norm, b_out


@triton.jit
def attend_to_all(
    first,
    p_q,
    p_k,
    p_v,
    p_out,
    p_logsumexp,
    p_positions_q,
    p_positions,
    p_bias,
    queries,
    keys,
    reach,
    window,
    q_row_stride,
    k_row_stride,
    v_row_stride,
    out_row_stride,
    factor,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    APART: tl.constexpr,
):
    """Out and log-sum-exp of the block of queries from ``first`` on; APART: whole blocks of keys are not masked."""
    rows = first + tl.arange(0, BLOCK_Q)
    b_q = load_rows(p_q, q_row_stride, first, queries, BLOCK_Q, HEAD_DIM, BLOCK_D)  # [BLOCK_Q, BLOCK_D]
    # A query may have seen no key yet, and infinity less infinity is no number.
    b_max = tl.full([BLOCK_Q], -3e38 if HAS_WINDOW else float("-inf"), tl.float32)
    b_norm = tl.zeros([BLOCK_Q], tl.float32)
    b_out = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    begin, end = 0, keys
    if HAS_WINDOW:
        begin, end = rows_in_reach(p_positions_q, first, queries, p_positions, keys, window, BLOCK_Q, BLOCK_K)
    b_positions_q = rows
    if HAS_BIAS or HAS_WINDOW:
        b_positions_q = tl.load(p_positions_q + rows, mask=rows < queries, other=0)
    whole = end // BLOCK_K * BLOCK_K if APART else end
    for key in range(begin, whole, BLOCK_K):
        b_max, b_norm, b_out = attend_block(
            *(b_q, b_positions_q, b_max, b_norm, b_out, p_k, p_v, p_positions, p_bias, key, keys, reach, window),
            *(k_row_stride, v_row_stride, factor),
            *(HEAD_DIM, BLOCK_D, BLOCK_K, PRECISION, HAS_BIAS, HAS_WINDOW, APART),
        )
    if APART:
        if whole < end:
            b_max, b_norm, b_out = attend_block(
                *(b_q, b_positions_q, b_max, b_norm, b_out, p_k, p_v, p_positions, p_bias, whole, keys, reach, window),
                *(k_row_stride, v_row_stride, factor),
                *(HEAD_DIM, BLOCK_D, BLOCK_K, PRECISION, HAS_BIAS, HAS_WINDOW, False),
            )
    if HAS_WINDOW:  # a query that sees no key gets zeros
        b_max = tl.where(b_norm == 0, 0.0, b_max)
        b_norm = tl.where(b_norm == 0, 1.0, b_norm)
    b_out *= (1.0 / b_norm)[:, None]
    store_rows(p_out, out_row_stride, first, queries, b_out, BLOCK_Q, HEAD_DIM, BLOCK_D)
    tl.store(p_logsumexp + rows, (b_max + tl.log2(b_norm)) / LOG2_E, mask=rows < queries)


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
    IS_SELF: tl.constexpr,
    APART: tl.constexpr,
):
    """Program (query blocks, head, sample): out and log-sum-exp for any number of keys.

    IS_SELF: each sample has as many queries as keys, and program p owns block p of them. Otherwise program p of P owns the
    blocks p, p + P, p + 2 P and so on. APART: whole blocks of keys are not masked.
    """
    head = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(2)
    q_begin, queries = sample_span(p_cu_seqlens_q, sample, total_q)
    k_begin, keys = sample_span(p_cu_seqlens, sample, total)
    covered = tl.num_programs(0) * BLOCK_Q
    tl.device_assert((queries <= covered) | (not IS_SELF), "max_seqlen must be at least the longest sample")
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

    # A loop around the loop over keys takes half as many registers again.
    if IS_SELF:
        if tl.program_id(0) * BLOCK_Q < queries:
            attend_to_all(
                tl.program_id(0) * BLOCK_Q,
                *(p_q, p_k, p_v, p_out, p_logsumexp, p_positions_q, p_positions, p_bias, queries, keys, reach, window),
                *(q_row_stride, k_row_stride, v_row_stride, out_row_stride, scale * LOG2_E),
                *(HEAD_DIM, BLOCK_D, BLOCK_Q, BLOCK_K, PRECISION, HAS_BIAS, HAS_WINDOW, APART),
            )
    else:
        for first in range(tl.program_id(0) * BLOCK_Q, queries, tl.num_programs(0) * BLOCK_Q):
            attend_to_all(
                first,
                *(p_q, p_k, p_v, p_out, p_logsumexp, p_positions_q, p_positions, p_bias, queries, keys, reach, window),
                *(q_row_stride, k_row_stride, v_row_stride, out_row_stride, scale * LOG2_E),
                *(HEAD_DIM, BLOCK_D, BLOCK_Q, BLOCK_K, PRECISION, HAS_BIAS, HAS_WINDOW, APART),
            )


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
    if scale <= 0:  # the kernels want a positive one
        q, scale = (-q, -scale) if scale < 0 else (torch.zeros_like(q), 1.0)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    is_self = cu_seqlens_q is cu_seqlens
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
        short = configurations.short_rows(architecture, tile, width)
        launching.launch(
            attention_one_pass,
            (heads, batch),
            *(q, k, v, out, logsumexp, importance, cu_seqlens_q, cu_seqlens, flags, total_q, total),
            *(*strides, out.stride(0), scale),
            tile=tile,
            BLOCK_Q=tile.rows,
            BLOCK_K=tile.columns,
            BLOCK_Q_OF_32=short[0],
            BLOCK_Q_OF_64=short[1],
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
        IS_SELF=is_self,
        APART=is_self and not is_placed and configurations.masks_apart(architecture, q.element_size()),
        **constants,
    )
    if need_importance:
        tile = configurations.column_means(architecture, width, q.element_size(), is_placed)
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

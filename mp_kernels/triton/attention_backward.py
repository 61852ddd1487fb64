"""Backward pass of attention within the samples of a packed batch, through its output and through the importance.

With ``G_hj = importance_grad[h,j] / n``, n the number of queries that see key j: ``dP_ij = dO_i . V_j + G_hj``,
``D_i = sum_j P_ij dP_ij``, ``dS = P o (dP - D)``, ``dQ = scale dS K``, ``dK = scale dS^T Q``, ``dV = P^T dO``, and the
gradient of a bias is the sum of ``dS`` over the pairs of its bucket. One kernel computes dQ, another dK and dV, a third the
bias's. Each block of a gradient is summed by one program, so there are no atomics and runs repeat bit by bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configurations, launching
from .places import entry_of, placed_scores, places_of, queries_seeing, rows_in_reach
from .tiles import LOG2_E, load_rows, sample_span, store_rows

SHARES = 8  # programs that sum a bias's gradient over a sample and a head; a power of two


@triton.jit
def key_block(
    p_importance_grad,
    p_k,
    p_v,
    p_positions_q,
    p_positions,
    p_bias,
    reach,
    window,
    b_q,
    b_out_grad,
    b_logsumexp,
    b_positions_q,
    key,
    queries,
    keys,
    k_row_stride,
    v_row_stride,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_IMPORTANCE_GRAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """The keys from ``key`` on ``[BLOCK_K, BLOCK_D]``, and P and dP of a block of queries ``[BLOCK_Q, BLOCK_K]``.

    P is ``exp2`` of the scores less ``b_logsumexp``, in units of log 2.
    """
    columns = key + tl.arange(0, BLOCK_K)
    b_k = load_rows(p_k, k_row_stride, key, keys, BLOCK_K, HEAD_DIM, BLOCK_D)  # [BLOCK_K, BLOCK_D]
    b_v = load_rows(p_v, v_row_stride, key, keys, BLOCK_K, HEAD_DIM, BLOCK_D)  # [BLOCK_K, BLOCK_D]
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * (scale * LOG2_E)  # [BLOCK_Q, BLOCK_K]
    b_positions = columns
    if HAS_BIAS or HAS_WINDOW:
        b_positions = tl.load(p_positions + columns, mask=columns < keys, other=0)
        b_distance = b_positions[None, :] - b_positions_q[:, None]
        b_s = placed_scores(b_s, b_distance, p_bias, reach, window, HAS_BIAS, HAS_WINDOW)
    b_p = tl.where(columns[None, :] < keys, tl.exp2(b_s - b_logsumexp[:, None]), 0.0)
    b_dp = tl.dot(b_out_grad, tl.trans(b_v), input_precision=PRECISION)
    if HAS_IMPORTANCE_GRAD:
        b_column_grad = tl.load(p_importance_grad + columns, mask=columns < keys, other=0.0)
        b_column_grad *= 1.0 / queries_seeing(p_positions_q, queries, b_positions, window, HAS_WINDOW)
        b_dp += b_column_grad[None, :]
    return b_k, b_p, b_dp


@triton.jit(do_not_specialize=["reach", "window", "total_q", "total"])
def attention_query_gradient(
    p_out_grad,
    p_importance_grad,
    p_q,
    p_k,
    p_v,
    p_logsumexp,
    p_q_grad,
    p_row_logsumexp,
    p_row_mean,
    p_cu_seqlens_q,
    p_cu_seqlens,
    p_positions_q,
    p_positions,
    p_bias,
    reach,
    window,
    total_q,
    total,
    out_grad_row_stride,
    out_grad_head_stride,
    importance_grad_head_stride,
    q_row_stride,
    q_head_stride,
    k_row_stride,
    k_head_stride,
    v_row_stride,
    v_head_stride,
    q_grad_row_stride,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_IMPORTANCE_GRAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """Program (query blocks, head, sample): dQ of the blocks of queries p, p + P, p + 2 P and so on, for program p of P.

    For the other kernels it also writes D and the log-sum-exp in units of log 2. The latter is summed anew, because large
    scores magnify the rounding error in that of the forward pass.
    """
    head = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(2)
    q_begin, queries = sample_span(p_cu_seqlens_q, sample, total_q)
    k_begin, keys = sample_span(p_cu_seqlens, sample, total)
    p_out_grad += q_begin * out_grad_row_stride + head * out_grad_head_stride
    p_importance_grad += head * importance_grad_head_stride + k_begin
    p_q += q_begin * q_row_stride + head * q_head_stride
    p_k += k_begin * k_row_stride + head * k_head_stride
    p_v += k_begin * v_row_stride + head * v_head_stride
    p_logsumexp += head * total_q + q_begin
    p_q_grad += q_begin * q_grad_row_stride + head * HEAD_DIM
    p_row_logsumexp += head * total_q + q_begin
    p_row_mean += head * total_q + q_begin
    p_positions_q += q_begin
    p_positions += k_begin
    p_bias += head * (2 * reach + 1)

    for first in range(tl.program_id(0) * BLOCK_Q, queries, tl.num_programs(0) * BLOCK_Q):
        rows = first + tl.arange(0, BLOCK_Q)
        b_q = load_rows(p_q, q_row_stride, first, queries, BLOCK_Q, HEAD_DIM, BLOCK_D)  # [BLOCK_Q, BLOCK_D]
        b_out_grad = load_rows(p_out_grad, out_grad_row_stride, first, queries, BLOCK_Q, HEAD_DIM, BLOCK_D)
        b_logsumexp = tl.load(p_logsumexp + rows, mask=rows < queries, other=0.0) * LOG2_E
        b_positions_q = rows
        if HAS_BIAS or HAS_WINDOW:
            b_positions_q = tl.load(p_positions_q + rows, mask=rows < queries, other=0)
        begin, end = 0, keys
        if HAS_WINDOW:
            begin, end = rows_in_reach(p_positions_q, first, queries, p_positions, keys, window, BLOCK_Q, BLOCK_K)
        b_norm = tl.zeros([BLOCK_Q], tl.float32)
        b_mean = tl.zeros([BLOCK_Q], tl.float32)
        for key in range(begin, end, BLOCK_K):
            _, b_p, b_dp = key_block(
                p_importance_grad, p_k, p_v, p_positions_q, p_positions, p_bias, reach, window,
                b_q, b_out_grad, b_logsumexp, b_positions_q, key, queries, keys, k_row_stride, v_row_stride, scale,
                HEAD_DIM, BLOCK_D, BLOCK_K, PRECISION, HAS_IMPORTANCE_GRAD, HAS_BIAS, HAS_WINDOW,
            )  # fmt: skip
            b_norm += tl.sum(b_p, 1)
            b_mean += tl.sum(b_p * b_dp, 1)
        if HAS_WINDOW:  # a query that sees no key has no probabilities
            b_norm = tl.where(b_norm == 0, 1.0, b_norm)
        b_mean /= b_norm
        b_logsumexp += tl.log2(b_norm)

        b_q_grad = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
        for key in range(begin, end, BLOCK_K):
            b_k, b_p, b_dp = key_block(
                p_importance_grad, p_k, p_v, p_positions_q, p_positions, p_bias, reach, window,
                b_q, b_out_grad, b_logsumexp, b_positions_q, key, queries, keys, k_row_stride, v_row_stride, scale,
                HEAD_DIM, BLOCK_D, BLOCK_K, PRECISION, HAS_IMPORTANCE_GRAD, HAS_BIAS, HAS_WINDOW,
            )  # fmt: skip
            b_ds = b_p * (b_dp - b_mean[:, None])
            b_q_grad = tl.dot(b_ds.to(b_k.dtype), b_k, b_q_grad, input_precision=PRECISION)
        store_rows(p_q_grad, q_grad_row_stride, first, queries, b_q_grad * scale, BLOCK_Q, HEAD_DIM, BLOCK_D)
        tl.store(p_row_logsumexp + rows, b_logsumexp, mask=rows < queries)
        tl.store(p_row_mean + rows, b_mean, mask=rows < queries)


@triton.jit(do_not_specialize=["reach", "window", "total_q", "total"])
def attention_key_value_gradient(
    p_out_grad,
    p_importance_grad,
    p_q,
    p_k,
    p_v,
    p_k_grad,
    p_v_grad,
    p_row_logsumexp,
    p_row_mean,
    p_cu_seqlens_q,
    p_cu_seqlens,
    p_positions_q,
    p_positions,
    p_bias,
    reach,
    window,
    total_q,
    total,
    out_grad_row_stride,
    out_grad_head_stride,
    importance_grad_head_stride,
    q_row_stride,
    q_head_stride,
    k_row_stride,
    k_head_stride,
    v_row_stride,
    v_head_stride,
    k_grad_row_stride,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_IMPORTANCE_GRAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """Program (key block, head, sample): dK and dV of a block of keys, summed over all queries that see one of them."""
    first = tl.program_id(0) * BLOCK_K
    head = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(2)
    q_begin, queries = sample_span(p_cu_seqlens_q, sample, total_q)
    k_begin, keys = sample_span(p_cu_seqlens, sample, total)
    tl.device_assert(keys <= tl.num_programs(0) * BLOCK_K, "max_seqlen must be at least the longest sample")
    if first >= keys:
        return
    p_out_grad += q_begin * out_grad_row_stride + head * out_grad_head_stride
    p_importance_grad += head * importance_grad_head_stride + k_begin
    p_q += q_begin * q_row_stride + head * q_head_stride
    p_k += k_begin * k_row_stride + head * k_head_stride
    p_v += k_begin * v_row_stride + head * v_head_stride
    p_k_grad += k_begin * k_grad_row_stride + head * HEAD_DIM
    p_v_grad += k_begin * k_grad_row_stride + head * HEAD_DIM
    p_row_logsumexp += head * total_q + q_begin
    p_row_mean += head * total_q + q_begin
    p_positions_q += q_begin
    p_positions += k_begin
    p_bias += head * (2 * reach + 1)
    columns = first + tl.arange(0, BLOCK_K)

    b_k = load_rows(p_k, k_row_stride, first, keys, BLOCK_K, HEAD_DIM, BLOCK_D)  # [BLOCK_K, BLOCK_D]
    b_v = load_rows(p_v, v_row_stride, first, keys, BLOCK_K, HEAD_DIM, BLOCK_D)  # [BLOCK_K, BLOCK_D]
    b_k_grad = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    b_v_grad = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    b_positions = columns
    if HAS_BIAS or HAS_WINDOW:
        b_positions = tl.load(p_positions + columns, mask=columns < keys, other=0)
    begin, end = 0, queries
    if HAS_WINDOW:
        begin, end = rows_in_reach(p_positions, first, keys, p_positions_q, queries, window, BLOCK_K, BLOCK_Q)
    if HAS_IMPORTANCE_GRAD:
        b_column_grad = tl.load(p_importance_grad + columns, mask=columns < keys, other=0.0)
        b_column_grad *= 1.0 / queries_seeing(p_positions_q, queries, b_positions, window, HAS_WINDOW)
    for query in range(begin, end, BLOCK_Q):
        rows = query + tl.arange(0, BLOCK_Q)
        b_q = load_rows(p_q, q_row_stride, query, queries, BLOCK_Q, HEAD_DIM, BLOCK_D)  # [BLOCK_Q, BLOCK_D]
        b_out_grad = load_rows(p_out_grad, out_grad_row_stride, query, queries, BLOCK_Q, HEAD_DIM, BLOCK_D)
        # Beyond the last query, infinity makes every probability zero.
        b_logsumexp = tl.load(p_row_logsumexp + rows, mask=rows < queries, other=float("inf"))
        b_mean = tl.load(p_row_mean + rows, mask=rows < queries, other=0.0)
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION) * (scale * LOG2_E)  # [BLOCK_K, BLOCK_Q]
        if HAS_BIAS or HAS_WINDOW:
            b_positions_q = tl.load(p_positions_q + rows, mask=rows < queries, other=0)
            b_distance = b_positions[:, None] - b_positions_q[None, :]
            b_s = placed_scores(b_s, b_distance, p_bias, reach, window, HAS_BIAS, HAS_WINDOW)
        b_p = tl.exp2(b_s - b_logsumexp[None, :])
        b_v_grad = tl.dot(b_p.to(b_out_grad.dtype), b_out_grad, b_v_grad, input_precision=PRECISION)
        b_dp = tl.dot(b_v, tl.trans(b_out_grad), input_precision=PRECISION)  # [BLOCK_K, BLOCK_Q]
        if HAS_IMPORTANCE_GRAD:
            b_dp += b_column_grad[:, None]
        b_ds = b_p * (b_dp - b_mean[None, :])
        b_k_grad = tl.dot(b_ds.to(b_q.dtype), b_q, b_k_grad, input_precision=PRECISION)
    store_rows(p_k_grad, k_grad_row_stride, first, keys, b_k_grad * scale, BLOCK_K, HEAD_DIM, BLOCK_D)
    store_rows(p_v_grad, k_grad_row_stride, first, keys, b_v_grad, BLOCK_K, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["reach", "window", "total_q", "total"])
def attention_bias_gradient(
    p_out_grad,
    p_importance_grad,
    p_q,
    p_k,
    p_v,
    p_bias_grad,
    p_row_logsumexp,
    p_row_mean,
    p_buckets,
    p_cu_seqlens_q,
    p_cu_seqlens,
    p_positions_q,
    p_positions,
    p_bias,
    reach,
    window,
    total_q,
    total,
    out_grad_row_stride,
    out_grad_head_stride,
    importance_grad_head_stride,
    q_row_stride,
    q_head_stride,
    k_row_stride,
    k_head_stride,
    v_row_stride,
    v_head_stride,
    buckets,
    scale,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PRECISION: tl.constexpr,
    HAS_IMPORTANCE_GRAD: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """Program (share, head, sample): the share of the query blocks p, p + P and so on in the bias's gradient."""
    head = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(2)
    q_begin, queries = sample_span(p_cu_seqlens_q, sample, total_q)
    k_begin, keys = sample_span(p_cu_seqlens, sample, total)
    p_out_grad += q_begin * out_grad_row_stride + head * out_grad_head_stride
    p_importance_grad += head * importance_grad_head_stride + k_begin
    p_q += q_begin * q_row_stride + head * q_head_stride
    p_k += k_begin * k_row_stride + head * k_head_stride
    p_v += k_begin * v_row_stride + head * v_head_stride
    p_row_logsumexp += head * total_q + q_begin
    p_row_mean += head * total_q + q_begin
    p_positions_q += q_begin
    p_positions += k_begin
    p_bias += head * (2 * reach + 1)

    numbers = tl.arange(0, BLOCK_B)
    b_sums = tl.zeros([BLOCK_B], tl.float32)
    for first in range(tl.program_id(0) * BLOCK_Q, queries, tl.num_programs(0) * BLOCK_Q):
        rows = first + tl.arange(0, BLOCK_Q)
        b_q = load_rows(p_q, q_row_stride, first, queries, BLOCK_Q, HEAD_DIM, BLOCK_D)  # [BLOCK_Q, BLOCK_D]
        b_out_grad = load_rows(p_out_grad, out_grad_row_stride, first, queries, BLOCK_Q, HEAD_DIM, BLOCK_D)
        b_logsumexp = tl.load(p_row_logsumexp + rows, mask=rows < queries, other=float("inf"))
        b_mean = tl.load(p_row_mean + rows, mask=rows < queries, other=0.0)
        b_positions_q = tl.load(p_positions_q + rows, mask=rows < queries, other=0)
        begin, end = 0, keys
        if HAS_WINDOW:
            begin, end = rows_in_reach(p_positions_q, first, queries, p_positions, keys, window, BLOCK_Q, BLOCK_K)
        for key in range(begin, end, BLOCK_K):
            _, b_p, b_dp = key_block(
                p_importance_grad, p_k, p_v, p_positions_q, p_positions, p_bias, reach, window,
                b_q, b_out_grad, b_logsumexp, b_positions_q, key, queries, keys, k_row_stride, v_row_stride, scale,
                HEAD_DIM, BLOCK_D, BLOCK_K, PRECISION, HAS_IMPORTANCE_GRAD, HAS_BIAS, HAS_WINDOW,
            )  # fmt: skip
            b_ds = b_p * (b_dp - b_mean[:, None])  # [BLOCK_Q, BLOCK_K]
            columns = key + tl.arange(0, BLOCK_K)
            b_positions = tl.load(p_positions + columns, mask=columns < keys, other=0)
            b_bucket = tl.load(p_buckets + entry_of(b_positions[None, :] - b_positions_q[:, None], reach))
            for bucket in range(tl.min(b_bucket), tl.max(b_bucket) + 1):
                b_sums += tl.where(numbers == bucket, tl.sum(tl.where(b_bucket == bucket, b_ds, 0.0)), 0.0)
    share = (tl.program_id(0) * tl.num_programs(2) + sample) * tl.num_programs(1) + head
    tl.store(p_bias_grad + share * buckets + numbers, b_sums, mask=numbers < buckets)


def ragged_attention_backward(
    out_grad: Tensor,
    importance_grad: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    logsumexp: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    positions_q: Tensor | None = None,
    positions: Tensor | None = None,
    bias: Tensor | None = None,
    buckets: Tensor | None = None,
    window: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    out_grad, q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (out_grad, q, k, v))
    logsumexp, cu_seqlens_q, cu_seqlens = (x.contiguous() for x in (logsumexp, cu_seqlens_q, cu_seqlens))
    column_grad = logsumexp if importance_grad is None else importance_grad  # stands in for a pointer that is not read
    column_grad = column_grad if column_grad.stride(-1) == 1 else column_grad.contiguous()
    total_q, heads, head_dim = q.shape
    total, batch = k.shape[0], cu_seqlens.shape[0] - 1
    q_grad, k_grad, v_grad = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    row_logsumexp, row_mean = torch.empty_like(logsumexp), torch.empty_like(logsumexp)

    width = launching.padded_width(head_dim)
    architecture = configurations.architecture_of(q.device)
    places, placed = places_of(cu_seqlens, total, positions_q, positions, bias, buckets, window)
    tiles = configurations.backward(architecture, width, q.element_size(), any(placed.values()))
    strides = (
        *out_grad.stride()[:2],
        column_grad.stride(0),
        *(stride for x in (q, k, v) for stride in x.stride()[:2]),
    )
    constants: dict[str, Any] = {
        "HEAD_DIM": head_dim,
        "BLOCK_D": width,
        "PRECISION": configurations.precision(architecture),
        "HAS_IMPORTANCE_GRAD": importance_grad is not None,
        **placed,
    }
    of_queries, of_keys = (constants | {"tile": x, "BLOCK_Q": x.rows, "BLOCK_K": x.columns} for x in tiles)
    samples = (cu_seqlens_q, cu_seqlens, *places, total_q, total)
    launching.launch(
        attention_query_gradient,
        (triton.cdiv(max_seqlen, of_queries["BLOCK_Q"]), heads, batch),
        *(out_grad, column_grad, q, k, v, logsumexp, q_grad, row_logsumexp, row_mean, *samples),
        *(*strides, q_grad.stride(0), scale),
        **of_queries,
    )
    launching.launch(
        attention_key_value_gradient,
        (triton.cdiv(max_seqlen, of_keys["BLOCK_K"]), heads, batch),
        *(out_grad, column_grad, q, k, v, k_grad, v_grad, row_logsumexp, row_mean, *samples),
        *(*strides, k_grad.stride(0), scale),
        **of_keys,
    )
    if bias is None or buckets is None:
        return q_grad, k_grad, v_grad, logsumexp.new_empty(0)
    bias_grad = logsumexp.new_empty(SHARES, batch, *bias.shape)
    launching.launch(
        attention_bias_gradient,
        (SHARES, heads, batch),
        *(out_grad, column_grad, q, k, v, bias_grad, row_logsumexp, row_mean, buckets.contiguous(), *samples),
        *(*strides, bias.shape[1], scale),
        BLOCK_B=launching.padded_width(bias.shape[1]),
        **of_queries,
    )
    # Shares of a sample are added pairwise, so that their order does not depend on the samples beside it.
    while bias_grad.shape[0] > 1:
        bias_grad = bias_grad[::2] + bias_grad[1::2]
    return q_grad, k_grad, v_grad, bias_grad[0].sum(0)

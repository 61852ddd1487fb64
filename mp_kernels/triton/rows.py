"""Token-wise steps between the matrix products, gathers and entropy, each in one pass over memory and in float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configurations, launching
from .tiles import sample_span


@triton.jit(do_not_specialize=["x_rows", "residual_rows"])
def add_norm(
    p_x,
    p_x_index,
    p_residual,
    p_index,
    p_weight,
    p_bias,
    p_out,
    x_stride,
    residual_stride,
    x_rows,
    residual_rows,
    width,
    eps,
    BLOCK: tl.constexpr,
    HAS_X_INDEX: tl.constexpr,
    HAS_INDEX: tl.constexpr,
):
    """Program (row): LayerNorm of the sum of two rows, read through their indices, which saves gathering them first."""
    row = tl.program_id(0).to(tl.int64)
    x_row = tl.load(p_x_index + row) if HAS_X_INDEX else row
    residual_row = tl.load(p_index + row) if HAS_INDEX else row
    tl.device_assert((x_row >= 0) & (x_row < x_rows), "x_index must lie within the rows of x")
    tl.device_assert((residual_row >= 0) & (residual_row < residual_rows), "index must lie within the rows of residual")
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    b_x = tl.load(p_x + x_row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    b_x += tl.load(p_residual + residual_row * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
    b_centred = tl.where(inside, b_x - tl.sum(b_x, 0) / width, 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 0) / width + eps)
    b_weight = tl.load(p_weight + columns, mask=inside, other=0.0).to(tl.float32)
    b_bias = tl.load(p_bias + columns, mask=inside, other=0.0).to(tl.float32)
    b_y = b_centred * inverse * b_weight + b_bias
    tl.store(p_out + row * width + columns, b_y.to(p_out.dtype.element_ty), mask=inside)


@triton.jit
def gelu(b_x, HALF: tl.constexpr):
    """The GELU by erf of a block in float32; for a result in a half type with a polynomial that is off by 2e-7 at most.

    The polynomial for ``erfc`` is Abramowitz and Stegun's 7.1.26. The device's own ``erf`` takes longer than the memory.
    """
    if not HALF:
        return 0.5 * b_x * (1.0 + tl.erf(b_x * 0.7071067811865476))
    b_z = tl.abs(b_x) * 0.7071067811865476
    b_t = 1.0 / (1.0 + 0.3275911 * b_z)
    b_p = 1.421413741 + b_t * (-1.453152027 + b_t * 1.061405429)
    b_p = b_t * (0.254829592 + b_t * (-0.284496736 + b_t * b_p))
    b_p *= tl.exp2(b_z * b_z * -1.4426950408889634)
    b_tail = tl.where(b_p == 0.0, 0.0, 0.5 * b_x * b_p)  # infinity times zero is no number
    return tl.where(b_x < 0, b_tail, b_x - b_tail)


@triton.jit
def add_bias_gelu(p_x, p_bias, p_out, x_stride, width, BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Program (row, column block): the exact GELU of x + bias."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    b_x = tl.load(p_x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        b_x += tl.load(p_bias + columns, mask=inside, other=0.0).to(tl.float32)
    b_y = gelu(b_x, p_out.dtype.element_ty.primitive_bitwidth == 16)
    tl.store(p_out + row * width + columns, b_y.to(p_out.dtype.element_ty), mask=inside)


@triton.jit
def gated_gelu(p_x, p_out, x_stride, width, BLOCK: tl.constexpr):
    """Program (row, column block): the exact GELU of the first half of a row of ``2 width``, times the second."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    p_x += row * x_stride
    b_x = tl.load(p_x + columns, mask=inside, other=0.0).to(tl.float32)
    b_gate = tl.load(p_x + width + columns, mask=inside, other=0.0).to(tl.float32)
    b_y = gelu(b_x, p_out.dtype.element_ty.primitive_bitwidth == 16) * b_gate
    tl.store(p_out + row * width + columns, b_y.to(p_out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["places"])
def rotate_pairs(
    p_x, p_positions, p_cos, p_sin, p_out, x_row_stride, x_head_stride, places, pairs,
    HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (row): the pairs of elements ``HALF`` apart in each head, turned by the angles of the row's position."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(p_positions + row)
    tl.device_assert((place >= 0) & (place < places), "positions must lie within the table")
    pair = tl.arange(0, BLOCK)
    inside = pair < pairs
    head, column = pair // HALF, pair % HALF
    b_cos = tl.load(p_cos + place.to(tl.int64) * HALF + column, mask=inside, other=0.0)
    b_sin = tl.load(p_sin + place.to(tl.int64) * HALF + column, mask=inside, other=0.0)
    p_x += row * x_row_stride + head.to(tl.int64) * x_head_stride + column
    b_first = tl.load(p_x, mask=inside, other=0.0).to(tl.float32)
    b_second = tl.load(p_x + HALF, mask=inside, other=0.0).to(tl.float32)
    p_out += row * (2 * pairs) + head * (2 * HALF) + column
    tl.store(p_out, (b_first * b_cos - b_second * b_sin).to(p_out.dtype.element_ty), mask=inside)
    tl.store(p_out + HALF, (b_second * b_cos + b_first * b_sin).to(p_out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["total"])
def mean_of_rows(p_x, p_cu_seqlens, p_out, x_stride, total, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Program (sample, column block): mean of the sample's rows; zero for a sample without rows."""
    sample = tl.program_id(0)
    begin, length = sample_span(p_cu_seqlens, sample, total)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p_x += begin * x_stride
    b_sum = tl.zeros([BLOCK], tl.float32)
    for first in range(0, length, ROWS):
        rows = first + tl.arange(0, ROWS)
        inside = (rows[:, None] < length) & (columns[None, :] < width)
        b_x = tl.load(p_x + rows[:, None].to(tl.int64) * x_stride + columns[None, :], mask=inside, other=0.0)
        b_sum += tl.sum(b_x.to(tl.float32), 0)
    b_mean = b_sum / tl.maximum(length, 1).to(tl.float32)
    tl.store(p_out + sample.to(tl.int64) * width + columns, b_mean.to(p_out.dtype.element_ty), mask=columns < width)


@triton.jit(do_not_specialize=["total"])
def features_of_pair(
    p_first, p_x, p_cu_seqlens, p_middles, p_out, first_stride, x_stride, total, width,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (sample, column block): the row of ``first``, the sample's mean, and distance and product of its parts'."""
    sample = tl.program_id(0)
    begin, length = sample_span(p_cu_seqlens, sample, total)
    middle = (tl.load(p_middles + sample) - begin).to(tl.int32)
    tl.device_assert((middle >= 0) & (middle <= length), "middles must lie within their samples")
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    p_x += begin * x_stride
    b_a, b_b = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for start in range(0, length, ROWS):
        rows = start + tl.arange(0, ROWS)
        inside = (rows[:, None] < length) & (columns[None, :] < width)
        b_x = tl.load(p_x + rows[:, None].to(tl.int64) * x_stride + columns[None, :], mask=inside, other=0.0)
        b_x = b_x.to(tl.float32)
        b_a += tl.sum(tl.where(rows[:, None] < middle, b_x, 0.0), 0)
        b_b += tl.sum(tl.where(rows[:, None] < middle, 0.0, b_x), 0)
    inside = columns < width
    p_out += sample.to(tl.int64) * width * 4 + columns
    b_first = tl.load(p_first + sample.to(tl.int64) * first_stride + columns, mask=inside, other=0.0)
    tl.store(p_out, b_first, mask=inside)
    b_mean = (b_a + b_b) / tl.maximum(length, 1).to(tl.float32)
    tl.store(p_out + width, b_mean.to(p_out.dtype.element_ty), mask=inside)
    b_a /= tl.maximum(middle, 1).to(tl.float32)
    b_b /= tl.maximum(length - middle, 1).to(tl.float32)
    tl.store(p_out + 2 * width, tl.abs(b_a - b_b).to(p_out.dtype.element_ty), mask=inside)
    tl.store(p_out + 3 * width, (b_a * b_b).to(p_out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["x_rows"])
def gather_rows(p_x, p_index, p_out, x_stride, x_rows, width, BLOCK: tl.constexpr):
    """Program (row, column block): the row of x that the index names."""
    row = tl.program_id(0).to(tl.int64)
    source = tl.load(p_index + row)
    tl.device_assert((source >= 0) & (source < x_rows), "index must lie within the rows of x")
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    b_x = tl.load(p_x + source * x_stride + columns, mask=inside, other=0)
    tl.store(p_out + row * width + columns, b_x, mask=inside)


@triton.jit(do_not_specialize=["count", "stride"])
def add_gathered(
    p_grad, p_sorted, p_order, p_out, grad_stride, count, width, stride, BLOCK: tl.constexpr, HAS_ORDER: tl.constexpr
):
    """Program (row of x, column block): sum of the gradients of the row's copies, found by bisection in the sorted index."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    first = row * 0  # entries of the index below this row
    while stride > 0:
        further = first + stride
        entry = tl.load(p_sorted + further - 1, mask=further <= count, other=9223372036854775807)
        first = tl.where(entry < row, further, first)
        stride = stride // 2
    b_sum = tl.zeros([BLOCK], tl.float64 if p_grad.dtype.element_ty == tl.float64 else tl.float32)
    entry = first
    while (entry < count) & (tl.load(p_sorted + entry, mask=entry < count, other=-1) == row):
        copy = tl.load(p_order + entry) if HAS_ORDER else entry
        tl.device_assert((copy >= 0) & (copy < count), "order must lie within the rows of grads")
        b_grad = tl.load(p_grad + copy * grad_stride + columns, mask=columns < width, other=0.0)
        b_sum += b_grad.to(b_sum.dtype)
        entry += 1
    tl.store(p_out + row * width + columns, b_sum.to(p_out.dtype.element_ty), mask=columns < width)


@triton.jit
def entropy_of_logits(b_logits, inside, log_classes):
    """Normalised entropy of each row of ``b_logits [rows, classes]``; a probability of 0 contributes 0."""
    b_logits = tl.where(inside, b_logits, float("-inf"))
    b_max = tl.max(b_logits, 1)
    b_p = tl.exp(b_logits - b_max[:, None])
    b_log_sum = tl.log(tl.sum(b_p, 1))
    b_log_p = b_logits - b_max[:, None] - b_log_sum[:, None]
    b_p = tl.exp(b_log_p)
    # A NaN must stay NaN, or the sample would seem certain. Minimum and maximum do not guarantee that; these selects do.
    b_entropy = -tl.sum(tl.where(b_p == 0, 0.0, b_p * b_log_p), 1) / log_classes
    b_entropy = tl.where(b_entropy < 0.0, 0.0, b_entropy)
    return tl.where(b_entropy > 1.0, 1.0, b_entropy)


@triton.jit
def label_entropy_of_logits(b_logits, inside):
    """Binary entropy, over log 2, of the least certain label of each row of ``b_logits [rows, labels]``.

    It falls with the logit's distance from 0, so that of the least distance counts.
    """
    b_distance = tl.where(inside, tl.abs(b_logits), float("inf"))
    b_broken = tl.max(tl.where(b_distance != b_distance, 1, 0), 1)
    b_least = tl.min(b_distance, 1)
    b_odds = tl.exp(-b_least)
    b_entropy = tl.log(1.0 + b_odds) + tl.where(b_odds == 0, 0.0, b_least * b_odds / (1.0 + b_odds))
    b_entropy = b_entropy * 1.4426950408889634  # / log 2
    b_entropy = tl.where(b_entropy > 1.0, 1.0, b_entropy)
    return tl.where(b_broken == 1, float("nan"), b_entropy)


@triton.jit(do_not_specialize=["batch"])
def entropy(
    p_logits,
    p_out,
    logits_stride,
    batch,
    classes,
    log_classes,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    MULTI_LABEL: tl.constexpr,
):
    """Program (sample block): uncertainty of each prediction."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    inside = (rows[:, None] < batch) & (columns[None, :] < classes)
    offsets = rows[:, None].to(tl.int64) * logits_stride + columns[None, :]
    # Rows beyond the last get zeros: a row of nothing but minus infinity would make a NaN.
    b_logits = tl.load(p_logits + offsets, mask=inside, other=0.0).to(tl.float32)
    if MULTI_LABEL:
        b_entropy = label_entropy_of_logits(b_logits, columns[None, :] < classes)
    else:
        b_entropy = entropy_of_logits(b_logits, columns[None, :] < classes, log_classes)
    tl.store(p_out + rows, b_entropy, mask=rows < batch)


def _rows_together(x: Tensor) -> Tensor:
    """``x`` as ``[rows, width]``. Each row is contiguous; rows need not follow each other in memory."""
    flat = x.flatten(1) if x.dim() > 1 else x.unsqueeze(1)
    return flat if flat.stride(1) == 1 or flat.shape[1] == 1 else flat.contiguous()


def add_layer_norm(
    x: Tensor, x_index: Tensor | None, residual: Tensor, index: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    x, residual = _rows_together(x), _rows_together(residual)
    rows, width = (x if x_index is None else x_index).shape[0], x.shape[1]
    out = x.new_empty(rows, width)
    block = launching.padded_width(width)
    launching.launch(
        add_norm,
        (rows,),
        *(x, x if x_index is None else x_index.contiguous(), residual, x if index is None else index.contiguous()),
        *(weight.contiguous(), bias.contiguous(), out, x.stride(0), residual.stride(0)),
        *(x.shape[0], residual.shape[0], width, eps),
        tile=configurations.one_row(block),
        BLOCK=block,
        HAS_X_INDEX=x_index is not None,
        HAS_INDEX=index is not None,
    )
    return out


def bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    x = _rows_together(x)
    rows, width = x.shape
    out = x.new_empty(rows, width)
    tile = configurations.ROWS
    launching.launch(
        add_bias_gelu,
        (rows, triton.cdiv(width, tile.columns)),
        *(x, x if bias is None else bias.contiguous(), out, x.stride(0), width),
        tile=tile,
        BLOCK=tile.columns,
        HAS_BIAS=bias is not None,
    )
    return out


def gelu_gate(x: Tensor) -> Tensor:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    x = _rows_together(x)
    rows, width = x.shape[0], x.shape[1] // 2
    out = x.new_empty(rows, width)
    tile = configurations.ROWS
    launching.launch(
        gated_gelu,
        (rows, triton.cdiv(width, tile.columns)),
        *(x, out, x.stride(0), width),
        tile=tile,
        BLOCK=tile.columns,
    )
    return out


def rotary_embedding(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    rows, heads, head_dim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    pairs = heads * head_dim // 2
    block = launching.padded_width(pairs)
    launching.launch(
        rotate_pairs,
        (rows,),
        *(x, positions.contiguous(), cos.contiguous(), sin.contiguous(), out, *x.stride()[:2], cos.shape[0], pairs),
        tile=configurations.one_row(block),
        HALF=head_dim // 2,
        BLOCK=block,
    )
    return out


def ragged_mean(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    x = _rows_together(x)
    batch, width = cu_seqlens.shape[0] - 1, x.shape[1]
    out = x.new_empty(batch, width)
    tile = configurations.MEANS
    launching.launch(
        mean_of_rows,
        (batch, triton.cdiv(width, tile.columns)),
        *(x, cu_seqlens.contiguous(), out, x.stride(0), x.shape[0], width),
        tile=tile,
        ROWS=tile.rows,
        BLOCK=tile.columns,
    )
    return out


def pair_features(first: Tensor, x: Tensor, cu_seqlens: Tensor, middles: Tensor) -> Tensor:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    first, x = _rows_together(first), _rows_together(x)
    batch, width = first.shape
    out = x.new_empty(batch, 4 * width)
    tile = configurations.MEANS
    launching.launch(
        features_of_pair,
        (batch, triton.cdiv(width, tile.columns)),
        *(first, x, cu_seqlens.contiguous(), middles.contiguous(), out),
        *(first.stride(0), x.stride(0), x.shape[0], width),
        tile=tile,
        ROWS=tile.rows,
        BLOCK=tile.columns,
    )
    return out


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_integers(x: Tensor) -> Tensor:
    """``x`` as ``[rows, width]`` integers of the same size, so that one kernel moves every dtype."""
    x = torch.view_as_real(x) if x.is_complex() else x
    return _rows_together(x.view(_INTEGERS[x.element_size()]))


def ragged_gather(xs: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    index = index.contiguous()
    gathered = []
    for x in xs:
        out = x.new_empty(index.shape[0], *x.shape[1:])
        source = as_integers(x)
        width = source.shape[1]
        tile = configurations.ROWS
        launching.launch(
            gather_rows,
            (index.shape[0], triton.cdiv(width, tile.columns)),
            *(source, index, as_integers(out), source.stride(0), source.shape[0], width),
            tile=tile,
            BLOCK=tile.columns,
        )
        gathered.append(out)
    return gathered


def ragged_gather_backward(
    grads: Sequence[Tensor], sorted_index: Tensor, order: Tensor | None, rows: Sequence[int]
) -> list[Tensor]:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    count = sorted_index.shape[0]
    scattered = []
    for grad, source_rows in zip(grads, rows, strict=True):
        out = grad.new_empty(source_rows, *grad.shape[1:])
        grad = _rows_together(grad)
        width = grad.shape[1]
        tile = configurations.ROWS
        launching.launch(
            add_gathered,
            (source_rows, triton.cdiv(width, tile.columns)),
            *(grad, sorted_index.contiguous(), sorted_index if order is None else order.contiguous(), out),
            *(grad.stride(0), count, width, launching.bisection_stride(count)),
            tile=tile,
            BLOCK=tile.columns,
            HAS_ORDER=order is not None,
        )
        scattered.append(out)
    return scattered

"""The public functions for linear layers and the steps around them, by the products that are fastest for their tensors.

bfloat16 on a processor with AMX or AVX-512 BF16 is multiplied by kernels of ours: sums become bfloat16 only after the step
that comes next, and no row depends on its companions, bit by bit. float32 is too, without that promise: all rows on
processors with AVX-512 VNNI and no AMX, and few rows with AVX2 alone, where torch's library spends its time on packing the
weight. All else, and whatever gradients are wanted of, takes torch's own product; in half precision on a CPU, torch's
library compiles a kernel for every number of rows that it meets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import extension
from .checks import FLOATING, check_cu_seqlens, check_residual, check_tensor, check_vector, describe
from .functional import add_layer_norm, bias_gelu, ragged_attention
from .memory import in_cache_blocks
from .reference import with_bias

# Rows are multiplied in blocks of multiples of these, and the last of them filled up to a multiple of FILLED: the library
# keeps 1,024 kernels, and to compile one takes milliseconds, as long as the product itself.
UNITS = (1024, 64)
FILLED = 16


class RowBlock(NamedTuple):
    """Rows ``begin`` to ``end`` of a matrix, multiplied as ``rows`` rows, some of which may be filling."""

    begin: int
    end: int
    rows: int


def row_blocks(count: int) -> list[RowBlock]:
    """Blocks that cover ``count`` rows in order; few numbers of rows occur in all of them, whatever the counts."""
    blocks, begin = [], 0
    for unit in UNITS:
        end = begin + (count - begin) // unit * unit
        if end > begin:
            blocks.append(RowBlock(begin, end, end - begin))
        begin = end
    if begin < count:
        blocks.append(RowBlock(begin, count, math.ceil((count - begin) / FILLED) * FILLED))
    return blocks


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``.

    Args:
        x: ``[rows, features]``, floating. Rows may lie apart in memory.
        weight: ``[outputs, features]`` of ``x``'s dtype.
        bias: ``[outputs]`` of ``x``'s dtype; None: no bias is added.

    Returns:
        ``[rows, outputs]`` of ``x``'s dtype. Differentiable.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
    """
    _check_layer(x, x.shape[-1], "weight", weight, "bias", bias)
    return torch.ops.mp_kernels.linear(x, weight, bias) if in_kernels(x, weight) else _product(x, weight, bias)


def linear_add_layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    index: Tensor | None = None,
) -> Tensor:
    """``LayerNorm(linear(x, weight, bias) + residual[index])``; mean and variance are computed in float32.

    Args:
        x, weight, bias: as for :func:`linear`.
        residual: ``[rows, outputs]``, or with ``index`` ``[any, outputs]``, of ``x``'s dtype.
        norm_weight, norm_bias: ``[outputs]`` of ``x``'s dtype.
        eps: number added to the variance.
        index: int64 ``[rows]``, the row of ``residual`` for each row of the result; None: the same row.

    Returns:
        ``[rows, outputs]`` of ``x``'s dtype. Differentiable.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
        RuntimeError: an index outside ``residual``'s rows.
    """
    _check_layer(x, x.shape[-1], "weight", weight, "bias", bias)
    _check_norm(x, weight.shape[0], residual, norm_weight, norm_bias, index)
    if in_kernels(x, weight):
        return torch.ops.mp_kernels.linear_add_layer_norm(x, weight, bias, residual, index, norm_weight, norm_bias, eps)
    return add_layer_norm(_product(x, weight, bias), residual, norm_weight, norm_bias, eps, index)


def feed_forward(
    x: Tensor,
    grow_weight: Tensor,
    grow_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> Tensor:
    """``LayerNorm(linear(gelu(linear(x, grow_weight, grow_bias)), weight, bias) + x)``, with the exact GELU.

    Args:
        x: ``[rows, outputs]``, floating. Rows may lie apart in memory.
        grow_weight: ``[features, outputs]`` of ``x``'s dtype.
        grow_bias: ``[features]`` of ``x``'s dtype; None: no bias is added.
        weight: ``[outputs, features]`` of ``x``'s dtype.
        bias, norm_weight, norm_bias: ``[outputs]`` of ``x``'s dtype; bias may be None.
        eps: number added to the variance.

    Returns:
        ``[rows, outputs]`` of ``x``'s dtype. Differentiable.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
    """
    _check_layer(x, x.shape[-1], "grow_weight", grow_weight, "grow_bias", grow_bias)
    if weight.shape[:1] != x.shape[1:]:
        raise ValueError(f"weight must have as many rows as x has columns, {x.shape[1]}; got {describe(weight)}")
    _check_layer(x, grow_weight.shape[0], "weight", weight, "bias", bias)
    _check_norm(x, weight.shape[0], x, norm_weight, norm_bias, None)
    if in_kernels(x, grow_weight, weight):
        return torch.ops.mp_kernels.feed_forward(x, grow_weight, grow_bias, weight, bias, norm_weight, norm_bias, eps)

    def step(block: Tensor) -> Tensor:
        # The bias is added on the way through the GELU, not copied into the product's memory before it.
        grown = bias_gelu(_product(block, grow_weight), grow_bias)
        return add_layer_norm(_product(grown, weight, bias), block, norm_weight, norm_bias, eps)

    return in_cache_blocks(step, x, grow_weight.shape[0] * x.element_size())


def post_norm_rest(
    x: Tensor,
    residual: Tensor,
    dense: Sequence[Tensor],
    dense_norm: Sequence[Tensor],
    dense_eps: float,
    grow: Sequence[Tensor],
    shrink: Sequence[Tensor],
    norm: Sequence[Tensor],
    eps: float,
    index: Tensor | None = None,
) -> Tensor:
    """All that follows attention in a layer that normalises after each residual, with the exact GELU.

    :func:`feed_forward` after :func:`linear_add_layer_norm`.

    Args:
        x: ``[rows, features]``, floating, the context. Rows may lie apart in memory.
        residual: ``[rows, width]`` of ``x``'s dtype, or with ``index`` ``[any, width]``.
        dense, grow, shrink: weight and bias of the linear layers, or the weight alone: ``[width, features]``,
            ``[inner, width]`` and ``[width, inner]``, with a bias for each output.
        dense_norm, norm: weight and bias of the LayerNorms, ``[width]`` each.
        dense_eps, eps: numbers added to their variances.
        index: int64 ``[rows]``, the row of ``residual`` for each row of the result; None: the same row.

    Returns:
        ``[rows, width]`` of ``x``'s dtype. Differentiable.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`linear_add_layer_norm`.
    """
    check_tensor("x", x, 2, FLOATING, x)
    if in_kernels(x, dense[0], grow[0], shrink[0]):
        return torch.ops.mp_kernels.post_norm_rest(
            x, residual, index, dense, dense_norm, dense_eps, grow, shrink, norm, eps
        )
    (dense_weight, dense_bias), (grow_weight, grow_bias), (weight, bias) = map(with_bias, (dense, grow, shrink))
    (dense_factor, dense_offset), (factor, offset) = dense_norm, norm
    attended = linear_add_layer_norm(
        x, dense_weight, dense_bias, residual, dense_factor, dense_offset, dense_eps, index
    )
    return feed_forward(attended, grow_weight, grow_bias, weight, bias, factor, offset, eps)


def post_norm_layer(
    x: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    heads: int,
    projections: Sequence[Tensor],
    dense: Sequence[Tensor],
    dense_norm: Sequence[Tensor],
    dense_eps: float,
    grow: Sequence[Tensor],
    shrink: Sequence[Tensor],
    norm: Sequence[Tensor],
    eps: float,
) -> Tensor:
    """A whole layer that normalises after each residual, with the exact GELU, in which no token is pruned.

    :func:`linear`, :func:`mp_kernels.ragged_attention` and :func:`post_norm_rest`, in one call: of a lone text, threads
    are woken once.

    Args:
        x: floating ``[total, width]``, the rows of a packed batch.
        cu_seqlens: int32 ``[batch + 1]``, the first row of each sample; 0 first, ``total`` last.
        max_seqlen: length of the longest sample, or more.
        heads: number of heads.
        projections: queries, keys and values as one linear layer of ``3 * heads * head_dim`` outputs, in this order.
        dense, dense_norm, dense_eps, grow, shrink, norm, eps: as for :func:`post_norm_rest`.

    Returns:
        ``[total, width]`` of ``x``'s dtype. Differentiable.

    Raises:
        TypeError, ValueError, RuntimeError: as for these functions.
    """
    check_tensor("x", x, 2, FLOATING, x)
    check_cu_seqlens(cu_seqlens, x)
    rest = dense, dense_norm, dense_eps, grow, shrink, norm, eps
    if in_kernels(x, projections[0], dense[0], grow[0], shrink[0]):
        return torch.ops.mp_kernels.post_norm_layer(x, cu_seqlens, max_seqlen, heads, projections, *rest)
    return post_norm_rest(self_attention(linear(x, *with_bias(projections)), cu_seqlens, max_seqlen, heads), x, *rest)


def post_norm_first(
    x: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    heads: int,
    queries: Sequence[Tensor],
    keys_values: Sequence[Tensor],
    dense: Sequence[Tensor],
    dense_norm: Sequence[Tensor],
    dense_eps: float,
    grow: Sequence[Tensor],
    shrink: Sequence[Tensor],
    norm: Sequence[Tensor],
    eps: float,
) -> Tensor:
    """The output of :func:`post_norm_layer` for the first row of each sample alone ([CLS]).

    Args:
        x, cu_seqlens, max_seqlen, heads: as for :func:`post_norm_layer`; each sample has a row.
        queries, keys_values: linear layers of ``heads * head_dim`` outputs, and of twice as many.
        dense, dense_norm, dense_eps, grow, shrink, norm, eps: as for :func:`post_norm_rest`.

    Returns:
        ``[batch, width]`` of ``x``'s dtype. Differentiable.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`post_norm_layer`.
    """
    check_tensor("x", x, 2, FLOATING, x)
    check_cu_seqlens(cu_seqlens, x)
    rest = dense, dense_norm, dense_eps, grow, shrink, norm, eps
    if in_kernels(x, queries[0], keys_values[0], dense[0], grow[0], shrink[0]):
        return torch.ops.mp_kernels.post_norm_first(x, cu_seqlens, max_seqlen, heads, queries, keys_values, *rest)
    first = x.index_select(0, cu_seqlens[:-1])
    asking, answering = linear(first, *with_bias(queries)), linear(x, *with_bias(keys_values))
    return post_norm_rest(first_attention(asking, answering, cu_seqlens, max_seqlen, heads), first, *rest)


def first_attention(asking: Tensor, answering: Tensor, cu_seqlens: Tensor, max_seqlen: int, heads: int) -> Tensor:
    """Context ``[batch, width]`` of a query a sample, ``[batch, width]``, and keys and values, ``[total, 2 width]``."""
    q, k, v = (x.unflatten(1, (heads, -1)) for x in (asking, *answering.chunk(2, dim=1)))
    starts_q = torch.arange(cu_seqlens.shape[0], dtype=torch.int32, device=q.device)
    out, _ = ragged_attention(q, k, v, cu_seqlens, max_seqlen, cu_seqlens_q=starts_q, need_importance=False)
    return out.flatten(1)


def self_attention(projected: Tensor, cu_seqlens: Tensor, max_seqlen: int, heads: int) -> Tensor:
    """Context ``[total, width]`` of queries, keys and values ``[total, 3 width]``."""
    q, k, v = (x.unflatten(1, (heads, -1)) for x in projected.chunk(3, dim=1))
    return ragged_attention(q, k, v, cu_seqlens, max_seqlen, need_importance=False)[0].flatten(1)


def _check_layer(x: Tensor, features: int, name: str, weight: Tensor, bias_name: str, bias: Tensor | None) -> None:
    check_tensor("x", x, 2, FLOATING, x)
    check_tensor(name, weight, 2, (x.dtype,), x)
    if weight.shape[1] != features:
        raise ValueError(f"{name} must be [outputs, {features}]; got {describe(weight)}")
    if bias is not None:
        check_vector(bias_name, bias, weight.shape[0], (x.dtype,), x)


def _check_norm(
    x: Tensor, width: int, residual: Tensor, norm_weight: Tensor, norm_bias: Tensor, index: Tensor | None
) -> None:
    check_residual(residual, index, width, x.dtype, "x", x)
    check_vector("norm_weight", norm_weight, width, (x.dtype,), x)
    check_vector("norm_bias", norm_bias, width, (x.dtype,), x)


def in_kernels(x: Tensor, *weights: Tensor) -> bool:
    """Whether our own kernels multiply ``x`` by all of these."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if x.dtype == torch.bfloat16:
        return all(extension.multiplies_bfloat16(*weight.shape) for weight in weights)
    if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):  # by which many rows would have another dtype
        return False
    return all(x.shape[0] <= extension.float_rows(*weight.shape) for weight in weights)


def in_blocks(x: Tensor) -> bool:
    """Whether the rows of ``x`` are multiplied in blocks."""
    on_cpu = x.device.type == "cpu" and x.element_size() == 2
    return on_cpu and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` by torch."""
    if not in_blocks(x):
        return F.linear(x, weight, bias)
    blocks = row_blocks(x.shape[0])
    if len(blocks) == 1 and blocks[0].rows == x.shape[0]:
        return F.linear(x, weight, bias)
    out = x.new_empty(x.shape[0], weight.shape[0])
    for begin, end, rows in blocks:
        part, into = x[begin:end], out[begin:end]
        if rows > end - begin:
            filled = x.new_zeros(rows, x.shape[1])
            filled[: end - begin] = part
            into.copy_(F.linear(filled, weight, bias)[: end - begin])
        elif bias is None:
            torch.mm(part, weight.t(), out=into)
        else:
            torch.addmm(bias, part, weight.t(), out=into)
    return out

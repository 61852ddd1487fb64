"""The public functions of int8 models: the steps around products of int8 matrices, and the layers of heads.

A float32 matrix becomes int8 rows with a scale a row, so that no row depends on its companions; the weights of a linear
layer are rows too, one an output. Their products are exact, and become floats on their way through the step that comes
next. Processors with AMX, or with AVX2 alone, compute them by kernels of ours, which read weights fastest in an order of
their own: :func:`pack_int8_weight_`; others by torch. Columns whose values are far larger than the
others' would leave these few of the 255 integers: such columns can be kept as floats, and are 0 in the int8 rows. All this
is for inference: nothing here has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import extension, reference
from .checks import (
    check_cu_seqlens,
    check_int8_weight,
    check_residual,
    check_tensor,
    check_vector,
    describe,
    int8_weight_shape,
)
from .functional import add_layer_norm
from .memory import in_cache_blocks
from .products import first_attention, self_attention

_ops = torch.ops.mp_kernels
_FLOAT32, _INT8, _INT64 = (torch.float32,), (torch.int8,), (torch.int64,)


def ordered_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """A linear layer whose every output is added up in one order, so that no row depends on its companions, bit by bit.

    torch's own product chooses its order by the number of rows, and is faster for many.

    Args:
        x: float32 ``[rows, features]``.
        weight, bias: float32 ``[outputs, features]`` and ``[outputs]``.

    Returns:
        float32 ``[rows, outputs]``.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
        RuntimeError: a gradient is asked for.
    """
    check_tensor("x", x, 2, _FLOAT32, x)
    check_tensor("weight", weight, 2, _FLOAT32, x)
    check_vector("bias", bias, weight.shape[0], _FLOAT32, x)
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"x and weight must have the same features; got {describe(x)} and {describe(weight)}")
    _refuse_gradient(x, weight, bias)
    return _ops.ordered_linear(x, weight, bias)


def quantize_rows(
    x: torch.Tensor, index: torch.Tensor | None = None, *, columns: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Rounds each row to integers of -127 to 127, the row's largest magnitude being 127.

    Args:
        x: float32 ``[rows, width]``, or with ``index`` ``[any, width]``.
        index: int64 ``[rows]``, the row of ``x`` for each row of the result; None: the same row.
        columns: int64 ``[columns]``, columns that are kept as floats, 0 taking their places; None: none is.

    Returns:
        ``rows``, int8 ``[rows, width]``, and ``scales``, float32 ``[rows]``: ``x`` is about ``rows * scales[:, None]``. The
        scale of a row with a value that is not finite is NaN. With ``columns`` also ``kept``, float32 ``[rows, columns]``.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
        RuntimeError: an index outside ``x``'s rows, or columns outside its width; a gradient is asked for.
    """
    check_tensor("x", x, 2, _FLOAT32, x)
    _check_index("index", index, x)
    _check_index("columns", columns, x)
    _refuse_gradient(x)
    return _ops.quantize_rows(x, index, columns)[: 2 if columns is None else 3]


def dequantize_rows(rows: torch.Tensor, scales: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
    """``rows * scales[:, None]``, float32 ``[rows, width]``: what :func:`quantize_rows` rounded.

    Args:
        rows: int8 ``[rows, width]``, or with ``index`` ``[any, width]``.
        scales: float32, one for each of ``rows``.
        index: int64, the row of ``rows`` for each row of the result; None: the same row.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
        RuntimeError: an index outside ``rows``; a gradient is asked for.
    """
    check_tensor("rows", rows, 2, _INT8, rows)
    check_vector("scales", scales, rows.shape[0], _FLOAT32, rows)
    _check_index("index", index, rows)
    _refuse_gradient(scales)
    return _ops.dequantize_rows(rows, scales, index)


def pack_int8_weight_(weight: torch.Tensor) -> torch.Tensor:
    """Lays a weight out as this processor's int8 products read it, in its own memory.

    Nothing else may look at that memory any more. A product packs a weight that is not, each time, which takes as long as
    the product of up to ten rows.

    Args:
        weight: int8 ``[outputs, features]``, contiguous, or packed before.

    Returns:
        The weight, packed: ``[outputs / 16, features / group, 16, group]``; or as it is, where torch multiplies it.

    Raises:
        TypeError, ValueError: a wrong dtype or shape; a weight that is not contiguous.
    """
    check_int8_weight("weight", weight, weight)
    if not weight.is_contiguous():
        raise ValueError(f"weight must be contiguous; got strides {list(weight.stride())} of {describe(weight)}")
    group = extension.int8_group(*weight.shape) if weight.dim() == 2 and weight.device.type == "cpu" else 0
    if group == 0:
        return weight
    with torch.inference_mode():  # which weights that were made in it need
        packed = reference.pack_int8_weight(weight, group)
        return weight.view(packed.shape).copy_(packed)


def unpack_int8_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight as int8 ``[outputs, features]``: a copy of a packed one, or the weight itself.

    Args:
        weight: int8 ``[outputs, features]``, or packed.

    Raises:
        TypeError, ValueError: a wrong dtype or shape.
    """
    check_int8_weight("weight", weight, weight)
    return reference.unpack_int8_weight(weight)


def int8_linear(
    rows: torch.Tensor,
    row_scales: torch.Tensor,
    weight: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
    kept_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """``(rows @ weight.T) * row_scales[:, None] * column_scales + bias + kept @ kept_weight.T``.

    Args:
        rows: int8 ``[rows, features]``.
        row_scales: float32 ``[rows]``.
        weight: int8 ``[outputs, features]``, or packed (:func:`pack_int8_weight_`).
        column_scales: float32 ``[outputs]``, the scales of the weight's rows.
        bias: float32 ``[outputs]``; None: no bias is added.
        kept, kept_weight: float32 ``[rows, columns]`` and ``[outputs, columns]``, the columns of both that are floats; None:
            there are none.

    Returns:
        float32 ``[rows, outputs]``.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
        RuntimeError: a gradient is asked for.
    """
    _check_linear(rows, row_scales, weight, column_scales, bias)
    _check_kept(kept, kept_weight, rows, weight)
    return _ops.int8_linear(rows, row_scales, weight, column_scales, bias, kept, kept_weight)


def int8_linear_gelu(
    rows: torch.Tensor,
    row_scales: torch.Tensor,
    weight: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
    kept_weight: torch.Tensor | None = None,
    *,
    columns: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """The exact GELU of :func:`int8_linear`, quantised again as by :func:`quantize_rows`.

    Args:
        rows, row_scales, weight, column_scales, bias, kept, kept_weight: as for :func:`int8_linear`.
        columns: as for :func:`quantize_rows`.

    Returns:
        int8 ``[rows, outputs]``, float32 ``[rows]``, and with ``columns`` float32 ``[rows, columns]``.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`int8_linear` and :func:`quantize_rows`.
    """
    _check_linear(rows, row_scales, weight, column_scales, bias)
    _check_kept(kept, kept_weight, rows, weight)
    _check_index("columns", columns, rows)
    result = _ops.int8_linear_gelu(rows, row_scales, weight, column_scales, bias, kept, kept_weight, columns)
    return result[: 2 if columns is None else 3]


def int8_linear_add_layer_norm(
    rows: torch.Tensor,
    row_scales: torch.Tensor,
    weight: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    index: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
    kept_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """``LayerNorm(int8_linear(...) + residual[index])``, float32 ``[rows, outputs]``.

    Args:
        rows, row_scales, weight, column_scales, bias: as for :func:`int8_linear`.
        residual: float32 ``[rows, outputs]``, or with ``index`` ``[any, outputs]``.
        norm_weight, norm_bias: float32 ``[outputs]``.
        eps: number added to the variance.
        index: int64 ``[rows]``, the row of ``residual`` for each row of the result; None: the same row.
        kept, kept_weight: as for :func:`int8_linear`.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
        RuntimeError: an index outside ``residual``'s rows; a gradient is asked for.
    """
    _check_linear(rows, row_scales, weight, column_scales, bias)
    _check_kept(kept, kept_weight, rows, weight)
    outputs, _ = int8_weight_shape(weight)
    check_residual(residual, index, outputs, torch.float32, "rows", rows)
    check_vector("norm_weight", norm_weight, outputs, _FLOAT32, rows)
    check_vector("norm_bias", norm_bias, outputs, _FLOAT32, rows)
    _refuse_gradient(residual, norm_weight, norm_bias)
    return _ops.int8_linear_add_layer_norm(
        *(rows, row_scales, weight, column_scales, bias),
        *(residual, index, norm_weight, norm_bias, eps, kept, kept_weight),
    )


def int8_dynamic_linear(x: torch.Tensor, layer: Sequence[torch.Tensor]) -> torch.Tensor:
    """An int8 linear layer for rows of floats, which are quantised on their way into the product.

    Args:
        x: float32 ``[rows, features]``.
        layer: the layer's weight, scales and bias, as for :func:`int8_linear`; where columns of the rows are kept as
            floats, also these, int64 ``[columns]``, and their weight, float32 ``[outputs, columns]``.

    Returns:
        float32 ``[rows, outputs]``.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`quantize_rows` and :func:`int8_linear`.
    """
    check_tensor("x", x, 2, _FLOAT32, x)
    _refuse_gradient(x)
    if _in_kernels(x, layer):
        return _ops.int8_dynamic_linear(x, layer)
    factors, kept = _quantised(x, layer)
    return int8_linear(*factors, *kept)


def int8_post_norm_rest(
    x: torch.Tensor,
    residual: torch.Tensor,
    dense: Sequence[torch.Tensor],
    dense_norm: Sequence[torch.Tensor],
    dense_eps: float,
    grow: Sequence[torch.Tensor],
    shrink: Sequence[torch.Tensor],
    norm: Sequence[torch.Tensor],
    eps: float,
    index: torch.Tensor | None = None,
) -> torch.Tensor:
    """All that follows attention in an int8 layer that normalises after each residual, with the exact GELU.

    ``LayerNorm(shrink(gelu(grow(y))) + y)`` with ``y = LayerNorm(dense(x) + residual[index])``.

    Args:
        x: float32 ``[rows, features]``, the context.
        residual: float32 ``[rows, width]``, or with ``index`` ``[any, width]``.
        dense, grow, shrink: linear layers, as for :func:`int8_dynamic_linear`.
        dense_norm, norm: weight and bias of the LayerNorms, float32 ``[width]`` each.
        dense_eps, eps: numbers added to their variances.
        index: int64 ``[rows]``, the row of ``residual`` for each row of the result; None: the same row.

    Returns:
        float32 ``[rows, width]``.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`int8_linear_add_layer_norm`.
    """
    check_tensor("x", x, 2, _FLOAT32, x)
    _refuse_gradient(x, residual, *dense_norm, *norm)
    if _in_kernels(x, dense, grow, shrink):
        return _ops.int8_post_norm_rest(x, residual, index, dense, dense_norm, dense_eps, grow, shrink, norm, eps)

    (dense_factor, dense_offset), (factor, offset) = dense_norm, norm

    def step(block: torch.Tensor) -> torch.Tensor:
        factors, kept = _quantised(block, grow)
        columns = shrink[3] if len(shrink) > 3 else None
        rows, scales, *floats = int8_linear_gelu(*factors, *kept, columns=columns)
        weight, scale, bias, *_ = shrink
        kept = [*floats, shrink[4]] if floats else []
        return int8_linear_add_layer_norm(rows, scales, weight, scale, bias, block, factor, offset, eps, None, *kept)

    attended = add_layer_norm(int8_dynamic_linear(x, dense), residual, dense_factor, dense_offset, dense_eps, index)
    return in_cache_blocks(step, attended, int8_weight_shape(grow[0])[0])


def int8_post_norm_layer(
    x: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    heads: int,
    projections: Sequence[torch.Tensor],
    dense: Sequence[torch.Tensor],
    dense_norm: Sequence[torch.Tensor],
    dense_eps: float,
    grow: Sequence[torch.Tensor],
    shrink: Sequence[torch.Tensor],
    norm: Sequence[torch.Tensor],
    eps: float,
) -> torch.Tensor:
    """A whole int8 layer that normalises after each residual, with the exact GELU, in which no token is pruned.

    :func:`int8_dynamic_linear`, :func:`mp_kernels.ragged_attention` and :func:`int8_post_norm_rest`, in one call.

    Args:
        x: float32 ``[total, width]``, the rows of a packed batch.
        cu_seqlens: int32 ``[batch + 1]``, the first row of each sample; 0 first, ``total`` last.
        max_seqlen: length of the longest sample, or more.
        heads: number of heads.
        projections: queries, keys and values as one linear layer of ``3 * heads * head_dim`` outputs, in this order.
        dense, dense_norm, dense_eps, grow, shrink, norm, eps: as for :func:`int8_post_norm_rest`.

    Returns:
        float32 ``[total, width]``.

    Raises:
        TypeError, ValueError, RuntimeError: as for these functions.
    """
    check_tensor("x", x, 2, _FLOAT32, x)
    check_cu_seqlens(cu_seqlens, x)
    _refuse_gradient(x, *dense_norm, *norm)
    rest = dense, dense_norm, dense_eps, grow, shrink, norm, eps
    if _in_kernels(x, projections, dense, grow, shrink):
        return _ops.int8_post_norm_layer(x, cu_seqlens, max_seqlen, heads, projections, *rest)
    context = self_attention(int8_dynamic_linear(x, projections), cu_seqlens, max_seqlen, heads)
    return int8_post_norm_rest(context, x, *rest)


def int8_post_norm_first(
    x: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    heads: int,
    queries: Sequence[torch.Tensor],
    keys_values: Sequence[torch.Tensor],
    dense: Sequence[torch.Tensor],
    dense_norm: Sequence[torch.Tensor],
    dense_eps: float,
    grow: Sequence[torch.Tensor],
    shrink: Sequence[torch.Tensor],
    norm: Sequence[torch.Tensor],
    eps: float,
) -> torch.Tensor:
    """The output of :func:`int8_post_norm_layer` for the first row of each sample alone ([CLS]).

    Args:
        x, cu_seqlens, max_seqlen, heads: as for :func:`int8_post_norm_layer`; each sample has a row.
        queries, keys_values: linear layers of ``heads * head_dim`` outputs, and of twice as many.
        dense, dense_norm, dense_eps, grow, shrink, norm, eps: as for :func:`int8_post_norm_rest`.

    Returns:
        ``[batch, width]``, float32.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`int8_post_norm_layer`.
    """
    check_tensor("x", x, 2, _FLOAT32, x)
    check_cu_seqlens(cu_seqlens, x)
    _refuse_gradient(x, *dense_norm, *norm)
    rest = dense, dense_norm, dense_eps, grow, shrink, norm, eps
    if _in_kernels(x, queries, keys_values, dense, grow, shrink):
        return _ops.int8_post_norm_first(x, cu_seqlens, max_seqlen, heads, queries, keys_values, *rest)
    first = x.index_select(0, cu_seqlens[:-1])
    asking, answering = int8_dynamic_linear(first, queries), int8_dynamic_linear(x, keys_values)
    return int8_post_norm_rest(first_attention(asking, answering, cu_seqlens, max_seqlen, heads), first, *rest)


def _in_kernels(x: torch.Tensor, *layers: Sequence[torch.Tensor]) -> bool:
    """Whether our own kernels multiply int8 rows by the weights of all these layers."""
    return x.device.type == "cpu" and all(extension.int8_group(*int8_weight_shape(weight)) for weight, *_ in layers)


def _quantised(x: torch.Tensor, layer: Sequence[torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], list[torch.Tensor]]:
    """The arguments of an int8 product of rows of floats with a layer, and what is kept of both."""
    weight, scale, bias, *kept = layer
    rows, scales, *floats = quantize_rows(x, columns=kept[0] if kept else None)
    return (rows, scales, weight, scale, bias), [*floats, *kept[1:]]


def _check_linear(
    rows: torch.Tensor,
    row_scales: torch.Tensor,
    weight: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None,
) -> None:
    check_tensor("rows", rows, 2, _INT8, rows)
    check_int8_weight("weight", weight, rows)
    outputs, features = int8_weight_shape(weight)
    if features != rows.shape[1]:
        raise ValueError(f"rows and weight must have the same features; got {describe(rows)} and {describe(weight)}")
    check_vector("row_scales", row_scales, rows.shape[0], _FLOAT32, rows)
    check_vector("column_scales", column_scales, outputs, _FLOAT32, rows)
    if bias is not None:
        check_vector("bias", bias, outputs, _FLOAT32, rows)
    _refuse_gradient(row_scales, column_scales, bias)


def _check_index(name: str, index: torch.Tensor | None, like: torch.Tensor) -> None:
    if index is not None:
        check_tensor(name, index, 1, _INT64, like)


def _check_kept(
    kept: torch.Tensor | None, kept_weight: torch.Tensor | None, rows: torch.Tensor, weight: torch.Tensor
) -> None:
    if kept is None and kept_weight is None:
        return
    if kept is None or kept_weight is None:
        raise ValueError("kept and kept_weight must be given together, or neither")
    check_tensor("kept", kept, 2, _FLOAT32, rows)
    check_tensor("kept_weight", kept_weight, 2, _FLOAT32, rows)
    columns, (outputs, _) = kept.shape[1], int8_weight_shape(weight)
    if kept.shape[0] != rows.shape[0] or kept_weight.shape != (outputs, columns):
        raise ValueError(
            f"kept must be [{rows.shape[0]}, columns] and kept_weight [{outputs}, columns]; "
            f"got {describe(kept)} and {describe(kept_weight)}"
        )
    _refuse_gradient(kept, kept_weight)


def _refuse_gradient(*floats: torch.Tensor | None) -> None:
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in floats):
        raise RuntimeError(
            "int8 steps have no gradient; call them under torch.inference_mode(), or train the float32 model"
        )

"""Shapes and dtypes of the operators' results, for ``torch.compile`` and meta tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import int8_weight_shape
from .schemas import Compaction, Function, library


def _fakes(function: Function) -> Function:
    torch.library.register_fake(f"mp_kernels::{function.__name__}", function, lib=library)
    return function


def _at_least_float32(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


@_fakes
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
    *places: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    importance = _at_least_float32(q, q.shape[1], k.shape[0] if need_importance else 0)
    return q.new_empty(q.shape), importance, _at_least_float32(q, q.shape[1], q.shape[0])


@_fakes
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
) -> tuple[Tensor, ...]:
    bias_grad = _at_least_float32(q, *((0,) if bias is None else bias.shape))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), bias_grad


@_fakes
def mean_over_heads(importance: Tensor) -> Tensor:
    return importance.new_empty(importance.shape[1])


def _compaction(cu_seqlens: Tensor, total: int) -> Compaction:
    index, samples, extents = (
        cu_seqlens.new_empty(size, dtype=torch.int64) for size in (total, cu_seqlens.shape[0] - 1, 4)
    )
    return index, cu_seqlens.new_empty(cu_seqlens.shape), samples, extents


@_fakes
def prune_tokens(importance: Tensor, cu_seqlens: Tensor, stays: Tensor | None, threshold: float) -> Compaction:
    return _compaction(cu_seqlens, importance.shape[-1])


@_fakes
def prune_rows(x: Tensor, importance: Tensor, cu_seqlens: Tensor, threshold: float) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), *_compaction(cu_seqlens, x.shape[0])


@_fakes
def top_k_tokens(importance: Tensor, cu_seqlens: Tensor, stays: Tensor | None, k: Tensor) -> Compaction:
    return _compaction(cu_seqlens, importance.shape[-1])


@_fakes
def select_samples(cu_seqlens: Tensor, stays: Tensor, total: int) -> Compaction:
    return _compaction(cu_seqlens, total)


@_fakes
def measure_padded(attention_mask: Tensor, xs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    cu_seqlens = attention_mask.new_empty(attention_mask.shape[0] + 1, dtype=torch.int32)
    return cu_seqlens, cu_seqlens.new_empty(5 + 2 * len(xs), dtype=torch.int64)


@_fakes
def pack_padded(
    attention_mask: Tensor, cu_seqlens: Tensor, total: int, xs: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    index, places = (cu_seqlens.new_empty(total, dtype=torch.int64) for _ in range(2))
    return index, places, cu_seqlens.new_empty(len(xs), total, dtype=torch.int64)


@_fakes
def ragged_gather(xs: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    return [x.new_empty((index.shape[0], *x.shape[1:])) for x in xs]


@_fakes
def ragged_gather_backward(
    grads: Sequence[Tensor], sorted_index: Tensor, order: Tensor | None, rows: Sequence[int]
) -> list[Tensor]:
    return [grad.new_empty((count, *grad.shape[1:])) for grad, count in zip(grads, rows, strict=True)]


@_fakes
def ragged_mean(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    return x.new_empty(cu_seqlens.shape[0] - 1, x.shape[1])


@_fakes
def pair_features(first: Tensor, x: Tensor, cu_seqlens: Tensor, middles: Tensor) -> Tensor:
    return x.new_empty(cu_seqlens.shape[0] - 1, 4 * x.shape[1])


@_fakes
def add_layer_norm(
    x: Tensor, x_index: Tensor | None, residual: Tensor, index: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    return x.new_empty(x.shape[0] if x_index is None else x_index.shape[0], x.shape[1])


@_fakes
def bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@_fakes
def gelu_gate(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // 2)


@_fakes
def rotary_embedding(x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@_fakes
def ordered_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@_fakes
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@_fakes
def linear_add_layer_norm(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@_fakes
def feed_forward(x: Tensor, *layers: Any) -> Tensor:
    return x.new_empty(x.shape)


@_fakes
def post_norm_rest(x: Tensor, residual: Tensor, *layers: Any) -> Tensor:
    return x.new_empty(x.shape[0], residual.shape[1])


@_fakes
def post_norm_layer(x: Tensor, *layers: Any) -> Tensor:
    return x.new_empty(x.shape)


@_fakes
def post_norm_first(x: Tensor, cu_seqlens: Tensor, *layers: Any) -> Tensor:
    return x.new_empty(cu_seqlens.shape[0] - 1, x.shape[1])


def _int8_rows(like: Tensor, count: int, width: int, columns: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    kept = 0 if columns is None else columns.shape[0]
    floats = like.new_empty(count, dtype=torch.float32), like.new_empty(count, kept, dtype=torch.float32)
    return like.new_empty(count, width, dtype=torch.int8), *floats


@_fakes
def quantize_rows(x: Tensor, index: Tensor | None, columns: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    return _int8_rows(x, x.shape[0] if index is None else index.shape[0], x.shape[1], columns)


@_fakes
def dequantize_rows(rows: Tensor, scales: Tensor, index: Tensor | None) -> Tensor:
    return scales.new_empty(rows.shape[0] if index is None else index.shape[0], rows.shape[1])


@_fakes
def int8_linear(rows: Tensor, row_scales: Tensor, weight: Tensor, *others: Any) -> Tensor:
    return row_scales.new_empty(rows.shape[0], int8_weight_shape(weight)[0])


@_fakes
def int8_linear_gelu(
    rows: Tensor,
    row_scales: Tensor,
    weight: Tensor,
    column_scales: Tensor,
    bias: Tensor | None,
    kept: Tensor | None = None,
    kept_weight: Tensor | None = None,
    columns: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    return _int8_rows(rows, rows.shape[0], int8_weight_shape(weight)[0], columns)


@_fakes
def int8_linear_add_layer_norm(rows: Tensor, row_scales: Tensor, weight: Tensor, *others: Any) -> Tensor:
    return row_scales.new_empty(rows.shape[0], int8_weight_shape(weight)[0])


@_fakes
def int8_dynamic_linear(x: Tensor, layer: Sequence[Tensor]) -> Tensor:
    return x.new_empty(x.shape[0], int8_weight_shape(layer[0])[0])


@_fakes
def int8_post_norm_rest(x: Tensor, residual: Tensor, *layers: Any) -> Tensor:
    return x.new_empty(x.shape[0], residual.shape[1])


@_fakes
def int8_post_norm_layer(x: Tensor, *layers: Any) -> Tensor:
    return x.new_empty(x.shape)


@_fakes
def int8_post_norm_first(x: Tensor, cu_seqlens: Tensor, *layers: Any) -> Tensor:
    return x.new_empty(cu_seqlens.shape[0] - 1, x.shape[1])


@_fakes
def normalized_entropy(logits: Tensor) -> Tensor:
    return _at_least_float32(logits, logits.shape[0])


@_fakes
def label_entropy(logits: Tensor) -> Tensor:
    return _at_least_float32(logits, logits.shape[0])


@_fakes
def exit_head(
    features: Tensor,
    dense_weight: Tensor,
    dense_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    thresholds: Tensor | None,
    threshold: float,
    multi_label: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    batch = features.shape[0]
    logits = features.new_empty(batch, weight.shape[0])
    return logits, _at_least_float32(logits, batch), logits.new_empty(batch, dtype=torch.bool)


@_fakes
def record_answers(*arguments: Any) -> None:
    return None

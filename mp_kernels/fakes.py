"""Shapes and dtypes of the operators' results, for ``torch.compile`` and meta tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .schemas import library


def _fakes(function: Callable) -> Callable:
    torch.library.register_fake(f"mp_kernels::{function.__name__}", function, lib=library)
    return function


def _float32(x: torch.Tensor, *shape: int) -> torch.Tensor:
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))


@_fakes
def ragged_attention(q, k, v, cu_seqlens_q, cu_seqlens, stays, max_seqlen, scale, need_importance):
    importance = _float32(q, q.shape[1], k.shape[0] if need_importance else 0)
    return q.new_empty(q.shape), importance, _float32(q, q.shape[1], q.shape[0])


@_fakes
def ragged_attention_backward(
    out_grad, importance_grad, q, k, v, logsumexp, cu_seqlens_q, cu_seqlens, max_seqlen, scale
):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@_fakes
def mean_over_heads(importance):
    return importance.new_empty(importance.shape[1])


def _compaction(cu_seqlens: torch.Tensor, total: int) -> tuple[torch.Tensor, ...]:
    index, samples, extents = (
        cu_seqlens.new_empty(size, dtype=torch.int64) for size in (total, cu_seqlens.shape[0] - 1, 4)
    )
    return index, cu_seqlens.new_empty(cu_seqlens.shape), samples, extents


@_fakes
def prune_tokens(importance, cu_seqlens, stays, threshold):
    return _compaction(cu_seqlens, importance.shape[-1])


@_fakes
def top_k_tokens(importance, cu_seqlens, stays, k):
    return _compaction(cu_seqlens, importance.shape[-1])


@_fakes
def select_samples(cu_seqlens, stays, total):
    return _compaction(cu_seqlens, total)


@_fakes
def ragged_gather(xs, index):
    return [x.new_empty((index.shape[0], *x.shape[1:])) for x in xs]


@_fakes
def ragged_gather_backward(grads, sorted_index, order, rows):
    return [grad.new_empty((count, *grad.shape[1:])) for grad, count in zip(grads, rows, strict=True)]


@_fakes
def ragged_mean(x, cu_seqlens):
    return x.new_empty(cu_seqlens.shape[0] - 1, x.shape[1])


@_fakes
def add_layer_norm(x, x_index, residual, index, weight, bias, eps):
    return x.new_empty(x.shape[0] if x_index is None else x_index.shape[0], x.shape[1])


@_fakes
def bias_gelu(x, bias):
    return x.new_empty(x.shape)


@_fakes
def normalized_entropy(logits):
    return _float32(logits, logits.shape[0])


@_fakes
def exit_head(features, dense_weight, dense_bias, weight, bias, thresholds, threshold):
    batch = features.shape[0]
    logits = features.new_empty(batch, weight.shape[0])
    return logits, _float32(logits, batch), logits.new_empty(batch, dtype=torch.bool)

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
def ragged_attention(q, k, v, cu_seqlens_q, cu_seqlens, max_seqlen, scale, need_importance):
    importance = _float32(q, k.shape[0] if need_importance else 0)
    return q.new_empty(q.shape), importance, _float32(q, q.shape[1], q.shape[0])


@_fakes
def ragged_attention_backward(
    out_grad, importance_grad, q, k, v, logsumexp, cu_seqlens_q, cu_seqlens, max_seqlen, scale
):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _compaction(cu_seqlens: torch.Tensor, total: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    index = cu_seqlens.new_empty(total, dtype=torch.int64)
    return index, cu_seqlens.new_empty(cu_seqlens.shape), cu_seqlens.new_empty(4, dtype=torch.int64)


@_fakes
def prune_tokens(importance, cu_seqlens, threshold):
    return _compaction(cu_seqlens, importance.shape[0])


@_fakes
def top_k_tokens(importance, cu_seqlens, k):
    return _compaction(cu_seqlens, importance.shape[0])


@_fakes
def select_samples(cu_seqlens, stays, total):
    index, new_cu_seqlens, extents = _compaction(cu_seqlens, total)
    return index, new_cu_seqlens, cu_seqlens.new_empty(stays.shape[0], dtype=torch.int64), extents


@_fakes
def ragged_gather(xs, index):
    return [x.new_empty((index.shape[0], *x.shape[1:])) for x in xs]


@_fakes
def ragged_mean(x, cu_seqlens):
    return x.new_empty(cu_seqlens.shape[0] - 1, x.shape[1])


@_fakes
def add_layer_norm(x, residual, index, weight, bias, eps):
    return x.new_empty(x.shape)


@_fakes
def bias_gelu(x, bias):
    return x.new_empty(x.shape)


@_fakes
def normalized_entropy(logits):
    return _float32(logits, logits.shape[0])

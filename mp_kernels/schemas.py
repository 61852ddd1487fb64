"""The operators of ``torch.ops.mp_kernels``: one schema each, in one place.

An operator runs the compiled kernel of its tensors' device where one is loaded. Everywhere else it runs the
implementation given here, which follows :mod:`mp_kernels.reference`. Compactions return buffers of the full size and
``extents`` (rows kept, samples kept, longest sample kept, first row of NaN importance or -1): static shapes, and one read
by the host for all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import reference
from .ragged import Kept

library = torch.library.Library("mp_kernels", "DEF")

SCHEMAS = {
    "ragged_attention": "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens, SymInt max_seqlen, "
    "float scale, bool need_importance) -> (Tensor out, Tensor importance, Tensor logsumexp)",
    "ragged_attention_backward": "(Tensor out_grad, Tensor? importance_grad, Tensor q, Tensor k, Tensor v, "
    "Tensor logsumexp, Tensor cu_seqlens_q, Tensor cu_seqlens, SymInt max_seqlen, float scale) "
    "-> (Tensor q_grad, Tensor k_grad, Tensor v_grad)",
    "prune_tokens": "(Tensor importance, Tensor cu_seqlens, float threshold) "
    "-> (Tensor index, Tensor cu_seqlens, Tensor extents)",
    "top_k_tokens": "(Tensor importance, Tensor cu_seqlens, Tensor k) "
    "-> (Tensor index, Tensor cu_seqlens, Tensor extents)",
    "select_samples": "(Tensor cu_seqlens, Tensor stays, SymInt total) "
    "-> (Tensor index, Tensor cu_seqlens, Tensor samples, Tensor extents)",
    "ragged_gather": "(Tensor[] xs, Tensor index) -> Tensor[]",
    "ragged_mean": "(Tensor x, Tensor cu_seqlens) -> Tensor",
    "add_layer_norm": "(Tensor x, Tensor residual, Tensor? index, Tensor weight, Tensor bias, float eps) -> Tensor",
    "bias_gelu": "(Tensor x, Tensor? bias) -> Tensor",
    "normalized_entropy": "(Tensor logits) -> Tensor",
}

for _name, _schema in SCHEMAS.items():
    library.define(_name + _schema)


def _implements(function: Callable) -> Callable:
    library.impl(function.__name__, function, "CompositeExplicitAutograd")
    return function


@_implements
def ragged_attention(q, k, v, cu_seqlens_q, cu_seqlens, max_seqlen, scale, need_importance):
    out, importance, logsumexp = reference.attention_with_logsumexp(q, k, v, cu_seqlens_q, cu_seqlens, scale)
    return out, importance if need_importance else importance.new_empty(0), logsumexp


@_implements
def ragged_attention_backward(
    out_grad, importance_grad, q, k, v, logsumexp, cu_seqlens_q, cu_seqlens, max_seqlen, scale
):
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    with torch.enable_grad():
        out, importance, _ = reference.attention_with_logsumexp(*leaves, cu_seqlens_q, cu_seqlens, scale)
    if importance_grad is None:
        importance_grad = torch.zeros_like(importance)
    return torch.autograd.grad([out, importance], leaves, [out_grad, importance_grad])


def _buffers(kept: Kept, total: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, samples = kept.index.shape[0], kept.cu_seqlens.shape[0] - 1
    index = kept.index.new_zeros(total)
    index[:rows] = kept.index
    cu_seqlens = kept.cu_seqlens.new_full((batch + 1,), rows)
    cu_seqlens[: samples + 1] = kept.cu_seqlens
    return index, cu_seqlens, kept.index.new_tensor([rows, samples, kept.max_seqlen, -1])


@_implements
def prune_tokens(importance, cu_seqlens, threshold):
    kept = reference.prune_tokens(importance, cu_seqlens, threshold)
    return _buffers(kept, importance.shape[0], cu_seqlens.shape[0] - 1)


@_implements
def top_k_tokens(importance, cu_seqlens, k):
    return _buffers(reference.top_k_tokens(importance, cu_seqlens, k), importance.shape[0], cu_seqlens.shape[0] - 1)


@_implements
def select_samples(cu_seqlens, stays, total):
    kept = reference.select_samples(cu_seqlens, stays, total)
    samples = kept.samples.new_zeros(stays.shape[0])
    samples[: kept.samples.shape[0]] = kept.samples
    index, new_cu_seqlens, extents = _buffers(kept, total, stays.shape[0])
    return index, new_cu_seqlens, samples, extents


@_implements
def ragged_gather(xs, index):
    for x in xs:
        outside = (index < 0) | (index >= x.shape[0])
        if outside.any():
            raise RuntimeError(f"index must lie in 0..{x.shape[0] - 1}; got {int(index[outside][0])}")
    return list(reference.ragged_gather(xs, index))


@_implements
def ragged_mean(x, cu_seqlens):
    return reference.ragged_mean(x, cu_seqlens)


@_implements
def add_layer_norm(x, residual, index, weight, bias, eps):
    return reference.add_layer_norm(x, residual, weight, bias, eps, index)


@_implements
def bias_gelu(x, bias):
    return reference.bias_gelu(x, bias)


@_implements
def normalized_entropy(logits):
    return reference.normalized_entropy(logits)

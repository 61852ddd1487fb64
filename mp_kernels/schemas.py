"""The operators of ``torch.ops.mp_kernels``: one schema each, in one place.

An operator runs the compiled kernel of its tensors' device where one is loaded. Everywhere else it runs the
implementation given here, which follows :mod:`mp_kernels.reference`. Importance is per head here, ``[heads, total]``.
Compactions return buffers of the full size and ``extents`` (rows kept, samples kept, longest sample kept, first row of NaN
importance or -1): static shapes, and one read by the host for all of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import reference
from .ragged import Kept

library = torch.library.Library("mp_kernels", "DEF")

_COMPACTION = "(Tensor index, Tensor cu_seqlens, Tensor samples, Tensor extents)"

SCHEMAS = {
    "ragged_attention": "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens, Tensor? stays, "
    "SymInt max_seqlen, float scale, bool need_importance) -> (Tensor out, Tensor importance, Tensor logsumexp)",
    "ragged_attention_backward": "(Tensor out_grad, Tensor? importance_grad, Tensor q, Tensor k, Tensor v, "
    "Tensor logsumexp, Tensor cu_seqlens_q, Tensor cu_seqlens, SymInt max_seqlen, float scale) "
    "-> (Tensor q_grad, Tensor k_grad, Tensor v_grad)",
    "mean_over_heads": "(Tensor importance) -> Tensor",
    "prune_tokens": "(Tensor importance, Tensor cu_seqlens, Tensor? stays, float threshold) -> " + _COMPACTION,
    "top_k_tokens": "(Tensor importance, Tensor cu_seqlens, Tensor? stays, Tensor k) -> " + _COMPACTION,
    "select_samples": "(Tensor cu_seqlens, Tensor stays, SymInt total) -> " + _COMPACTION,
    "ragged_gather": "(Tensor[] xs, Tensor index) -> Tensor[]",
    "ragged_gather_backward": "(Tensor[] grads, Tensor sorted_index, Tensor? order, SymInt[] rows) -> Tensor[]",
    "ragged_mean": "(Tensor x, Tensor cu_seqlens) -> Tensor",
    "add_layer_norm": "(Tensor x, Tensor? x_index, Tensor residual, Tensor? index, Tensor weight, Tensor bias, "
    "float eps) -> Tensor",
    "bias_gelu": "(Tensor x, Tensor? bias) -> Tensor",
    "normalized_entropy": "(Tensor logits) -> Tensor",
    "exit_head": "(Tensor features, Tensor dense_weight, Tensor dense_bias, Tensor weight, Tensor bias, "
    "Tensor? thresholds, float threshold) -> (Tensor logits, Tensor uncertainty, Tensor stays)",
}

for _name, _schema in SCHEMAS.items():
    library.define(_name + _schema)


def _implements(function: Callable) -> Callable:
    library.impl(function.__name__, function, "CompositeExplicitAutograd")
    return function


@_implements
def ragged_attention(q, k, v, cu_seqlens_q, cu_seqlens, stays, max_seqlen, scale, need_importance):
    out, importance, logsumexp = reference.attention_with_logsumexp(q, k, v, cu_seqlens_q, cu_seqlens, scale, stays)
    return out, importance if need_importance else importance.new_empty(q.shape[1], 0), logsumexp


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


@_implements
def mean_over_heads(importance):
    return reference.mean_over_heads(importance)


def _buffers(kept: Kept, total: int, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, count = kept.index.shape[0], kept.cu_seqlens.shape[0] - 1
    index = kept.index.new_zeros(total)
    index[:rows] = kept.index
    cu_seqlens = kept.cu_seqlens.new_full((batch + 1,), rows)
    cu_seqlens[: count + 1] = kept.cu_seqlens
    samples = kept.index.new_zeros(batch)
    samples[:count] = torch.arange(batch, device=index.device) if kept.samples is None else kept.samples
    return index, cu_seqlens, samples, kept.index.new_tensor([rows, count, kept.max_seqlen, -1])


@_implements
def prune_tokens(importance, cu_seqlens, stays, threshold):
    kept = reference.prune_tokens(importance, cu_seqlens, threshold, stays)
    return _buffers(kept, importance.shape[-1], cu_seqlens.shape[0] - 1)


@_implements
def top_k_tokens(importance, cu_seqlens, stays, k):
    kept = reference.top_k_tokens(importance, cu_seqlens, k, stays)
    return _buffers(kept, importance.shape[-1], cu_seqlens.shape[0] - 1)


@_implements
def select_samples(cu_seqlens, stays, total):
    return _buffers(reference.select_samples(cu_seqlens, stays, total), total, stays.shape[0])


@_implements
def ragged_gather(xs, index):
    for x in xs:
        reference.refuse_outside(index, x.shape[0])
    return list(reference.ragged_gather(xs, index))


@_implements
def ragged_gather_backward(grads, sorted_index, order, rows):
    ordered = grads if order is None else reference.ragged_gather(grads, order)
    return [reference.add_rows(grad, sorted_index, count) for grad, count in zip(ordered, rows, strict=True)]


@_implements
def ragged_mean(x, cu_seqlens):
    return reference.ragged_mean(x, cu_seqlens)


@_implements
def add_layer_norm(x, x_index, residual, index, weight, bias, eps):
    return reference.add_layer_norm(x, residual, weight, bias, eps, index, x_index)


@_implements
def bias_gelu(x, bias):
    return reference.bias_gelu(x, bias)


@_implements
def normalized_entropy(logits):
    return reference.normalized_entropy(logits)


@_implements
def exit_head(features, dense_weight, dense_bias, weight, bias, thresholds, threshold):
    logits = reference.head_logits(features, dense_weight, dense_bias, weight, bias)
    uncertainty = torch.ops.mp_kernels.normalized_entropy(logits)
    return logits, uncertainty, ~(uncertainty <= (threshold if thresholds is None else thresholds))

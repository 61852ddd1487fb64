"""Gradients of the operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from .schemas import library

# torch's own class for it does not declare the attributes that a setup keeps for its backward.
Context = Any
Inputs = tuple[Any, ...]


def _register(name: str, backward: Callable[..., Any], setup_context: Callable[[Any, Inputs, Any], None]) -> None:
    torch.library.register_autograd(f"mp_kernels::{name}", backward, setup_context=setup_context, lib=library)


# ragged_attention: through out and importance, by the operator ragged_attention_backward; not through the log-sum-exp


def _setup_attention(ctx: Context, inputs: Inputs, output: Any) -> None:
    q, k, v, cu_seqlens_q, cu_seqlens, stays, ctx.max_seqlen, ctx.scale, _, *places, ctx.window = inputs
    ctx.save_for_backward(q, k, v, output[2], cu_seqlens_q, cu_seqlens, stays, *places)
    ctx.set_materialize_grads(False)


def _attention_backward(
    ctx: Context, out_grad: Tensor | None, importance_grad: Tensor | None, logsumexp_grad: Tensor | None
) -> tuple[Tensor | None, ...]:
    if logsumexp_grad is not None:  # a missing gradient would go unnoticed
        raise NotImplementedError(
            "ragged_attention has no gradient through its log-sum-exp, which its backward pass needs; detach it, "
            "or differentiate mp_kernels.reference.attention_with_logsumexp"
        )
    # With create_graph=True the graph would lack this operator's own gradient, and results would be silently wrong.
    if torch.is_grad_enabled():
        raise NotImplementedError(
            "ragged_attention has no second derivative (create_graph=True); "
            "differentiate mp_kernels.reference.ragged_attention twice instead"
        )
    q, k, v, logsumexp, cu_seqlens_q, cu_seqlens, stays, *places = ctx.saved_tensors
    bias = places[2]
    if out_grad is None:
        out_grad = torch.zeros_like(q)
    if importance_grad is not None and importance_grad.numel() == 0:
        importance_grad = None
    if stays is not None and bias is not None:  # nothing of a sample that leaves may reach the sum over samples
        out_grad, q = (_zero_where_left(x, stays, cu_seqlens_q) for x in (out_grad, q))
        k, v = (_zero_where_left(x, stays, cu_seqlens) for x in (k, v))
        if importance_grad is not None:
            importance_grad = _zero_where_left(importance_grad.t(), stays, cu_seqlens).t()
    *grads, bias_grad = torch.ops.mp_kernels.ragged_attention_backward(
        *(out_grad, importance_grad, q, k, v, logsumexp, cu_seqlens_q, cu_seqlens, ctx.max_seqlen, ctx.scale),
        *places,
        ctx.window,
    )
    if stays is not None:  # the results of samples that leave are constants
        starts = (cu_seqlens_q, cu_seqlens, cu_seqlens)
        grads = [_zero_where_left(grad, stays, cu) for grad, cu in zip(grads, starts, strict=True)]
    return *grads, *[None] * 8, None if bias is None else bias_grad.to(bias.dtype), None, None


def _zero_where_left(x: Tensor, stays: Tensor, cu_seqlens: Tensor) -> Tensor:
    rows = torch.repeat_interleave(stays, cu_seqlens.diff().long(), output_size=x.shape[0])
    return torch.where(rows.unflatten(0, (-1, *[1] * (x.dim() - 1))), x, 0.0)


_register("ragged_attention", _attention_backward, _setup_attention)


# mean_over_heads: each of H heads gets 1 / H of the gradient


def _setup_heads(ctx: Context, inputs: Inputs, output: Any) -> None:
    ctx.heads = inputs[0].shape[0]


def _heads_backward(ctx: Context, grad: Tensor) -> Tensor:
    return (grad / ctx.heads).expand(ctx.heads, -1)


_register("mean_over_heads", _heads_backward, _setup_heads)


# ragged_gather: each row of x gets the sum of the gradients of its copies, in ascending order of their places


def _setup_gather(ctx: Context, inputs: Inputs, output: Any) -> None:
    xs, index = inputs
    ctx.save_for_backward(index)
    ctx.rows = [x.shape[0] for x in xs]
    ctx.set_materialize_grads(False)  # integer tensors may be gathered along, and have no gradient


def _gathered_grads(grads: Sequence[Tensor], index: Tensor, rows: Sequence[int]) -> list[Tensor]:
    sorted_index, order = index.sort(stable=True)
    return torch.ops.mp_kernels.ragged_gather_backward(grads, sorted_index, order, rows)


def _gather_backward(ctx: Context, grads: Sequence[Tensor | None]) -> tuple[list[Tensor | None], None]:
    (index,) = ctx.saved_tensors
    wanted = [(t, grad) for t, grad in enumerate(grads) if grad is not None]
    scattered = _gathered_grads([grad for _, grad in wanted], index, [ctx.rows[t] for t, _ in wanted])
    results: list[Tensor | None] = [None] * len(grads)
    for (t, _), grad in zip(wanted, scattered, strict=True):
        results[t] = grad
    return results, None


_register("ragged_gather", _gather_backward, _setup_gather)


# ragged_gather_backward: linear in grads, so its gradient is the gather


def _setup_gather_backward(ctx: Context, inputs: Inputs, output: Any) -> None:
    _, sorted_index, order, _ = inputs
    ctx.save_for_backward(sorted_index, order)


def _gather_backward_backward(ctx: Context, grads: Sequence[Tensor]) -> tuple[Sequence[Tensor], None, None, None]:
    sorted_index, order = ctx.saved_tensors
    index = sorted_index if order is None else torch.empty_like(sorted_index).scatter(0, order, sorted_index)
    return torch.ops.mp_kernels.ragged_gather(grads, index), None, None, None


_register("ragged_gather_backward", _gather_backward_backward, _setup_gather_backward)


# ragged_mean: each row of a sample of n rows gets 1 / n of the gradient


def _setup_mean(ctx: Context, inputs: Inputs, output: Any) -> None:
    x, cu_seqlens = inputs
    ctx.save_for_backward(cu_seqlens)
    ctx.total = x.shape[0]


def _mean_backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None]:
    (cu_seqlens,) = ctx.saved_tensors
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).long()
    share = grad / lengths.clamp(min=1).unsqueeze(1).to(grad.dtype)
    return torch.repeat_interleave(share, lengths, dim=0, output_size=ctx.total), None


_register("ragged_mean", _mean_backward, _setup_mean)


# pair_features: each row gets its share of the gradients of the sample's mean and of its own part's


def _setup_pair(ctx: Context, inputs: Inputs, output: Any) -> None:
    _, x, cu_seqlens, middles = inputs
    ctx.save_for_backward(x, cu_seqlens, middles)


def _pair_backward(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    x, cu_seqlens, middles = ctx.saved_tensors
    starts = reference.parts_of_pairs(cu_seqlens, middles)
    wide = torch.promote_types(x.dtype, torch.float32)
    a, b = torch.ops.mp_kernels.ragged_mean(x.to(wide), starts).unflatten(0, (-1, 2)).unbind(1)
    of_first, of_mean, of_distance, of_product = grad.unflatten(1, (4, -1)).unbind(1)
    away = of_distance.to(wide) * (a - b).sign()
    of_parts = torch.stack([away + of_product * b, of_product * a - away], dim=1)  # [batch, 2, width]
    lengths = starts.diff().long()
    of_all = of_mean.to(wide) / cu_seqlens.diff().clamp(min=1).unsqueeze(1)
    share = (of_parts / lengths.view(-1, 2, 1).clamp(min=1) + of_all.unsqueeze(1)).flatten(0, 1)
    rows = torch.repeat_interleave(share.to(x.dtype), lengths, dim=0, output_size=x.shape[0])
    return of_first, rows, None, None


_register("pair_features", _pair_backward, _setup_pair)


# add_layer_norm: both summands get LayerNorm's own gradient


def _setup_add_layer_norm(ctx: Context, inputs: Inputs, output: Any) -> None:
    x, x_index, residual, index, weight, bias, ctx.eps = inputs
    ctx.save_for_backward(x, x_index, residual, index, weight, bias)


def _add_layer_norm_backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, x_index, residual, index, weight, bias = ctx.saved_tensors
    added = (x if x_index is None else x[x_index]) + (residual if index is None else residual[index])
    _, mean, inverse = torch.native_layer_norm(added, x.shape[-1:], weight, bias, ctx.eps)
    added_grad, weight_grad, bias_grad = torch.ops.aten.native_layer_norm_backward(
        grad.contiguous(), added, x.shape[-1:], mean, inverse, weight, bias, [True, True, True]
    )
    x_grad, residual_grad = (
        added_grad if rows is None else _gathered_grads([added_grad], rows, [source.shape[0]])[0]
        for source, rows in ((x, x_index), (residual, index))
    )
    return x_grad, None, residual_grad, None, weight_grad, bias_grad, None


_register("add_layer_norm", _add_layer_norm_backward, _setup_add_layer_norm)


# bias_gelu: GELU's own gradient, summed over the rows for the bias


def _setup_bias_gelu(ctx: Context, inputs: Inputs, output: Any) -> None:
    x, bias = inputs
    ctx.save_for_backward(x, bias)


def _bias_gelu_backward(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor | None]:
    x, bias = ctx.saved_tensors
    x_grad = torch.ops.aten.gelu_backward(grad, x if bias is None else x + bias)
    return x_grad, None if bias is None else x_grad.sum(0)


_register("bias_gelu", _bias_gelu_backward, _setup_bias_gelu)


# gelu_gate: a product's gradient, through GELU's own


def _setup_gelu_gate(ctx: Context, inputs: Inputs, output: Any) -> None:
    ctx.save_for_backward(inputs[0])


def _gelu_gate_backward(ctx: Context, grad: Tensor) -> Tensor:
    gated, gate = ctx.saved_tensors[0].chunk(2, dim=1)
    return torch.cat([torch.ops.aten.gelu_backward(grad * gate, gated), grad * torch.nn.functional.gelu(gated)], dim=1)


_register("gelu_gate", _gelu_gate_backward, _setup_gelu_gate)


# rotary_embedding: the rotation back


def _setup_rotary(ctx: Context, inputs: Inputs, output: Any) -> None:
    ctx.save_for_backward(*inputs[1:])


def _rotary_backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None, None]:
    positions, cos, sin = ctx.saved_tensors
    return torch.ops.mp_kernels.rotary_embedding(grad, positions, cos, -sin), None, None, None


_register("rotary_embedding", _rotary_backward, _setup_rotary)


# normalized_entropy: du/dz_i = -p_i (log p_i + sum_j -p_j log p_j) / log N


def _setup_entropy(ctx: Context, inputs: Inputs, output: Any) -> None:
    ctx.save_for_backward(inputs[0])


def _entropy_backward(ctx: Context, grad: Tensor) -> Tensor:
    (logits,) = ctx.saved_tensors
    log_p = torch.log_softmax(logits.to(grad.dtype), dim=-1)
    p = log_p.exp()
    weighted = torch.where(p == 0, 0.0, p * log_p)
    slope = (p * weighted.sum(-1, keepdim=True) - weighted) / math.log(logits.shape[-1])
    return (grad.unsqueeze(-1) * slope).to(logits.dtype)


_register("normalized_entropy", _entropy_backward, _setup_entropy)


# label_entropy: of the label (or labels alike) with the least |z|, du/dz = -z sigma(z) sigma(-z) / log 2


def _label_entropy_backward(ctx: Context, grad: Tensor) -> Tensor:
    (logits,) = ctx.saved_tensors
    z = logits.to(grad.dtype)
    least = z.abs() == z.abs().amin(-1, keepdim=True)
    slope = torch.where(least & ~z.isinf(), -z * torch.sigmoid(z) * torch.sigmoid(-z), 0.0)
    share = grad.unsqueeze(-1) / (least.sum(-1, keepdim=True) * math.log(2))
    return (share * slope).to(logits.dtype)


_register("label_entropy", _label_entropy_backward, _setup_entropy)


# exit_head: refused, since it is for deciding, not for training, and a missing gradient would go unnoticed


def _setup_exit_head(ctx: Context, inputs: Inputs, output: Any) -> None:
    ctx.mark_non_differentiable(output[2])


def _exit_head_backward(ctx: Context, *grads: Tensor | None) -> None:
    raise NotImplementedError(
        "exit_head only decides and has no gradient; train a head through its layers and its uncertainty's operator, "
        "or differentiate mp_kernels.reference.exit_head"
    )


_register("exit_head", _exit_head_backward, _setup_exit_head)

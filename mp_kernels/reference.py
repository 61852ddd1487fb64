"""The operators in plain PyTorch: the definition that every faster version is tested against.

One sample at a time, any floating dtype, differentiable by autograd. Arithmetic is done in float32 at least, and in
float64 for float64 inputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .ragged import Kept, Ragged


def _spans(cu_seqlens: torch.Tensor, total: int, name: str = "cu_seqlens") -> list[tuple[int, int]]:
    starts = cu_seqlens.tolist()
    if starts[0] != 0 or starts[-1] != total or starts != sorted(starts):
        raise RuntimeError(
            f"{name} must start with 0, must not decrease and must end with the number of rows, {total}; got {starts}"
        )
    return list(itertools.pairwise(starts))


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def attention_with_logsumexp(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`ragged_attention` with the log-sum-exp of every score row ``[heads, total_q]`` beside it."""
    wide_q, wide_k, wide_v = map(_at_least_float32, (q, k, v))
    heads = q.shape[1]
    outs, importances = [wide_q[:0]], [wide_k.new_empty(0)]
    logsumexps = [wide_q.new_empty(heads, 0)]
    q_spans, spans = _spans(cu_seqlens_q, q.shape[0], "cu_seqlens_q"), _spans(cu_seqlens, k.shape[0])
    for (q_begin, q_end), (begin, end) in zip(q_spans, spans, strict=True):
        scores = torch.einsum("ihd,jhd->hij", wide_q[q_begin:q_end], wide_k[begin:end]) * scale
        probabilities = torch.softmax(scores, dim=-1)
        outs.append(torch.einsum("hij,jhd->ihd", probabilities, wide_v[begin:end]))
        importances.append(probabilities.sum((0, 1)) / (heads * max(q_end - q_begin, 1)))
        logsumexps.append(torch.logsumexp(scores, dim=-1))
    return torch.cat(outs).to(q.dtype), torch.cat(importances), torch.cat(logsumexps, dim=1)


def ragged_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float | None = None,
    *,
    cu_seqlens_q: torch.Tensor | None = None,
    need_importance: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Definition of :func:`mp_kernels.ragged_attention`."""
    del max_seqlen
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    queries = cu_seqlens if cu_seqlens_q is None else cu_seqlens_q
    out, importance, _ = attention_with_logsumexp(q, k, v, queries, cu_seqlens, scale)
    return out, importance if need_importance else None


def _compact(keep: torch.Tensor, cu_seqlens: torch.Tensor) -> Kept:
    lengths = [int(keep[begin:end].sum()) for begin, end in _spans(cu_seqlens, keep.shape[0])]
    new_cu_seqlens = F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))
    return Kept(keep.nonzero().squeeze(1), new_cu_seqlens.to(cu_seqlens.device), max(lengths, default=0))


def refuse_nan(importance: torch.Tensor) -> None:
    """Raises ValueError where importance is NaN: a NaN is an error, not a survivor."""
    rows = importance.isnan().nonzero()
    if rows.numel():
        raise nan_importance_error(int(rows[0]))


def nan_importance_error(row: int) -> ValueError:
    return ValueError(
        f"importance is NaN at row {row}: the states that the attention read are not finite; "
        "look for overflow in half precision or for broken weights"
    )


def prune_tokens(importance: torch.Tensor, cu_seqlens: torch.Tensor, threshold: float) -> Kept:
    """Definition of :func:`mp_kernels.prune_tokens`."""
    refuse_nan(importance)
    keep = importance >= threshold
    for begin, end in _spans(cu_seqlens, keep.shape[0]):
        keep[begin : min(begin + 1, end)] = True
    return _compact(keep, cu_seqlens)


def top_k_tokens(importance: torch.Tensor, cu_seqlens: torch.Tensor, k: int | torch.Tensor) -> Kept:
    """Definition of :func:`mp_kernels.top_k_tokens`."""
    refuse_nan(importance)
    spans = _spans(cu_seqlens, importance.shape[0])
    counts = [k] * len(spans) if isinstance(k, int) else k.tolist()
    keep = torch.zeros(importance.shape, dtype=torch.bool, device=importance.device)
    for (begin, end), count in zip(spans, counts, strict=True):
        if count < 1:
            raise ValueError(f"k must be at least 1 (the first token always stays); got {count}")
        by_rank = torch.argsort(importance[begin + 1 : end], descending=True, stable=True) + begin + 1
        keep[begin : min(begin + 1, end)] = True
        keep[by_rank[: count - 1]] = True
    return _compact(keep, cu_seqlens)


def select_samples(cu_seqlens: torch.Tensor, stays: torch.Tensor, total: int | None = None) -> Kept:
    """Definition of :func:`mp_kernels.select_samples`."""
    _spans(cu_seqlens, int(cu_seqlens[-1]) if total is None else total)
    lengths = (cu_seqlens[1:] - cu_seqlens[:-1]).long()
    kept = _compact(torch.repeat_interleave(stays, lengths), cu_seqlens)
    staying = lengths[stays]
    new_cu_seqlens = F.pad(staying.cumsum(0), (1, 0)).int()
    return Kept(kept.index, new_cu_seqlens, kept.max_seqlen, stays.nonzero().squeeze(1))


def ragged_gather(
    x: torch.Tensor | Sequence[torch.Tensor], index: torch.Tensor
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Definition of :func:`mp_kernels.ragged_gather`."""
    # index_select and not x[index], where a negative index would count from the end.
    if isinstance(x, torch.Tensor):
        return x.index_select(0, index)
    return tuple(part.index_select(0, index) for part in x)


def ragged_mean(x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Definition of :func:`mp_kernels.ragged_mean`."""
    wide = _at_least_float32(x)
    means = [
        wide[begin:end].sum(0, keepdim=True) / max(end - begin, 1) for begin, end in _spans(cu_seqlens, x.shape[0])
    ]
    return torch.cat([wide[:0], *means]).to(x.dtype)


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    index: torch.Tensor | None = None,
) -> torch.Tensor:
    """Definition of :func:`mp_kernels.add_layer_norm`."""
    added = _at_least_float32(x) + _at_least_float32(residual if index is None else residual[index])
    wide_weight, wide_bias = _at_least_float32(weight), _at_least_float32(bias)
    return F.layer_norm(added, x.shape[-1:], wide_weight, wide_bias, eps).to(x.dtype)


def bias_gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Definition of :func:`mp_kernels.bias_gelu`."""
    wide = _at_least_float32(x)
    return F.gelu(wide if bias is None else wide + _at_least_float32(bias)).to(x.dtype)


def normalized_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Definition of :func:`mp_kernels.normalized_entropy`."""
    classes = logits.shape[-1]
    if classes < 2:
        raise ValueError(f"logits must have 2 classes or more, or there is no uncertainty to measure; got {classes}")
    log_p = torch.log_softmax(_at_least_float32(logits), dim=-1)
    p = log_p.exp()
    return (-torch.where(p == 0, 0.0, p * log_p).sum(-1) / math.log(classes)).clamp(0.0, 1.0)


def pack(padded: torch.Tensor, attention_mask: torch.Tensor) -> Ragged:
    """Definition of :func:`mp_kernels.pack`."""
    keep = attention_mask != 0
    lengths = keep.sum(1)
    return Ragged(
        values=padded[keep],
        cu_seqlens=F.pad(lengths.cumsum(0), (1, 0)).int(),
        max_seqlen=max(lengths.tolist(), default=0),
        index=keep.flatten().nonzero().squeeze(1),
        width=padded.shape[1],
    )


def unpack(ragged: Ragged, fill: float = 0.0) -> torch.Tensor:
    """Definition of :func:`mp_kernels.unpack`."""
    if ragged.index is not None:
        padded = ragged.values.new_full((ragged.batch_size * ragged.width, *ragged.values.shape[1:]), fill)
        padded = padded.index_copy(0, ragged.index, ragged.values)
        return padded.unflatten(0, (ragged.batch_size, ragged.width))
    rows = [
        torch.cat(
            [ragged.values[a:b], ragged.values.new_full((ragged.max_seqlen - (b - a), *ragged.values.shape[1:]), fill)]
        )
        for a, b in _spans(ragged.cu_seqlens, ragged.values.shape[0])
    ]
    empty = ragged.values.new_empty(0, ragged.max_seqlen, *ragged.values.shape[1:])
    return torch.stack(rows) if rows else empty

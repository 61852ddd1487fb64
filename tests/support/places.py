"""Attention with a relative position bias and in windows, as functions of q, k, v and the bias."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

import mp_kernels
from mp_kernels import reference
from support.ragged_batches import cu_seqlens_of

REACH = 9
_DISTANCES = torch.arange(-REACH, REACH + 1)
BUCKETS = (_DISTANCES.abs() % 5 + 5 * (_DISTANCES > 0)).int()  # 10 of them, not all in one piece


def positions_of(lengths: Sequence[int], gap: int, first: int = 0) -> torch.Tensor:
    """int32 ``[total]``: positions that rise from ``first`` on within each sample, up to ``gap`` missing before each row."""
    generator = torch.Generator().manual_seed(1)
    steps = [torch.randint(1, gap + 2, (n,), generator=generator) for n in lengths]
    return torch.cat([torch.arange(0), *(first + step.cumsum(0) - 1 for step in steps)]).int()


def with_bias(qkv: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """q, k, v and a random bias of their dtype, or of ``dtype``, for the buckets of ``BUCKETS``."""
    return [*qkv, torch.randn(qkv[0].shape[1], 10).to(qkv[0].device, dtype or qkv[0].dtype)]


def placed(
    lengths: Sequence[int], query_lengths: Sequence[int] | None = None, device: str = "cpu", **options: object
) -> list[Callable]:
    """ragged_attention and its definition with ``options``, as functions of q, k, v and, if there is to be one, the bias."""
    if query_lengths is not None:
        options["cu_seqlens_q"] = cu_seqlens_of(query_lengths)
    options = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    starts, buckets = cu_seqlens_of(lengths).to(device), BUCKETS.to(device)

    def of(module: object) -> Callable:
        def attention(q, k, v, bias=None):
            biased = {} if bias is None else {"bias": bias, "buckets": buckets}
            return module.ragged_attention(q, k, v, starts, max(lengths, default=0), **biased, **options)

        return attention

    return [of(mp_kernels), of(reference)]


def plain_placed(lengths: Sequence[int], positions: torch.Tensor, window: int | None) -> Callable:
    """The same in plain PyTorch, computed in the dtype of the inputs, for queries that see a key each."""

    def run(q, k, v, bias):
        outs, importances = [q[:0]], [q.new_empty(0)]
        parts = (x.split(list(lengths)) for x in (q, k, v, positions.to(q.device)))
        for q_b, k_b, v_b, places in zip(*parts, strict=True):
            distance = places[None, :] - places[:, None]
            exists = distance.abs() <= (1 << 30 if window is None else window)
            scores = torch.einsum("ihd,jhd->hij", q_b, k_b) * q.shape[-1] ** -0.5
            entries = BUCKETS.to(q.device).long()[distance.clamp(-REACH, REACH) + REACH]
            p = torch.softmax((scores + bias.to(q.dtype)[:, entries]).masked_fill(~exists, -torch.inf), dim=-1)
            outs.append(torch.einsum("hij,jhd->ihd", p, v_b))
            importances.append((p.sum(1) / exists.sum(0)).mean(0))
        return torch.cat(outs), torch.cat(importances)

    return run

"""Attention as functions of q, k and v alone, and the lengths that most of its tests use."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

import mp_kernels
from mp_kernels import reference
from support.accuracy import assert_accurate
from support.ragged_batches import cu_seqlens_of, stays_of

FEW_LENGTHS = (17, 0, 1, 65, 2, 24, 33)
FEW_STAY = stays_of([1, 0, 0, 1, 0, 1, 0])
ONE_QUERY = [min(n, 1) for n in FEW_LENGTHS]


def attention(lengths: Sequence[int], query_lengths: Sequence[int] | None = None, definition: bool = False, **options):
    """ragged_attention, or its definition, for samples of these lengths and numbers of queries, with more ``options``."""
    module = reference if definition else mp_kernels
    if query_lengths is not None:
        options["cu_seqlens_q"] = cu_seqlens_of(query_lengths)
    return lambda q, k, v: module.ragged_attention(q, k, v, cu_seqlens_of(lengths), max(lengths, default=0), **options)


def plain_attention(lengths: Sequence[int], by_head: bool = False) -> Callable:
    """Attention and importance in plain PyTorch, computed in the dtype of the inputs."""

    def run(q, k, v):
        outs, importances = [], []
        for q_b, k_b, v_b in zip(*(x.split(list(lengths)) for x in (q, k, v)), strict=True):
            scores = torch.einsum("ihd,jhd->hij", q_b, k_b) / math.sqrt(q.shape[-1])
            probabilities = torch.softmax(scores, dim=-1)
            outs.append(torch.einsum("hij,jhd->ihd", probabilities, v_b))
            importances.append(probabilities.mean(1 if by_head else (0, 1)))
        return torch.cat(outs), torch.cat(importances, dim=-1)

    return run


def assert_matches_definition(inputs: Sequence[torch.Tensor], *args, **options) -> None:
    """Fails unless ``attention(*args, **options)`` is within 1e-5 of its definition in float64, gradients included."""
    assert_accurate(attention(*args, **options), attention(*args, **options, definition=True), None, inputs)

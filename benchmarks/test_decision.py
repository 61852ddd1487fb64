"""Exits decided before the rest of their layer: the cost of a decision, and the batches in which it pays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch

import workload
from mp_kernels import Ragged
from mp_model import engine
from mp_model.backbones import block_of


def _batch(samples: int, tokens: int) -> Ragged:
    """Random states of equally long texts."""
    states = workload.states(samples * tokens, workload.ours().config.hidden_size)
    return Ragged(states, workload.cu_seqlens_of([tokens] * samples), tokens)


@pytest.mark.parametrize("batch_size", [8, 32])
def test_decision(compare: Any, batch_size: int) -> None:
    """Keys and values of all tokens and the rest for [CLS] alone, against the whole layer; 55 tokens a text."""
    batch, layer = _batch(batch_size, 55), workload.ours().bert.encoder.layer[0]

    def decision() -> torch.Tensor:
        return block_of(layer, batch.values.device).first(batch)

    def whole_layer() -> Any:
        return block_of(layer, batch.values.device).whole(batch)

    compare(
        f"decision step over a whole layer, batch of {batch_size}",
        {"decision": decision, "whole layer": whole_layer},
        target=0.25,
        at_most=True,
        rounds=31,
    )


def _layer(batch: Ragged, thresholds: torch.Tensor, first: bool) -> Callable[[], engine.Stepped]:
    """Layer 1 with an open exit, which is decided before the rest of the layer or after it."""
    pyramid = workload.ours().pyramid(exit_threshold=0.0)

    def run() -> engine.Stepped:
        with mock.patch.object(engine, "decides_first", return_value=first):
            return engine.run_layer(pyramid, 1, engine.Alive.of(batch, thresholds=thresholds))

    return run


@pytest.mark.parametrize("leaving", [0.0, 0.25, 0.5])
@pytest.mark.parametrize(("samples", "tokens"), [(4, 16), (4, 32), (4, 64), (8, 32), (8, 64), (32, 55)])
def test_decided_first_or_late(compare: Any, samples: int, tokens: int, leaving: float) -> None:
    """A layer that a share of the texts leaves, with its exit decided late, against the same decided first.

    The rule (:func:`mp_model.engine.decides_first`) is right where a quarter leaves: ratios of 1 or more from 256 rows on,
    that is at 4 x 64 and 8 x 32 tokens, and less below.
    """
    batch = _batch(samples, tokens)
    thresholds = torch.zeros(samples, len(workload.ours().config.resolved_exit_layers()), device=workload.DEVICE)
    thresholds[: round(leaving * samples)] = 1.0
    compare(
        f"exit decided late over decided first, {samples} x {tokens} tokens, {leaving:.0%} of the texts leaving",
        {"late": _layer(batch, thresholds, False), "first": _layer(batch, thresholds, True)},
        rounds=31,
    )

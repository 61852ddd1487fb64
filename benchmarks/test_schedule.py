"""Depth-wise batching: the share of the saved work that becomes saved time, and lone texts."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

import workload
from mp_model import PyramidBertConfig, PyramidBertForSequenceClassification
from mp_model.engine import Arrived, Pyramid
from mp_model.exits import Exits, LayerStates
from mp_model.flops import Step
from mp_model.inputs import pack_tokens
from mp_model.schedule import Schedule

SHAPES = {
    "MiniLM": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "BERT-base": {},
}
TEXTS = {"MiniLM": 1024, "BERT-base": 256}
BATCH_SIZE = 32  # texts that arrive at once
KEPT = 0.9  # of the tokens that enter a layer, where it prunes


class ForcedExits(Exits):
    """Exits at which all heads look, and each sample leaves at the layer that it was told."""

    def decide(self, layer: int, states: LayerStates, own: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """As the heads decide, but for who stays; own: ``[batch, 1]``, the layer of each sample's exit."""
        assert own is not None
        logits, uncertainty, _ = super().decide(layer, states, None)
        return logits, uncertainty, own[:, 0] > layer


@functools.cache
def model_of(shape: str) -> PyramidBertForSequenceClassification:
    """Random weights, pooled heads from the embeddings on."""
    torch.manual_seed(0)
    layers = SHAPES[shape].get("num_hidden_layers", 12)
    config = PyramidBertConfig(
        **SHAPES[shape], num_labels=workload.LABELS, exit_head="pooled", exit_layers=list(range(layers))
    )
    return PyramidBertForSequenceClassification(config).eval().to(workload.DEVICE, workload.DTYPE)


def forced(model: PyramidBertForSequenceClassification, **settings: Any) -> Pyramid:
    pyramid = model.pyramid(exit_threshold=1.0, **settings)
    assert pyramid.exits is not None
    pyramid.exits = ForcedExits(pyramid.exits.heads, pyramid.exits.thresholds)
    return pyramid


def exit_layers(count: int, layers: int, at_embeddings: float) -> Tensor:
    """The layer of each text's exit ``[texts, 1]``: a share of them 0, the rest spread evenly over 1 to L."""
    draw = random.Random(1)
    chosen = [0 if draw.random() < at_embeddings else draw.randint(1, layers) for _ in range(count)]
    return torch.tensor(chosen, dtype=torch.float32, device=workload.DEVICE).unsqueeze(1)


@functools.cache
def arrivals(shape: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids and lengths of texts as long as AG News', in batches as they come, never padded."""
    lengths = np.array(workload.ag_news_lengths(TEXTS[shape]))
    groups = [lengths[begin : begin + BATCH_SIZE] for begin in range(0, len(lengths), BATCH_SIZE)]
    draw = np.random.default_rng(0)
    return [(draw.integers(1000, 20_000, group.sum()), group) for group in groups]


def run_all(shape: str, pyramid: Pyramid, own: Tensor | None, one_at_a_time: bool) -> list[Step]:
    """Answers all texts, one batch after the other or through one schedule."""
    model, steps, begin = model_of(shape), [], 0
    schedule = Schedule(pyramid)
    for ids, lengths in arrivals(shape):
        inputs = pack_tokens(model.config, ids, None, lengths, workload.DEVICE)
        schedule.admit(Arrived.of(inputs, begin, None if own is None else own[begin : begin + len(lengths)]))
        begin += len(lengths)
        steps += [result.step for result in schedule.due(more_is_coming=not one_at_a_time)]
    return steps + [result.step for result in schedule.due(more_is_coming=False)]


def work_of(steps: list[Step], shape: str) -> float:
    config = model_of(shape).config
    return float(sum(step.flops(config).sum() for step in steps if step.layer or step.decided))


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


SITUATIONS = {
    "80% leave at the embeddings": (0.8, False, 0.92),
    "exits spread evenly": (0.0, False, 0.93),
    "exits spread evenly, 90% kept at each layer": (0.0, True, 0.92),
}


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_saved_work_becomes_saved_time(compare: Any, shape: str, situation: str, threads: int) -> None:
    """Time ratio over the ratio of executed work, against our own dense run of the same batches."""
    at_embeddings, pruned, target = SITUATIONS[situation]
    model = model_of(shape)
    layers = model.config.num_hidden_layers
    own = exit_layers(TEXTS[shape], layers, at_embeddings)
    dense, pyramid = model.pyramid(exit_threshold="never"), forced(model)
    if pruned:
        pyramid.pruning.top_k = [KEPT] * layers

    def run(settings: Pyramid, thresholds: Tensor | None, one_at_a_time: bool) -> Callable[[], list[Step]]:
        return lambda: run_all(shape, settings, thresholds, one_at_a_time)

    ways = {
        "dense, a batch at a time": run(dense, None, True),
        "pyramid, depth-wise": run(pyramid, own, False),
        "pyramid, a batch at a time": run(pyramid, own, True),
    }
    with torch.inference_mode():
        whole, saved = (work_of(way(), shape) for way in list(ways.values())[:2])
    compare(
        f"{shape}, {situation}, {threads} thread{'s' if threads > 1 else ''}: time ratio over work ratio",
        ways,
        target=target,
        scale=saved / whole,
        rounds=3,
        executed_flops_ratio=whole / saved,
    )


@functools.cache
def stock_of(shape: str) -> BertForSequenceClassification:
    model = BertForSequenceClassification(BertConfig(**SHAPES[shape], num_labels=workload.LABELS))
    return model.eval().to(workload.DEVICE, workload.DTYPE)


@pytest.mark.parametrize("threads", [1], indirect=True)
@pytest.mark.parametrize("tokens", [8, 35, 120])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_lone_text(compare: Any, shape: str, tokens: int, threads: int) -> None:
    """A batch of one: exits open and nobody leaving against dense, and dense against transformers."""
    ids = torch.randint(1000, 20_000, (1, tokens)).to(workload.DEVICE)
    mask = torch.ones_like(ids)
    ours, stock = model_of(shape), stock_of(shape)
    ways = {
        "exits open": lambda: ours(ids, mask, exit_threshold=0.0),
        "dense": lambda: ours(ids, mask, exit_threshold="never"),
        "transformers": lambda: stock(ids, attention_mask=mask),
        "leaving at the embeddings": lambda: ours(ids, mask, exit_threshold=1.0),
    }
    compare(
        f"{shape}, one text of {tokens} tokens: exits open and nobody leaving over dense",
        ways,
        target=1.05,
        at_most=True,
        rounds=31,
    )

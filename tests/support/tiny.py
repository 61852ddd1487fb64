"""Tiny random models, ragged batches for them, and thresholds at which tokens are pruned and samples leave."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mp_model import PyramidBert, PyramidBertConfig, PyramidBertForSequenceClassification
from support import definition

LENGTHS = (17, 1, 40, 2, 3, 9, 28, 5, 33, 12, 21, 7)
TIE = 1e-5


def config(**settings: Any) -> PyramidBertConfig:
    return PyramidBertConfig(
        **{
            "vocab_size": 50,
            "hidden_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "max_position_embeddings": 64,
            "num_labels": 3,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            **settings,
        }
    )


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights far from a fresh model's, whose predictions are all nearly uniform; no bias stays 0, no scale 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith("LayerNorm.weight"):
            weight.copy_(1 + 0.2 * noise)
        elif weight.dim() == 1:
            weight.copy_(0.2 * noise)
        elif "embeddings" in name:
            weight.copy_(noise)
        else:
            spread = 2.0 if "classifier" in name or ".self." in name else 1.0
            weight.copy_(spread * noise / weight.shape[1] ** 0.5)


def classifier(seed: int = 3, **settings: Any) -> PyramidBertForSequenceClassification:
    model = PyramidBertForSequenceClassification(config(**settings))
    randomise(model, seed)
    return model.eval()


def encoder_of(model: PyramidBertForSequenceClassification) -> PyramidBert:
    """The classifier's encoder, which shares its configuration and weights."""
    return model.bert


@dataclass
class Batch:
    """Samples, and how to pad them. Padding holds arbitrary ids, so that nothing may read it."""

    ids: list[Tensor]
    types: list[Tensor]

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, order: Sequence[int]) -> Batch:
        return Batch([self.ids[i] for i in order], [self.types[i] for i in order])

    def padded(self, side: str = "right", width: int | None = None, junk: int = 7) -> dict[str, Tensor]:
        """Arguments of the model; side is "left", "right" or "mixed" (by turns)."""
        width = max(map(len, self.ids)) if width is None else width
        shape = (len(self), width)
        inputs = {
            "input_ids": torch.full(shape, junk),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "token_type_ids": torch.full(shape, junk % 2),
        }
        for i, (ids, types) in enumerate(zip(self.ids, self.types, strict=True)):
            left = side == "left" or (side == "mixed" and i % 2)
            place = slice(width - len(ids), width) if left else slice(0, len(ids))
            inputs["input_ids"][i, place] = ids
            inputs["attention_mask"][i, place] = 1
            inputs["token_type_ids"][i, place] = types
        return inputs


def samples(lengths: Sequence[int] = LENGTHS, seed: int = 0, vocabulary: int = 50) -> Batch:
    """Random pairs of texts, without [PAD], whose embedding BERT does not train; the first of a pair may have no token."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(1, vocabulary, (n,), generator=generator) for n in lengths]
    types = [(torch.arange(n) >= int(torch.randint(1, n + 1, (1,), generator=generator)) % n).long() for n in lengths]
    return Batch(ids, types)


def weights_of(model: torch.nn.Module, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    prefix = "" if isinstance(model, PyramidBertForSequenceClassification) else "bert."
    return {prefix + name: weight.detach().to(dtype) for name, weight in model.named_parameters()}


def define(
    model: torch.nn.Module,
    batch: Batch,
    exit_thresholds: dict[int, float] | list[dict[int, float]] | None = None,
    **options: Any,
) -> list[definition.Answer]:
    """The definition's answers in float64, one a sample; exit thresholds by layer, for all or one dict each."""
    weights = weights_of(model)
    per_sample = exit_thresholds if isinstance(exit_thresholds, list) else [exit_thresholds] * len(batch)
    return [
        definition.run(weights, model.config, ids, types, taus, **options)
        for ids, types, taus in zip(batch.ids, batch.types, per_sample, strict=True)
    ]


def between(values: Sequence[float], share: float) -> float:
    """A threshold with about ``share`` of the values below it, in the middle of the widest gap near there."""
    ordered = sorted(values)
    middle = share * len(ordered)
    reach = max(1, len(ordered) // 8)
    low = max(1, round(middle - reach))
    high = max(low, min(len(ordered) - 1, round(middle + reach)))
    place = max(range(low, high + 1), key=lambda i: ordered[i] - ordered[i - 1])
    threshold = (ordered[place] + ordered[place - 1]) / 2
    assert ordered[place] - ordered[place - 1] > 2 * TIE, "no threshold here is safe from rounding"
    return threshold


def calibrate_pruning(model: torch.nn.Module, batch: Batch, share: float = 0.25) -> None:
    """Sets thresholds by which every layer prunes about ``share`` of the tokens that reach it."""
    layers = model.config.num_hidden_layers
    model.config.prune_thresholds = [0.0] * layers
    for layer in range(layers):
        answers = define(model, batch, classify=False)
        importance = torch.cat([answer.importance[layer][1:] for answer in answers])
        model.config.prune_thresholds[layer] = between(importance.tolist(), share)


def calibrate_exits(model: torch.nn.Module, batch: Batch, share: float = 0.3) -> list[float]:
    """One exit threshold for each exit layer, by which about ``share`` of the samples that reach it leave."""
    open_exits = dict.fromkeys(model.config.resolved_exit_layers(), 0.0)
    staying = [answer.uncertainties for answer in define(model, batch, open_exits)]
    for layer in open_exits:
        open_exits[layer] = between([uncertainties[layer] for uncertainties in staying], share)
        staying = [uncertainties for uncertainties in staying if uncertainties[layer] > open_exits[layer]]
    return list(open_exits.values())


def one_exit_threshold(uncertainties: Sequence[dict[int, float]]) -> float:
    """One exit threshold for all layers by which samples leave at as many layers as possible, and some stay."""
    ordered = sorted(u for sample in uncertainties for u in sample.values())
    candidates = [(a + b) / 2 for a, b in itertools.pairwise(ordered) if b - a > 2 * TIE]

    def variety(threshold: float) -> tuple[bool, int]:
        exits = [next((layer for layer, u in sample.items() if u <= threshold), None) for sample in uncertainties]
        return None in exits, len(set(exits))

    return max(candidates, key=variety)


def exit_threshold_each(uncertainties: Sequence[dict[int, float]]) -> list[float]:
    """An exit threshold for each sample, chosen so that the samples spread over the layers that they can leave at."""
    used: Counter[int | None] = Counter()
    thresholds = []
    for sample in uncertainties:
        can_leave, lowest = {}, 1.0
        for layer, u in sample.items():
            if lowest - u > 2 * TIE:
                can_leave[layer], lowest = (lowest + u) / 2, u
        can_leave[None] = lowest / 2
        layer = min(can_leave, key=lambda layer: used[layer])
        used[layer] += 1
        thresholds.append(can_leave[layer])
    return thresholds

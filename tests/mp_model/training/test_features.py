"""Features of a frozen backbone are what the heads read in the model, and their standardisation leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mp_model import PyramidBertForSequenceClassification
from mp_model.data.batches import TextBatch, length_sorted_batches
from mp_model.measuring.all_exits import AllExits, read_all_exits
from mp_model.training.features import (
    LOWEST_SPREAD,
    Features,
    collect_features,
    read_standardised,
    standardise,
    unstandardise,
)
from support import tiny

BATCH = tiny.samples()
LABELS = [i % 3 for i in range(len(BATCH))]
HEADS = {
    "cls": {"exit_head": "cls"},
    "cls_at_2": {"exit_head": "cls", "exit_layers": [2]},
    "pooled_from_0": {"exit_head": "pooled", "exit_layers": [0, 1, 2, 3]},
    "pair_from_0": {"exit_head": "pair", "exit_layers": [0, 1, 2, 3]},
}


def batches(batch_size: int = 5) -> list[TextBatch]:
    rows = [
        {"input_ids": a.tolist(), "token_type_ids": b.tolist()} for a, b in zip(BATCH.ids, BATCH.types, strict=True)
    ]
    return list(length_sorted_batches(rows, batch_size, pad_token_id=0))


def features_of(model: PyramidBertForSequenceClassification, batch_size: int = 5) -> Features:
    return collect_features(model, batches(batch_size), LABELS)


def exits_of(model: PyramidBertForSequenceClassification) -> AllExits:
    return read_all_exits(model, batches(), LABELS)


# What the heads read


@torch.no_grad()
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_features_are_what_the_heads_read(head: str, pruned: bool) -> None:
    model = tiny.classifier(**HEADS[head])
    if pruned:
        tiny.calibrate_pruning(model, BATCH)
    features, expected = features_of(model), exits_of(model).logits
    for layer in model.config.resolved_exit_layers():
        torch.testing.assert_close(model.exits[str(layer)](features.layers[layer]), expected[layer], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.final_head(features.layers[4]), expected[4], atol=1e-5, rtol=0)


def test_rows_are_in_the_order_of_the_texts() -> None:
    model = tiny.classifier(exit_head="pooled", exit_layers=[0, 1, 2, 3])
    features = features_of(model)
    assert [tuple(layer.shape) for layer in features.layers] == [(len(BATCH), 64)] * 4 + [(len(BATCH), 32)]
    assert features.labels.tolist() == LABELS
    assert not any(layer.requires_grad for layer in features.layers)
    for layer, alone in zip(features.layers, features_of(model, batch_size=1).layers, strict=True):
        torch.testing.assert_close(layer, alone, atol=1e-5, rtol=0)


def test_heads_that_read_all_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="a 'fastbert' head reads all tokens"):
        features_of(tiny.classifier(exit_head="fastbert"))


# Standardisation


@torch.no_grad()
def test_standardised_features_have_mean_0_and_spread_1() -> None:
    features = torch.randn(400, 16) * torch.logspace(-1, 2, 16) + torch.linspace(-300, 300, 16)
    standardised, mean, scale = standardise(features)
    torch.testing.assert_close(standardised.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardised.std(0), torch.ones(16), atol=2e-2, rtol=0)
    torch.testing.assert_close(standardised * scale + mean, features, atol=1e-3, rtol=0)


@torch.no_grad()
def test_standardisation_is_folded_into_a_layer() -> None:
    """A layer that was trained on standardised features reads plain ones, to the same effect."""
    features = torch.randn(400, 16) * torch.logspace(-1, 2, 16) + torch.linspace(-300, 300, 16)
    standardised, mean, scale = standardise(features)
    dense = nn.Linear(16, 12)
    expected = dense(standardised)
    unstandardise(dense, mean, scale)
    torch.testing.assert_close(dense(features), expected, atol=1e-3, rtol=0)


@torch.no_grad()
def test_a_trained_layer_goes_on_from_what_it_learned() -> None:
    features = torch.randn(400, 16) * torch.logspace(-1, 1, 16) + torch.linspace(-3, 3, 16)
    standardised, mean, scale = standardise(features)
    dense = nn.Linear(16, 12)
    expected = dense(features)
    read_standardised(dense, mean, scale)
    torch.testing.assert_close(dense(standardised), expected, atol=1e-4, rtol=0)
    unstandardise(dense, mean, scale)
    torch.testing.assert_close(dense(features), expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_feature_that_hardly_varies_is_not_blown_up() -> None:
    """Otherwise the rounding of half precision or int8, which moves it by more than it varies, would become answers."""
    features = torch.randn(400, 2) * torch.tensor([1.0, 1e-4]) + 7
    standardised, mean, scale = standardise(features)
    assert scale[1] == LOWEST_SPREAD
    assert standardised[:, 1].abs().max() < 0.01
    dense = nn.Linear(2, 12)
    weight = dense.weight.clone()
    unstandardise(dense, mean, scale)
    torch.testing.assert_close(dense.weight[:, 1], weight[:, 1] / LOWEST_SPREAD)

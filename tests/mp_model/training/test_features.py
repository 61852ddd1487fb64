"""Heads on a frozen backbone: features are what the heads read in the model, and training them works."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mp_model import PyramidBertForSequenceClassification
from mp_model.data.batches import TextBatch, length_sorted_batches
from mp_model.measuring.all_exits import AllExits, read_all_exits
from mp_model.training.features import Features, collect_features, train_all_heads, train_head
from support import tiny

BATCH = tiny.samples()
LABELS = [i % 3 for i in range(len(BATCH))]
HEADS = {
    "cls": {"exit_head": "cls"},
    "cls_at_2": {"exit_head": "cls", "exit_layers": [2]},
    "pooled_from_0": {"exit_head": "pooled", "exit_layers": [0, 1, 2, 3]},
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


# Training


def problem(texts: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes around three centres, in features whose means and scales differ a thousandfold."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (texts,), generator=generator)
    centres = 2 * torch.randn(3, 16, generator=torch.Generator().manual_seed(7))
    features = centres[labels] + torch.randn(texts, 16, generator=generator)
    return features * torch.logspace(-1, 2, 16) + torch.linspace(-300, 300, 16), labels


def head() -> tuple[nn.Linear, nn.Linear]:
    return nn.Linear(16, 12), nn.Linear(12, 3)


@torch.no_grad()
def predict(dense: nn.Linear, classifier: nn.Linear, features: Tensor) -> Tensor:
    return classifier(torch.tanh(dense(features)))


def test_a_head_learns_what_is_separable() -> None:
    dense, classifier = head()
    train_head(dense, classifier, *problem(400, seed=1))
    unseen, labels = problem(400, seed=2)
    assert (predict(dense, classifier, unseen).argmax(-1) == labels).double().mean() > 0.95


def test_standardisation_is_folded_into_the_head() -> None:
    """Untrained, the head of raw features is the head of standardised ones, whose own standardisation does nothing."""
    features, labels = problem(400, seed=1)
    deviation = features.std(0) + 1e-3
    standardised = (features - features.mean(0)) / deviation
    neutral = standardised / standardised.std(0) * 0.999
    folded, plain = head(), head()
    train_head(*folded, features, labels, steps=0)
    train_head(*plain, neutral, labels, steps=0)
    torch.testing.assert_close(predict(*folded, features), predict(*plain, standardised), atol=1e-3, rtol=0)


def test_training_depends_on_its_seed_alone() -> None:
    features, labels = problem(100, seed=1)

    def trained(seed: int) -> list[Tensor]:
        dense, classifier = head()
        torch.rand(3)
        train_head(dense, classifier, features, labels, steps=20, seed=seed)
        return [dense.weight, dense.bias, classifier.weight, classifier.bias]

    first = trained(0)
    assert all(torch.equal(x, y) for x, y in zip(first, trained(0), strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(first, trained(1), strict=True))


def test_training_all_heads_leaves_the_backbone() -> None:
    """Called under no_grad too, as evaluation code may."""
    model = tiny.classifier(exit_head="pooled", exit_layers=[0, 2])
    before = copy.deepcopy(model.state_dict())
    features = features_of(model)
    with torch.no_grad():
        train_all_heads(model, features)
    heads = ("exits.", "classifier.", "bert.pooler.")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]) != name.startswith(heads), name
    for layer, logits in exits_of(model).logits.items():
        assert (logits.argmax(-1) == features.labels).double().mean() > 0.9, f"layer {layer} did not learn its 12 texts"

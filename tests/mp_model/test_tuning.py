"""The outcome of an exit threshold, by hand and as the model behaves, and the choice among them."""

from __future__ import annotations

import math

import pytest
import tiny
import torch
from torch import Tensor

from mp_model.batching import length_sorted_batches
from mp_model.exit_training import collect_features, predict_at_all_exits
from mp_model.tuning import Outcome, choose_exit_threshold, outcome_of


def logits_of(*probabilities: float) -> Tensor:
    """Logits of two labels from the probability of label 0."""
    return torch.tensor([[math.log(p), math.log1p(-p)] for p in probabilities])


# Uncertainties: 0.081 at 0.99 and 0.01, 0.286 at 0.05, 0.469 at 0.1 and 0.9, 0.722 at 0.8, 0.881 at 0.3, 0.971 at 0.6.
LABELS = torch.tensor([0, 0, 1, 1])
LOGITS = {
    1: logits_of(0.99, 0.1, 0.6, 0.1),
    2: logits_of(0.99, 0.99, 0.3, 0.6),
    3: logits_of(0.99, 0.99, 0.01, 0.9),  # the whole model is wrong in the last text
}
RIGHT_BEFORE = torch.tensor([True, True, True, False])


@pytest.mark.parametrize(
    ("threshold", "accuracy", "harm", "mean_exit_layer"),
    [
        (0.0, 0.75, 0.0, 3.0),
        (0.1, 0.75, 0.0, 2.25),  # text 0 leaves at 1, text 1 at 2
        (0.5, 0.75, 0.25, 1.5),  # text 1 leaves at 1, wrongly; text 3 at 1, rightly
        (0.9, 0.75, 0.25, 1.25),  # text 2 leaves at 2
        (1.0, 0.5, 0.5, 1.0),  # text 2 leaves at 1, wrongly
    ],
)
def test_outcome(threshold: float, accuracy: float, harm: float, mean_exit_layer: float) -> None:
    assert outcome_of(LOGITS, LABELS, RIGHT_BEFORE, threshold) == Outcome(threshold, accuracy, harm, mean_exit_layer)


def test_the_order_of_the_layers_does_not_matter() -> None:
    turned = {layer: LOGITS[layer] for layer in (2, 3, 1)}
    assert outcome_of(turned, LABELS, RIGHT_BEFORE, 0.5) == outcome_of(LOGITS, LABELS, RIGHT_BEFORE, 0.5)


@pytest.mark.parametrize(
    ("max_harm", "steps", "threshold"),
    [(0.0, 200, 0.465), (0.2, 200, 0.465), (0.25, 200, 0.97), (0.5, 200, 1.0), (0.0, 10, 0.4), (0.25, 10, 0.9)],
)
def test_the_largest_threshold_that_harms_few_enough(max_harm: float, steps: int, threshold: float) -> None:
    chosen = choose_exit_threshold(LOGITS, LABELS, RIGHT_BEFORE, max_harm, steps)
    assert chosen == outcome_of(LOGITS, LABELS, RIGHT_BEFORE, threshold)


def test_a_larger_threshold_may_harm_less() -> None:
    """Above 0.722 the text leaves at layer 1, rightly, before layer 2 can answer wrongly."""
    logits = {1: logits_of(0.8), 2: logits_of(0.05), 3: logits_of(0.99)}
    label, right_before = torch.tensor([0]), torch.tensor([True])
    assert outcome_of(logits, label, right_before, 0.5).harm == 1
    assert choose_exit_threshold(logits, label, right_before, 0.0).exit_threshold == 1.0


def test_no_threshold_is_good_enough() -> None:
    logits = {1: logits_of(1e-5, 0.9), 2: logits_of(0.99, 0.99)}
    labels, right_before = torch.tensor([0, 0]), torch.tensor([True, True])
    chosen = choose_exit_threshold(logits, labels, right_before, 0.0)
    assert chosen == Outcome(0.0, accuracy=1.0, harm=0.0, mean_exit_layer=2.0)


@torch.no_grad()
@pytest.mark.parametrize("head", [{"exit_head": "cls"}, {"exit_head": "pooled", "exit_layers": [0, 2, 3]}])
def test_outcome_is_what_the_model_does(head: dict) -> None:
    batch = tiny.samples()
    model = tiny.classifier(**head)
    tiny.calibrate_pruning(model, batch)
    nobody_leaves = dict.fromkeys(model.config.resolved_exit_layers(), 0.0)
    answers = tiny.define(model, batch, nobody_leaves)
    threshold = tiny.one_exit_threshold([answer.uncertainties for answer in answers])
    out = model(**batch.padded(), exit_threshold=threshold)
    assert len(out.exit_layer.unique()) > 2

    rows = [
        {"input_ids": a.tolist(), "token_type_ids": b.tolist()} for a, b in zip(batch.ids, batch.types, strict=True)
    ]
    labels = torch.arange(len(batch)) % 3
    features = collect_features(model, length_sorted_batches(rows, 5, pad_token_id=0), labels.tolist())
    logits = predict_at_all_exits(model, features)
    right_before = logits[4].argmax(-1) == labels

    answered = out.logits.argmax(-1)
    for i in range(len(batch)):
        one = {layer: x[i : i + 1] for layer, x in logits.items()}
        outcome = outcome_of(one, answered[i : i + 1], right_before[i : i + 1], threshold)
        assert (outcome.accuracy, outcome.mean_exit_layer) == (1, out.exit_layer[i])
    assert outcome_of(logits, labels, right_before, threshold) == Outcome(
        threshold,
        accuracy=pytest.approx((answered == labels).double().mean().item()),
        harm=pytest.approx(((answered != labels) & right_before).double().mean().item()),
        mean_exit_layer=pytest.approx(out.exit_layer.double().mean().item()),
    )

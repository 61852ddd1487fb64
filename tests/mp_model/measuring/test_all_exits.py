"""Answers worked out from one run without exits are the model's own answers with them."""

from __future__ import annotations

import pytest
import torch

from mp_model import PyramidBertForSequenceClassification
from mp_model.data.batches import length_sorted_batches
from mp_model.measuring.all_exits import AllExits, read_all_exits
from support import tiny

BATCH = tiny.samples()
LABELS = [i % 3 for i in range(len(BATCH))]
HEADS = {
    "cls": {"exit_head": "cls"},
    "cls_at_2": {"exit_head": "cls", "exit_layers": [2]},
    "pooled_from_0": {"exit_head": "pooled", "exit_layers": [0, 1, 2, 3]},
    "pair_from_0": {"exit_head": "pair", "exit_layers": [0, 1, 2, 3]},
    "fastbert": {"exit_head": "fastbert"},
    "pooled_to_2": {"exit_head": "pooled", "exit_layers": [0, 1, 2, 3], "depth": 2},
    "pooled_to_0": {"exit_head": "pooled", "exit_layers": [0, 3], "depth": 0},
    "fastbert_to_3": {"exit_head": "fastbert", "depth": 3},
    "none": {"exit_layers": []},
}


def read(model: PyramidBertForSequenceClassification, batch_size: int = 5) -> AllExits:
    rows = [
        {"input_ids": a.tolist(), "token_type_ids": b.tolist()} for a, b in zip(BATCH.ids, BATCH.types, strict=True)
    ]
    return read_all_exits(model, length_sorted_batches(rows, batch_size, pad_token_id=0), LABELS)


def classifier(head: str, pruned: bool) -> PyramidBertForSequenceClassification:
    model = tiny.classifier(**HEADS[head])
    if pruned:
        tiny.calibrate_pruning(model, BATCH)
    return model


@torch.no_grad()
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_logits_are_the_models(head: str, pruned: bool) -> None:
    model = classifier(head, pruned)
    layers = model.config.resolved_exit_layers()
    exits = read(model)
    last = model.config.reached_layers
    layers_below = [layer for layer in layers if layer < last]
    assert exits.layers == [*layers_below, last]
    for layer in layers_below:
        out = model(**BATCH.padded(), exit_threshold=[float(other == layer) for other in layers])
        assert (out.exit_layer == layer).all()
        torch.testing.assert_close(exits.logits[layer], out.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(exits.logits[last], model(**BATCH.padded()).logits, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_answers_and_work_are_the_models(head: str, pruned: bool) -> None:
    model = classifier(head, pruned)
    exits = read(model)
    thresholds = [None]
    if exits.layers[:-1]:
        uncapped = tiny.classifier(**{**HEADS[head], "depth": None})
        thresholds += [0.0, 1.0, tiny.calibrate_exits(uncapped, BATCH)]
        uncertainties = [
            dict(zip(exits.layers, column, strict=False)) for column in exits.uncertainty.double().t().tolist()
        ]
        thresholds.append(tiny.one_exit_threshold(uncertainties))
    for threshold in thresholds:
        out, answers = model(**BATCH.padded(), exit_threshold=threshold), exits.answers(threshold)
        assert torch.equal(answers.predictions, out.logits.argmax(-1))
        for name in ("exit_layer", "tokens_per_layer", "flops", "executed_flops"):
            assert torch.equal(getattr(answers, name), getattr(out, name)), (threshold, name)
        if threshold is not None:
            places = exits.exit_places(threshold)
            assert torch.equal(exits.executed_at.gather(0, places.unsqueeze(0)).squeeze(0), out.executed_flops)
    if head.endswith("_from_0"):
        assert len(exits.answers(thresholds[-1]).exit_layer.unique()) > 2
    unpruned = tiny.classifier(**{**HEADS[head], "depth": None})
    assert torch.equal(exits.dense_flops, unpruned(**BATCH.padded()).flops)


def test_a_selection_answers_like_the_whole() -> None:
    exits = read(classifier("pooled_from_0", pruned=True))
    rows = torch.tensor([3, 0, 7])
    whole, part = exits.answers(0.8), exits.select(rows).answers(0.8)
    assert len(exits.select(rows)) == 3
    for name in ("predictions", "exit_layer", "executed_flops"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[rows])


def test_changing_the_model_later_changes_nothing() -> None:
    model = classifier("cls", pruned=True)
    exits = read(model)
    before = exits.answers(0.5).executed_flops
    model.config.prune_thresholds = None
    assert torch.equal(exits.answers(0.5).executed_flops, before)


@torch.no_grad()
@pytest.mark.parametrize("head", ["pooled_from_0", "fastbert"])
def test_capping_is_reading_a_capped_model(head: str) -> None:
    model = classifier(head, pruned=True)
    whole = read(model)
    for depth in model.config.resolved_exit_layers():
        model.config.depth = depth
        found, expected = whole.capped(depth), read(model)
        assert found.layers == expected.layers
        for threshold in (None, 0.8):
            ours, theirs = found.answers(threshold), expected.answers(threshold)
            for name in ("predictions", "exit_layer", "flops", "executed_flops", "tokens_per_layer"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert torch.equal(found.judged_by, whole.logits[4])
        assert torch.equal(found.select(torch.tensor([3, 1])).judged_by, whole.logits[4][[3, 1]])
    assert whole.capped(None) is whole

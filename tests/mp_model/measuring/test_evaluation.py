"""Evaluations by hand and against the model, timing in turn, and pictures that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mp_model.backbones.int8 import to_int8
from mp_model.data.batches import length_sorted_batches
from mp_model.engine import Decided, StepResult
from mp_model.measuring import timing
from mp_model.measuring.all_exits import AllExits, read_all_exits
from mp_model.measuring.evaluation import evaluate, f1_score
from mp_model.measuring.timing import padded_gflops, padded_twin, time_ways, way_at
from mp_model.measuring.tuning import outcome_of
from mp_model.reporting import plots
from mp_model.reporting.plots import plot_buckets, plot_exits, plot_tokens, plot_trade_off
from support import tiny

BATCH = tiny.samples()
LABELS = [i % 3 for i in range(len(BATCH))]
ROWS = [{"input_ids": a.tolist(), "token_type_ids": b.tolist()} for a, b in zip(BATCH.ids, BATCH.types, strict=True)]


@pytest.fixture(scope="module")
def pruned() -> tuple[torch.nn.Module, AllExits, float]:
    model = tiny.classifier(exit_head="pooled", exit_layers=[0, 1, 2, 3])
    tiny.calibrate_pruning(model, BATCH)
    exits = read_all_exits(model, length_sorted_batches(ROWS, 5, pad_token_id=0), LABELS)
    uncertainties = [
        dict(zip(exits.layers, column, strict=False)) for column in exits.uncertainty.double().t().tolist()
    ]
    return model, exits, tiny.one_exit_threshold(uncertainties)


@torch.no_grad()
def test_figures_are_those_of_the_model(pruned: tuple) -> None:
    model, exits, threshold = pruned
    out, found = model(**BATCH.padded(), exit_threshold=threshold), evaluate(exits, threshold, (5, 20))
    right = (out.logits.argmax(-1) == torch.tensor(LABELS)).double()
    assert found.accuracy == right.mean().item()
    assert found.exits == torch.bincount(out.exit_layer, minlength=5).tolist()
    assert found.executed_gflops == pytest.approx(out.executed_flops.double().mean().item() / 1e9)
    assert found.gflops == pytest.approx(out.flops.double().mean().item() / 1e9)
    assert found.speed_up == pytest.approx(found.dense_gflops / found.executed_gflops)

    lengths = torch.tensor(tiny.LENGTHS)
    for layer in range(1, 5):
        stay = out.exit_layer >= layer if layer == 4 else out.exit_layer > layer
        share = out.tokens_per_layer[stay, layer - 1].sum() / lengths[stay].sum()
        assert found.tokens_kept[layer - 1] == pytest.approx(share.item())

    assert [(x.name, x.shortest, x.longest) for x in found.buckets] == [
        ("1-5", 1, 5),
        ("6-20", 6, 20),
        ("21 or more", 21, None),
    ]
    for bucket in found.buckets:
        inside = (lengths >= bucket.shortest) & (lengths <= (bucket.longest or 1000))
        assert bucket.texts == inside.sum()
        assert bucket.accuracy == pytest.approx(right[inside].mean().item())
        assert bucket.mean_exit_layer == pytest.approx(out.exit_layer[inside].double().mean().item())
        assert bucket.executed_gflops == pytest.approx(out.executed_flops[inside].double().mean().item() / 1e9)


def test_one_record_whoever_asks(pruned: tuple) -> None:
    """Evaluations, a bucket that holds every text and tuning's outcomes tell the same of the same answers."""
    _, exits, threshold = pruned
    found = evaluate(exits, threshold, (1000,))
    outcome = outcome_of(exits, threshold)
    for name in ("texts", "accuracy", "mean_exit_layer", "gflops", "executed_gflops", "dense_gflops", "tokens_kept"):
        assert getattr(found, name) == getattr(found.buckets[0], name) == getattr(outcome, name)
    assert found.as_json()["speed_up"] == outcome.as_json()["speed_up"] == found.speed_up
    assert found.as_json()["buckets"][0]["longest"] == 1000


def test_empty_buckets_and_unreached_layers_are_left_out(pruned: tuple) -> None:
    _, exits, _ = pruned
    found = evaluate(exits, 1.0, (1000,))
    assert [bucket.name for bucket in found.buckets] == ["1-1000"]
    assert found.exits == [len(BATCH), 0, 0, 0, 0]
    assert found.tokens_kept == [None] * 4
    for wrong in ((70, 35), (35, 35), (0,)):
        with pytest.raises(ValueError, match="rising positive bounds"):
            evaluate(exits, None, wrong)


def test_f1() -> None:
    predictions, labels = torch.tensor([1, 1, 0, 0, 1]), torch.tensor([1, 0, 0, 1, 1])
    assert f1_score(predictions, labels, 2) == pytest.approx(2 * 2 / 6)
    assert f1_score(predictions, labels, 3) == pytest.approx((4 / 6 + 2 / 4 + 0) / 3)


@torch.no_grad()
def test_the_padded_twin_answers_like_the_unpruned_model() -> None:
    model = tiny.classifier()
    inputs = BATCH.padded(junk=0)
    torch.testing.assert_close(padded_twin(model)(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=0)


def test_the_padded_twin_of_int8_weights_has_their_values() -> None:
    model = tiny.classifier()
    exact = dict(padded_twin(model).named_parameters())
    to_int8(model)
    for name, weight in padded_twin(model).named_parameters():
        step = exact[name].detach().abs().amax(-1, keepdim=True) / 127
        assert (weight - exact[name]).abs().le(0.51 * step).all(), name


def decided(results: list[StepResult]) -> list[Decided]:
    return [result.decided for result in results if result.decided is not None]


def leaving_at(found: list[Decided], samples: int) -> torch.Tensor:
    """The layer at which each sample leaves."""
    layers = torch.zeros(samples, dtype=torch.int64)
    for x in found:
        layers[x.samples] = x.layer  # that of a sample that stays is overwritten later
    return layers


@torch.no_grad()
def test_a_way_sets_exits_and_pruning_for_its_calls_alone(pruned: tuple) -> None:
    model, _, threshold = pruned
    model.config.exit_threshold, inputs = 1.0, BATCH.padded()
    try:
        (never,) = decided(way_at(model, None)([inputs]))
        assert (never.layer, never.stays) == (4, None)
        expected = model(**inputs, exit_threshold=threshold).exit_layer
        found = decided(way_at(model, threshold)([inputs, inputs]))
        assert torch.equal(leaving_at(found, 2 * len(BATCH)), expected.repeat(2)), "two batches in one schedule"
        (dense,) = decided(way_at(model, None, [0.0] * 4)([inputs]))
        torch.testing.assert_close(dense.logits, padded_twin(model)(**inputs).logits, atol=1e-5, rtol=0)
        assert (model(**inputs).exit_layer == 0).all()
    finally:
        model.config.exit_threshold = None


def test_the_work_of_padding(pruned: tuple) -> None:
    """A batch of texts as long as its longest: the padded work is theirs."""
    model, exits, _ = pruned
    batches = list(length_sorted_batches(ROWS, len(ROWS), pad_token_id=0))
    assert padded_gflops(model, batches) == pytest.approx(exits.dense_flops.max().item() / 1e9)


def test_ways_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = list(length_sorted_batches(ROWS, 5, pad_token_id=0))
    calls: list[str] = []
    monkeypatch.setattr(timing, "GROUP", 2)
    ways = {name: (lambda inputs, name=name: calls.append(name)) for name in ("a", "b")}
    seconds = time_ways(ways, batches, rounds=2)
    assert len(batches) == 3
    assert calls == ["a", "b"] + ["a", "b"] * 2 * 2, "once to begin with; two groups of batches, two rounds"
    assert set(seconds) == {"a", "b"}
    assert all(x > 0 for x in seconds.values())


def test_pictures(pruned: tuple, tmp_path: Path) -> None:
    _, exits, threshold = pruned
    found = evaluate(exits, threshold, (5, 20))
    plot_trade_off({"a": [(1.0, 0.8), (2.0, 0.9)]}, tmp_path / "a.png", title="a", points={"b": (3.0, 0.9)})
    plot_exits(found, tmp_path / "b.png", title="b")
    plot_tokens(found, tmp_path / "c.png", title="c")
    plot_buckets({"x": {"short": 1.0}, "y": {"short": 2.0, "long": 3.0}}, tmp_path / "d.png", title="d")
    for name in "abcd":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(("work", "scale"), [(2.0, "linear"), (2000.0, "log")])
def test_pictures_of_values_far_apart(work: float, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    plot_trade_off({"none": [], "a": [(1.0, 0.8), (work, 0.9)]}, tmp_path / "a.png", title="a")
    plot_buckets({"a": {"short": 2.0}, "b": {"short": work}}, tmp_path / "b.png", title="b")
    curves, bars = (figure.axes[0] for figure in figures)
    assert (curves.get_xscale(), bars.get_yscale()) == (scale, scale)
    assert [line.get_color() for line in curves.lines] == [plots.COLOURS[1]]
    assert bars.get_ylim()[0] == (1.0 if scale == "log" else 0.0)

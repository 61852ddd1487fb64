"""Whole runs as graphs of a device give the answers of the engine, and are dropped where the model is another one.

Without a GPU the kernels run in Triton's interpreter, and what a graph would replay is done anew.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mp_model import Classifier, PyramidBertForSequenceClassification, engine, graphs
from mp_model.backbones.int8 import to_int8
from mp_model.inputs import pack_tokens
from mp_model.serving import classifier, worker
from support import replays, tiny, wordpiece
from support.pyramids import calibrated
from support.serving import assert_like, request_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = (
    ((17, 1, 33, 2, 9), (64, 3), (1,), (20,) * 19, (5, 5, 60))
    if DEVICE == "cuda"
    else ((3, 1, 9), (1,), (2, 3, 2, 1, 4))
)
BATCHES = [tiny.samples(lengths) for lengths in SHAPES]
CASES = list(
    itertools.product(("nothing", "alive"), ("cls", "pooled_from_0", "fastbert", "disagreement"), (False, True))
)
if DEVICE == "cpu":  # in the interpreter a batch takes seconds
    CASES = [("nothing", "cls", False), ("alive", "pooled_from_0", True), ("alive", "disagreement", True)]


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU whose kernels are Triton's counts as a device that can replay."""
    if DEVICE == "cpu":
        request.getfixturevalue("on_triton")
        monkeypatch.setitem(graphs.DEVICES, "cpu", replays.Cpu)


def both(model: PyramidBertForSequenceClassification, **call: Any) -> tuple[Any, Any]:
    """The outputs by graphs, and by the engine."""
    outputs = []
    for use_graphs in (True, False):
        model.use_graphs = use_graphs
        outputs.append(model(**call))
    return outputs[0], outputs[1]


def assert_same(got: Any, expected: Any) -> None:
    for name in ("exit_layer", "tokens_per_layer", "flops"):
        assert torch.equal(got[name], expected[name]), name
    for name in ("logits", "uncertainty"):
        torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=0)


def on_device(pruning: str, head: str, **settings: Any) -> tuple[PyramidBertForSequenceClassification, list[float]]:
    """A model of its own, and its exit thresholds; with settings, of random weights."""
    template, thresholds, _ = calibrated(pruning, head)
    config = copy.deepcopy(template.config)
    config.update(settings)
    model = type(template)(config)
    if not settings:
        model.load_state_dict(template.state_dict())
    return model.eval().to(DEVICE), list(thresholds.values())


def inputs_of(batch: tiny.Batch) -> dict[str, torch.Tensor]:
    return {name: x.to(DEVICE) for name, x in batch.padded("mixed").items()}


@torch.no_grad()
@pytest.mark.parametrize(("pruning", "head", "exits"), CASES)
def test_answers(pruning: str, head: str, exits: bool) -> None:
    """Batches of several shapes come in turn, and come again."""
    model, thresholds = on_device(pruning, head)
    for batch in [*BATCHES, *BATCHES[:2]]:
        assert_same(*both(model, **inputs_of(batch), exit_threshold=thresholds if exits else "never"))


@pytest.mark.parametrize(
    ("layers", "rows", "shrinks", "lasts"),
    [
        (1, 100, True, [1]),
        (6, 100, True, [2, 6]),
        (12, 100, True, [2, 6, 12]),
        (24, 100, True, [2, 6, 14, 24]),
        (6, graphs.ROOMY, True, [2, 4, 6]),
        (12, 100, False, [12]),
    ],
)
def test_segments_follow_each_other(layers: int, rows: int, shrinks: bool, lasts: list[int]) -> None:
    model, _ = on_device("nothing", "cls", num_hidden_layers=layers, exit_layers=None)
    rules = graphs.Rules([0.1] * layers if shrinks else None, (), model.config.uncertainty)
    segments = graphs.Graphs(model).segments(rules, rows)
    assert [segment.last for segment in segments] == lasts
    assert [segment.first for segment in segments] == [0, *(last + 1 for last in lasts[:-1])]


@torch.no_grad()
def test_a_room_may_be_wider_than_the_table_of_positions() -> None:
    """Token types stand behind all positions of the table, so its true length counts."""
    model, _ = on_device("nothing", "cls", max_position_embeddings=20)
    assert_same(*both(model, **inputs_of(tiny.samples((20, 3))), exit_threshold="never"))


@torch.no_grad()
def test_thresholds_of_samples() -> None:
    model, _ = on_device("alive", "pooled_from_0")
    size = len(SHAPES[0])
    for values in ([0.0, 1.0, 0.5, 0.9, 0.0][:size], [1.0] * size):
        assert_same(*both(model, **inputs_of(BATCHES[0]), exit_threshold=torch.tensor(values)))


def replaced(model: PyramidBertForSequenceClassification) -> None:
    old = model.bert.stack[1].output.dense
    old.weight = torch.nn.Parameter(old.weight * 2)


def moved(model: PyramidBertForSequenceClassification) -> None:
    weight = model.bert.stack[1].output.dense.weight
    weight.data = weight.data * 2


def hooked(model: PyramidBertForSequenceClassification) -> None:
    model.bert.stack[1].output.dense.register_forward_hook(lambda module, inputs, output: 2 * output)


def in_place(model: PyramidBertForSequenceClassification) -> None:
    model.bert.stack[1].output.dense.weight *= 2


@torch.no_grad()
@pytest.mark.parametrize("change", [replaced, moved, hooked, in_place])
def test_a_model_that_was_changed(change: Callable) -> None:
    model, _ = on_device("nothing", "cls")
    call = {**inputs_of(BATCHES[0]), "exit_threshold": "never"}
    before, _ = both(model, **call)
    change(model)
    got, expected = both(model, **call)
    assert_same(got, expected)
    assert not torch.allclose(got.logits, before.logits, atol=1e-3)
    assert_same(*both(model, **call))


def test_a_classifier_answers_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one call, with thresholds of the texts' own, and in a stream; texts and pairs."""
    monkeypatch.setattr(classifier, "CHUNK", 2)
    monkeypatch.setattr(engine, "decides_first", lambda *_: False)  # as graphs decide, since the work is compared
    model, thresholds = on_device("nothing", "pooled_from_0", vocab_size=len(wordpiece.VOCABULARY))
    ours = Classifier(model, wordpiece.tokenizer())
    texts = [text[:30] for text in wordpiece.texts(3)]
    pairs = list(zip(texts, reversed(texts), strict=True))
    calls = [(texts, thresholds), (pairs, "never"), (texts, torch.tensor([0.0, 1.0, 0.5]))]
    used, by_graphs = [], model.run_captured
    monkeypatch.setattr(model, "run_captured", lambda *x: (used.append(by_graphs(*x)), used[-1])[1])
    got = [ours(some, exit_threshold=threshold) for some, threshold in calls]
    got.append(list(ours.stream(iter(texts), window=2)))
    assert used
    assert None not in used
    model.use_graphs = False
    expected = [ours(some, exit_threshold=threshold) for some, threshold in calls]
    expected.append(list(ours.stream(iter(texts), window=2)))
    for answers, others in zip(got, expected, strict=True):
        for x, y in zip(answers, others, strict=True):
            assert (x.label, x.exit_layer, x.tokens, x.flops) == (y.label, y.exit_layer, y.tokens, y.flops)
            assert x.score == pytest.approx(y.score, abs=1e-5)
            assert x.uncertainty == pytest.approx(y.uncertainty, abs=1e-5)


def product_row_by_row(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A linear layer whose rows do not depend on how many there are, as a processor's library may let them."""
    product = (x.unsqueeze(-2) * weight).sum(-1)
    return product if bias is None else product + bias


@torch.no_grad()
def test_a_packed_batch_needs_no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers are the padded one's, bit by bit, in whatever order both come into one room."""
    if DEVICE == "cpu":
        monkeypatch.setattr(torch.nn.functional, "linear", product_row_by_row)
    model, thresholds = on_device("alive", "pooled_from_0")
    pyramid = model.pyramid(exit_threshold=thresholds)
    for batch in (*BATCHES, BATCHES[0]):
        padded = inputs_of(batch)
        packed = model.base_model.pack(**padded)
        given = padded["input_ids"], padded["attention_mask"], padded["token_type_ids"]
        got, expected = (model.run_captured(x, pyramid) for x in (packed, given))
        for name in ("logits", "uncertainty", "exit_layer", "lengths"):
            assert torch.equal(getattr(got, name), getattr(expected, name)), name


def test_rooms_of_packed_batches_are_few_and_small() -> None:
    config = tiny.config(max_position_embeddings=64)
    lengths = [np.full(size, length) for size in range(1, 33) for length in (5, 20, 40, 60)]
    given = [pack_tokens(config, np.ones(x.sum(), dtype=np.int64), None, x, DEVICE) for x in lengths]
    rooms = [graphs.Shape.around(x) for x in given]
    assert len(set(rooms)) < graphs.MOST_ROOMS
    for batch, room in zip(given, rooms, strict=True):
        shape = graphs.Shape.of(batch)
        assert all(need <= there for need, there in zip(shape, room, strict=True))
        assert room.rows <= max(256, 2 * shape.rows)


def test_a_server_answers_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for texts that are audited, of which every exit's prediction is wanted."""
    monkeypatch.setattr(worker, "WARM", (3,))
    monkeypatch.setattr(engine, "decides_first", lambda *_: False)  # as graphs decide, since the work is compared
    model, _ = on_device("alive", "pooled_from_0", vocab_size=len(wordpiece.VOCABULARY))
    ours = Classifier(model, wordpiece.tokenizer())
    texts = [text[:30] for text in wordpiece.texts(3)]
    used, by_graphs = [], model.run_captured
    monkeypatch.setattr(model, "run_captured", lambda *x: (used.append(by_graphs(*x)), used[-1])[1])

    def served(threshold: float | str | None, **settings: Any) -> list[Any]:
        """The outcomes of a server that is closed at once; it runs in this thread, where NumPy's warnings are ignored."""
        server = worker.Worker(ours)
        server.state = "ready"
        request, done = request_of(server, texts, threshold, **settings)
        server.submit(request)
        server.close()
        used.clear()
        server._run()
        assert done.is_set()
        assert server.state == "closed"
        return request.outcomes

    got = [served(threshold) for threshold in (0.9, "never")]
    assert len(used) == 2, "one to warm up, and one for the texts"
    assert None not in used
    got.append(served(0.9, audited=[False, True, False]))
    assert len(used) == 1, "one to warm up"
    model.use_graphs = False
    for outcomes, threshold in zip(got, (0.9, "never", 0.9), strict=True):
        assert_like(ours, outcomes, texts, threshold)


@torch.no_grad()
def test_int8_models_go_without() -> None:
    """A device has no kernels for their steps, and the host reads what their definitions find."""
    model, _ = on_device("nothing", "cls")
    given = inputs_of(BATCHES[0])["input_ids"], None, None
    assert graphs.can_be_captured(model, model.pyramid(), given)
    to_int8(model)
    assert not graphs.can_be_captured(model, model.pyramid(), given)


@torch.no_grad()
def test_bad_values_are_refused() -> None:
    model, _ = on_device("nothing", "cls")
    inputs = inputs_of(BATCHES[0])
    for name, value, message in (
        ("input_ids", 10**6, "input_ids must lie in"),
        ("attention_mask", 0, "attention_mask has no token in row 2"),
    ):
        wrong = {**inputs, name: inputs[name].clone()}
        wrong[name][2] = value
        with pytest.raises(ValueError, match=message):
            model(**wrong)
    assert_same(*both(model, **inputs))


@torch.no_grad()
def test_importance_that_is_nan_is_an_error() -> None:
    model, _ = on_device("alive", "cls")
    model.bert.stack[2].attention.self.query.weight.fill_(torch.nan)
    for _ in range(2):
        with pytest.raises(ValueError, match="importance is NaN"):
            model(**inputs_of(BATCHES[0]), exit_threshold="never")


@torch.no_grad()
def test_answers_are_the_callers_own() -> None:
    model, _ = on_device("nothing", "cls")
    first = model(**inputs_of(BATCHES[0]), exit_threshold="never").logits
    copy = first.clone()
    model(**inputs_of(tiny.samples(SHAPES[0], seed=5)), exit_threshold="never")
    assert torch.equal(first, copy)


def test_modes_change_nothing() -> None:
    """What is made in inference mode serves others, whose answers are ordinary tensors."""
    model, thresholds = on_device("alive", "cls")
    call = {**inputs_of(BATCHES[0]), "exit_threshold": thresholds}
    with torch.inference_mode():
        first = model(**call)
    with torch.no_grad():
        second = model(**call)
    assert torch.equal(first.logits, second.logits)
    assert not second.logits.is_inference()


@torch.no_grad()
def test_graphs_are_used() -> None:
    model, _ = on_device("nothing", "cls")
    model(**inputs_of(BATCHES[0]), exit_threshold="never")
    assert model._graphs is not None
    assert len(model._graphs.rooms) == 1
    assert all(room.graphs for room in model._graphs.rooms.values())

"""Many batches at once get the answers of one batch at a time, everybody gets one, and memory is bounded."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mp_kernels import Ragged
from mp_model import PyramidBertForSequenceClassification, engine, schedule
from mp_model.backbones import PackedInputs
from mp_model.engine import Alive, Arrived, StepResult
from mp_model.flops import Work
from mp_model.schedule import EMBEDDED_BUDGETS, Schedule
from support import tiny
from support.pyramids import BATCH, HEADS, LAYERS, calibrated
from support.scripted import Scripted

SIZES = (1, 4, 2, 5)  # of the batches that BATCH's samples come in


def arrivals(model: PyramidBertForSequenceClassification, thresholds: Tensor | None = None) -> list[Arrived]:
    found, begin = [], 0
    for size in SIZES:
        inputs = model.bert.pack(**BATCH.select(range(begin, begin + size)).padded("mixed"))
        found.append(Arrived.of(inputs, begin, None if thresholds is None else thresholds[begin : begin + size]))
        begin += size
    return found


def answers_of(results: list[StepResult], model: PyramidBertForSequenceClassification) -> dict[str, Tensor]:
    """The answers of all samples by their numbers, each of them once."""
    exit_layer, logits = {}, {}
    for result in results:
        decided = result.decided
        if decided is None:
            continue
        for row, number in enumerate(decided.samples.tolist()):
            if decided.stays is None or not decided.stays[row]:
                assert number not in logits, "answered twice"
                exit_layer[number], logits[number] = decided.layer, decided.logits[row]
    assert sorted(logits) == list(range(len(BATCH))), "everybody is answered"
    exits = torch.tensor([exit_layer[number] for number in range(len(BATCH))])
    work = Work(model.config, torch.tensor(tiny.LENGTHS), exits, [result.step for result in results])
    counts = {name: getattr(work, name)() for name in ("tokens_per_layer", "flops", "executed_flops")}
    return {"exit_layer": exits, "logits": torch.stack([logits[n] for n in range(len(BATCH))]), **counts}


@torch.no_grad()
@pytest.mark.parametrize("budget", [1, 30, 10_000])
@pytest.mark.parametrize("kind", ["never", "per_layer", "per_sample"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("pruning", ["nothing", "alive", "input", "shares"])
def test_answers_are_those_of_one_batch(pruning: str, head: str, kind: str, budget: int) -> None:
    model, per_layer, uncertainties = calibrated(pruning, head)
    own, call = None, list(per_layer.values()) if kind == "per_layer" else "never"
    if kind == "per_sample":
        call = torch.tensor(tiny.exit_threshold_each(uncertainties))
        own = call.unsqueeze(1).expand(-1, len(per_layer))
    expected = model(**BATCH.padded(), exit_threshold=call)
    schedule = Schedule(model.pyramid(exit_threshold=1.0 if own is not None else call), budget)
    results = []
    for arrived in arrivals(model, own):
        schedule.admit(arrived)
        results += schedule.due(more_is_coming=True)
        assert schedule.tokens < (LAYERS + EMBEDDED_BUDGETS) * budget
    results += schedule.due(more_is_coming=False)

    assert schedule.tokens == 0
    got = answers_of(results, model)
    for name in ("exit_layer", "tokens_per_layer", "flops", "executed_flops"):
        assert torch.equal(got[name], expected[name]), name
    torch.testing.assert_close(got["logits"], expected.logits, atol=1e-5, rtol=0)
    if budget == 10_000:
        runs = [result.step.layer for result in results]
        assert runs == sorted(set(runs)), "with nothing due before the end every layer runs once"


@given(
    samples=st.lists(st.tuples(st.integers(0, LAYERS), st.integers(1, 5)), min_size=1, max_size=40),
    cuts=st.sets(st.integers(1, 39)),
    budget=st.integers(1, 40),
    patience=st.integers(1, 6),
)
def test_everybody_is_answered_once_in_finitely_many_steps(
    samples: list[tuple[int, int]], cuts: set[int], budget: int, patience: int
) -> None:
    """Under any pattern of arrivals and exits; nobody waits for more than ``patience`` arrivals at any layer."""
    leaves, lengths = zip(*samples, strict=True)
    schedule = Schedule(Scripted(list(leaves)).pyramid(), budget, patience)
    answered: dict[int, int] = {}
    steps = 0

    def take(result: StepResult) -> None:
        decided = result.decided
        if decided is None:
            return
        for row, number in enumerate(decided.samples.tolist()):
            if decided.stays is None or not decided.stays[row]:
                assert number not in answered
                answered[number] = decided.layer

    ends = [*sorted(cut for cut in cuts if cut < len(samples)), len(samples)]
    begin = 0
    for end in ends:
        counts = torch.tensor(lengths[begin:end])
        numbers = torch.repeat_interleave(torch.arange(begin, end), counts)
        words = Ragged(numbers, torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int(), int(counts.max()))
        inputs = PackedInputs(words, torch.zeros_like(numbers), torch.zeros_like(numbers), 1)
        schedule.admit(Arrived.of(inputs, begin))
        for result in schedule.due(more_is_coming=True):
            take(result)
            steps += 1
        assert schedule.tokens < (LAYERS + EMBEDDED_BUDGETS) * budget
        waits = [schedule.arrivals - queue.since for queue in schedule.queues if queue.parts]
        assert all(wait < patience for wait in waits)
        begin = end
    for result in schedule.due(more_is_coming=False):
        take(result)
        steps += 1
    assert answered == dict(enumerate(leaves))
    assert steps <= (LAYERS + 1) * (len(ends) + len(samples))


@torch.inference_mode()
@pytest.mark.parametrize("exit_threshold", [None, "never"])
@pytest.mark.parametrize("pruning", ["nothing", "alive"])
def test_states_are_freed_layer_by_layer(
    monkeypatch: pytest.MonkeyPatch, pruning: str, exit_threshold: str | None
) -> None:
    model, _, _ = calibrated(pruning, "cls")
    entered: list[weakref.ref[Tensor]] = []

    def run_layer(pyramid: engine.Pyramid, number: int, alive: Alive) -> engine.Stepped:
        entered.append(weakref.ref(alive.batch.values))
        assert [states() is None for states in entered] == [True] * (number - 1) + [False]
        return engine.run_layer(pyramid, number, alive)

    monkeypatch.setattr(schedule, "run_layer", run_layer)
    output = model(**BATCH.padded(), exit_threshold=exit_threshold)
    assert len(entered) == LAYERS
    assert output.logits.shape[0] == len(BATCH)
    assert entered[-1]() is None


def test_sizes_below_one_are_refused() -> None:
    model, _, _ = calibrated("nothing", "cls")
    for sizes in ({"budget": 0}, {"patience": 0}):
        with pytest.raises(ValueError, match="budget and patience must be at least 1"):
            Schedule(model.pyramid(), **sizes)


def test_arrivals_in_one_are_one_batch() -> None:
    model, _, _ = calibrated("nothing", "cls")
    parts = arrivals(model, torch.rand(len(BATCH), 3))
    joined, whole = Arrived.joined(parts), model.bert.pack(**BATCH.padded("mixed"))
    assert torch.equal(joined.inputs.words.values, whole.words.values)
    assert torch.equal(joined.inputs.words.cu_seqlens, whole.words.cu_seqlens)
    assert torch.equal(joined.inputs.token_types, whole.token_types)
    assert torch.equal(joined.inputs.positions, whole.positions)
    assert joined.inputs.words.max_seqlen == whole.words.max_seqlen
    assert joined.inputs.positions_end == whole.positions_end
    assert joined.samples.tolist() == list(range(len(BATCH)))
    assert torch.equal(joined.thresholds, torch.cat([part.thresholds for part in parts]))


def test_samples_of_several_batches_in_one() -> None:
    def alive(lengths: list[int], first: int) -> Alive:
        rows = torch.arange(sum(lengths)) + 10 * first
        batch = Ragged(rows.unsqueeze(1).float(), torch.tensor([0, *lengths]).cumsum(0).int(), max(lengths))
        return Alive(batch, torch.arange(first, first + len(lengths)), batch.lengths + 1, rows=rows)

    joined = Alive.joined([alive([2, 1], 0), alive([3], 2), alive([1, 4], 3)])
    assert joined.batch.cu_seqlens.tolist() == [0, 2, 3, 6, 7, 11]
    assert joined.batch.cu_seqlens.dtype == torch.int32
    assert joined.batch.max_seqlen == 4
    assert joined.samples.tolist() == [0, 1, 2, 3, 4]
    assert joined.input_lengths.tolist() == [3, 2, 4, 2, 5]
    assert joined.rows.tolist() == [0, 1, 2, 20, 21, 22, 30, 31, 32, 33, 34]
    assert joined.batch.values[:, 0].tolist() == joined.rows.tolist()
    assert joined.thresholds is None

"""Many batches at once get the answers of one batch at a time, everybody gets one, and memory is bounded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mp_kernels import Ragged
from mp_model import PyramidBertForSequenceClassification
from mp_model.engine import Alive, Pyramid, StepResult, concatenate
from mp_model.exits import Exits
from mp_model.flops import Work
from mp_model.pruning import Pruning
from mp_model.schedule import Schedule
from support import tiny
from support.pyramids import BATCH, HEADS, LAYERS, calibrated

SIZES = (1, 4, 2, 5)  # of the batches that BATCH's samples come in


def arrivals(model: PyramidBertForSequenceClassification, thresholds: Tensor | None = None) -> list[Alive]:
    found, begin = [], 0
    for size in SIZES:
        places = range(begin, begin + size)
        embedded = model.bert.embed(**BATCH.select(places).padded("mixed"))
        own = None if thresholds is None else thresholds[begin : begin + size]
        found.append(Alive.of(Ragged(embedded.values, embedded.cu_seqlens, embedded.max_seqlen), begin, own))
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
    for alive in arrivals(model, own):
        results += [schedule.admit(alive), *schedule.due(more_is_coming=True)]
        assert schedule.tokens < LAYERS * budget
    results += schedule.due(more_is_coming=False)

    assert schedule.tokens == 0
    got = answers_of(results, model)
    for name in ("exit_layer", "tokens_per_layer", "flops", "executed_flops"):
        assert torch.equal(got[name], expected[name]), name
    torch.testing.assert_close(got["logits"], expected.logits, atol=1e-5, rtol=0)
    if budget == 10_000:
        runs = [result.step.layer for result in results if result.step.layer]
        assert runs == sorted(set(runs)), "with nothing due before the end every layer runs once"


class Scripted:
    """Exits by a script, so that any pattern can be had: sample ``n`` leaves at layer ``leaves[n]``."""

    def __init__(self, leaves: list[int]) -> None:
        self.leaves = torch.tensor(leaves)

    def pyramid(self) -> Pyramid:
        class Layer(torch.nn.Module):
            def forward(self, values, batch, survive=None, first_only=False):
                return values[batch.cu_seqlens[:-1].long()] if first_only else values

        heads = dict.fromkeys(range(LAYERS), None)
        exits = Exits(heads, dict.fromkeys(heads, 0.0))
        exits.decide = self.decide
        layers = [Layer() for _ in range(LAYERS)]
        return Pyramid(layers, Pruning(None, None, "alive"), exits, lambda first: first[:, :2])

    def decide(self, layer, states, own):
        numbers = states.first[:, 1].long()
        stays = self.leaves[numbers] != layer
        return states.first[:, :2], torch.zeros(len(numbers)), stays


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
    steps = largest = 0

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
        counts = lengths[begin:end]
        values = torch.zeros(sum(counts), 4)
        values[:, 1] = torch.repeat_interleave(torch.arange(begin, end), torch.tensor(counts)).float()
        batch = Ragged(values, torch.tensor([0, *counts]).cumsum(0).int(), max(counts))
        largest = max(largest, sum(counts))
        take(schedule.admit(Alive.of(batch, begin)))
        for result in schedule.due(more_is_coming=True):
            take(result)
            steps += 1
        assert schedule.tokens < LAYERS * budget
        waits = [schedule.arrivals - queue.since for queue in schedule.queues.values() if queue.parts]
        assert all(wait < patience for wait in waits)
        begin = end
    for result in schedule.due(more_is_coming=False):
        take(result)
        steps += 1
    assert answered == dict(enumerate(leaves))
    assert steps <= LAYERS * (len(ends) + 1)


def test_sizes_below_one_are_refused() -> None:
    model, _, _ = calibrated("nothing", "cls")
    for sizes in ({"budget": 0}, {"patience": 0}):
        with pytest.raises(ValueError, match="budget and patience must be at least 1"):
            Schedule(model.pyramid(), **sizes)


def test_concatenated_batches_are_one_batch() -> None:
    model, _, _ = calibrated("nothing", "cls")
    with torch.no_grad():
        parts = arrivals(model, torch.rand(len(BATCH), 3))
        whole = concatenate(parts)
        embedded = model.bert.embed(**BATCH.padded("mixed"))
    assert torch.equal(whole.batch.values, embedded.values)
    assert torch.equal(whole.batch.cu_seqlens, embedded.cu_seqlens)
    assert whole.batch.max_seqlen == embedded.max_seqlen
    assert whole.samples.tolist() == list(range(len(BATCH)))
    assert torch.equal(whole.thresholds, torch.cat([part.thresholds for part in parts]))

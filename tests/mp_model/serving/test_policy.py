"""Which layer runs next: the stated order, and the bound on how long a sample waits."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mp_kernels import Ragged
from mp_model.backbones import PackedInputs
from mp_model.engine import Alive, Arrived, StepResult
from mp_model.schedule import EMBEDDED_BUDGETS, Schedule
from mp_model.serving.policy import InGroups, Policy
from support.pyramids import LAYERS
from support.scripted import Scripted

BUDGET = 10


@dataclass
class Waits:
    """Texts that wait, as a policy sees them."""

    texts: int = 0
    tokens: int = 0
    age: float = 0.0


def schedule_with(tokens: list[int]) -> Schedule:
    """A schedule in whose layers 1 to L so many tokens wait."""
    schedule = Schedule(Scripted([]).pyramid(), BUDGET)
    for queue, count in zip(schedule.layers, tokens, strict=True):
        if count:
            values = torch.zeros(count, 2)
            batch = Ragged(values, torch.tensor([0, count], dtype=torch.int32), count)
            queue.add(Alive(batch, torch.zeros(1, dtype=torch.int64), torch.tensor([count])), 0)
    return schedule


NOTHING = [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("tokens", "waits", "chosen"),
    [
        (NOTHING, Waits(), None),
        (NOTHING, Waits(1, 5), 0),
        ([10, 3, 12, 4], Waits(1, 5), 3),  # the deepest full one, before anybody is let in
        ([9, 0, 0, 9], Waits(1, 5), 0),  # who waits is let in, before the shallowest
        ([0, 4, 0, 9], Waits(), 2),
    ],
)
def test_the_order_while_more_groups_may_come(tokens: list[int], waits: Waits, chosen: int | None) -> None:
    assert InGroups(3).next_layer(schedule_with(tokens), waits) == chosen


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_once_all_groups_are_in_they_are_finished_before_the_next(groups: int) -> None:
    policy, more = InGroups(groups), Waits(9, 90)
    assert [policy.next_layer(schedule_with([0, 3, 0, 9]), more) for _ in range(groups)] == [0] * groups
    assert policy.next_layer(schedule_with([0, 3, 0, 12]), more) == 2  # though another one is full
    assert policy.next_layer(schedule_with([0, 0, 0, 9]), more) == 4
    assert policy.next_layer(schedule_with(NOTHING), more) == 0


@pytest.mark.parametrize("groups", [1, 3])
def test_with_patience_texts_wait_for_company(groups: int) -> None:
    nothing, policy = schedule_with(NOTHING), InGroups(groups, patience=1.0)
    assert policy.next_layer(nothing, Waits(1, 5, age=0.9)) is None
    assert policy.next_layer(nothing, Waits(1, 5, age=1.0)) == 0
    assert policy.next_layer(nothing, Waits(9, EMBEDDED_BUDGETS * BUDGET, age=0.0)) == 0
    assert InGroups(groups, patience=1.0, texts=3).next_layer(nothing, Waits(3, 5, age=0.0)) == 0


class Simulated:
    """A schedule that runs by a policy, and notes in which step each sample was let in, and in which it was answered."""

    def __init__(self, policy: Policy, leaves: list[int], lengths: list[int], budget: int) -> None:
        self.policy, self.leaves, self.lengths = policy, leaves, lengths
        self.schedule = Schedule(Scripted(leaves).pyramid(), budget)
        self.waiting: list[int] = []
        self.let_in: dict[int, int] = {}
        self.answered: dict[int, int] = {}
        self.runs = [0] * (LAYERS + 1)

    def step(self) -> bool:
        tokens = sum(self.lengths[number] for number in self.waiting)
        number = self.policy.next_layer(self.schedule, Waits(len(self.waiting), tokens))
        if number is None:
            return False
        part: Arrived | Alive = self.arrived() if number == 0 else self.schedule.queues[number].take()
        self.runs[number] += 1
        self.note(self.schedule.run_taken(number, part))
        return True

    def arrived(self) -> Arrived:
        taken: list[int] = []
        while self.waiting and sum(self.lengths[n] for n in taken) < self.schedule.front.budget:
            taken.append(self.waiting.pop(0))
        self.let_in.update(dict.fromkeys(taken, self.schedule.steps))
        counts = torch.tensor([self.lengths[number] for number in taken])
        numbers = torch.repeat_interleave(torch.tensor(taken), counts)
        words = Ragged(numbers, torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int(), int(counts.max()))
        return Arrived(
            PackedInputs(words, torch.zeros_like(numbers), torch.zeros_like(numbers), 1), torch.tensor(taken)
        )

    def note(self, result: StepResult) -> None:
        decided = result.decided
        if decided is None:
            return
        for row, number in enumerate(decided.samples.tolist()):
            if decided.stays is None or not decided.stays[row]:
                assert number not in self.answered, "answered twice"
                assert decided.layer == self.leaves[number]
                self.answered[number] = self.schedule.steps


SAMPLES = st.lists(
    st.tuples(st.integers(0, LAYERS), st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=80
)  # the layer at which each leaves, its length, and the steps that run before the next one comes


@given(samples=SAMPLES, budget=st.integers(1, 12), groups=st.integers(1, 5))
def test_everybody_is_answered_once_and_within_the_stated_steps(
    samples: list[tuple[int, int, int]], budget: int, groups: int
) -> None:
    """Whatever comes between two steps."""
    leaves, lengths, pauses = map(list, zip(*samples, strict=True))
    run = Simulated(InGroups(groups), leaves, lengths, budget)
    came: list[tuple[int, int]] = []
    for number, pause in enumerate(pauses):
        came.append((run.schedule.steps, sum(lengths[ahead] for ahead in run.waiting)))
        run.waiting.append(number)
        for _ in range(pause):
            run.step()
    while run.step():
        pass
    assert run.answered.keys() == set(range(len(samples)))
    for number, end in run.answered.items():
        assert end - run.let_in[number] <= groups * (LAYERS + 1)
        step, ahead = came[number]
        assert end - step <= (2 * groups + ahead // (EMBEDDED_BUDGETS * budget)) * (LAYERS + 1)


@given(samples=SAMPLES, budget=st.integers(1, 12), groups=st.integers(2, 5))
def test_no_layer_runs_more_often_than_if_each_group_went_by_itself(
    samples: list[tuple[int, int, int]], budget: int, groups: int
) -> None:
    leaves, lengths, _ = map(list, zip(*samples, strict=True))
    runs = []
    for policy in (InGroups(), InGroups(groups)):
        run = Simulated(policy, leaves, lengths, budget)
        for number in range(len(samples)):
            run.waiting.append(number)
            let_in = run.runs[0]
            while run.runs[0] == let_in:  # each is a group, since the next one comes when it was let in
                run.step()
        while run.step():
            pass
        assert run.runs[0] == len(samples)
        runs.append(run.runs)
    assert all(shared <= alone for alone, shared in zip(*runs, strict=True)), runs


def test_those_who_stay_get_company_from_later_groups() -> None:
    """Three of four leave at once; the fourth waits for others of its kind, which saves two of three runs of layers."""
    leaves, lengths = [LAYERS if number % 4 == 0 else 0 for number in range(24)], [1] * 24

    def layers_run(groups: int) -> int:
        run = Simulated(InGroups(groups), leaves, lengths, budget=100)
        for first in range(0, 24, 4):
            run.waiting += range(first, first + 4)
            let_in = run.runs[0]
            while run.runs[0] == let_in:
                run.step()
        while run.step():
            pass
        return sum(run.runs[1:])

    assert layers_run(1) == 6 * LAYERS
    assert layers_run(3) == 2 * LAYERS


def test_a_stream_that_never_ends_does_not_hold_up_the_one_text_that_stays() -> None:
    """Texts that leave at once keep coming; if groups could be let in without end, the other one would wait for ever."""
    stays, count = 3, 400
    leaves = [LAYERS if number == stays else 0 for number in range(count)]
    for groups, in_time in ((8, True), (10**9, False)):
        run = Simulated(InGroups(groups), leaves, [2] * count, BUDGET)
        for number in range(count):
            run.waiting.append(number)
            run.step()
            if number == stays + 8 * (LAYERS + 1):
                assert (stays in run.answered) is in_time

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
from mp_model.serving.policy import DepthWise, Greedy, Policy
from support.pyramids import LAYERS
from support.scripted import Scripted

BUDGET = 10


@dataclass
class Waits:
    """Texts that wait, as a policy sees them."""

    texts: int = 0
    tokens: int = 0
    age: float = 0.0


def schedule_with(tokens: list[int], since: list[int] | None = None, steps: int = 0) -> Schedule:
    """A schedule in whose layers 1 to L so many tokens wait since the given steps."""
    schedule = Schedule(Scripted([]).pyramid(), BUDGET)
    schedule.steps = steps
    for queue, count, came in zip(schedule.layers, tokens, since or [0] * LAYERS, strict=True):
        if count:
            values = torch.zeros(count, 2)
            batch = Ragged(values, torch.tensor([0, count], dtype=torch.int32), count)
            queue.add(Alive(batch, torch.zeros(1, dtype=torch.int64), torch.tensor([count])), 0, came)
    return schedule


@pytest.mark.parametrize(
    ("tokens", "since", "steps", "waits", "chosen"),
    [
        ([0, 0, 0, 0], None, 0, Waits(), None),
        ([0, 0, 0, 0], None, 0, Waits(1, 5), 0),
        ([10, 3, 12, 4], None, 0, Waits(1, 5), 3),  # the deepest full one, before anybody is let in
        ([9, 0, 0, 9], None, 0, Waits(1, 5), 0),  # who waits is let in, before the shallowest
        ([0, 4, 0, 9], None, 0, Waits(), 2),
        ([3, 4, 0, 9], [6, 2, 0, 5], 10, Waits(1, 5), 2),  # overdue: the one that waits longest
        ([10, 4, 0, 9], [9, 2, 0, 5], 10, Waits(1, 5), 1),  # a full one comes before
        ([3, 4, 0, 9], [6, 3, 0, 5], 10, Waits(1, 5), 0),
    ],
)
def test_depth_wise_keeps_its_order(
    tokens: list[int], since: list[int] | None, steps: int, waits: Waits, chosen: int | None
) -> None:
    assert DepthWise(overdue=8).next_layer(schedule_with(tokens, since, steps), waits) == chosen


@pytest.mark.parametrize(
    ("tokens", "waits", "chosen"),
    [
        ([0, 0, 0, 0], Waits(), None),
        ([0, 0, 0, 0], Waits(1, 5), 0),
        ([0, 3, 0, 12], Waits(9, 90), 2),  # nobody is let in before all have left
    ],
)
def test_greedy_finishes_what_it_has(tokens: list[int], waits: Waits, chosen: int | None) -> None:
    assert Greedy().next_layer(schedule_with(tokens), waits) == chosen


@pytest.mark.parametrize("kind", [DepthWise, Greedy])
def test_with_patience_texts_wait_for_company(kind: type[DepthWise] | type[Greedy]) -> None:
    nothing, policy = schedule_with([0, 0, 0, 0]), kind(patience=1.0)
    assert policy.next_layer(nothing, Waits(1, 5, age=0.9)) is None
    assert policy.next_layer(nothing, Waits(1, 5, age=1.0)) == 0
    assert policy.next_layer(nothing, Waits(9, EMBEDDED_BUDGETS * BUDGET, age=0.0)) == 0
    assert Greedy(patience=1.0, texts=3).next_layer(nothing, Waits(3, 5, age=0.0)) == 0


class Simulated:
    """A schedule that runs by a policy, and notes at which step each sample came to and left each layer."""

    def __init__(self, policy: Policy, leaves: list[int], lengths: list[int], budget: int) -> None:
        self.policy, self.lengths = policy, lengths
        self.schedule = Schedule(Scripted(leaves).pyramid(), budget)
        self.waiting: list[int] = []
        self.came: dict[int, int] = {}
        self.waited: list[int] = []
        self.answered: dict[int, int] = {}

    def step(self) -> bool:
        tokens = sum(self.lengths[number] for number in self.waiting)
        number = self.policy.next_layer(self.schedule, Waits(len(self.waiting), tokens))
        if number is None:
            return False
        if number == 0:
            part: Arrived | Alive = self.arrived()
        else:
            part = self.schedule.queues[number].take()
            self.waited += [self.schedule.steps - self.came[sample] for sample in part.samples.tolist()]
        self.note(self.schedule.run_taken(number, part))
        return True

    def arrived(self) -> Arrived:
        taken: list[int] = []
        while self.waiting and sum(self.lengths[n] for n in taken) < self.schedule.front.budget:
            taken.append(self.waiting.pop(0))
        counts = torch.tensor([self.lengths[number] for number in taken])
        numbers = torch.repeat_interleave(torch.tensor(taken), counts)
        words = Ragged(numbers, torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int(), int(counts.max()))
        return Arrived(
            PackedInputs(words, torch.zeros_like(numbers), torch.zeros_like(numbers), 1), torch.tensor(taken)
        )

    def note(self, result: StepResult) -> None:
        for queue_samples in [] if result.alive is None else [result.alive.samples.tolist()]:
            self.came.update(dict.fromkeys(queue_samples, self.schedule.steps))
        decided = result.decided
        if decided is None:
            return
        for row, number in enumerate(decided.samples.tolist()):
            if decided.stays is None or not decided.stays[row]:
                assert number not in self.answered, "answered twice"
                self.answered[number] = decided.layer


def bound(budget: int, longest: int, overdue: int) -> float:
    """Steps that a sample waits at a layer at most, as the policy states it."""
    let_in = EMBEDDED_BUDGETS * budget + longest
    return overdue + LAYERS * (LAYERS + let_in / budget + 1)


@given(
    samples=st.lists(st.tuples(st.integers(0, LAYERS), st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=80),
    budget=st.integers(1, 12),
    overdue=st.integers(1, 9),
)
def test_everybody_is_answered_once_and_nobody_starves(
    samples: list[tuple[int, int, int]], budget: int, overdue: int
) -> None:
    """Whatever comes between two steps: each sample waits for a bounded number of steps at each layer."""
    leaves, lengths, pauses = map(list, zip(*samples, strict=True))
    run = Simulated(DepthWise(overdue), leaves, lengths, budget)
    for number, pause in enumerate(pauses):
        run.waiting.append(number)
        for _ in range(pause):
            run.step()
    while run.step():
        pass
    assert run.answered == dict(enumerate(leaves))
    assert max(run.waited, default=0) <= bound(budget, max(lengths), overdue)


def test_a_stream_that_never_ends_does_not_hold_up_the_one_text_that_stays() -> None:
    """Texts that leave at once keep coming; without the rule for the overdue the other one would wait for ever."""
    stays, overdue = 3, 8
    count = 400
    leaves = [LAYERS if number == stays else 0 for number in range(count)]
    for policy, in_time in ((DepthWise(overdue), True), (DepthWise(overdue=10**9), False)):
        run = Simulated(policy, leaves, [2] * count, BUDGET)
        for number in range(count):
            run.waiting.append(number)
            run.step()
            if number == stays + LAYERS * (overdue + 1):
                assert (stays in run.answered) is in_time

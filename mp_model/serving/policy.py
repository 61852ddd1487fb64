"""The choice of what a server's one thread does next: which layer runs, or whether waiting texts are let in."""

from __future__ import annotations

from typing import Protocol

from ..schedule import Schedule

ADMIT = 0  # layer 0: texts that wait are let in and embedded


class Waiting(Protocol):
    """Texts that were not let in yet."""

    @property
    def texts(self) -> int:
        """Number of texts."""
        ...

    @property
    def tokens(self) -> int:
        """Number of their tokens."""
        ...

    @property
    def age(self) -> float:
        """Seconds that the first of them has waited."""
        ...


class Policy(Protocol):
    """A rule for the next step.

    Attributes:
        patience: seconds that a text may wait for company before it is let in.
        texts: most texts that are let in at once.
    """

    patience: float
    texts: int | None

    def next_layer(self, schedule: Schedule, waiting: Waiting) -> int | None:
        """The layer that runs next, 1 to L; 0: waiting texts are let in; None: there is nothing to do yet."""
        ...


class InGroups:
    """Texts are let in group by group; those of one group share layers, and those of different groups where they meet.

    Once ``groups`` are in, all of their texts are answered, the shallowest layer first, before the next is let in. With one
    group that is greedy: whatever waits goes in one forward. With more, the first of these that there is: the deepest layer
    whose queue holds a budget of tokens; the texts that wait to be let in, as the next group; the shallowest layer. So those
    who stay get company from later groups. A group is never split, so no layer runs more often than if each group went by
    itself, and a text is answered within ``groups (L + 1)`` steps of being let in; where groups of A tokens are let in and N
    tokens waited before it, that is within ``(2 groups + N / A) (L + 1)`` steps of its coming, without patience.

    Args:
        groups: most groups that are in at a time.
        patience, texts: as in :class:`Policy`.
    """

    def __init__(self, groups: int = 1, patience: float = 0.0, texts: int | None = None) -> None:
        self.groups, self.patience, self.texts = groups, patience, texts
        self._let_in = 0

    def next_layer(self, schedule: Schedule, waiting: Waiting) -> int | None:
        queues = [(number, queue) for number, queue in enumerate(schedule.layers, 1) if queue.parts]
        if not queues:
            self._let_in = 0
        elif self._let_in >= self.groups:
            return queues[0][0]
        full = [number for number, queue in queues if queue.is_full]
        if full:
            return full[-1]
        if self._is_due(schedule, waiting):
            self._let_in += 1
            return ADMIT
        return queues[0][0] if queues else None

    def _is_due(self, schedule: Schedule, waiting: Waiting) -> bool:
        """Whether texts wait that are as many as are let in at once, or have waited for as long as they may."""
        if not waiting.texts:
            return False
        many = waiting.tokens >= schedule.front.budget or (self.texts is not None and waiting.texts >= self.texts)
        return many or waiting.age >= self.patience

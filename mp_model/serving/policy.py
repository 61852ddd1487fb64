"""The choice of what a server's one thread does next: which layer runs, or whether waiting texts are let in."""

from __future__ import annotations

import math
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


class DepthWise:
    """Texts enter whenever some wait, and texts of different requests share layers.

    The first of these that there is: the deepest layer whose queue holds a budget of tokens; the layer whose samples have
    waited longest, if that is ``overdue`` steps or more; the texts that wait to be let in; the shallowest layer. So a lone
    text runs at once from layer to layer, under load layers run with full budgets, and nobody starves: with A tokens let in
    at a time, a budget of B and L layers a sample waits at a layer for at most ``overdue + L (L + A / B + 1)`` steps, since
    a full layer only runs with tokens that are there when a sample becomes overdue, and each passes each layer once.

    Args:
        overdue: steps after which samples come before texts that wait to be let in; None: two for each layer.
        patience: as in :class:`Policy`.
    """

    texts: int | None = None

    def __init__(self, overdue: int | None = None, patience: float = 0.0) -> None:
        self.overdue, self.patience = overdue, patience

    def next_layer(self, schedule: Schedule, waiting: Waiting) -> int | None:
        queues = [(number, queue) for number, queue in enumerate(schedule.layers, 1) if queue.parts]
        full = [number for number, queue in queues if queue.is_full]
        if full:
            return full[-1]
        allowed = 2 * len(schedule.layers) if self.overdue is None else self.overdue
        since, oldest = min(((queue.since_step, number) for number, queue in queues), default=(math.inf, 0))
        if schedule.steps - since >= allowed:
            return oldest
        if is_due(self, schedule, waiting):
            return ADMIT
        return queues[0][0] if queues else None


class Greedy:
    """All texts that wait are let in together, and all of them are answered before the next.

    Args:
        patience, texts: as in :class:`Policy`.
    """

    def __init__(self, patience: float = 0.0, texts: int | None = None) -> None:
        self.patience, self.texts = patience, texts

    def next_layer(self, schedule: Schedule, waiting: Waiting) -> int | None:
        queues = (number for number, queue in enumerate(schedule.layers, 1) if queue.parts)
        return next(queues, ADMIT if is_due(self, schedule, waiting) else None)


def is_due(policy: Policy, schedule: Schedule, waiting: Waiting) -> bool:
    """Whether texts wait that are as many as are let in at once, or have waited for as long as they may."""
    if not waiting.texts:
        return False
    many = waiting.tokens >= schedule.front.budget or (policy.texts is not None and waiting.texts >= policy.texts)
    return many or waiting.age >= policy.patience


POLICIES: dict[str, type[DepthWise] | type[Greedy]] = {"depth-wise": DepthWise, "greedy": Greedy}

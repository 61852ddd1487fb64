"""Quality levels: exit thresholds with names, priced on validation texts, for servers to choose among."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .all_exits import AllExits
from .record import Threshold
from .tuning import Outcome, outcome_of, trade_off

TUNED = "tuned"
POINTS = {"high": 0.25, "medium": 0.5, "low": 1.0, "lowest": 2.0}  # of accuracy that a level may lose


@dataclass(frozen=True)
class Level:
    """Exit thresholds, and what was measured at them; None: nothing was.

    Attributes:
        name: the name that requests ask for.
        exit_threshold: one, one for each exit layer, or None: nobody leaves early.
        accuracy: share of right answers.
        speed_up: dense work over executed work.
        disagreement: share of texts with another answer than the last layer's.
        texts: number of texts that this was measured on.
    """

    name: str
    exit_threshold: Threshold
    accuracy: float | None = None
    speed_up: float | None = None
    disagreement: float | None = None
    texts: int | None = None

    def as_json(self) -> dict[str, Any]:
        """All attributes, as JSON has them."""
        return asdict(self)


def priced_levels(exits: AllExits, tuned: Threshold) -> list[Level]:
    """The levels of a model: ``"tuned"``, and the fastest that lose no more than each of :data:`POINTS`.

    Args:
        exits: its predictions for validation texts, under the pruning that it will have.
        tuned: the exit threshold that was chosen for it.
    """
    offers = trade_off({1.0: exits}, layered=False)
    chosen = outcome_of(exits, tuned)
    found = [_level(exits, TUNED, chosen)]
    return found + [_level(exits, name, offers.fastest(points / 100)) for name, points in POINTS.items()]


def _level(exits: AllExits, name: str, outcome: Outcome) -> Level:
    differ = ~exits.choice.same(exits.answers(outcome.exit_threshold).predictions, exits.predictions[-1])
    price = outcome.accuracy, outcome.speed_up, differ.double().mean().item(), outcome.texts
    return Level(name, outcome.exit_threshold, *price)


def stored_levels(record: dict[str, Any] | None) -> list[Level]:
    """The levels in a record of tuning (:mod:`mp_model.checkpoints.tuned_for`); none where it has none.

    Raises:
        ValueError: they are not what ``magic-pyramid tune`` writes.
    """
    entries: Sequence[Any] = (record or {}).get("levels", [])
    try:
        return [Level(**entry) for entry in entries]
    except TypeError as error:
        raise ValueError(
            "the quality levels in config.json, tuned_for, are not what `magic-pyramid tune` writes; run it again"
        ) from error

"""Quality levels: named exit thresholds with what they cost, and the choice among them under load."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..configuration import NEVER
from ..measuring.levels import Level, stored_levels
from ..schedule import CLOSED
from .admission import InvalidError

EXACT, DEFAULT = "exact", "default"
RELAX_FROM, RELAX_TO = 0.25, 0.75  # shares of a full queue between which quality falls from the first level to the last


class Levels:
    """The levels of a model: ``"exact"``, those that ``magic-pyramid tune`` has stored, and ``"default"``.

    Args:
        config: the model's configuration.
        exit_layers: layers whose exits requests may open.
        default: level of requests that ask for none; an exit threshold makes one of it. None: the model's own threshold.
        relax_to: level down to which the default may fall under load; None: it never does.

    Attributes:
        by_name: all levels.
        ladder: the levels that the default may fall to, itself first, the fastest last.
        factor: multiple of the default's thresholds, at most 1, by which an audit may tighten it.

    Raises:
        InvalidError, ValueError: an unknown level, or one that is no faster than the default; thresholds that the model
            cannot follow.
    """

    def __init__(
        self,
        config: Any,
        exit_layers: list[int],
        default: str | float | list[float] | None = None,
        relax_to: str | None = None,
    ) -> None:
        self.config, self.exit_layers, self.factor = config, exit_layers, 1.0
        stored = stored_levels(config.tuned_for) if exit_layers else []
        always = Level(EXACT, None), Level(DEFAULT, config.exit_threshold)
        self.by_name = {level.name: level for level in (*always, *stored)}
        if default is None:
            own = Level(DEFAULT, config.exit_threshold)
            measured = (level for level in stored if level.exit_threshold == own.exit_threshold)
            own = replace(next(measured, own), name=DEFAULT)
        elif default == NEVER:
            own = Level(DEFAULT, None)
        elif isinstance(default, str):
            own = replace(self.named(default), name=DEFAULT)
        else:
            own = Level(DEFAULT, default)
        self.row(own.exit_threshold)
        self.by_name[DEFAULT] = own
        self.ladder = self._ladder(own, relax_to)
        self._rows: dict[tuple[str, float], np.ndarray] = {}

    def _ladder(self, own: Level, relax_to: str | None) -> list[Level]:
        if relax_to is None:
            return [own]
        last, from_speed = self.named(relax_to), own.speed_up
        if from_speed is None:
            from_speed = 0.0 if own.exit_threshold is None else None
        if last.speed_up is None or from_speed is None:
            raise ValueError(
                f"level {relax_to!r} cannot be compared with the default: nobody has measured one of them; choose exit "
                "thresholds with `magic-pyramid tune`, which measures all levels"
            )
        faster = [
            level
            for level in self.by_name.values()
            if level.name not in (DEFAULT, EXACT) and from_speed < (level.speed_up or 0.0) <= last.speed_up
        ]
        if not faster:
            raise ValueError(f"level {relax_to!r} is no faster than the default, so quality cannot fall to it")
        return [own, *sorted(faster, key=lambda level: level.speed_up or 0.0)]

    def named(self, name: str) -> Level:
        """The level of that name.

        Raises:
            InvalidError: there is none.
        """
        if name not in self.by_name:
            raise InvalidError(f"quality must be one of {', '.join(map(repr, self.by_name))}; got {name!r}")
        return self.by_name[name]

    def under(self, load: float) -> Level:
        """The level for requests that ask for none, at a load of 0 (nothing waits) to 1 (no more may come)."""
        steps = len(self.ladder) - 1
        place = math.ceil((load - RELAX_FROM) / (RELAX_TO - RELAX_FROM) * steps)
        return self.ladder[min(steps, max(0, place))]

    def row_of(self, level: Level) -> np.ndarray:
        """float32 ``[exit layers]``: a level's thresholds, as the worker takes them."""
        factor = self.factor if level.name == DEFAULT else 1.0
        if (level.name, factor) not in self._rows:
            self._rows = {key: row for key, row in self._rows.items() if key[0] != level.name}
            self._rows[level.name, factor] = self.row(level.exit_threshold, factor)
        return self._rows[level.name, factor]

    def row(self, exit_threshold: float | str | list[float] | None, factor: float = 1.0) -> np.ndarray:
        """float32 ``[exit layers]``: exit thresholds as the worker takes them; None and ``"never"``: closed.

        Raises:
            InvalidError: thresholds that this model cannot follow.
        """
        if exit_threshold is None or exit_threshold == NEVER:
            return np.full(len(self.exit_layers), CLOSED, dtype=np.float32)
        try:
            self.config.check_exits(exit_threshold)
            found = self.config.resolved_exit_threshold(exit_threshold)
        except (TypeError, ValueError) as error:
            raise InvalidError(str(error)) from error
        return np.array(found, dtype=np.float32) * np.float32(factor)


def described(levels: Mapping[str, Level]) -> dict[str, dict[str, Any]]:
    """The levels as JSON has them, by name."""
    return {name: level.as_json() for name, level in levels.items()}

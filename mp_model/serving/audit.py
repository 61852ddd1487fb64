"""The audit: a share of the texts goes on to the last layer, to see how often an early answer differs from it."""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ..measuring.levels import Level
from .levels import DEFAULT

WINDOW = 2000  # texts of late that count
LEAST = 100  # texts before anything is concluded
TIGHTER = 0.8  # factor of the thresholds, each time that they are tightened
CONFIDENT = 1.96  # standard deviations of a normal distribution, 95 % on both sides


def wilson(count: int, texts: int, z: float = CONFIDENT) -> tuple[float, float]:
    """The Wilson interval of a share of which ``count`` out of ``texts`` were seen; (0, 1) where nothing was."""
    if not texts:
        return 0.0, 1.0
    share, square = count / texts, z * z / texts
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / texts + square / (4 * texts))
    return max(0.0, middle - half), min(1.0, middle + half)


class Audit:
    """What was seen of texts that went on after an early answer.

    Args:
        share: share of the texts that are audited, 0 to 1.
        level: the default level; how often it differs from the last layer was promised when it was tuned.
        tighten: called with a factor of at most 1 for the default's thresholds whenever it changes; None: it never does.
        seed: of the draw; None: any.

    Attributes:
        promised: largest share that agrees with what tuning has seen; None: nothing was promised.
        drift: whether more early answers differ than was promised; None: nobody knows yet.
        factor: the factor of the thresholds.
    """

    def __init__(
        self,
        share: float,
        level: Level,
        tighten: Callable[[float], object] | None = None,
        seed: int | None = None,
    ) -> None:
        self.share, self.tighten, self.factor = share, tighten, 1.0
        self.promised: float | None = None
        if level.disagreement is not None and level.texts:
            self.promised = wilson(round(level.disagreement * level.texts), level.texts)[1]
        self.drift: bool | None = None
        self._draw = random.Random(seed)
        self._lock = threading.Lock()
        self._recent: dict[str, deque[bool]] = {}

    def draw(self, count: int) -> list[bool]:
        """Which of so many texts are audited; empty: none."""
        if not self.share:
            return []
        return [self._draw.random() < self.share for _ in range(count)]

    def note(self, level: str | None, differs: bool) -> None:
        """Counts a text that was audited.

        level: name of the quality level that answered it; None: its request brought thresholds of its own.
        """
        with self._lock:
            recent = self._recent.setdefault(level or "own", deque(maxlen=WINDOW))
            recent.append(differs)
            if level == DEFAULT and len(recent) >= LEAST and self.promised is not None:
                self._judge(recent, self.promised)

    def _judge(self, recent: deque[bool], promised: float) -> None:
        low, high = wilson(sum(recent), len(recent))
        self.drift = low > promised
        if self.tighten is None:
            return
        factor = self.factor
        if self.drift:
            factor *= TIGHTER
        elif high < promised:
            factor = min(1.0, factor / TIGHTER)
        if factor != self.factor:
            self.factor = factor
            recent.clear()  # they were answered at other thresholds
            self.tighten(factor)

    def seen(self) -> dict[str, dict[str, Any]]:
        """Of late, by level: texts, the share that differs, and the interval in which it lies at a confidence of 95 %."""
        with self._lock:
            counts = {level: (sum(recent), len(recent)) for level, recent in self._recent.items()}
        found = {}
        for level, (differ, texts) in counts.items():
            low, high = wilson(differ, texts)
            found[level] = {"texts": texts, "disagreement": differ / texts if texts else None, "low": low, "high": high}
        return found

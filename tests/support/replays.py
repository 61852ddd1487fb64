"""A CPU as a device that replays graphs: what a graph would replay is done anew."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch


class Passed:
    """An event, which is behind the device as soon as it is recorded."""

    def record(self) -> None:
        """Nothing is under way."""

    def synchronize(self) -> None:
        """Nothing is waited for."""


class Replay:
    """A graph: the work itself."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work


class Cpu:
    """Stands in for :class:`mp_model.graphs.Cuda`."""

    event = Passed

    @staticmethod
    def pool() -> None:
        """Memory is not shared."""

    @staticmethod
    def as_current(device: torch.device) -> nullcontext:
        return nullcontext()

    @staticmethod
    def wait_for(event: Any) -> None:
        """It has passed."""

    @staticmethod
    def captured(work: Callable[[], None], pool: Any) -> Replay:
        return Replay(work)

"""Commands of the program, run in the tests' own process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple


class Ended(NamedTuple):
    """A command that has ended: its exit status, and what it printed."""

    status: int
    out: str
    err: str

    def answers(self) -> list[dict[str, Any]]:
        """The JSON lines of standard output."""
        return [json.loads(line) for line in self.out.splitlines()]


Command = Callable[..., Ended]

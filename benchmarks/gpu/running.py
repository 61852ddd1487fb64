"""Commands with a time limit, and how they ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .document import FAILED, PASSED, TIMED_OUT

TAIL = 4000  # characters of a command's output that are kept


class Ended(NamedTuple):
    """The end of a command: its status, how long it took, and the end of its output."""

    status: str
    seconds: float
    tail: str


def run(command: Sequence[str], limit: float, folder: Path, environment: Mapping[str, str]) -> Ended:
    """Runs a command; at its limit it is killed with everything that it started.

    Args:
        command: program and arguments.
        limit: seconds.
        folder: working folder.
        environment: variables besides those of this process.
    """
    begin = time.monotonic()
    with tempfile.TemporaryFile() as output:  # not a pipe, which a process left behind would keep open
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = FAILED if process.wait(limit) else PASSED
        except subprocess.TimeoutExpired:
            status = TIMED_OUT
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(max(0, output.seek(0, os.SEEK_END) - TAIL))
        tail = output.read().decode(errors="replace")
    return Ended(status, time.monotonic() - begin, tail)

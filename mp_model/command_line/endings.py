"""The ways in which a command ends, each with the exit status and the words that other programs have for it."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from types import FrameType

import typer

from ..data.files import FULL

WRONG = 2  # exit status of an error of the user's making
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 5.0  # seconds for clearing up, in which further signals are taken for echoes of the first


class Stopped(BaseException):
    """A signal asked the program to end; whatever it leaves on its way out is cleared up as after an error.

    Attributes:
        status: the exit status: 128 and the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def status_of(program: Callable[[], object]) -> int:
    """Runs a program of Typer's and returns its exit status, after saying on standard error what there is to say.

    A signal ends it with 128 and the signal's number, and so does a standard output that nobody reads any more
    (SIGPIPE, 141); an error of the user's making ends it with 2 and one line.
    """
    try:
        with signals_raise(), warnings_in_a_line(), _output_that_can_break():
            status = _status_of_exit(program)
            sys.stdout.flush()
        return status
    except Stopped as stopped:
        for note in _notes(stopped):
            _say(note)
        return stopped.status
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        line = "error: " + "; ".join([_message(error), *_notes(error)])
        _say(" ".join(line.split()), fg=typer.colors.RED)  # other libraries' messages have several lines
        return WRONG


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Lets SIGINT, SIGTERM and SIGHUP raise :class:`Stopped` in the main thread; one ignored, as by nohup, stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopped_at = -PATIENCE

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped_at
        if time.monotonic() - stopped_at >= PATIENCE:
            stopped_at = time.monotonic()
            raise Stopped(number)

    before = {number: signal.getsignal(number) for number in STOPPING}
    changed = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    try:
        for number in changed:
            signal.signal(number, stop)
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])


@contextlib.contextmanager
def warnings_in_a_line() -> Iterator[None]:
    """Shows each warning once, as a line on standard error, without the place in the program that it comes from."""
    said: set[str] = set()

    def show(message: Warning | str, *_: object, **__: object) -> None:
        line = " ".join(f"warning: {message}".split())
        if line not in said:
            said.add(line)
            _say(line)

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before


def _status_of_exit(program: Callable[[], object]) -> int:
    """The status with which a program exits by itself."""
    try:
        program()
    except SystemExit as ended:
        # So Typer and rich end when nobody reads what they print.
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


class ClosedOutput(io.TextIOBase):
    """A standard output that was closed, as by ``>&-``: words for it are an error, where Python would lose them."""

    def write(self, words: str, /) -> int:
        raise OSError(errno.EBADF, "it is closed", "standard output")


@contextlib.contextmanager
def _output_that_can_break() -> Iterator[None]:
    """Drops what still waits for a standard output that cannot be written, since Python would try once more at its end."""
    if sys.stdout is None:
        with contextlib.redirect_stdout(ClosedOutput()):
            yield
        return
    output = sys.stdout  # in whose place Typer puts another where nobody reads it
    try:
        yield
    except OSError:
        try:
            output.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, output.fileno())
            os.close(nowhere)
        raise


def _message(error: Exception) -> str:
    """The cause of an error, and the file where it has one."""
    if isinstance(error, OSError) and error.strerror:
        where = error.filename or ("standard output" if error.errno in FULL else None)
        what = f"{error.strerror[0].lower()}{error.strerror[1:]}"
        return what if where is None else f"{where}: {what}"
    return str(error)


def _notes(error: BaseException) -> list[str]:
    return getattr(error, "__notes__", [])


def _say(line: str, fg: str | None = None) -> None:
    with contextlib.suppress(OSError):  # nobody may be there to be told, as after SIGHUP
        typer.secho(line, fg=fg, err=True)

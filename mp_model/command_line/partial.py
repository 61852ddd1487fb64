"""Answers on their way into a file: kept when the command is cut off, gone on with later, and moved there when complete."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from ..data.files import can_be_replaced, keep_mode, naming, place_of, read_record, whole_file

FLUSHED = 1.0  # seconds after which lines are written, so that they outlive even a process that is killed
BUFFERED = 1 << 16  # bytes of lines that wait at most
ROOM = 128  # bytes by which a note may grow


class Lines(Protocol):
    """A place for one line a row, in order.

    Attributes:
        done: rows whose lines are there from an earlier run.
        rows: hash of these rows, see :func:`row_after_row`.
    """

    done: int
    rows: str

    def write(self, row: object, line: str) -> None:
        """Writes the next row's line, which ends with a line feed."""


def row_after_row(rows: str, row: object) -> str:
    """A hash of rows, a hexadecimal number, from the hash of all but the last of them and the last.

    row: a text or a pair; all else is a row without a text.
    """
    return hashlib.sha256((rows + json.dumps(row, default=lambda _: None)).encode()).hexdigest()


@contextlib.contextmanager
def lines_into(path: Path, made_by: dict[str, Any], resume: bool) -> Iterator[Lines]:
    """Opens a place for lines that become the file ``path`` when the block ends well.

    Until then they are in ``FILE.partial``, with a note of what they were made from in ``FILE.partial.json``. Both stay when
    the block ends otherwise and lines are finished; the exception gets a note that says so. A device or a pipe is
    written directly.

    Args:
        path: name of the file.
        made_by: all besides the rows that decides how lines read, as JSON has it.
        resume: whether to go on from where an earlier run was cut off.

    Raises:
        ValueError: a partial file is there and ``resume`` is false, or it cannot be gone on with.
        OSError: the file cannot be written.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected a name for a file")
    if not can_be_replaced(path):
        if resume:
            raise ValueError(f"{path} is no file, so there is nothing to go on from; leave --resume out")
        with whole_file(path) as stream:
            yield StreamOfLines(stream)
        return
    path = place_of(path)
    with naming(path), contextlib.closing(PartialFile(path, made_by, resume)) as lines:
        try:
            yield lines
            lines.flush()
        except BaseException as error:
            lines.keep_or_remove(error)
            raise
        lines.finish()


class StreamOfLines:
    """Lines for a device or a pipe, there as soon as they are written."""

    def __init__(self, stream: IO[str]) -> None:
        self.done, self.rows = 0, ""
        self._stream = stream

    def write(self, row: object, line: str) -> None:
        self._stream.write(line)
        self._stream.flush()


class PartialFile:
    """The files ``FILE.partial`` and ``FILE.partial.json``, held by one process.

    Lines are written in pieces, each of them before the note that counts it, so that however the process ends, the note is
    true of that many bytes at the beginning of the file.

    Args:
        path, made_by, resume: as for :func:`lines_into`.
    """

    def __init__(self, path: Path, made_by: dict[str, Any], resume: bool) -> None:
        self.path, self.made_by = path, made_by
        self.partial, self.note = (path.with_name(path.name + ending) for ending in (".partial", ".partial.json"))
        self.done, self.bytes, self.rows = 0, 0, ""
        self._waiting: list[tuple[bytes, str]] = []
        self._waiting_bytes, self._flushed_at = 0, time.monotonic()
        self._lines = _locked(self.partial)
        try:
            if os.fstat(self._lines).st_size:
                self._go_on(resume)
            keep_mode(self.partial, path, plus=stat.S_IRUSR | stat.S_IWUSR)
            self._note = os.open(self.note, os.O_RDWR | os.O_CREAT, 0o666)
            self._room = len(self._noted()) + ROOM
            self._write_note()
        except BaseException:
            if not os.fstat(self._lines).st_size:
                self.partial.unlink()
            os.close(self._lines)
            raise

    def _go_on(self, resume: bool) -> None:
        """Takes over what an earlier run has finished."""
        ways = f"or remove {self.partial} to start over"
        try:
            note = read_record(self.note)
            done, size, rows = (note[name] for name in ("lines", "bytes", "rows"))
            made_by = dict(note["made_by"])
        except (OSError, TypeError, ValueError, KeyError) as error:
            raise ValueError(
                f"{self.partial} has no note beside it of what it was made from; keep it elsewhere {ways}"
            ) from error
        if done and not resume:
            raise ValueError(
                f"{self.partial} holds {done} answers of a run that was cut off; go on with --resume, {ways}"
            )
        if done:
            if changed := [name for name, value in self.made_by.items() if made_by.get(name) != value]:
                raise ValueError(
                    f"{self.partial} was made with another {' and another '.join(changed)}; go on with the same, {ways}"
                )
            if os.fstat(self._lines).st_size < size:
                raise ValueError(f"{self.partial} is shorter than its note says; keep it elsewhere {ways}")
            self.done, self.bytes, self.rows = done, size, rows
        os.ftruncate(self._lines, self.bytes)

    def write(self, row: object, line: str) -> None:
        data = line.encode(errors="backslashreplace")  # a lone surrogate, as JSON escapes it
        rows = row_after_row(self._waiting[-1][1] if self._waiting else self.rows, row)
        self._waiting.append((data, rows))
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= BUFFERED or time.monotonic() - self._flushed_at >= FLUSHED:
            self.flush()

    def flush(self) -> None:
        """Writes the lines that wait; called again after it was interrupted, it writes the same at the same place."""
        if self._waiting:
            data = b"".join(data for data, _ in self._waiting)
            _write_at(self._lines, data, self.bytes)
            self.done, self.bytes, self.rows, self._waiting, self._waiting_bytes = (
                self.done + len(self._waiting),
                self.bytes + len(data),
                self._waiting[-1][1],
                [],
                0,
            )
            self._write_note()
        self._flushed_at = time.monotonic()

    def _noted(self) -> str:
        return json.dumps({"lines": self.done, "bytes": self.bytes, "rows": self.rows, "made_by": self.made_by})

    def _write_note(self) -> None:
        # In its place and always as long, so that a full disk has room for it.
        _write_at(self._note, self._noted().ljust(self._room).encode(), 0)

    def keep_or_remove(self, error: BaseException) -> None:
        """Clears up after an error, which gets a note of what is kept."""
        with contextlib.suppress(OSError):
            self.flush()
        os.ftruncate(self._lines, self.bytes)
        if self.done:
            error.add_note(
                f"{self.partial} holds the first {self.done} answers; the same command with --resume goes on from there"
            )
        else:
            self.partial.unlink()
            self.note.unlink()

    def finish(self) -> None:
        """Moves the lines to where they belong."""
        keep_mode(self.partial, self.path)
        os.replace(self.partial, self.path)
        self.note.unlink()

    def close(self) -> None:
        """Lets go of both files."""
        os.close(self._lines)
        os.close(self._note)


def _locked(path: Path) -> int:
    """A descriptor of a file that no other process writes; the lock ends with the process."""
    lines = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lines)
        raise ValueError(f"another command is writing {path}; wait for its end, or choose another name") from None
    return lines


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written

"""Files that are written whole or not at all, as other programs write theirs."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a write that do not name its file


def read_record(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object")
    return found


@contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file that takes its place under ``path`` when the block ends well, and is removed when it does not.

    A symbolic link stays, and the file that it leads to is replaced. A device or a pipe, which no file can replace, is
    written directly.

    Args:
        path: name of the file; folders that are missing are made.
        mode: ``"w"`` for text, which is UTF-8 with lone surrogates as ``\\udcff``, or ``"wb"`` for bytes.

    Raises:
        OSError: the file cannot be written; it names the file.
    """
    how: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "errors": "backslashreplace"}
    with naming(path):
        if not can_be_replaced(path):
            with path.open(mode, **how) as stream:
                yield stream
            return
        path = place_of(path)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), mode, **how) as stream:
                keep_mode(part, path)
                yield stream
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def can_be_replaced(path: Path) -> bool:
    """Whether a file of one's own may take this name: not a folder's, a device's or a pipe's."""
    return not path.exists() or path.is_file()


def place_of(path: Path) -> Path:
    """The name of the file itself, behind all symbolic links; folders that are missing are made.

    Raises:
        NotADirectoryError: a file stands in the place of a folder.
    """
    path = Path(os.path.realpath(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from error
    return path


def check_folder(path: Path) -> None:
    """Finds out whether files can be written into a folder, which may yet have to be made; writes nothing.

    Raises:
        OSError: they cannot; the message names the folder and the way out.
    """
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file, where a folder is needed; choose another name than {path}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{path} cannot be written to: {there} gives no permission; choose another folder")


def keep_mode(part: Path, path: Path, plus: int = 0) -> None:
    """Gives a file that is to replace another the other's permissions, and ``plus``; a new one has those of the umask."""
    if path.exists():
        os.chmod(part, stat.S_IMODE(path.stat().st_mode) | plus)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the name of the file that is written in the block to an error of a full disk, which comes without."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = str(path)
        raise

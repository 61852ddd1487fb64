"""The folder of a fit: one fit at a time writes there, goes on only with what it was made from, and leaves whole models."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError

from ..data.files import check_folder, read_record, whole_file
from .identity import changes

LOCK = ".lock"


def processes() -> PartialState:
    """The training processes, as ``torchrun`` and ``accelerate launch`` start them: one writes, the others wait for it."""
    return PartialState(cpu=not torch.accelerator.is_available())


@contextmanager
def claimed(output: Path, identity: dict[str, Any], room: int) -> Iterator[None]:
    """Holds the folder for one fit, by its main process; makes the folder if it is missing.

    The lock is the operating system's and ends with the process, however that ends.

    Args:
        output: the folder.
        identity: what the fit is made from (:mod:`mp_model.training.identity`), kept as ``settings.json``.
        room: bytes that the fit may still write.

    Raises:
        ValueError: another fit is running in the folder, or it holds a fit of something else, or no fit.
        OSError: a folder that cannot be made or written to, or without the room; a file in it that could not be written
            while the fit ran, where that is a library's own kind of error.
    """
    state = processes()
    lock = None
    try:
        with state.main_process_first():
            if state.is_main_process:
                lock = _locked(output)
                _claim(output, identity)
                free = shutil.disk_usage(output).free
                if free < room:
                    raise OSError(
                        f"{output} has {free / 1e9:.2f} GB free, and this fit may write {room / 1e9:.2f} GB (a "
                        "checkpoint takes three times the model's room); free some, or choose another disk"
                    )
        yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):  # torch's writer of files
            raise
        raise OSError(
            f"a file in {output} could not be written: is the disk full? Free some room and give the same command again; it "
            "goes on from the last whole checkpoint"
        ) from error
    finally:
        if lock is not None:
            os.close(lock)


def _locked(output: Path) -> int:
    """The descriptor of the folder's lock file, locked until it is closed."""
    check_folder(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = os.open(output / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OSError(f"{output} cannot be written to ({error.strerror}); choose another folder") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise ValueError(f"another fit is running in {output}; wait for its end, or choose another folder") from None
    except OSError:
        pass  # a file system without locks
    return lock


def _claim(output: Path, identity: dict[str, Any]) -> None:
    path = output / "settings.json"
    if path.exists():
        try:
            before = read_record(path)
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged, so that nobody knows what the fit in its folder was made from"
            ) from error
        changed = changes(before, json.loads(json.dumps(identity)))
        if changed:
            raise ValueError(
                f"{output} holds a fit that was made from something else: {'; '.join(changed)}. Go on with what it was "
                "made from, or choose another folder"
            )
        return
    if any(not entry.name.startswith(".") for entry in output.iterdir()):
        raise ValueError(f"{output} is not empty and holds no fit to go on with; choose another folder")
    with whole_file(path) as stream:
        json.dump(identity, stream, indent=1)

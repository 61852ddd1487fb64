"""Folders of model and tokenizer, which are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..modelling import PyramidForSequenceClassification
from .precisions import PRECISIONS, precision_of
from .reading import without_bars


def check_new(folder: Path) -> None:
    """Raises ValueError for a place where something is already, which a saved model would have to replace."""
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty, and nothing in it is replaced; choose a new folder")


def save_whole(model: PyramidForSequenceClassification, folder: Path, tokenizer: Any) -> None:
    """Writes model and tokenizer into a folder, in the place of one that is there, but for its README.md.

    Raises:
        SafetensorError, OSError: a file cannot be written; nothing of it is left, and what was there stays.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with without_bars():
            model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        for path in unfinished.iterdir():  # safetensors leaves the weights to their owner alone, whatever the umask
            path.chmod(unfinished.stat().st_mode & 0o666)
        if (folder / "README.md").is_file():  # somebody may have written it
            shutil.copy2(folder / "README.md", unfinished)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(unfinished, folder)


def save_for_inference(model: PyramidForSequenceClassification, folder: Path, tokenizer: Any) -> None:
    """Writes model and tokenizer into a new folder in the precision that the model has, in which they are loaded again.

    The configuration says the precision, so that half and int8 weights are not taken for ones to be trained.

    Args:
        model: the model; ``config.precision`` is set.
        folder: a folder that is empty, or yet to be made.
        tokenizer: its tokenizer.

    Raises:
        ValueError: the folder is not empty; a dtype that is none of :data:`.precisions.PRECISIONS`.
        OSError: it cannot be written.
    """
    check_new(folder)
    folder = Path(os.path.realpath(folder))
    kept = precision_of(model)
    if kept not in PRECISIONS:
        raise ValueError(
            f"the model's weights are {kept}, in which no folder is loaded for inference; save it with "
            "model.save_pretrained, or cast it to bfloat16 or float32 first"
        )
    model.config.precision = "float" if kept == "float32" else kept
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_whole(model, folder, tokenizer)
    except SafetensorError as error:
        raise OSError(
            f"{folder} could not be written: is the disk full? Free some room, or choose another disk"
        ) from error


def bytes_of_weights(folder: Path) -> int:
    """Size of the files of weights in a folder, in bytes."""
    files = list(folder.glob("*.safetensors")) or list(folder.glob("*.bin"))
    return sum(path.stat().st_size for path in files)

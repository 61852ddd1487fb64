"""A classifier out of a checkpoint: weights that are missing, do not fit or are no numbers are refused, not made up."""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..backbones.int8 import pack_weights, to_int8
from ..registration import PyramidForSequenceClassification
from .configurations import read_config
from .files import WEIGHTS, why_unreadable
from .precisions import check_kept

EXITS = "exits."
CONFIDENCE = ".confidence."  # in the names of exits' weights that are there if the configuration says so
LAYER = re.compile(r"\blayers?\.(\d+)\.")


@dataclass(frozen=True)
class Loaded:
    """A classifier as a checkpoint has it.

    Attributes:
        model: the classifier, in eval mode, on the CPU; ``model.config.untrained_exits`` names exits drawn at random.
        drawn: names of the weights that were drawn at random, since the checkpoint has none, or has them for other labels.
    """

    model: PyramidForSequenceClassification
    drawn: frozenset[str]

    @property
    def head_is_drawn(self) -> bool:
        """Whether the model's own head is new, so that it has to be trained before anything is asked of it."""
        return any(name.startswith("classifier.") for name in self.drawn)

    @property
    def is_bare(self) -> bool:
        """Whether any part of the model's own head is new: the checkpoint is an encoder, no finished classifier."""
        return any(name.startswith(self.model.backbone.own_head) for name in self.drawn)


def read_classifier(
    checkpoint: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    needs_head: bool = True,
    reached_only: bool = False,
    **settings: Any,
) -> Loaded:
    """The classifier of a checkpoint, a folder or a name on a hub, in a dtype of the caller's whatever is stored.

    To use a classifier is to need all of its backbone, pooler and own head. To train one needs the backbone, and takes a
    pooler and a head that are missing, or made for other labels, as drawn at random; ``drawn`` names them. Exit heads may be
    missing for both: ``config.untrained_exits`` says so, and whoever trains them sets it to None.

    Args:
        checkpoint: the folder or the name.
        dtype: dtype of the weights.
        needs_head: whether the model is to be used as it is, False to train it.
        reached_only: whether to leave out layers that no text reaches (``config.depth``), for inference alone.
        settings: values of the configuration to take instead of the checkpoint's.

    Raises:
        ValueError: no such checkpoint; files that cannot be read or could run code; weights that are missing, too many for
            the configuration, of another size than it says, NaN or infinite; exits that are set and not trained.
    """
    config = read_config(checkpoint, **settings)
    try:
        with _own_words():
            found: Any = PyramidForSequenceClassification.from_pretrained(
                checkpoint,
                config=config,
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                reached_only=reached_only,
            )
    except Exception as error:  # each reader of weights raises its own
        why = why_unreadable(checkpoint, WEIGHTS)
        if why is None and isinstance(error, ValueError):
            raise
        missing = f"{checkpoint} has no weights that can be read; it should hold model.safetensors, whole or in shards"
        raise ValueError(why or missing) from error
    model, info = found
    unfit = {name: (stored, wanted) for name, stored, wanted in info["mismatched_keys"]}
    drawn = frozenset(info["missing_keys"]) | frozenset(unfit)
    own_head = model.backbone.own_head
    free = (EXITS,) if needs_head else (EXITS, *own_head)

    def needed(name: str) -> bool:
        return CONFIDENCE in name or not name.startswith(free)

    _check_sizes(checkpoint, {name: sizes for name, sizes in unfit.items() if needed(name)})
    _check_missing(checkpoint, [name for name in drawn if needed(name)], own_head)
    _check_surplus(checkpoint, model, info["unexpected_keys"])
    _check_numbers(checkpoint, model)
    if needs_head:
        model.config.check_exits(model.config.exit_threshold)
    return Loaded(model, drawn)


def read_in_precision(
    checkpoint: str | Path, precision: str, reached_only: bool = False
) -> PyramidForSequenceClassification:
    """The finished classifier of a checkpoint with its weights in a precision, whatever this processor computes fast.

    Weights that a folder keeps in a precision are never there in another one; int8 ones are made of float32, and packed for
    this processor's products.

    Args:
        checkpoint: the folder or the name.
        precision: one of :data:`.precisions.PRECISIONS`.
        reached_only: as for :func:`read_classifier`.

    Raises:
        ValueError: as for :func:`read_classifier`; int8 weights, and another precision.
    """
    check_kept(read_config(checkpoint), precision)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = read_classifier(checkpoint, dtype=dtype, reached_only=reached_only).model
    if precision == "int8":
        to_int8(model)
        pack_weights(model)
    return model


def _check_sizes(checkpoint: str | Path, unfit: dict[str, tuple[Any, Any]]) -> None:
    if unfit:
        name = min(unfit)
        stored, wanted = (list(size) for size in unfit[name])
        raise ValueError(
            f"config.json and the weights of {checkpoint} do not fit: {name} is {stored} in the file and {wanted} by "
            f"config.json{_and_more(unfit)}; take both from the same model"
        )


def _check_missing(checkpoint: str | Path, missing: Collection[str], own_head: tuple[str, ...]) -> None:
    if not missing:
        return
    if all(name.startswith(own_head) for name in missing):
        raise ValueError(
            f"{checkpoint} is no finished classifier: it has no {min(missing)}{_and_more(missing)}; "
            "train one: magic-pyramid fit"
        )
    raise ValueError(
        f"{checkpoint} lacks weights of the model: {min(missing)}{_and_more(missing)}; with others in their place it would "
        "answer at random; copy the whole checkpoint, with its own config.json"
    )


def _check_surplus(
    checkpoint: str | Path, model: PyramidForSequenceClassification, unexpected: Collection[str]
) -> None:
    """Refuses layers, and weights in them, that the configuration lacks; heads of other tasks are left out in silence.

    So are layers that nobody reaches, where the model was made without them.
    """
    layers = model.config.num_hidden_layers
    left_out = range(len(model.base_model.stack), layers)
    surplus = [name for name in unexpected if (found := LAYER.search(name)) and int(found[1]) not in left_out]
    if surplus:
        raise ValueError(
            f"{checkpoint} has weights that config.json has no place for: {min(surplus)}{_and_more(surplus)}; the model has "
            f"{layers} layers by config.json; take both from the same model"
        )


def _check_numbers(checkpoint: str | Path, model: PyramidForSequenceClassification) -> None:
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(
                f"{checkpoint} has NaN or infinite numbers in {name}, so every answer would be; its training has diverged, "
                "or it was cut to a dtype that is too small: take an earlier checkpoint, or save it in float32"
            )


def _and_more(names: Collection[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


@contextmanager
def _own_words() -> Iterator[None]:
    """Leaves out, for this thread, transformers' table of missing weights, which is said here in a sentence, and its bar."""
    thread, logger = threading.get_ident(), logging.getLogger("transformers.modeling_utils")

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.funcName != "log_state_dict_report"

    logger.addFilter(is_wanted)
    try:
        with without_bars(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            yield
    finally:
        logger.removeFilter(is_wanted)


@contextmanager
def without_bars() -> Iterator[None]:
    """Leaves out transformers' progress bars on loading and saving."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            transformers_logging.enable_progress_bar()

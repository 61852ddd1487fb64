"""The configuration of a checkpoint, read and checked before its weights are."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import logging as hub_logging
from transformers.activations import ACT2FN

from ..configuration import PyramidConfig
from ..problems import ONE_LABEL, SEVERAL_LABELS, VALUES
from .files import why_unreadable

SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    "max_position_embeddings",
)


def read_config(checkpoint: str | Path, **settings: Any) -> PyramidConfig:
    """The configuration of a checkpoint, a folder or a name on a hub; code that it names is not run, which a warning says.

    Args:
        checkpoint: the folder or the name.
        settings: values to take instead of the checkpoint's.

    Raises:
        ValueError: there is no such checkpoint; ``config.json`` cannot be read, or holds what no pyramid can be made from.
        ValueError, TypeError: settings that no pyramid can be made from.
    """
    path = Path(checkpoint) / "config.json"
    if path.parent.is_dir():
        _check_file(path)
    try:
        with _without_words_of_the_hub():
            config = PyramidConfig.from_pretrained(checkpoint)
        _check_sizes(config)
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError(
                "the weights were quantised by another library (quantization_config), which is not followed; give the "
                "checkpoint that they were made from, and load it with precision 'int8'"
            )
        if getattr(config, "auto_map", None):
            del config.auto_map
            warnings.warn(
                f"{path} names code of the checkpoint's own (auto_map), which is not run: the model is built as "
                f"{config.backbone.model_type}",
                stacklevel=2,
            )
    except StrictDataclassError as error:
        raise ValueError(f"{path} cannot be used: {_what_does_not_fit(error, path)}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    except AttributeError as error:
        raise ValueError(f"{path} cannot be used: its dtype is none that PyTorch has") from error
    except OSError as error:
        raise ValueError(
            f"{checkpoint} is no folder, and no model of that name can be had from a hub; give the folder of a "
            "checkpoint with config.json, or a name on a hub that can be reached"
        ) from error
    config.update(settings)
    config.check()
    return config


@contextmanager
def _without_words_of_the_hub() -> Iterator[None]:
    """Leaves out what the hub's library says of each attempt to reach it; the error at the end is said here."""
    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


def _check_sizes(config: PyramidConfig) -> None:
    """Raises ValueError for settings that a stock model itself finds out about only while it is built or used."""
    for name in (*SIZES, *(name for name in ("type_vocab_size", "embedding_size") if hasattr(config, name))):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be 1 or more; got {getattr(config, name)}")
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size must be a multiple of num_attention_heads, {config.num_attention_heads}; got {config.hidden_size}"
        )
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"hidden_act must be one of {', '.join(sorted(ACT2FN))}; got {config.hidden_act!r}")
    if config.problem_type not in (None, ONE_LABEL, SEVERAL_LABELS, VALUES):
        raise ValueError(
            f"problem_type must be None, {ONE_LABEL!r}, {SEVERAL_LABELS!r} or {VALUES!r}; got {config.problem_type!r}"
        )


def _check_file(path: Path) -> None:
    """Raises ValueError where a folder's configuration is missing, no JSON object, or of two minds about its labels."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; give the folder of a checkpoint, with config.json")
    why = why_unreadable(path.parent, [path.name])
    if why is not None:
        raise ValueError(why)
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no model's configuration: it should be a JSON object")
    names, count = found.get("id2label"), found.get("num_labels")
    if isinstance(names, dict) and count not in (None, len(names)):  # stock models would lose the names
        raise ValueError(f"{path}: num_labels is {count}, and id2label names {len(names)} labels; correct one of them")


def _what_does_not_fit(error: StrictDataclassError, path: Path) -> str:
    """The setting that a configuration refused, with its value where a folder holds it."""
    field = re.search(r"field '(\w+)'", str(error))
    if field is None:
        return "its settings do not fit each other"
    name = field.group(1)
    value = f", {json.loads(path.read_text(encoding='utf-8')).get(name)!r}," if path.is_file() else ""
    return f"its {name}{value} is of another type than stock's"

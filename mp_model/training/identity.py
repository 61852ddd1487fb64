"""The identity of a fit: hashes of all that it is made from, and what differs between two of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints.files import hashes_of
from ..data.labels import LabelledTexts


def texts_identity(data: LabelledTexts, label_names: Sequence[str]) -> dict[str, Any]:
    """The number of texts, and a hash of them and the names of their labels, in their order."""
    digest = hashlib.sha256()
    for text, label in zip(data.texts, data.labels, strict=True):
        names = label_names[label] if data.among is None else [label_names[number] for number in label]
        digest.update(json.dumps([text, names]).encode() + b"\n")
    return {"texts": len(data), "sha256": digest.hexdigest()}


def checkpoint_identity(checkpoint: str | Path, commit: str | None) -> dict[str, Any]:
    """A hash of each file of a folder, wherever it lies; a hub's checkpoint by its name and commit."""
    folder = Path(checkpoint)
    return hashes_of(folder) if folder.is_dir() else {"name": str(checkpoint), "commit": commit}


# What fits did of which earlier versions kept nothing, because there was nothing else.
ONCE = {"teacher": "none"}
ONCE_SETTINGS = {"bfloat16": False}


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between the identities of two fits, in words; empty where there are none."""
    found = []
    for name, value in now.items():
        was: Any = before.get(name, ONCE.get(name))
        if was == value:
            continue
        if type(was) is not type(value):
            found.append(f"its {name} {'were' if name.endswith('s') else 'was'} not kept, by an earlier version")
        elif name.endswith("texts"):
            found.append(f"the {name} have changed ({value['texts']}, before {was.get('texts')})")
        elif name == "checkpoint":
            found.append(f"the checkpoint has changed ({', '.join(_differing(was, value))})")
        elif name == "settings":
            was = {**ONCE_SETTINGS, **was}
            found += [f"{key} is {value[key]}, before {was.get(key)}" for key in _differing(was, value)]
        else:
            found.append(f"{name} is {value}, before {was}")
    return found


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]

"""The files of a checkpoint: those that cannot be read and why, and hashes of those that decide its answers."""

from __future__ import annotations

import hashlib
import json
from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path

WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "*.model")
DECIDING = ("*.json", "*.txt", "*.safetensors", "*.bin", "*.model")  # configuration, tokenizer and weights
POINTER = b"version https://git-lfs"


def hashes_of(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder that can change its model's answers, by the file's name."""
    found = {}
    for path in sorted({path for pattern in DECIDING for path in folder.glob(pattern) if path.is_file()}):
        with path.open("rb") as stream:
            found[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def why_unreadable(checkpoint: str | Path, patterns: Sequence[str]) -> str | None:
    """The first file of a folder that cannot be read, and the way out, in a sentence; None: there is none.

    Args:
        checkpoint: the folder; of a name on a hub nothing is known here.
        patterns: names of the files to look at, with wildcards.
    """
    for path in (path for pattern in patterns for path in sorted(Path(checkpoint).glob(pattern))):
        why = _why(path)
        if why is not None:
            return f"{path} {why}"
    return None


def _why(path: Path) -> str | None:
    with path.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            return "is a git-LFS pointer, not the file itself; fetch it with `git lfs pull`"
    if path.suffix == ".json" and not _is_json(path):
        with path.open("rb") as stream:
            if stream.read(len(BOM_UTF8)) == BOM_UTF8:
                return "begins with a byte order mark, which JSON does not have; save it as UTF-8 without one"
        return "is not JSON: it is cut short or damaged; copy it again"
    if path.name.endswith(".index.json"):
        shards = _shards(path)
        missing = [name for name in shards if not path.with_name(name).is_file()]
        if not shards:
            return "names no files of weights; copy it again"
        return f"names {missing[0]}, which is missing; copy it too" if missing else None
    if path.suffix == ".safetensors":
        return None if _is_safetensors(path) else "is cut short or damaged; copy it again"
    if path.suffix == ".bin" and not _is_weights_alone(path):
        return (
            "is cut short, or a pickle that holds more than tensors and could run code, which is refused; copy it again, or "
            "have whoever made it save it as model.safetensors"
        )
    return None


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def _shards(index: Path) -> list[str]:
    """Names of the files that an index of shards says there are."""
    found = json.loads(index.read_text(encoding="utf-8"))
    files = found.get("weight_map") if isinstance(found, dict) else None
    return sorted(set(files.values())) if isinstance(files, dict) else []


def _is_safetensors(path: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            return True
    except SafetensorError:
        return False


def _is_weights_alone(path: Path) -> bool:
    """Whether a pickle is a mapping of tensors, found without running anything that it asks for."""
    import warnings

    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # of the pickle's protocol
            found = torch.load(path, map_location="meta", weights_only=True)
    except Exception:  # bytes that are no pickle make the reader raise anything
        return False
    return isinstance(found, dict)

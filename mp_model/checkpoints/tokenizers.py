"""The tokenizer of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_tokenizer(checkpoint: str | Path) -> Any:
    """The tokenizer of a checkpoint, a folder or a name on a hub; code that the checkpoint brings is never run.

    Raises:
        ValueError: the tokenizer cannot be had without such code.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"the tokenizer of {checkpoint} wants to run code of its own (auto_map in tokenizer_config.json), which is "
            "refused; give a checkpoint whose tokenizer is one of transformers' own"
        ) from error

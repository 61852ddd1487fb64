"""Models whose exits compare two texts: the same answers by every way, and no single text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from mp_model import Answer, Classifier, PyramidBertForSequenceClassification
from mp_model.command_line import app
from mp_model.command_line.serve import shaded
from mp_model.data.batches import encode
from mp_model.serving.app import create_app
from mp_model.serving.service import Service
from mp_model.serving.settings import ServerSettings
from support import tiny, wordpiece
from support.checkpoints import save
from support.serving import eventually
from support.situations import situation

TEXTS = [text for text in wordpiece.texts(30) if text]
PAIRS = list(zip(TEXTS, [*TEXTS[9:-1], "", *TEXTS[:9]], strict=True))


def batch_of(pairs: Sequence[tuple[str, str]]) -> tiny.Batch:
    rows = encode(wordpiece.tokenizer(), pairs, 64)
    return tiny.Batch(*([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "token_type_ids")))


@pytest.fixture(scope="module")
def model() -> PyramidBertForSequenceClassification:
    names = {0: "same", 1: "other", 2: "neither"}
    settings = {"vocab_size": len(wordpiece.VOCABULARY), "id2label": names}
    model = tiny.classifier(exit_head="pair", exit_layers=[0, 1, 2, 3], **settings)
    batch = batch_of(PAIRS)
    tiny.calibrate_pruning(model, batch)
    model.config.exit_threshold = tiny.calibrate_exits(model, batch)
    return model


@pytest.fixture(scope="module")
def folder(model: PyramidBertForSequenceClassification, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(model, tmp_path_factory.mktemp("pairs") / "model")


@contextmanager
def server(classifier: Classifier) -> Iterator[TestClient]:
    service = Service(classifier, ServerSettings(), "pairs", shaded)
    with TestClient(create_app(service)) as client:
        eventually(lambda: service.is_ready)
        yield client


def assert_defined(answers: Sequence[Answer], model: PyramidBertForSequenceClassification) -> None:
    config = model.config
    thresholds = dict(zip(config.resolved_exit_layers(), config.exit_threshold, strict=True))
    expected = tiny.define(model, batch_of(PAIRS), thresholds)
    assert [answer.exit_layer for answer in answers] == [answer.exit_layer for answer in expected]
    assert len({answer.exit_layer for answer in answers}) > 3
    for answer, exact in zip(answers, expected, strict=True):
        scores = torch.softmax(exact.logits, -1).tolist()
        assert list(answer.scores.values()) == pytest.approx(scores, abs=1e-5)


def test_calls_and_streams_of_pairs(model: PyramidBertForSequenceClassification, folder: Path) -> None:
    classifier = Classifier.load(folder)
    assert_defined(classifier(PAIRS), model)
    assert_defined(list(classifier.stream(iter(PAIRS), window=8)), model)
    assert_defined([answer for pair in PAIRS for answer in classifier([pair])], model)


@situation("run", "a single text for a model whose exits compare two", "refused in a sentence; in a batch, alone")
def test_single_texts_are_refused(folder: Path) -> None:
    classifier = Classifier.load(folder)
    with pytest.raises(ValueError, match=r"texts\[0\] is a single text: this model's exits compare two texts"):
        classifier(["a b"])
    with pytest.raises(ValueError, match=r"texts\[0\] is a single text"):
        list(classifier.stream(["a b"]))
    with server(classifier) as client:
        ended = client.post("/predict", json={"inputs": "a b"})
        assert (ended.status_code, ended.json()["error_type"]) == (422, "Validation")
        assert ended.json()["error"] == "this model's exits compare two texts (exit_head='pair'); give pairs"


def test_a_server_of_pairs(folder: Path) -> None:
    classifier = Classifier.load(folder)
    with server(classifier) as client:
        found = client.post("/predict", json={"inputs": [["a b"], list(PAIRS[0]), list(PAIRS[1])]}).json()
        assert "error" in found[0]
        for row, answer in zip(found[1:], classifier(PAIRS[:2]), strict=True):
            assert (row[0]["label"], row[0]["score"]) == (answer.label, pytest.approx(answer.score, abs=1e-5))
        words = client.post("/pyramid", json={"inputs": "a b\nthe c"}).json()
        assert words["words"] == ["a", "b", "the", "c"]
        alone = client.post("/pyramid", json={"inputs": "a b"})
        assert alone.status_code == 422
        assert "the second text on a line of its own" in alone.json()["error"]


def test_commands_on_pairs(folder: Path, model: PyramidBertForSequenceClassification, tmp_path: Path) -> None:
    def run(*arguments: Any) -> Any:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    pairs, labels = tmp_path / "pairs.tsv", ("same", "other", "neither")
    lines = [f"{labels[row % 3]}\t{first}\t{second}" for row, (first, second) in enumerate(PAIRS)]
    pairs.write_text("\n".join(["label\ttext_a\ttext_b", *lines]) + "\n")
    singles = tmp_path / "singles.tsv"
    singles.write_text("label\ttext\nsame\ta b\nother\tc\n")
    output = tmp_path / "answers.jsonl"
    assert run("classify", pairs, "--model", folder, "--output", output).exit_code == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["label"] for row in found] == [answer.label for answer in Classifier.load(folder)(PAIRS)]
    for command in ("evaluate", "tune"):
        goal = ["--max-drop", "50"] if command == "tune" else []
        ended = run(command, pairs, "--model", folder, *goal)
        assert ended.exit_code == 0, ended.output
        ended = run(command, singles, "--model", folder, *goal)
        assert isinstance(ended.exception, ValueError)
        assert "holds single texts: this model's exits compare two texts" in str(ended.exception)
    assert run("doctor", folder).exit_code == 0

"""Commands on models that do not choose one label for a text: several labels, and values, which are not measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mp_model.measuring.all_exits import read_all_exits
from support.checkpoints import TEXTS, change_json, classifier, save
from support.commands import Command
from support.situations import situation

MULTI_LABEL, VALUES = {"problem_type": "multi_label_classification"}, {"num_labels": 1, "id2label": {0: "stars"}}


def strictly(line: str) -> dict:
    """A line of JSON, in which NaN and Infinity are no numbers."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(line, parse_constant=refuse)


@situation("checkpoint", "classify with a model for several labels, or for regression", "JSON, never with NaN")
@pytest.mark.parametrize("settings", [MULTI_LABEL, VALUES], ids=["several labels", "values"])
def test_classify(run: Command, tmp_path: Path, settings: dict) -> None:
    folder = save(classifier(**settings), tmp_path / "model")
    ended = run("classify", folder, "--scores")
    assert ended.status == 0
    assert "Traceback" not in ended.err
    rows = [strictly(line) for line in ended.out.splitlines()]
    assert len(rows) == len(TEXTS)
    assert all((row["uncertainty"] is None) == (settings is VALUES) for row in rows)
    for row in rows:
        assert row["score"] == max(row["scores"].values())
    if settings is VALUES:
        assert {row["label"] for row in rows} == {"stars"}
        assert {row["score"] for row in rows} != {1.0}


@situation("checkpoint", "evaluate or tune with a model for regression", "refused, with a way out")
@pytest.mark.parametrize("command", ["evaluate", "tune"])
def test_measuring(run: Command, tmp_path: Path, command: str) -> None:
    folder = save(classifier(**VALUES), tmp_path / "model")
    if command == "tune":  # whether or not anybody has trained its exits
        change_json(folder / "config.json", untrained_exits=[1])
    ended = run(command, folder)
    assert (ended.status, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert "are measured of models that choose labels for a text" in line
    assert "`magic-pyramid classify` and Classifier give its answers" in line
    with pytest.raises(ValueError, match="choose labels for a text"):
        read_all_exits(classifier(**VALUES), [], [])


@situation(
    "checkpoint", "evaluate or tune with a model for several labels, on texts with one label each", "sets of one label"
)
def test_measuring_several_labels_on_texts_of_one(run: Command, tmp_path: Path, table: Path) -> None:
    folder = save(classifier(**MULTI_LABEL), tmp_path / "model")
    answers = run("classify", folder, "--scores").answers()
    right = [row["label"] for row in answers]
    sets = [[name for name, score in row["scores"].items() if score > 0.5] for row in answers]
    table.write_text("label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in zip(right, TEXTS, strict=True)))
    found = run("evaluate", folder, "--json").answers()[0]["evaluations"][0]
    exact = sum(labels == [label] for labels, label in zip(sets, right, strict=True)) / len(TEXTS)
    assert 0 < exact < 1
    assert found["accuracy"] == found["several"]["exact_match"] == pytest.approx(exact)
    assert run("tune", folder).status == 0


@pytest.mark.parametrize(
    ("settings", "answers"),
    [
        ({}, "one label for a text"),
        (MULTI_LABEL, "any of the labels for a text, each by itself"),
        (VALUES, "a value for a text"),
    ],
)
def test_info(run: Command, tmp_path: Path, settings: dict, answers: str) -> None:
    folder = save(classifier(**settings), tmp_path / "model")
    assert run("info", folder, "--json").answers()[0]["answers"] == answers


@situation("checkpoint", "labels that are numbers in config.json", "the numbers as words, in every command")
def test_labels_that_are_numbers(run: Command, folder: Path, table: Path) -> None:
    change_json(folder / "config.json", id2label={"0": 1, "1": 2, "2": 3})
    rows = run("classify", folder).answers()
    assert {row["label"] for row in rows} <= {"1", "2", "3"}
    table.write_text("label\ttext\n" + "".join(f"{x['label']}\t{t}\n" for x, t in zip(rows, TEXTS, strict=True)))
    assert run("evaluate", folder, "--json").answers()[0]["evaluations"][0]["accuracy"] == 1.0

"""Texts with any number of labels, from a table to answers: fit, evaluate, report, tune and classify."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mp_model import Classifier
from mp_model.command_line import app
from mp_model.data.tables import read_labelled
from support import tiny, wordpiece
from support.checkpoints import save
from support.fits import write_several
from support.situations import situation

NAMES = ("yes", "no")  # the order that --labels gives


def invoke(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def columns_of(table: Path) -> Path:
    """The same texts with a column of 0 and 1 for each label."""
    path = table.with_suffix(".csv")
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text", *NAMES])
        for number, (text, labels) in enumerate(read_labelled(table)):
            writer.writerow([number, text, *(int(name in labels) for name in NAMES)])
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tables")
    return write_several(folder / "train.tsv", 300, 0), write_several(folder / "dev.tsv", 100, 1)


@pytest.fixture(scope="module")
def fitted(tables: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A fit of columns of 0 and 1, its summary, and what was said."""
    folder = tmp_path_factory.mktemp("fit")
    checkpoint = save(tiny.classifier(vocab_size=len(wordpiece.VOCABULARY)), folder / "checkpoint")
    train, dev = map(columns_of, tables)
    passes = [word for stage in ("", "soft-", "joint-", "exit-") for word in (f"--{stage}epochs", 1)]
    options = ["--labels", ",".join(NAMES), "--validation", dev, "--model", checkpoint, "--learning-rate", "1e-3"]
    result = invoke("fit", train, *options, *passes, "--output", folder / "fit", "--json")
    return folder / "fit" / "model", json.loads(result.stdout), result.stderr


def sets_of(folder: Path, table: Path, threshold: Any = None) -> tuple[list[set[str]], list[set[str]]]:
    """The labels that texts are given, and those that they have."""
    texts, labels = zip(*read_labelled(table), strict=True)
    answers = Classifier.load(folder)(texts, threshold)
    return [{name for name, score in x.scores.items() if score > 0.5} for x in answers], [set(x) for x in labels]


@situation(
    "fit",
    "a table with a column of 0 and 1 for each label, and `--labels`",
    "a classifier of several labels, in that order",
)
def test_fit(fitted: tuple[Path, dict[str, Any], str], tables: tuple[Path, Path]) -> None:
    folder, summary, said = fitted
    assert summary["label_names"] == list(NAMES)
    assert (summary["teacher"], summary["train_texts"]) == ("fine-tuned", 300)
    assert "  without a label" in said
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    given, right = sets_of(folder, tables[1])
    assert summary["exits_accuracy"] == pytest.approx(sum(map(set.__eq__, given, right)) / 100)


@pytest.mark.parametrize("as_columns", [False, True])
def test_evaluate(fitted: tuple[Path, dict[str, Any], str], tables: tuple[Path, Path], as_columns: bool) -> None:
    """The figures are those of the answers; the padded model beside them has its own."""
    folder, table = fitted[0], tables[1]
    source = columns_of(table) if as_columns else table
    options = ["--exit-thresholds", "0.9", "--rounds", 1]
    document = json.loads(invoke("evaluate", source, "--model", folder, *options, "--json").stdout)
    for evaluation in document["evaluations"]:
        threshold = "never" if evaluation["exit_threshold"] is None else evaluation["exit_threshold"]
        given, right = sets_of(folder, table, threshold)
        counts = {name: [sum(name in x for x in of) for of in (given, right)] for name in NAMES}
        both = {name: sum(name in a and name in b for a, b in zip(given, right, strict=True)) for name in NAMES}
        several = evaluation["several"]
        assert evaluation["accuracy"] == several["exact_match"]
        assert several["exact_match"] == pytest.approx(sum(map(set.__eq__, given, right)) / 100)
        wrong = sum(len(a ^ b) for a, b in zip(given, right, strict=True))
        assert several["label_accuracy"] == pytest.approx(1 - wrong / 200)
        assert several["micro_f1"] == pytest.approx(2 * sum(both.values()) / sum(map(sum, counts.values())))
        by_label = [2 * both[name] / sum(counts[name]) for name in NAMES]
        assert several["macro_f1"] == evaluation["f1"] == pytest.approx(sum(by_label) / 2)
    assert document["padded_bert"]["accuracy"] == document["padded_bert"]["several"]["exact_match"]


def test_shown_figures(fitted: tuple[Path, dict[str, Any], str], tables: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    folder, report = fitted[0], tmp_path / "report.html"
    shown = invoke("evaluate", tables[1], "--model", folder, "--no-time", "--report", report).stdout
    for words in ("all labels", "each", "micro", "macro"):
        assert words in shown
    page = report.read_text()
    assert "right ↓ answered →" not in page, "which label was taken for which is no question here"
    given, right = sets_of(folder, tables[1])
    has_none = any(not x for x in right) and any(a != b for a, b in zip(given, right, strict=True))
    assert has_none
    assert "no label" in page
    assert "yes, no" in page


def test_tune(fitted: tuple[Path, dict[str, Any], str], tables: tuple[Path, Path]) -> None:
    """Harm counts texts of which all labels were right, and are not any more."""
    folder = fitted[0]
    options = ["--max-drop", 10, "--json", "--dry-run"]
    document = json.loads(invoke("tune", columns_of(tables[1]), "--model", folder, *options).stdout)
    whole, right = sets_of(folder, tables[1], "never")
    assert document["accuracy_without_exits"] == pytest.approx(sum(map(set.__eq__, whole, right)) / 100)
    for outcome in (document["chosen"], document["curve"][-1]):
        threshold = "never" if outcome["exit_threshold"] is None else outcome["exit_threshold"]
        given, _ = sets_of(folder, tables[1], threshold)
        lost = sum(a == c != b for a, b, c in zip(whole, given, right, strict=True))
        assert outcome["harm"] == pytest.approx(lost / 100)
        assert outcome["accuracy"] == pytest.approx(sum(map(set.__eq__, given, right)) / 100)


@situation(
    "checkpoint", "evaluate with a model for one label a text, on lists of labels", "refused in a line that says so"
)
def test_lists_for_a_model_of_one_label(tables: tuple[Path, Path], tmp_path: Path) -> None:
    names = {0: "no", 1: "yes"}
    one = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), num_labels=2, id2label=names)
    folder = save(one, tmp_path / "one")
    for command in (["evaluate", "--no-time"], ["tune", "--max-drop", "1"]):
        refused = CliRunner().invoke(app, [command[0], str(tables[1]), "--model", str(folder), *command[1:]])
        assert isinstance(refused.exception, ValueError)
        assert "the texts have lists of labels; expected one label for each" in str(refused.exception)

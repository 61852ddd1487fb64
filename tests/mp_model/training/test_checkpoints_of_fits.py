"""What a checkpoint says is kept by a fit, or given up in so many words: labels, their order, dtype and kind of task."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from mp_model import Classifier, PyramidBertForSequenceClassification
from mp_model.command_line import app
from mp_model.data.labels import LabelledTexts
from mp_model.data.tables import TableError, read_labelled
from mp_model.training import Task, fit, load_task, train_stages
from mp_model.training.agreement import Agreement, agree
from support import tiny, wordpiece
from support.checkpoints import save
from support.fits import QUICK, write_rows
from support.situations import situation

VOCABULARY = len(wordpiece.VOCABULARY)
FROZEN = ["--freeze-backbone", "--soft-epochs", "0", "--exit-epochs", "1", "--importance-normalizer", "alive"]


@pytest.fixture(scope="module")
def finished(checkpoint: Path, files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished classifier without exits, for "yes" and "no", in this order: not the one that a file's labels sort to."""
    output = tmp_path_factory.mktemp("finished")
    fit(str(checkpoint), load_task(*files), output / "fit", "bert", QUICK, quiet=True)
    model = PyramidBertForSequenceClassification.from_pretrained(output / "fit" / "model")
    with torch.no_grad():
        model.classifier.weight.copy_(model.classifier.weight.flip(0))
        model.classifier.bias.copy_(model.classifier.bias.flip(0))
    return named(model, output / "reversed", {0: "yes", 1: "no"})


def named(model: PyramidBertForSequenceClassification, folder: Path, id2label: dict[int, str]) -> Path:
    """The model under names for its labels."""
    model.config.id2label = id2label
    model.config.label2id = {name: number for number, name in id2label.items()}
    return save(model, folder)


def renamed(checkpoint: Path, folder: Path, id2label: dict[int, str]) -> Path:
    return named(PyramidBertForSequenceClassification.from_pretrained(checkpoint), folder, id2label)


def answers(folder: Path, table: Path) -> tuple[list[str], float]:
    """The labels that a saved classifier gives to a table's texts with its exits closed, and the share of right ones."""
    texts, labels = zip(*read_labelled(table), strict=True)
    given = [answer.label for answer in Classifier.load(folder)(texts, exit_threshold="never")]
    return given, sum(map(str.__eq__, given, labels)) / len(labels)


def command(table: Path, checkpoint: Path, output: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["fit", str(table), "--model", str(checkpoint), "--output", str(output), *options])


@situation(
    "checkpoint",
    "a finished classifier whose labels are numbered in another order than they sort, `fit --freeze-backbone`",
    "it keeps its numbers; the same answers under the same names as before",
)
def test_labels_keep_their_numbers(finished: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    before, accuracy = answers(finished, files[1])
    assert accuracy > 0.8
    result = command(files[0], finished, tmp_path / "fit", "--validation", str(files[1]), *FROZEN)
    assert result.exit_code == 0, result.exception
    after, kept = answers(tmp_path / "fit" / "model", files[1])
    assert after == before
    assert kept == accuracy
    measured = CliRunner().invoke(
        app,
        [
            "evaluate",
            str(files[1]),
            "--model",
            str(tmp_path / "fit" / "model"),
            "--no-time",
            "--exit-thresholds",
            "0.1",
        ],
    )
    assert measured.exit_code == 0, measured.exception
    assert f"{accuracy:.2%}" in measured.stdout


@situation(
    "checkpoint",
    "a finished classifier, and texts with labels that are only partly its own, `fit --freeze-backbone`",
    "refused; both lists of labels are shown, and nothing is written",
)
def test_partly_different_labels_are_refused(finished: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    table = write_rows(tmp_path / "train.tsv", 60, 0, ("maybe", "yes"))
    result = command(table, finished, tmp_path / "fit", *FROZEN)
    message = str(result.exception)
    assert isinstance(result.exception, ValueError)
    assert "has the labels 'yes', 'no'; the texts have 'maybe', 'yes'" in message
    assert not (tmp_path / "fit").exists()


@situation("checkpoint", "the same with fine-tuning", "a new classifier for the labels of the texts, which is said")
def test_partly_different_labels_get_a_new_head(finished: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    table = write_rows(tmp_path / "train.tsv", 400, 0, ("maybe", "yes"))
    validation = write_rows(tmp_path / "validation.tsv", 150, 1, ("maybe", "yes"))
    summary = fit(str(finished), load_task(table, validation), tmp_path / "fit", "bert", QUICK, quiet=True)
    assert summary.label_names == ["maybe", "yes"]
    assert any("a new classifier is trained" in note for note in summary.notes)
    assert answers(tmp_path / "fit" / "model", validation)[1] == summary.validation_accuracy > 0.8


@situation(
    "checkpoint",
    "a classifier for LABEL_0 and LABEL_1, and texts with the labels 0 and 1",
    "matched by number, which is said; the same answers as before",
)
def test_labels_without_names_are_matched_by_number(finished: Path, tmp_path: Path) -> None:
    nameless = renamed(finished, tmp_path / "nameless", {0: "LABEL_0", 1: "LABEL_1"})
    table = write_rows(tmp_path / "train.tsv", 150, 1, ("1", "0"))  # "yes" has the number 0
    before = [label.removeprefix("LABEL_") for label in answers(nameless, table)[0]]
    result = command(table, nameless, tmp_path / "fit", *FROZEN)
    assert result.exit_code == 0, result.exception
    assert "matched by number" in " ".join(result.stderr.split())
    after, accuracy = answers(tmp_path / "fit" / "model", table)
    assert after == before
    assert accuracy > 0.8


@situation(
    "checkpoint",
    "a classifier for LABEL_0 and LABEL_1, and texts with other labels, `fit --freeze-backbone`",
    "refused; `--labels` gives their names in the order of the numbers",
)
def test_labels_are_named_by_an_option(finished: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    nameless = renamed(finished, tmp_path / "nameless", {0: "LABEL_0", 1: "LABEL_1"})
    refused = command(files[0], nameless, tmp_path / "refused", *FROZEN)
    assert "Give --labels" in str(refused.exception)
    result = command(
        files[0], nameless, tmp_path / "fit", "--validation", str(files[1]), "--labels", "yes, no", *FROZEN
    )
    assert result.exit_code == 0, result.exception
    assert answers(tmp_path / "fit" / "model", files[1]) == answers(finished, files[1])

    with pytest.raises(TableError, match="labels that --labels does not name: 'no'; name them too, or take them out"):
        load_task(*files, labels=["yes", "maybe"])
    with pytest.raises(ValueError, match="must be the names of different labels; got yes, yes, no"):
        load_task(*files, labels=["yes", "yes", "no"])


@pytest.mark.parametrize(
    ("texts", "classifier", "new_head", "expected"),
    [
        (["a", "b"], ["a", "b"], False, (["a", "b"], True)),
        (["a", "b"], ["b", "a"], True, (["b", "a"], True)),
        (["1", "2"], ["2.0", " 1"], False, (["2", "1"], True)),
        (["a", "b"], None, False, None),
        (["a", "b"], None, True, (["a", "b"], False)),
        (["a", "b"], ["LABEL_0", "LABEL_1", "LABEL_2"], False, None),
        (["a", "b"], ["LABEL_0", "LABEL_1", "LABEL_2"], True, (["a", "b"], False)),
        (["0", "1"], ["LABEL_0", "LABEL_1", "LABEL_2"], False, None),
        (["0", "1", "2"], ["LABEL_0", "LABEL_1", "LABEL_2"], False, (["0", "1", "2"], True)),
        (["a", "b"], ["LABEL_0", "LABEL_1"], True, (["a", "b"], False)),
        (["a", "b"], ["a", "b", "c"], False, None),
        (["a", "b", "c"], ["a", "b"], False, None),
        (["0", "1"], ["LABEL_1", "LABEL_0"], False, (["1", "0"], True)),
        (["1", "2"], ["LABEL_0", "LABEL_1"], False, None),
    ],
)
def test_agreements(texts: list[str], classifier: list[str] | None, new_head: bool, expected: tuple | None) -> None:
    task = Task(texts, LabelledTexts(["x"], [0]), LabelledTexts(["y"], [0]), held_out=False)
    if expected is None:
        with pytest.raises(ValueError, match="train one: with --train-head on the frozen backbone"):
            agree(task, classifier, new_head=new_head)
        return
    found: Agreement = agree(task, classifier, new_head=new_head)
    assert (found.label_names, found.keeps_head) == expected


def test_a_label_without_texts_is_named_and_kept(finished: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    """``--labels`` may name more labels than the texts have; the classifier of all of them is kept."""
    three = tiny.classifier(vocab_size=VOCABULARY, num_labels=3)
    folder = named(three, tmp_path / "three", {0: "yes", 1: "maybe", 2: "no"})
    task = load_task(*files, labels=["yes", "maybe", "no"])
    settings = replace(QUICK, soft_epochs=0, exit_epochs=1)
    summary = fit(str(folder), task, tmp_path / "fit", "mp", settings, freeze_backbone=True, quiet=True)
    assert summary.label_names == ["yes", "maybe", "no"]
    assert list(summary.stages) == ["soft", "exits"]
    assert "labels without a training text: 'maybe'" in summary.notes
    assert "labels without a validation text: 'maybe'" in summary.notes


@situation(
    "checkpoint",
    "an encoder without a classifier, or a classifier for other labels, `fit --freeze-backbone`",
    "refused, since exits would learn from a random head; nothing is written",
)
def test_exits_under_a_random_head_are_refused(checkpoint: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    bare = save(tiny.encoder_of(tiny.classifier(vocab_size=VOCABULARY)), tmp_path / "bare")
    no_classifier = (
        "the checkpoint has no classifier, and exits would learn from a random one; train one: with --train-head"
    )
    for folder, message in (
        (bare, no_classifier),
        (checkpoint, "the labels 'LABEL_0', 'LABEL_1', 'LABEL_2'; the texts"),
    ):
        result = command(files[0], folder, tmp_path / "fit", *FROZEN)
        assert isinstance(result.exception, ValueError)
        assert message in str(result.exception)
        with pytest.raises(ValueError, match=message):
            train_stages(folder, load_task(*files), tmp_path / "fit", "mp", QUICK, stages=["exits"], quiet=True)
        assert not (tmp_path / "fit").exists()
    result = command(files[0], bare, tmp_path / "fit", *FROZEN, "--train-head")
    assert result.exit_code == 0, result.exception
    assert "head: " in result.stderr


@situation(
    "checkpoint",
    "weights stored as bfloat16 or float16, `fit`",
    "trained in float32: the same model, bit for bit, as from the float32 cast of the weights",
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_are_trained_in_float32(
    dtype: torch.dtype, checkpoint: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    model = PyramidBertForSequenceClassification.from_pretrained(checkpoint)
    save(model.to(dtype), tmp_path / "half")
    save(model.float(), tmp_path / "cast")
    settings = replace(QUICK, epochs=1)
    states = []
    for name in ("half", "cast"):
        output = tmp_path / f"fit-{name}"
        train_stages(tmp_path / name, load_task(*files), output, "bert", settings, quiet=True)
        states.append(PyramidBertForSequenceClassification.from_pretrained(output / "stages" / "1-fine-tune" / "model"))
    assert {weight.dtype for weight in states[0].parameters()} == {torch.float32}
    for (name, ours), theirs in zip(states[0].named_parameters(), states[1].parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@situation(
    "checkpoint",
    "a multi-label or a regression model, `fit` with one label a text",
    "trained and saved as a classifier of single labels, which is said",
)
@pytest.mark.parametrize(("kind", "labels"), [("multi_label_classification", 3), ("regression", 1), ("regression", 2)])
def test_other_kinds_of_task_are_given_up(kind: str, labels: int, files: tuple[Path, Path], tmp_path: Path) -> None:
    names = dict(enumerate(("maybe", "yes", "no")[:labels]))
    exits = {} if labels > 1 else {"exit_layers": []}
    model = tiny.classifier(vocab_size=VOCABULARY, num_labels=labels, problem_type=kind, id2label=names, **exits)
    summary = fit(
        str(save(model, tmp_path / "model")), load_task(*files), tmp_path / "fit", "pyramid", QUICK, quiet=True
    )
    assert any(f"problem_type, {kind!r}, is given up" in note for note in summary.notes)
    assert summary.validation_accuracy > 0.8
    config = PyramidBertForSequenceClassification.from_pretrained(tmp_path / "fit" / "model").config
    assert (config.problem_type, config.id2label) == ("single_label_classification", {0: "no", 1: "yes"})


def test_a_copied_checkpoint_is_the_same(finished: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    """A checkpoint's place is not part of what a fit is made from, its files are."""
    settings = replace(QUICK, epochs=1)
    first = fit(str(finished), load_task(*files), tmp_path / "fit", "bert", settings, quiet=True)
    shutil.copytree(finished, tmp_path / "copy")
    again = fit(str(tmp_path / "copy"), load_task(*files), tmp_path / "fit", "bert", settings, quiet=True)
    assert (first.already_done, again.already_done) == ([], ["fine-tune"])

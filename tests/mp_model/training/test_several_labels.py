"""Fits of texts with any number of labels: binary cross entropy in every stage, sigmoids everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mp_model import Classifier, PyramidBertForSequenceClassification
from mp_model.command_line.fit import data_rows
from mp_model.data.batches import length_sorted_batches
from mp_model.data.labels import LabelledTexts
from mp_model.data.tables import read_labelled
from mp_model.measuring.all_exits import read_all_exits
from mp_model.training import fit, load_task
from mp_model.training import objectives as of
from mp_model.training.preparing import prepare
from mp_model.training.tasks import EncodedTexts
from mp_model.training.teacher import Taught
from support import tiny, wordpiece
from support.checkpoints import save
from support.fits import QUICK, write_several
from support.situations import situation

SEVERAL = {"problem_type": "multi_label_classification", "vocab_size": len(wordpiece.VOCABULARY)}
TEXTS = LabelledTexts(["the a b", "rate c", "d e f the g h", "rate"], [(0,), (1, 2), (), (0, 1, 2)], among=3)


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("texts")
    return write_several(folder / "train.tsv", 600, 0), write_several(folder / "validation.tsv", 150, 1)


# Losses, by their definitions


def bernoulli(logits: Tensor) -> Tensor:
    """Probabilities ``[batch, labels, 2]`` that a text has each label, and that it has not."""
    p = 1 / (1 + (-logits.double()).exp())
    return torch.stack([p, 1 - p], -1)


def label_loss(logits: Tensor) -> Tensor:
    has = torch.tensor([[k in labels for k in range(3)] for labels in TEXTS.labels])
    p = bernoulli(logits)
    return -torch.where(has, p[..., 0], p[..., 1]).log().sum(-1).mean()


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    p, q = bernoulli(teacher), bernoulli(student)
    return (p * (p / q).log()).sum((-2, -1)).mean()


def mixed(logits: Tensor, teacher: Tensor, share: float) -> Tensor:
    return share * kl(teacher, logits) + (1 - share) * label_loss(logits)


def model(**settings: Any) -> PyramidBertForSequenceClassification:
    return tiny.classifier(**SEVERAL, exit_head="pooled", exit_layers=[0, 1, 3], **settings)


def texts_of() -> EncodedTexts:
    return EncodedTexts(wordpiece.tokenizer(), TEXTS, 64)


def loss_of(objective: nn.Module, **more: Tensor) -> Tensor:
    """The loss of all texts as the trainer gives them."""
    (batch,) = length_sorted_batches(texts_of().rows, 4, 0)
    labels = torch.tensor([texts_of()[place]["labels"] for place in batch.places])
    return objective(labels=labels, **batch.inputs, **{name: x[batch.places] for name, x in more.items()})[
        "loss"
    ].double()


def logits_of(classifier: PyramidBertForSequenceClassification) -> dict[int, Tensor]:
    return read_all_exits(classifier, length_sorted_batches(texts_of().rows, 4, 0), TEXTS.targets).logits


def test_losses() -> None:
    """Minus the log-probability of a text's labels; divergences are those of all labels together."""
    own, other = model(prune_thresholds=[0.02] * 4), tiny.classifier(5, **SEVERAL)
    logits, theirs = logits_of(own), logits_of(other)[4]
    close = {"atol": 1e-5, "rtol": 0}
    torch.testing.assert_close(loss_of(of.FineTuning(own)), label_loss(logits[4]), **close)
    torch.testing.assert_close(loss_of(of.Distillation(own, other)), mixed(logits[4], theirs, 0.5), **close)
    exits = sum(mixed(logits[layer], logits[4], 0.5) for layer in (0, 1, 3))
    torch.testing.assert_close(loss_of(of.JointExits(own, 0.3, 0.5)), label_loss(logits[4]) + 0.3 * exits, **close)
    taught = mixed(logits[4], theirs, 0.5) + 0.3 * sum(mixed(logits[layer], theirs, 0.5) for layer in (0, 1, 3))
    torch.testing.assert_close(loss_of(of.JointExits(own, 0.3, 0.5), teacher=theirs), taught, **close)
    soft = of.SoftPruningObjective(model(), temperature=1e-3, penalty=0.0, final_threshold=-1.0)
    torch.testing.assert_close(loss_of(soft), label_loss(logits_of(model())[4]), **close)


@pytest.mark.parametrize("reverse", [False, True])
def test_losses_of_heads_alone(reverse: bool) -> None:
    fastbert = tiny.classifier(**SEVERAL, exit_head="fastbert")
    logits = logits_of(fastbert)
    pairs = [(logits[4], logits[layer]) for layer in (1, 2, 3)]
    expected = torch.stack([kl(*(pair[::-1] if reverse else pair)) for pair in pairs]).mean()
    torch.testing.assert_close(loss_of(of.FrozenExits(fastbert, reverse)), expected, atol=1e-5, rtol=0)
    heads = nn.ModuleDict({"1": nn.Linear(5, 3)})
    features, teacher = torch.randn(4, 5), torch.randn(4, 3)
    on_features = of.HeadsOnFeatures(heads, 0.25, reverse, fastbert.config.choice)
    student = heads["1"](features)
    divergence = kl(student, teacher) if reverse else kl(teacher, student)
    expected = 0.25 * divergence + 0.75 * label_loss(student)
    loss = on_features(labels=TEXTS.targets, teacher=teacher, layer_1=features)["loss"]
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=0)


def test_rows_of_the_trainer() -> None:
    row = Taught(texts_of(), torch.arange(12.0).view(4, 3))[1]
    assert (row["labels"], row["teacher"]) == ([False, True, True], [3.0, 4.0, 5.0])


# Fits


@situation(
    "fit",
    "texts with any number of labels",
    "a classifier for several labels, with exits; right is who has all labels right",
)
@pytest.mark.parametrize("recipe", ["pyramid", "mp", "distilbert"])
def test_every_recipe_learns_several_labels(
    recipe: str, checkpoint: Path, several: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = replace(QUICK, epochs=12, joint_epochs=2, learning_rate=2e-3, penalty=0.02)
    summary = fit(str(checkpoint), load_task(*several), tmp_path / "fit", recipe, settings, max_drop=0.05, quiet=True)
    assert summary.validation_accuracy > 0.8  # a quarter has each set of labels
    config = json.loads((tmp_path / "fit" / "model" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    texts, labels = zip(*read_labelled(several[1]), strict=True)
    answers = Classifier.load(tmp_path / "fit" / "model")(texts)
    sets = [tuple(name for name, score in answer.scores.items() if score > 0.5) for answer in answers]
    right = sum(map(tuple.__eq__, sets, labels)) / len(texts)
    assert right == (summary.validation_accuracy if summary.exits_accuracy is None else summary.exits_accuracy)
    if recipe == "pyramid":
        assert min(answer.exit_layer for answer in answers) < 4
        assert summary.exits_accuracy >= summary.validation_accuracy - 0.05


@situation(
    "fit",
    "texts with several labels, and a finished classifier of one label with --freeze-backbone",
    "refused, with a way out: its scores do not say which labels a text has",
)
def test_a_classifier_of_one_label_does_not_answer_several(several: tuple[Path, Path], tmp_path: Path) -> None:
    names = {0: "no", 1: "yes"}
    one = save(tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), num_labels=2, id2label=names), tmp_path / "one")
    task = load_task(*several)
    with pytest.raises(ValueError, match=r"chooses one for a text .*; fine-tune, without --freeze-backbone"):
        prepare(one, task, tmp_path / "fit", "pyramid", QUICK, freeze_backbone=True)
    prepared = prepare(one, task, tmp_path / "fit", "pyramid", QUICK)
    assert any("a fit teaches any number of labels a text" in note for note in prepared.notes)
    assert prepared.model.config.problem_type == "multi_label_classification"
    own = save(tiny.classifier(**SEVERAL, num_labels=2, id2label=names), tmp_path / "several")
    assert prepare(own, task, tmp_path / "fit", "pyramid", QUICK, freeze_backbone=True).notes == []


def test_new_heads_begin_with_how_rare_labels_are(checkpoint: Path, several: tuple[Path, Path], tmp_path: Path) -> None:
    """At first every head gives each label about the chance that it has among the training texts."""
    task = load_task(*several)
    rare = replace(
        task.train, labels=[labels if n % 20 == 0 else labels[:1] for n, labels in enumerate(task.train.labels)]
    )
    model = prepare(checkpoint, replace(task, train=rare), tmp_path, "pyramid", QUICK).model
    texts = EncodedTexts(wordpiece.tokenizer(), task.validation, 64)
    exits = read_all_exits(model, length_sorted_batches(texts.rows, 32, 0), texts.targets)
    assert rare.targets.double().mean(0)[1] < 0.35
    for logits in exits.logits.values():
        torch.testing.assert_close(logits.sigmoid().mean(0), rare.targets.float().mean(0), atol=0.05, rtol=0)


def test_the_table_of_the_data(checkpoint: Path, several: tuple[Path, Path], tmp_path: Path) -> None:
    task = load_task(*several)
    rows = {name: figures for name, *figures in data_rows(prepare(checkpoint, task, tmp_path, "bert", QUICK))}
    for place, data in enumerate((task.train, task.validation)):
        assert int(rows["texts"][place]) == len(data)
        assert int(rows["  no"][place]) == sum(0 in labels for labels in data.labels)
        assert int(rows["  yes"][place]) == sum(1 in labels for labels in data.labels)
        assert int(rows["  without a label"][place]) == data.labels.count(()) > 0

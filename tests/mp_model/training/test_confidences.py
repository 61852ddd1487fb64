"""Confidence heads are calibrated on texts that they have not seen, and a fit keeps such texts apart for them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typer.testing import CliRunner

from mp_model import Classifier, PyramidBertForSequenceClassification
from mp_model.command_line import app
from mp_model.confidence import doubts_of
from mp_model.data.batches import length_sorted_batches
from mp_model.data.labels import LabelledTexts
from mp_model.measuring.all_exits import read_all_exits
from mp_model.measuring.failures import auroc
from mp_model.problems import ONE
from mp_model.training import Summary, fit, load_task
from mp_model.training.confidences import calibrate, folds_of, learn, learn_confidences, regress, soft_targets
from mp_model.training.tasks import EncodedTexts, apart_for_confidence
from support import tiny, wordpiece
from support.checkpoints import save
from support.fits import QUICK, write_rows, write_several
from support.situations import situation


def made_up(texts: int, seed: int, told_by_hidden: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden numbers, doubts, whether answers differ, and how probably that was.

    told_by_hidden: part of the log-odds that two of the hidden numbers tell; the doubts tell the rest.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.tanh(torch.randn(texts, 40, generator=generator))
    logits = 2 * torch.randn(texts, 3, generator=generator)
    doubts = doubts_of(logits, ONE)
    odds = -0.8 * doubts[:, 2] + told_by_hidden * (hidden[:, 0] - hidden[:, 1])
    differs = torch.rand(texts, generator=generator) < torch.sigmoid(odds)
    return hidden, doubts, differs, torch.sigmoid(odds)


@pytest.mark.parametrize("told_by_hidden", [0.0, 2.0])
def test_probabilities_are_calibrated(told_by_hidden: float) -> None:
    """On other texts they are near the true ones, as often true as they say, and use what the hidden numbers tell."""
    found, _ = learn(*made_up(2000, 0, told_by_hidden)[:3])
    hidden, doubts, differs, true = made_up(20_000, 1, told_by_hidden)
    probability = torch.sigmoid(found(torch.cat([hidden, doubts], dim=1).double()))
    assert (probability - true).abs().mean() < 0.06
    for part in probability.argsort().chunk(10):
        assert abs(probability[part].mean().item() - differs[part].double().mean().item()) < 0.04
    entropy, best = (auroc(x, differs) for x in (doubts[:, 0], true))
    assert auroc(probability, differs) > (entropy + best) / 2 if told_by_hidden else best - 0.01


def test_hidden_numbers_that_tell_nothing_are_not_believed() -> None:
    """Of 60 texts and 40 numbers a regression would believe anything; by cross-validation it believes the doubts."""
    hidden, doubts, differs, _ = made_up(60, 0, 0.0)
    found, loss = learn(hidden, doubts, differs)
    spread = hidden.double().std(0)
    assert (found.weight[:40] * spread).abs().max() < 0.25 * (found.weight[40:] * doubts.std(0)).abs().sum()
    rate = differs.double().mean()
    assert loss < F.binary_cross_entropy(rate.expand(60), differs.double())


@pytest.mark.parametrize("differing", [0, 1, 30])
def test_texts_that_all_do_alike(differing: int) -> None:
    """Where (nearly) no answer differs, or each does, every number stays finite, and near the share."""
    hidden, doubts, _, _ = made_up(30, 0, 0.0)
    differs = torch.arange(30) < differing
    found, loss = learn(hidden, doubts, differs)
    probability = torch.sigmoid(found(torch.cat([hidden, doubts], dim=1).double()))
    assert torch.isfinite(probability).all()
    assert abs(probability.mean().item() - differing / 30) < 0.05
    assert 0 < loss < 0.5


def test_a_regression_is_where_its_gradient_is_zero() -> None:
    hidden, _, differs, _ = made_up(200, 0, 2.0)
    columns, targets = hidden[:, :5].double(), soft_targets(differs)
    penalties = torch.tensor([0.0, 1.0, 5.0, 10.0, math.inf], dtype=torch.float64)
    found = regress(columns, targets, penalties)
    wrong = torch.sigmoid(columns @ found.weight + found.bias) - targets
    assert (wrong @ columns + penalties * found.weight)[:4].abs().max() < 0.01
    assert abs(wrong.sum().item()) < 0.01
    assert found.weight[4] == 0


def test_calibration_never_turns_scores_round() -> None:
    _, _, differs, true = made_up(500, 0, 2.0)
    factor, shift = calibrate(3 * torch.logit(true.double()), differs)
    assert factor.item() == pytest.approx(1 / 3, abs=0.08)
    assert abs(shift.item()) < 0.3
    factor, shift = calibrate(-torch.logit(true.double()), differs)
    assert factor.item() == 0
    assert torch.sigmoid(shift).item() == pytest.approx(differs.double().mean().item(), abs=0.01)


def test_folds_share_those_that_differ() -> None:
    differs = torch.arange(53) % 5 == 0  # 11
    folds = folds_of(differs)
    assert sorted(folds.bincount().tolist()) == [10, 10, 11, 11, 11]
    assert sorted(folds[differs].bincount(minlength=5).tolist()) == [2, 2, 2, 2, 3]


@pytest.mark.parametrize("head", ["cls", "pooled", "fastbert"])
def test_a_model_tells_what_was_learned(head: str) -> None:
    """The heads' probabilities for the texts that they learned from add up to the answers that differ."""
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), exit_head=head, exit_layers=[1, 3])
    rows = EncodedTexts(wordpiece.tokenizer(), LabelledTexts(wordpiece.texts(300), [0] * 300), 64).rows
    batches = list(length_sorted_batches(rows, 32, 0))
    before = read_all_exits(model, batches, [0] * 300)
    loss = learn_confidences(model, batches)
    after = read_all_exits(model, batches, [0] * 300)
    assert 0 < loss < 0.7
    assert model.config.uncertainties == ["entropy", "disagreement"]
    assert torch.equal(after.predictions, before.predictions)
    probability = after.by("disagreement").uncertainty
    differing = before.differs[:-1].double()
    assert 0.02 < differing.mean() < 0.99
    torch.testing.assert_close(probability.double().mean(1), differing.mean(1), atol=0.02, rtol=0)
    for own, entropy, differs in zip(probability, before.uncertainty, before.differs, strict=False):
        assert auroc(own, differs) > auroc(entropy, differs) - 0.02


# Fits


def run(checkpoint: Path, files: tuple[Path, Path], output: Path, **changes: Any) -> Summary:
    options = {"recipe_name": "mp", "settings": QUICK, "max_drop": 0.05, "quiet": True}
    return fit(str(checkpoint), load_task(*files), output, **{**options, **changes})


def test_a_fit_learns_them_from_texts_that_nothing_else_saw(checkpoint: Path, files: tuple, tmp_path: Path) -> None:
    summary = run(checkpoint, files, tmp_path / "fit", exit_uncertainty="disagreement")
    assert list(summary.stages) == ["fine-tune", "soft", "hard", "exits", "confidence"]
    assert (summary.train_texts, summary.exit_uncertainty) == (360, "disagreement")
    train = load_task(*files).train
    rest, held = apart_for_confidence(train, QUICK.seed)
    assert (len(rest), len(held)) == (360, 40)
    assert sorted(rest.texts + held.texts) == sorted(train.texts)
    assert [held.labels.count(label) for label in (0, 1)] == pytest.approx(
        [train.labels.count(label) / 10 for label in (0, 1)], abs=1
    )

    model = PyramidBertForSequenceClassification.from_pretrained(tmp_path / "fit" / "model").eval()
    assert (model.config.exit_uncertainty, model.config.confidence_heads) == ("disagreement", True)
    assert model.config.tuned_for["exit_uncertainty"] == "disagreement"
    before = PyramidBertForSequenceClassification.from_pretrained(tmp_path / "fit" / "stages" / "4-exits" / "model")
    for name, weight in before.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    assert (model.config.untrained_exits, before.config.confidence_heads) == (None, False)

    again = run(checkpoint, files, tmp_path / "fit", exit_uncertainty="disagreement")
    assert again.already_done == list(summary.stages)
    classifier = Classifier.load(tmp_path / "fit" / "model")
    data = load_task(*files).validation
    answers = classifier(data.texts)
    right = sum(answer.label == ("no", "yes")[label] for answer, label in zip(answers, data.labels, strict=True))
    assert right / len(answers) == pytest.approx(summary.exits_accuracy)
    assert all(answer.uncertainty == 0 for answer in answers if answer.exit_layer == 4)


def test_entropy_alone_unless_asked(checkpoint: Path, files: tuple, tmp_path: Path) -> None:
    summary = run(checkpoint, files, tmp_path / "fit")
    assert ("confidence" in summary.stages, summary.train_texts) == (False, 400)
    assert summary.exit_uncertainty == "entropy"
    kept = json.loads((tmp_path / "fit" / "model" / "config.json").read_text())
    assert not kept.get("confidence_heads")

    # A finished pyramid gets them by one more stage, from all texts; whichever uncertainty saves more is taken.
    model = tmp_path / "fit" / "model"
    later = run(model, files, tmp_path / "later", stages=["confidence"])
    assert (list(later.stages), later.train_texts) == (["confidence"], 400)
    kinds = {}
    for kind in ("entropy", "disagreement"):
        forced = run(model, files, tmp_path / kind, stages=["confidence"], exit_uncertainty=kind)
        assert forced.exit_uncertainty == kind
        kinds[kind] = forced.work["exits"]["gflops"]
    assert kinds["entropy"] == summary.work["exits"]["gflops"]
    assert later.work["exits"]["gflops"] == min(kinds.values())
    assert later.exit_uncertainty == min(kinds, key=lambda kind: kinds[kind])


def test_texts_with_several_labels(checkpoint: Path, tmp_path: Path) -> None:
    files = write_several(tmp_path / "train.tsv", 400, 0), write_several(tmp_path / "validation.tsv", 100, 1)
    summary = run(checkpoint, files, tmp_path / "fit", recipe_name="pyramid", exit_uncertainty="disagreement")
    assert summary.exit_uncertainty == "disagreement"
    answers = Classifier.load(tmp_path / "fit" / "model")(load_task(*files).validation.texts)
    assert all(0 <= answer.uncertainty <= 1 for answer in answers)


@situation(
    "fit",
    "fewer than 200 texts, and confidence heads asked for",
    "refused before anything is trained: a tenth of them says too little",
)
def test_too_few_texts(checkpoint: Path, tmp_path: Path) -> None:
    few = write_rows(tmp_path / "few.tsv", 190, 0), write_rows(tmp_path / "validation.tsv", 50, 1)
    with pytest.raises(
        ValueError, match="learn from a tenth of the training texts, and 19 are too few; give 200 texts"
    ):
        run(checkpoint, few, tmp_path / "fit", exit_uncertainty="auto")
    assert not (tmp_path / "fit").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recipe_name": "bert", "exit_uncertainty": "auto"}, "this recipe has no exits, whose uncertainty"),
        ({"stages": ["exits"], "exit_uncertainty": "disagreement"}, "by the stage confidence; add it as the last one"),
        ({"stages": ["confidence", "exits"]}, "judges finished exits; give it once, as the last one"),
        ({"recipe_name": "ltp", "stages": ["confidence"]}, "has no exits that the stage 'confidence' could train"),
        ({"exit_uncertainty": "doubt"}, "must be one of entropy, disagreement, auto; got 'doubt'"),
    ],
)
def test_what_cannot_be_followed(options: dict, said: str, checkpoint: Path, files: tuple, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        run(checkpoint, files, tmp_path / "fit", **options)
    assert not (tmp_path / "fit").exists()


def test_exits_that_nobody_trained(files: tuple, tmp_path: Path) -> None:
    names = {0: "no", 1: "yes"}
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), num_labels=2, id2label=names, exit_layers=[])
    with pytest.raises(ValueError, match="has no trained exits at layers 1, 2, 3; train them"):
        run(save(model, tmp_path / "model"), files, tmp_path / "fit", stages=["confidence"])


def test_the_command(checkpoint: Path, files: tuple, tmp_path: Path) -> None:
    passes = ["--epochs", "4", "--soft-epochs", "0", "--hard-epochs", "0", "--learning-rate", "1e-3"]
    options = ["--recipe", "mp", "--exit-uncertainty", "disagreement", "--max-drop", "20"]
    output = tmp_path / "fit"
    where = ["--validation", str(files[1]), "--model", str(checkpoint), "--output", str(output)]
    result = CliRunner().invoke(app, ["fit", str(files[0]), *where, *passes, *options])
    assert result.exit_code == 0, result.output
    assert re.search(r"confidence: in \d+ s, mean log-loss \d\.\d+ of unseen texts", result.stderr)
    assert re.search(r"with exits at [\d.]+ of disagreement", result.stdout)
    assert "disagreement, the probability of another answer at layer 4" in (output / "model" / "README.md").read_text()

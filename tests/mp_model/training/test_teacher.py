"""In joint training the fine-tuned, unpruned model teaches: half of every target is its answer, which is computed once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mp_model import PyramidForSequenceClassification
from mp_model.data.batches import length_sorted_batches
from mp_model.data.labels import LabelledTexts
from mp_model.measuring.all_exits import read_all_exits
from mp_model.training import Summary, fit, load_task, running, teacher
from mp_model.training.identity import changes
from mp_model.training.objectives import JointExits
from mp_model.training.preparing import prepare
from mp_model.training.tasks import EncodedTexts
from mp_model.training.teacher import Taught, unpruned_logits
from support import backbones, tiny, wordpiece
from support.fits import QUICK
from support.situations import situation

SHORT = replace(QUICK, epochs=1, soft_epochs=1, joint_epochs=1, exit_epochs=1, batch_size=64)
TEXTS = LabelledTexts(["the a b", "rate c", "d e f the g h", "rate"], [0, 1, 0, 1])


def run(checkpoint: Path, files: tuple[Path, Path], output: Path, **options: Any) -> Summary:
    return fit(str(checkpoint), load_task(*files), output, "pyramid", SHORT, quiet=True, **options)


@pytest.fixture(scope="module")
def finished(checkpoint: Path, files: tuple, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    """An uninterrupted fit."""
    output = tmp_path_factory.mktemp("finished") / "fit"
    return output, run(checkpoint, files, output)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    p, q = p.double().softmax(-1), q.double().softmax(-1)
    return (p * (p / q).log()).sum(-1).mean()


def cross_entropy(logits: torch.Tensor, labels: list[int]) -> torch.Tensor:
    return -torch.stack([row.double().log_softmax(-1)[label] for row, label in zip(logits, labels, strict=True)]).mean()


@pytest.mark.parametrize("taught", [True, False])
def test_the_loss(taught: bool) -> None:
    """Main head and exits: half label, half teacher. Without one the main head learns the label, and teaches the exits."""
    settings = {"exit_head": "pooled", "exit_layers": [0, 1, 3], "prune_thresholds": [0.02] * 4}
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), num_labels=2, **settings)
    texts = EncodedTexts(wordpiece.tokenizer(), TEXTS, 64)
    answers = torch.randn(4, 2)
    logits = read_all_exits(model, length_sorted_batches(texts.rows, 4, 0), TEXTS.labels).logits
    main, wanted = logits[4], answers if taught else logits[4]

    def mixed(of_head: torch.Tensor) -> torch.Tensor:
        return (cross_entropy(of_head, TEXTS.labels) + kl(wanted, of_head)) / 2

    expected = mixed(main) if taught else cross_entropy(main, TEXTS.labels)
    expected = expected + 0.3 * sum(mixed(logits[layer]) for layer in (0, 1, 3))

    (batch,) = length_sorted_batches(texts.rows, 4, 0)
    rows = [Taught(texts, answers)[place] for place in batch.places]
    inputs = {**batch.inputs, "labels": torch.tensor([row["labels"] for row in rows])}
    if taught:
        inputs["teacher"] = torch.tensor([row["teacher"] for row in rows])
    loss = JointExits(model, 0.3, 0.5)(**inputs)["loss"]
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=0)


def test_the_teacher_prunes_nothing_and_keeps_everybody() -> None:
    settings = {"exit_threshold": 1.0, "prune_thresholds": [0.2] * 4}
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), **settings)
    plain = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY))
    texts = EncodedTexts(wordpiece.tokenizer(), TEXTS, 64)
    with torch.no_grad():
        expected = torch.cat([plain(torch.tensor([row["input_ids"]])).logits for row in texts.rows])
    torch.testing.assert_close(unpruned_logits(model, texts, 3, 0), expected, atol=1e-5, rtol=0)


def test_a_teacher_that_reads_no_types_teaches_one_that_does() -> None:
    """Exits that compare the texts of a pair need types, which the plain model of the same backbone has not learned."""
    pairs = LabelledTexts([("the a b", "c"), ("rate c", "the d"), ("d", "e f")], [0, 1, 0])
    tokenizer = wordpiece.tokenizer()
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    texts = EncodedTexts(tokenizer, pairs, 64)
    assert any(1 in row["token_type_ids"] for row in texts.rows)
    model = backbones.pyramid("mpnet", vocab_size=len(wordpiece.VOCABULARY), exit_layers=[])
    with torch.no_grad():
        expected = torch.cat([model(torch.tensor([row["input_ids"]])).logits for row in texts.rows])
    torch.testing.assert_close(unpruned_logits(model, texts, 2, 0), expected, atol=1e-5, rtol=0)


class StoppedError(Exception):
    """What stops a fit in the middle of its joint stage."""


def stopping(after: int) -> Callable[..., Any]:
    """A loss that stops the joint stage at a step."""
    own = running.StageTrainer.compute_loss

    def loss(self: Any, *arguments: Any, **named: Any) -> Any:
        if self.stage == "joint" and self.state.global_step == after:
            raise StoppedError
        return own(self, *arguments, **named)

    return loss


@situation(
    "fit",
    "a fit that is killed in joint training, which a fine-tuned model teaches",
    "goes on to the same model; the teacher's answers are kept, and are not computed again",
)
def test_a_stopped_fit_goes_on_without_asking_again(
    finished: tuple[Path, Summary], checkpoint: Path, files: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def counted(pyramid: Any, inputs: Any, *arguments: Any) -> Any:
        asked.append(inputs.words.batch_size)
        return run_batch(pyramid, inputs, *arguments)

    run_batch = teacher.run_batch
    monkeypatch.setattr(teacher, "run_batch", counted)
    kept = tmp_path / "fit" / "stages" / "teacher.safetensors"
    for step in (0, 4):
        with monkeypatch.context() as patched:
            patched.setattr(running.StageTrainer, "compute_loss", stopping(step))
            with pytest.raises(StoppedError):
                run(checkpoint, files, tmp_path / "fit")
        assert sum(asked) == 400

    task, stages = load_task(*files), tmp_path / "fit" / "stages"
    tuned = PyramidForSequenceClassification.from_pretrained(stages / "1-fine-tune" / "model")
    texts = EncodedTexts(wordpiece.tokenizer(), task.train, 64)
    torch.testing.assert_close(load_file(kept)["logits"], unpruned_logits(tuned, texts, 32, 0), atol=1e-5, rtol=0)

    asked.clear()
    summary = run(checkpoint, files, tmp_path / "fit")
    assert asked == []
    assert not kept.exists()
    output, uninterrupted = finished
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "fit", output))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, atol=1e-6, rtol=0, msg=name)
    assert summary.work == uninterrupted.work


def test_a_damaged_file_of_answers_is_made_again(tmp_path: Path) -> None:
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY))
    texts, path = EncodedTexts(wordpiece.tokenizer(), TEXTS, 64), tmp_path / "teacher.safetensors"
    first, seconds = teacher.kept_logits(path, lambda: model, texts, 32, 0)
    again, kept = teacher.kept_logits(path, lambda: model, texts, 32, 0)
    assert torch.equal(first, again)
    assert seconds == kept > 0
    path.write_bytes(path.read_bytes()[:20])
    assert torch.equal(teacher.kept_logits(path, lambda: model, texts, 32, 0)[0], first)


def test_the_teacher_of_a_recipe_and_another(finished: tuple[Path, Summary], checkpoint: Path, files: tuple) -> None:
    """It is pyramid's recipe; a fit goes on with the teacher that it began with, and an earlier version's with none."""
    output, summary = finished
    assert summary.teacher == json.loads((output / "summary.json").read_text())["teacher"] == "fine-tuned"
    kept = json.loads((output / "settings.json").read_text())
    assert kept["teacher"] == "fine-tuned"
    with pytest.raises(ValueError, match="made from something else: teacher is none, before fine-tuned"):
        run(checkpoint, files, output, teacher="none")
    earlier = {name: value for name, value in kept.items() if name != "teacher"}
    assert changes(earlier, kept) == ["teacher is fine-tuned, before none"]
    assert changes(earlier, kept | {"teacher": "none"}) == []


@pytest.mark.parametrize(
    ("recipe", "options", "expected"),
    [
        ("pyramid", {}, "fine-tuned"),
        ("pyramid", {"teacher": "none"}, "none"),
        ("pyramid", {"freeze_backbone": True, "train_head": True}, "none"),
        ("mp", {}, "none"),
        ("mp", {"exit_training": "joint"}, "none"),
        ("mp", {"exit_training": "joint", "teacher": "fine-tuned"}, "fine-tuned"),
        ("pyramid", {"stages": ["soft", "joint"]}, "none"),
    ],
)
def test_who_teaches(recipe: str, options: dict, expected: str, checkpoint: Path, files: tuple, tmp_path: Path) -> None:
    prepared = prepare(checkpoint, load_task(*files), tmp_path / "fit", recipe, SHORT, **options)
    assert prepared.teacher == prepared.identity["teacher"] == expected
    said = "no model is fine-tuned before tokens are pruned: the main head teaches the exits"
    assert (said in prepared.notes) == ("stages" in options)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("pyramid", {"teacher": "mother"}, "teacher must be fine-tuned or none, or the folder of a classifier; got"),
        ("mp", {"teacher": "fine-tuned"}, "the stage 'joint' alone has a teacher, .* leave --teacher out"),
        (
            "pyramid",
            {"teacher": "fine-tuned", "stages": ["soft", "joint"]},
            "so none can teach; begin with the stage fine",
        ),
    ],
)
def test_refused_teachers(
    recipe: str, options: dict, message: str, checkpoint: Path, files: tuple, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(checkpoint, load_task(*files), tmp_path / "fit", recipe, SHORT, **options)
    assert not (tmp_path / "fit").exists()


def test_another_classifier_teaches(
    finished: tuple[Path, Summary], checkpoint: Path, files: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A classifier's folder, for a fit that begins where another has pruned; it must answer the same labels."""
    stages, task = finished[0] / "stages", load_task(*files)
    tuned = stages / "1-fine-tune" / "model"
    kept: list[torch.Tensor] = []
    own = Taught.__init__

    def seen(self: Taught, texts: EncodedTexts, logits: torch.Tensor) -> None:
        kept.append(logits)
        own(self, texts, logits)

    monkeypatch.setattr(Taught, "__init__", seen)
    start, given = str(stages / "2-soft" / "model"), {"stages": ["joint"], "teacher": str(tuned), "quiet": True}
    summary = fit(start, task, tmp_path / "fit", "pyramid", SHORT, **given)
    assert summary.teacher == str(tuned)
    texts = EncodedTexts(wordpiece.tokenizer(), task.train, 64)
    model = PyramidForSequenceClassification.from_pretrained(tuned)
    torch.testing.assert_close(kept[0], unpruned_logits(model, texts, 32, 0), atol=1e-5, rtol=0)
    again = fit(start, task, tmp_path / "fit", "pyramid", SHORT, **given)
    assert again.already_done == ["joint"]
    with pytest.raises(ValueError, match="made from something else: teacher is fine-tuned, before the classifier"):
        fit(start, task, tmp_path / "fit", "pyramid", SHORT, **{**given, "teacher": "fine-tuned"})
    with pytest.raises(ValueError, match="must answer as its pupil does, with the labels 'no', 'yes' in this order"):
        prepare(start, task, tmp_path / "other", "pyramid", SHORT, stages=["joint"], teacher=str(checkpoint))

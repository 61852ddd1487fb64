"""Exits of a fit are chosen in the precision that the model will run in; its weights are float32 whatever that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mp_model import Classifier
from mp_model.training import Summary, fit, load_task, preparing
from support import processors
from support.fits import QUICK
from support.situations import situation

pytestmark = pytest.mark.usefixtures("able_processor")


def run(checkpoint: Path, files: tuple[Path, Path], output: Path, precision: str) -> Summary:
    task = load_task(*files)
    return fit(str(checkpoint), task, output, "pyramid", QUICK, max_drop=0.02, precision=precision, quiet=True)


@situation(
    "fit",
    "`fit --precision int8` or `bfloat16`",
    "exits are chosen in that precision, which is noted and taken by whoever loads the model; weights stay float32",
)
@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_exits_are_chosen_in_the_precision(
    precision: str, checkpoint: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    summary = run(checkpoint, files, tmp_path / "fit", precision)
    folder = tmp_path / "fit" / "model"
    assert {weight.dtype for weight in load_file(folder / "model.safetensors").values()} == {torch.float32}
    classifier = Classifier.load(folder)  # warnings are errors
    assert summary.precision == classifier.precision.name == precision
    assert classifier.model.config.tuned_for["precision"] == precision
    assert summary.exit_threshold == classifier.model.config.exit_threshold is not None
    task = load_task(*files)
    right = [
        answer.label == task.label_names[label]
        for answer, label in zip(classifier(task.validation.texts), task.validation.labels, strict=True)
    ]
    assert sum(right) / len(right) == pytest.approx(summary.exits_accuracy)

    again = run(checkpoint, files, tmp_path / "fit", "float32")  # the same fit, to be used otherwise
    assert again.already_done == list(summary.stages)
    assert Classifier.load(folder).precision.name == "float32"


def test_precisions_that_cannot_be_had(
    checkpoint: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processors.set_abilities(monkeypatch, False)
    for precision, message in (
        ("int4", "precision must be one of 'float32', 'bfloat16', 'int8'; got 'int4'"),
        ("int8", "precision 'int8' is refused: this processor multiplies int8 no faster than float32"),
    ):
        with pytest.raises(ValueError, match=message):
            run(checkpoint, files, tmp_path / "fit", precision)
    assert not (tmp_path / "fit").exists()


@situation(
    "fit", "a folder that was saved in int8 or bfloat16 for inference", "refused: such weights cannot be trained"
)
@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_weights_for_inference_are_not_trained(
    precision: str, checkpoint: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    Classifier.load(checkpoint, precision).save(tmp_path / "saved")
    with pytest.raises(ValueError, match=f"has {precision} weights for inference alone, which cannot be trained; give"):
        run(tmp_path / "saved", files, tmp_path / "fit", precision)
    assert not (tmp_path / "fit").exists()


def test_the_folder_is_looked_at_before_the_model_is_loaded(
    checkpoint: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(preparing, "load_tokenizer", loaded)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file, where a folder is needed"):
        run(checkpoint, files, tmp_path / "file" / "fit", "float32")

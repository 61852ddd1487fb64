"""Exit thresholds are saved with what they were tuned for, and whoever loads them for something else is warned."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mp_model import Classifier, PyramidBertForSequenceClassification
from mp_model.checkpoints.tuned_for import TunedForOtherWarning, fingerprint, record_of
from support.checkpoints import TEXTS, change_json, change_weights, classifier, save
from support.commands import Command
from support.situations import situation

PRUNING = [0.01, 0.015, 0.02, 0.02]


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A classifier with an exit threshold, and the record of its tuning."""
    model = classifier(prune_thresholds=PRUNING)
    folder = save(model, tmp_path / "tuned")
    model.config.exit_threshold = 0.6
    model.config.tuned_for = record_of(model, Classifier.load(folder).tokenise.max_length, 100, {"max_drop": 1})
    return save(model, folder)


def scale(name: str, factor: float) -> Callable[[Path], None]:
    """Multiplies one weight of a folder's model."""
    return lambda folder: change_weights(folder, lambda weights: weights[name].mul_(factor))


def store_in_half(folder: Path) -> None:
    save(PyramidBertForSequenceClassification.from_pretrained(folder).bfloat16(), folder)


def test_a_tuned_model_is_loaded_without_a_warning(tuned: Path) -> None:
    loaded = Classifier.load(tuned)  # warnings are errors
    assert loaded.model.config.tuned_for["texts"] == 100
    assert any(answer.exit_layer < loaded.model.config.num_hidden_layers for answer in loaded(TEXTS))


@situation(
    "fit",
    "exit thresholds tuned for other weights, pruning, precision or length than the model is loaded with",
    "a warning that says which, and how to choose them anew",
)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (scale("classifier.weight", 1.1), "other weights"),
        (scale("exits.1.dense.weight", 1.1), "other weights"),
        (store_in_half, "other weights"),
        (lambda folder: change_json(folder / "config.json", prune_thresholds=[0.03] * 4), "other pruning"),
        (lambda folder: change_json(folder / "config.json", importance_normalizer="input"), "other pruning"),
        (lambda folder: change_json(folder / "tokenizer_config.json", model_max_length=32), r"64 tokens \(here 32\)"),
    ],
)
def test_thresholds_of_something_else(tuned: Path, change: Callable[[Path], None], said: str) -> None:
    change(tuned)
    with pytest.warns(
        TunedForOtherWarning, match=f"was tuned for .*{said}; choose it anew with `magic-pyramid tune`"
    ) as seen:
        Classifier.load(tuned)
    assert len(seen) == 1
    assert seen[0].filename == __file__


def test_another_precision(tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    with pytest.warns(TunedForOtherWarning, match=r"precision float32 \(here bfloat16\); choose it anew"):
        Classifier.load(tuned, precision="bfloat16")


@situation("fit", "an exit threshold set by hand, or in a call", "no warning: nobody tuned it")
@pytest.mark.parametrize("threshold", [0.3, [0.1, 0.2, 0.3], None])
def test_thresholds_by_hand(tuned: Path, threshold: Any) -> None:
    change_json(tuned / "config.json", exit_threshold=threshold)
    scale("classifier.weight", 1.1)(tuned)
    Classifier.load(tuned)(TEXTS, exit_threshold=0.4)


def test_a_record_that_somebody_else_wrote(tuned: Path) -> None:
    change_json(tuned / "config.json", tuned_for={"by": "hand"})
    assert Classifier.load(tuned).model.config.tuned_for == {"by": "hand"}
    change_json(tuned / "config.json", tuned_for="by hand")
    with pytest.raises(ValueError, match=r"config\.json: tuned_for must be a record .*, or None; got 'by hand'"):
        Classifier.load(tuned)


@pytest.mark.parametrize("lost", ["weights", "pruning", "precision", "max_length"])
def test_a_record_with_a_gap_holds_for_nothing(tuned: Path, lost: str) -> None:
    record = json.loads((tuned / "config.json").read_text())["tuned_for"]
    for gap in ({}, {lost: None}):
        kept = {name: value for name, value in record.items() if name != lost}
        change_json(tuned / "config.json", tuned_for={**kept, **gap})
        with pytest.warns(TunedForOtherWarning, match="choose it anew"):
            Classifier.load(tuned)


def test_classify_with_a_threshold_of_the_call_does_not_warn(tuned: Path, run: Command) -> None:
    scale("classifier.weight", 1.1)(tuned)
    for threshold in ("0.3", "never"):
        ended = run("classify", tuned, "--exit-threshold", threshold)
        assert (ended.status, "tuned for" in ended.err) == (0, False)


def test_commands_warn_in_a_line_and_tune_records_anew(tuned: Path, run: Command) -> None:
    scale("classifier.weight", 1.1)(tuned)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warned = run("classify", tuned)
    assert warned.status == 0
    assert warned.err.count("tuned for") == 1
    assert warned.err.startswith("warning: the exit threshold of this model was tuned for other weights")
    assert len(warned.out.splitlines()) == len(TEXTS)

    tuned_anew = run("tune", tuned)
    assert (tuned_anew.status, "tuned for" in tuned_anew.err) == (0, False)
    assert Classifier.load(tuned).model.config.tuned_for["goal"] == {"max_drop": 1.0}


def test_the_fingerprint_does_not_depend_on_the_form_of_the_weights(tuned: Path) -> None:
    """Weights that were used lie elsewhere in memory."""
    loaded = Classifier.load(tuned)
    before = fingerprint(loaded.model)
    loaded(TEXTS)
    assert fingerprint(loaded.model) == before

"""The precision that a checkpoint is loaded in: what was asked for, what it was tuned for, what the processor computes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from mp_kernels import extension
from mp_model import Classifier
from mp_model.checkpoints import precisions
from mp_model.checkpoints.configurations import read_config
from mp_model.checkpoints.tuned_for import TunedForOtherWarning, record_of
from support import processors, tiny, wordpiece
from support.situations import situation

TEXTS = ["the rate", "a b c", "rate", "the the the a b"]
pytestmark = pytest.mark.usefixtures("able_processor")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), exit_threshold=0.5)
    model.save_pretrained(tmp_path / "model")
    wordpiece.tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def tuned_in(folder: Path, precision: str) -> None:
    """Notes that the folder's exit threshold was tuned in that precision."""
    classifier = Classifier.load(folder, precision)
    record = record_of(classifier.model, classifier.tokenise.max_length, texts=100, goal={"max_drop": 0.01})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tuned_for": record}))


@pytest.mark.parametrize("precision", precisions.PRECISIONS)
def test_a_precision_that_was_asked_for(folder: Path, precision: str) -> None:
    classifier = Classifier.load(folder, precision)
    assert (classifier.precision.name, classifier.precision.why) == (precision, "it was asked for")
    assert precisions.precision_of(classifier.model) == precision
    assert len(classifier(TEXTS)) == len(TEXTS)


def test_auto_is_float32_where_nothing_was_tuned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a faster precision is named, where the processor has one."""
    chosen = Classifier.load(folder).precision
    assert chosen.name == "float32"
    assert "tune the exits with --precision bfloat16" in str(chosen.advice)
    closed = read_config(folder)
    closed.exit_threshold = None
    assert "ask for it with --precision bfloat16" in str(precisions.choose_precision("auto", closed, "cpu").advice)
    assert Classifier.load(folder, "float32").precision.advice is None, "it was asked for"
    assert precisions.choose_precision("auto", read_config(folder), "cuda").advice is None
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert "tune the exits with --precision int8" in str(Classifier.load(folder).precision.advice)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert Classifier.load(folder).precision.advice is None


@pytest.mark.parametrize(("own", "vnni"), [(True, False), (False, True), (False, False)])
def test_int8_takes_fast_products(own: bool, vnni: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the build in use, or torch's where the processor has VNNI."""
    monkeypatch.setattr(extension, "multiplies_int8", lambda: own)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    assert (precisions.why_unfit("int8", "cpu") is None) == (own or vnni)


@pytest.mark.parametrize("precision", precisions.PRECISIONS)
def test_auto_is_what_the_exit_threshold_was_tuned_for(folder: Path, precision: str) -> None:
    tuned_in(folder, precision)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier = Classifier.load(folder)
    assert classifier.precision.name == precision


@situation(
    "checkpoint",
    "exits tuned in int8, on a processor without int8 products",
    "float32, with a warning that the exit threshold should be chosen anew",
)
def test_a_processor_that_lacks_what_was_tuned_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned_in(folder, "int8")
    processors.set_abilities(monkeypatch, False)
    with pytest.warns(TunedForOtherWarning, match=r"precision int8 \(here float32\)"):
        classifier = Classifier.load(folder)
    assert classifier.precision.name == "float32"
    assert "VNNI" in classifier.precision.why
    with pytest.raises(ValueError, match="'int8' is refused: this processor multiplies int8 no faster than float32"):
        Classifier.load(folder, "int8")


@situation(
    "checkpoint",
    "exits tuned in float32, loaded in int8",
    "a warning that the exit threshold should be chosen anew",
)
def test_tuned_in_another_precision(folder: Path) -> None:
    tuned_in(folder, "float32")
    with pytest.warns(TunedForOtherWarning, match=r"precision float32 \(here int8\)"):
        Classifier.load(folder, "int8")


def test_int8_weights_stay_int8(folder: Path, tmp_path: Path) -> None:
    classifier = Classifier.load(folder, "int8")
    classifier.model.save_pretrained(tmp_path / "int8")
    classifier.tokenizer.save_pretrained(tmp_path / "int8")
    again = Classifier.load(tmp_path / "int8")
    assert (again.precision.name, again.precision.why) == ("int8", "the weights are")
    assert again(TEXTS) == classifier(TEXTS)
    with pytest.raises(ValueError, match="'float32' cannot be had of int8 weights"):
        Classifier.load(tmp_path / "int8", "float32")


def test_precisions_that_there_are_not(folder: Path) -> None:
    with pytest.raises(
        ValueError, match="precision must be 'auto' or one of 'float32', 'bfloat16', 'int8'; got 'int4'"
    ):
        Classifier.load(folder, "int4")
    with pytest.raises(ValueError, match="'int8' is refused: int8 is computed on CPUs alone"):
        precisions.choose_precision("int8", read_config(folder), "cuda")


def test_answers_in_int8_do_not_depend_on_companions(folder: Path) -> None:
    classifier = Classifier.load(folder, "int8")
    together = classifier(TEXTS * 5)
    assert together == [classifier([text])[0] for text in TEXTS] * 5
    assert together == list(classifier.stream(iter(TEXTS * 5), window=3))

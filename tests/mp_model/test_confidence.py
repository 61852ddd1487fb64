"""Samples that leave by the probability of another answer: settings, saving, precisions, and what cannot be followed.

That the engine's answers are those of the definition, one sample at a time, stands in test_engine.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mp_model import Classifier, PyramidBertForSequenceClassification
from mp_model.backbones.int8 import to_int8
from mp_model.checkpoints.reading import read_classifier
from mp_model.checkpoints.tuned_for import differences, record_of
from mp_model.command_line.info import settings_of
from mp_model.serving.service import Service
from mp_model.serving.settings import ServerSettings
from support import tiny, wordpiece
from support.checkpoints import change_json, change_weights, save
from support.pyramids import BATCH, calibrated
from support.situations import situation

BY_DISAGREEMENT: dict[str, Any] = {"confidence_heads": True, "exit_uncertainty": "disagreement"}


def readable(**settings: Any) -> PyramidBertForSequenceClassification:
    """A model for the tiny tokenizer."""
    settings = {"exit_head": "pooled", "exit_layers": [0, 1, 3], **BY_DISAGREEMENT, **settings}
    return tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), **settings)


@torch.no_grad()
def test_a_larger_threshold_lets_more_leave() -> None:
    model, _, uncertainties = calibrated("alive", "disagreement")
    before = torch.full((len(BATCH),), 4)
    for threshold in (0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        out = model(**BATCH.padded(), exit_threshold=threshold)
        assert (out.exit_layer <= before).all()
        for layer, u, of_all in zip(out.exit_layer.tolist(), out.uncertainty.tolist(), uncertainties, strict=True):
            assert u == pytest.approx(of_all.get(layer, 0.0), abs=1e-5)
            assert layer == 4 or u <= threshold
        before = out.exit_layer
    assert (before == 0).all()


@torch.no_grad()
def test_layer_l_never_disagrees_with_itself() -> None:
    model, *_ = calibrated("alive", "disagreement")
    out = model(**BATCH.padded(), exit_threshold="never")
    assert (out.exit_layer == 4).all()
    assert (out.uncertainty == 0).all()
    masked = model(**BATCH.padded(), exit_threshold="never", output_hidden_states=True)
    assert (masked.uncertainty == 0).all()


@torch.no_grad()
def test_a_depth_tells_the_probability_of_its_own_exit() -> None:
    model = readable(exit_layers=[1, 2, 3], depth=2)
    batch = tiny.samples()
    answers = tiny.define(model, batch, {1: 0.4})
    out = model(**batch.padded(), exit_threshold=[0.4, 0.0, 0.0])
    assert out.exit_layer.tolist() == [answer.exit_layer for answer in answers]
    torch.testing.assert_close(
        out.uncertainty.double(), torch.tensor([x.uncertainty for x in answers]).double(), atol=1e-5, rtol=0
    )
    assert out.executed_flops.sum() > 0
    assert set(out.exit_layer.tolist()) == {1, 2}


def test_what_it_costs_is_counted() -> None:
    by_entropy = tiny.classifier(exit_head="pooled", exit_layers=[1])
    by_disagreement = tiny.classifier(exit_head="pooled", exit_layers=[1], **BY_DISAGREEMENT)
    with torch.no_grad():
        counts = [m(**BATCH.padded(), exit_threshold=0.0).executed_flops for m in (by_entropy, by_disagreement)]
    assert ((counts[1] - counts[0]) == 2 * 32).all()  # the product with what the classifier reads


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@torch.no_grad()
def test_precisions(precision: str) -> None:
    """Confidence heads are not rounded to int8; answers depend on no companion there, bit by bit."""
    model = readable(exit_threshold=0.5)
    expected = [answer.uncertainties[0] for answer in tiny.define(model, BATCH, dict.fromkeys([0, 1, 3], 0.0))]
    if precision == "int8":
        to_int8(model)
        assert model.exits["1"].confidence.hidden.weight.dtype == torch.float32
    else:
        model.to(torch.bfloat16)
    out = model(**BATCH.padded())
    assert out.uncertainty.dtype == torch.float32
    assert len(set(out.exit_layer.tolist())) > 1
    everything = model(**BATCH.padded(), exit_threshold=[1.0, 0.0, 0.0])
    assert (everything.uncertainty - torch.tensor(expected)).abs().max() < 0.1
    if precision == "int8":
        for place in range(len(BATCH)):
            alone = model(**BATCH.select([place]).padded())
            assert torch.equal(alone.uncertainty, out.uncertainty[place : place + 1])
            assert torch.equal(alone.logits, out.logits[place : place + 1])


def test_a_saved_model_tells_the_same(tmp_path: Path) -> None:
    model, texts = readable(), wordpiece.texts(40)
    classifier = Classifier(model, wordpiece.tokenizer())
    at_first = sorted(answer.uncertainty for answer in classifier(texts, 1.0))
    model.config.exit_threshold = [at_first[20], 0.0, 0.0]
    folder = save(model, tmp_path / "model")
    loaded = Classifier.load(folder)
    assert loaded(texts) == classifier(texts)
    assert len({answer.exit_layer for answer in loaded(texts)}) > 1
    assert loaded.model.config.exit_uncertainty == "disagreement"
    assert loaded.model.config.untrained_exits is None
    loaded.save(tmp_path / "again")
    assert Classifier.load(tmp_path / "again")(texts) == classifier(texts)


@situation(
    "checkpoint",
    "confidence heads by config.json, and no weights for them",
    "refused: by random numbers texts would leave at random",
)
def test_weights_that_are_missing(tmp_path: Path) -> None:
    folder = save(readable(), tmp_path / "model")
    change_weights(folder, lambda weights: weights.pop("exits.1.confidence.hidden.weight"))
    with pytest.raises(ValueError, match=r"lacks weights of the model: exits.1.confidence.hidden.weight; with others"):
        read_classifier(folder)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"exit_uncertainty": "disagreement"}, "needs confidence heads, and this model has none; train them"),
        ({"exit_uncertainty": "doubt"}, "exit_uncertainty must be one of 'entropy', 'disagreement'; got 'doubt'"),
    ],
)
def test_settings_that_cannot_be_followed(settings: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        tiny.config(**settings)
    folder = save(readable(confidence_heads=False, exit_uncertainty="entropy"), tmp_path / "model")
    change_json(folder / "config.json", **settings)
    with pytest.raises(ValueError, match=said):
        Classifier.load(folder)


def test_thresholds_of_another_kind_of_uncertainty() -> None:
    """A threshold that was tuned for one says nothing of the other."""
    model = readable(exit_threshold=0.2)
    model.config.tuned_for = record_of(model, 64, 10, {})
    assert differences(model, 64) == []
    model.config.exit_uncertainty = "entropy"
    assert differences(model, 64) == ["another kind of uncertainty"]


def test_what_is_said_of_a_model() -> None:
    settings = settings_of(readable().config)
    assert settings["uncertainty"] == "disagreement, the probability of another answer at layer 4"
    settings = settings_of(readable(exit_uncertainty="entropy").config)
    assert settings["uncertainty"] == "entropy; there are confidence heads too"
    assert "uncertainty" not in settings_of(tiny.config())


@situation(
    "serve",
    "long texts in windows, and a model whose texts leave by disagreement",
    "refused with the way out: the mean of windows has an entropy alone",
)
def test_windows_are_refused() -> None:
    model, said = readable(), "a text in windows is certain by the entropy of their mean"
    with pytest.raises(ValueError, match=said):
        Classifier(model, wordpiece.tokenizer(), long_texts="windows")
    classifier = Classifier(model, wordpiece.tokenizer())
    with pytest.raises(ValueError, match=said):
        Service(classifier, ServerSettings(long_texts="windows"))
    model.config.exit_uncertainty = "entropy"
    Classifier(model, wordpiece.tokenizer(), long_texts="windows")

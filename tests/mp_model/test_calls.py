"""Settings of a single call, and the ways to make a model: nobody has to write into a configuration for a moment."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig

import mp_model
from mp_model import PyramidBert, PyramidBertConfig, PyramidBertForSequenceClassification
from support import tiny
from support.pyramids import BATCH, calibrated

NAMES = ("Answer", "Classifier", "PyramidBert", "PyramidBertConfig", "PyramidBertForSequenceClassification")


@torch.no_grad()
@pytest.mark.parametrize("own", [{}, {"top_k": [9, 7, 5, 3]}, {"prune_thresholds": [0.02, 0.03, 0.04, 0.05]}])
def test_pruning_of_a_call_goes_before_the_models(own: dict) -> None:
    template, _, _ = calibrated("alive", "cls")
    thresholds = template.config.prune_thresholds
    model = tiny.classifier(**own)
    model.load_state_dict(template.state_dict())
    got, expected = model(**BATCH.padded(), prune_thresholds=thresholds), template(**BATCH.padded())
    assert torch.equal(got.tokens_per_layer, expected.tokens_per_layer)
    assert torch.equal(got.logits, expected.logits)
    states = model.bert(**BATCH.padded(), prune_thresholds=thresholds).last_hidden_state
    assert torch.equal(states, template.bert(**BATCH.padded()).last_hidden_state)
    whole = model(**BATCH.padded(), prune_thresholds=[0.0] * 4)
    assert (whole.tokens_per_layer == torch.tensor(tiny.LENGTHS)[:, None]).all()
    assert (model.config.top_k, model.config.prune_thresholds) == (own.get("top_k"), own.get("prune_thresholds"))


@torch.no_grad()
def test_never_closes_the_exits_of_a_call() -> None:
    model = tiny.classifier(exit_threshold=1.0)
    assert (model(**BATCH.padded()).exit_layer == 1).all()
    assert (model(**BATCH.padded(), exit_threshold="never").exit_layer == 4).all()
    assert model.config.exit_threshold == 1.0


@pytest.mark.parametrize(
    ("thresholds", "error", "message"),
    [
        ([0.1], ValueError, "one number for each layer, 4; got 1"),
        (0.1, TypeError, "prune_thresholds must be a list of numbers"),
        ([0.1, float("nan"), 0.1, 0.1], ValueError, "that of layer 2 is NaN|the one of layer 2 is NaN"),
    ],
)
def test_pruning_that_cannot_be_followed(thresholds: object, error: type[Exception], message: str) -> None:
    model = tiny.classifier()
    for called in (model, model.bert):
        with pytest.raises(error, match=message):
            called(**BATCH.padded(), prune_thresholds=thresholds)


@torch.no_grad()
def test_a_stock_configuration_makes_a_model_that_prunes_nothing() -> None:
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50, num_labels=3
    )
    model = PyramidBert(config).eval()
    assert type(model.config) is PyramidBertConfig
    stock = BertModel(config).eval()
    stock.load_state_dict(model.state_dict())
    for ours, theirs in zip(
        model(**BATCH.padded(junk=0)).to_tuple(), stock(**BATCH.padded(junk=0)).to_tuple(), strict=True
    ):
        real = BATCH.padded()["attention_mask"].bool() if ours.dim() == 3 else slice(None)
        torch.testing.assert_close(ours[real], theirs[real], atol=1e-5, rtol=0)
    classifier = PyramidBertForSequenceClassification(config)
    assert list(classifier.exits) == ["1"]
    assert classifier.config.num_labels == 3
    with pytest.raises(TypeError, match="a PyramidBertConfig or a BertConfig; got DistilBertConfig"):
        PyramidBert(DistilBertConfig())


def test_public_names() -> None:
    assert set(NAMES) <= set(dir(mp_model))
    assert not [name for name in dir(mp_model) if name.startswith("_")]
    for name in dir(mp_model):
        assert getattr(mp_model, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'PyramidBart'"):
        _ = mp_model.PyramidBart


def test_label_names_stand_in_the_order_of_their_numbers() -> None:
    config = PyramidBertConfig(id2label={1: "b", 0: "a", 2: "c"})
    assert config.label_names == ["a", "b", "c"]

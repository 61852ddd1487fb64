"""Settings of a pyramid: what they default to, what they become, and which of them are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, BertConfig, DistilBertConfig, RobertaConfig

from mp_model import PyramidBert, PyramidBertConfig, PyramidBertForSequenceClassification
from support import tiny
from support.situations import situation

LAYERS = 4


def test_defaults_change_nothing_about_bert() -> None:
    config = PyramidBertConfig()
    assert (config.prune_thresholds, config.top_k, config.exit_threshold) == (None, None, None)
    assert (config.exit_head, config.importance_normalizer) == ("cls", "alive")
    assert config.resolved_exit_layers() == list(range(1, 12))
    for name in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "layer_norm_eps"):
        assert getattr(config, name) == getattr(BertConfig(), name)


@pytest.mark.parametrize(
    ("settings", "resolved"),
    [
        ({}, [1, 2, 3]),
        ({"exit_head": "pooled"}, [1, 2, 3]),
        ({"exit_head": "pooled", "exit_layers": [0, 2]}, [0, 2]),
        ({"exit_head": "pair", "exit_layers": [0, 2]}, [0, 2]),
        ({"exit_layers": (1, 3)}, [1, 3]),
        ({"exit_layers": []}, []),
        ({"num_labels": 1}, []),
        ({"num_hidden_layers": 1}, []),
    ],
    ids=str,
)
def test_exit_layers(settings: dict, resolved: list[int]) -> None:
    assert tiny.config(**settings).resolved_exit_layers() == resolved


def test_one_exit_threshold_stands_for_all_exits() -> None:
    config = tiny.config(exit_threshold=0.25)
    assert config.resolved_exit_threshold() == [0.25] * 3
    assert config.resolved_exit_threshold(0.5) == [0.5] * 3
    assert config.resolved_exit_threshold([0, 0.5, 1]) == [0.0, 0.5, 1.0]
    assert tiny.config().resolved_exit_threshold() is None


def test_settings_survive_a_folder(tmp_path) -> None:
    settings = {
        "prune_thresholds": [0.0, 0.01, 0.02, math.inf],
        "exit_threshold": [0.1, 0.2],
        "exit_head": "pooled",
        "exit_layers": [0, 3],
        "importance_normalizer": 24,
    }
    tiny.config(**settings).save_pretrained(tmp_path)
    for loaded in (PyramidBertConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, PyramidBertConfig)
        assert {name: getattr(loaded, name) for name in settings} == settings


def test_a_bert_folder_becomes_a_pyramid(tmp_path) -> None:
    BertConfig(hidden_size=48, num_attention_heads=4, num_labels=5).save_pretrained(tmp_path)
    config = PyramidBertConfig.from_pretrained(tmp_path, exit_threshold=0.3)
    assert (config.hidden_size, config.num_labels, config.exit_threshold) == (48, 5, 0.3)
    assert config.model_type == "pyramid_bert"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"prune_thresholds": [0.1]}, ValueError, "prune_thresholds must have one number for each layer, 4; got 1"),
        ({"prune_thresholds": [0.1] * 5}, ValueError, "prune_thresholds must have one number for each layer, 4; got 5"),
        ({"prune_thresholds": [0.1, math.nan, 0, 0]}, ValueError, "prune_thresholds must be .*layer 2 is NaN"),
        ({"prune_thresholds": 0.1}, TypeError, "prune_thresholds must be a list of numbers.*got 0.1"),
        ({"prune_thresholds": [0.1, None, 0, 0]}, TypeError, r"prune_thresholds must be a list.*got \[0.1, None"),
        ({"prune_thresholds": "0.1"}, TypeError, "prune_thresholds must be a list of numbers.*got '0.1'"),
        ({"top_k": [4, 3, 2]}, ValueError, "top_k must have one number for each layer, 4; got 3"),
        ({"top_k": [4, 3, 2, 0]}, ValueError, r"top_k must keep at least 1 token, \[CLS\]; layer 4 has 0"),
        ({"top_k": [4, -3, 2, 1]}, ValueError, "top_k must keep at least 1 token.*layer 2 has -3"),
        ({"top_k": [0.5, 1.5, 1, 1]}, ValueError, r"top_k is a share in \(0, 1\]; layer 2 has 1.5"),
        ({"top_k": [0.0, 1, 1, 1]}, ValueError, r"top_k is a share in \(0, 1\]; layer 1 has 0.0"),
        ({"top_k": [math.nan, 1, 1, 1]}, ValueError, r"top_k is a share in \(0, 1\]; layer 1 has nan"),
        ({"top_k": 3}, TypeError, "top_k must be a list of numbers.*got 3"),
        ({"top_k": [True, 1, 1, 1]}, TypeError, r"top_k must be a list of numbers.*got \[True"),
        ({"prune_thresholds": [0.0] * 4, "top_k": [1] * 4}, ValueError, "prune_thresholds and top_k .*set one"),
        ({"exit_threshold": 1.5}, ValueError, r"exit_threshold must lie in \[0, 1\].*got 1.5"),
        ({"exit_threshold": -0.1}, ValueError, r"exit_threshold must lie in \[0, 1\].*got -0.1"),
        ({"exit_threshold": math.nan}, ValueError, r"exit_threshold must lie in \[0, 1\].*got nan"),
        ({"exit_threshold": [0.1, 0.2, 1.2]}, ValueError, r"exit_threshold must lie in \[0, 1\].*got 1.2"),
        ({"exit_threshold": [0.1, 0.2]}, ValueError, "exit_threshold must have one number .*exit layer, 3; got 2"),
        ({"exit_threshold": "0.1"}, TypeError, "exit_threshold must be .*got '0.1'"),
        ({"exit_threshold": True}, TypeError, "exit_threshold must be .*got True"),
        ({"exit_threshold": 2.0, "exit_layers": []}, ValueError, r"exit_threshold must lie in \[0, 1\].*got 2.0"),
        ({"exit_layers": [4]}, ValueError, r"exit_layers must lie in 1..3; got 4"),
        ({"exit_layers": [-1], "exit_head": "pooled"}, ValueError, r"exit_layers must lie in 0..3; got -1"),
        (
            {"exit_layers": [0, 1]},
            ValueError,
            r"exit_layers must lie in 1..3; layer 0 needs exit_head='pooled', or 'pair' for two texts; got 0",
        ),
        (
            {"exit_layers": [0, 1], "exit_head": "fastbert"},
            ValueError,
            "exit_layers .*needs exit_head='pooled', .*; got 0",
        ),
        ({"exit_layers": [2, 1]}, ValueError, r"exit_layers must rise; got \[2, 1\]"),
        ({"exit_layers": [2, 2]}, ValueError, r"exit_layers must rise; got \[2, 2\]"),
        ({"exit_layers": [1.0]}, ValueError, r"exit_layers must lie in 1..3; got 1.0"),
        ({"exit_layers": 2}, TypeError, "exit_layers must be a list of layer numbers; got 2"),
        ({"exit_layers": "12"}, TypeError, "exit_layers must be a list of layer numbers; got '12'"),
        ({"exit_layers": [1], "num_labels": 1}, ValueError, "exit_layers needs 2 labels or more.*num_labels=1"),
        ({"exit_threshold": 0.1, "num_labels": 1}, ValueError, "exit_threshold needs 2 labels or more.*num_labels=1"),
        ({"exit_head": "mean"}, ValueError, "exit_head must be one of 'cls', 'pooled', 'pair', 'fastbert'; got 'mean'"),
        ({"importance_normalizer": "max"}, ValueError, "importance_normalizer must be 'alive', 'input' or .*got 'max'"),
        ({"importance_normalizer": 0}, ValueError, "importance_normalizer must be .*positive number; got 0"),
        ({"importance_normalizer": -24}, ValueError, "importance_normalizer must be .*positive number; got -24"),
        ({"importance_normalizer": math.nan}, ValueError, "importance_normalizer must be .*positive number; got nan"),
        ({"importance_normalizer": None}, ValueError, "importance_normalizer must be .*positive number; got None"),
        ({"untrained_exits": 2}, TypeError, "untrained_exits must be a list of layer numbers or None; got 2"),
        ({"id2label": {0: "a", 2: "b"}}, ValueError, "id2label must name the labels 0 to N - 1, each once"),
        ({"id2label": {1: "a", 2: "b"}}, ValueError, "id2label must name the labels 0 to N - 1, each once"),
        ({"id2label": {}}, ValueError, "id2label must name the labels 0 to N - 1, each once; got {}"),
        ({"id2label": {0: "a", 1: None}}, ValueError, "must be a word or a number; label 1 has None"),
        ({"id2label": {0: "a", 1: True}}, ValueError, "must be a word or a number; label 1 has True"),
        ({"id2label": {0: "a", 1: "a "}}, ValueError, "a name of its own for each label; got 'a' twice"),
    ],
    ids=str,
)
def test_bad_settings(settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tiny.config(**settings)


@situation("checkpoint", "labels whose names are numbers, or have spaces around them", "words without the spaces")
def test_names_of_labels(tmp_path: Path) -> None:
    names = {"2": " sport ", "0": 7, "1": "the\tweather\n"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "id2label": names}))
    config = PyramidBertConfig.from_pretrained(tmp_path)
    assert config.label_names == ["7", "the\tweather", "sport"]
    assert config.id2label == {0: "7", 1: "the\tweather", 2: "sport"}
    assert config.label2id == {"7": 0, "the\tweather": 1, "sport": 2}


@pytest.mark.parametrize(
    ("settings", "task"),
    [
        ({}, "single_label_classification"),
        ({"num_labels": 1}, "regression"),
        ({"problem_type": "regression"}, "regression"),
        ({"problem_type": "multi_label_classification"}, "multi_label_classification"),
        ({"problem_type": "multi_label_classification", "num_labels": 1}, "multi_label_classification"),
    ],
    ids=str,
)
def test_tasks(settings: dict, task: str) -> None:
    assert tiny.config(**settings).task == task


@situation("checkpoint", "exits of a model for regression", "refused; closed, it answers")
def test_exits_are_for_labels() -> None:
    message = "exit_threshold is for models that choose labels for a text, .* is 'regression'; leave its exits closed"
    with pytest.raises(ValueError, match=message):
        tiny.config(problem_type="regression", exit_threshold=0.1)
    model, batch = tiny.classifier(problem_type="regression"), tiny.samples([3, 5]).padded()
    for threshold in (0.1, torch.tensor([0.1, 0.2])):
        with pytest.raises(ValueError, match=message):
            model(**batch, exit_threshold=threshold)
    one_label = tiny.classifier()
    for threshold in (None, "never"):
        with torch.no_grad():
            assert torch.equal(model(**batch, exit_threshold=threshold).logits, one_label(**batch).logits)


def test_a_single_label_that_a_text_has_or_has_not_may_have_exits() -> None:
    config = tiny.config(problem_type="multi_label_classification", num_labels=1, exit_threshold=0.1)
    assert config.resolved_exit_layers() == [1, 2, 3]
    assert config.resolved_exit_threshold() == [0.1] * 3
    assert tiny.config(num_labels=1).resolved_exit_layers() == []


@pytest.mark.parametrize("name", ["prune_thresholds", "exit_threshold"])
def test_settings_made_bad_later_are_refused_when_used(name: str) -> None:
    model = tiny.classifier()
    setattr(model.config, name, [0.5])
    with pytest.raises(ValueError, match=f"{name} must have one number"):
        model(**tiny.samples([3]).padded())


@pytest.mark.parametrize("setting", ["is_decoder", "add_cross_attention"])
def test_decoders_are_refused(setting: str) -> None:
    with pytest.raises(ValueError, match=setting):
        PyramidBert(tiny.config(**{setting: True}))


@pytest.mark.parametrize("other", [DistilBertConfig(), RobertaConfig()], ids=lambda config: config.model_type)
@pytest.mark.parametrize("load", [PyramidBertConfig, PyramidBert, PyramidBertForSequenceClassification])
def test_a_checkpoint_that_is_not_bert_is_refused(tmp_path, load: type, other) -> None:
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"holds a model of type '{other.model_type}', and this class is for 'bert'"):
        load.from_pretrained(tmp_path)

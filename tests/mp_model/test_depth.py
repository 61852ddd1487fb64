"""A depth: everybody leaves by an exit layer, and the layers above it are neither run nor loaded."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mp_model import Classifier, PyramidBertForSequenceClassification, PyramidConfig
from mp_model.checkpoints.reading import read_classifier
from mp_model.checkpoints.tuned_for import TunedForOtherWarning, record_of
from mp_model.command_line.info import describe_model
from mp_model.serving.worker import Worker
from mp_model.training import fit, load_task
from support import backbones, slow, tiny
from support.backbones import KINDS
from support.checkpoints import NAMES, TEXTS, change_json, change_weights, classifier, save
from support.fits import QUICK, write_rows
from support.pyramids import BATCH, LAYERS, calibrated
from support.serving import assert_like, outcomes_of, ready

COUNTS = ("exit_layer", "tokens_per_layer", "flops", "executed_flops")


def capped(pruning: str, head: str, depth: int) -> PyramidBertForSequenceClassification:
    model = copy.deepcopy(calibrated(pruning, head)[0])
    model.config.depth = depth
    return model


def of_answers(answers: list[Any], name: str) -> Any:
    return [getattr(answer, name) for answer in answers]


CASES = [
    *[(pruning, head, 3) for pruning in ("nothing", "alive", "shares") for head in ("cls", "fastbert", "pair_from_0")],
    *[("alive", "pooled_from_0", depth) for depth in (0, 1, 3)],
    *[("top_k", "cls_at_2", 2), ("input", "cls", 1), ("number", "fastbert", 2)],
]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["never", "per_layer", "per_sample"])
@pytest.mark.parametrize(("pruning", "head", "depth"), CASES)
def test_answers_and_work_are_the_definitions(pruning: str, head: str, depth: int, kind: str) -> None:
    _, thresholds, _ = calibrated(pruning, head)
    model = capped(pruning, head, depth)
    for_call: Any = {"never": "never", "per_layer": list(thresholds.values()), "per_sample": torch.full((12,), 0.7)}[
        kind
    ]
    for_definition = {"never": None, "per_layer": thresholds, "per_sample": dict.fromkeys(thresholds, 0.7)}[kind]
    answers = tiny.define(model, BATCH, for_definition)
    inputs = BATCH.padded("mixed")
    output = model(**inputs, exit_threshold=for_call, follow_tokens=True)
    for name in COUNTS:
        assert getattr(output, name).tolist() == of_answers(answers, name), name
    assert output.exit_layer.max() == depth
    logits = torch.stack(of_answers(answers, "logits"))
    torch.testing.assert_close(output.logits.double(), logits, atol=1e-5, rtol=0)
    uncertainty = torch.tensor(of_answers(answers, "uncertainty"))
    torch.testing.assert_close(output.uncertainty, uncertainty, atol=1e-5, rtol=0)
    tokens = inputs["attention_mask"].bool()
    assert (output.pruned_by[tokens] < max(depth, 1)).all()
    assert (output.pruned_by[~tokens] == -1).all()


@torch.no_grad()
@pytest.mark.parametrize("head", ["cls", "pooled_from_0", "fastbert"])
def test_the_answers_are_those_of_an_exit_that_lets_everybody_leave(head: str) -> None:
    whole, thresholds, _ = calibrated("alive", head)
    model = capped("alive", head, 3)
    own = [1.0 if layer == 3 else threshold for layer, threshold in thresholds.items()]
    expected, output = whole(**BATCH.padded(), exit_threshold=own), model(**BATCH.padded(), exit_threshold=own)
    for name in ("exit_layer", "tokens_per_layer", "flops"):
        assert torch.equal(getattr(output, name), getattr(expected, name)), name
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["cls", "pooled_from_0", "fastbert"])
def test_the_module_form_gives_the_same(head: str) -> None:
    """With gradients recorded the layers are called as the modules that they are."""
    model, thresholds = capped("alive", head, 3), list(calibrated("alive", head)[1].values())
    output = model(**BATCH.padded(), exit_threshold=thresholds)
    answers = tiny.define(model, BATCH, calibrated("alive", head)[1], decides_first=False)
    for name in COUNTS:
        assert getattr(output, name).tolist() == of_answers(answers, name), name
    logits = torch.stack(of_answers(answers, "logits"))
    torch.testing.assert_close(output.logits.double(), logits, atol=1e-5, rtol=0)
    output.logits.sum().backward()
    assert model.bert.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_layers_above_are_not_run() -> None:
    model = capped("alive", "pooled_from_0", 1)
    expected = model(**BATCH.padded())
    for name, weight in model.named_parameters():
        if name.startswith(("bert.encoder.layer.1.", "bert.encoder.layer.2.", "bert.encoder.layer.3.", "bert.pooler.")):
            weight.fill_(torch.nan)
    output = model(**BATCH.padded())
    assert torch.equal(output.logits, expected.logits)
    assert output.exit_layer.eq(1).all()


def test_training_goes_through_all_layers() -> None:
    whole, _, _ = calibrated("nothing", "cls")
    model = capped("nothing", "cls", 2).train()
    output = model(**BATCH.padded(), labels=torch.zeros(len(BATCH), dtype=torch.int64))
    output.loss.backward()
    assert output.exit_layer.eq(LAYERS).all()
    torch.testing.assert_close(output.logits, whole(**BATCH.padded()).logits, atol=1e-5, rtol=0)
    assert model.bert.encoder.layer[-1].output.dense.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_backbone(kind: str) -> None:
    model = backbones.pyramid(kind, exit_head="pooled", exit_layers=[0, 1, 2, 3], top_k=[30, 14, 9, 4], depth=2)
    exact, heads = backbones.exact(kind), backbones.heads_of(model)
    answers = [slow.run(exact, model.config, heads, ids, {0: 0.2, 1: 0.5}) for ids in backbones.BATCH]
    inputs = backbones.padded(kind, "mixed")
    with torch.inference_mode():
        output = model(**inputs, exit_threshold=[0.2, 0.5, 0.0, 0.0])
        recorded = type(model)(model.config, reached_only=True)
        missing = recorded.load_state_dict(model.state_dict(), strict=False).missing_keys
        again = recorded.eval()(**inputs, exit_threshold=[0.2, 0.5, 0.0, 0.0])
    assert output.exit_layer.tolist() == of_answers(answers, "exit_layer")
    torch.testing.assert_close(output.logits.double(), torch.stack(of_answers(answers, "logits")), atol=2e-5, rtol=1e-4)
    assert (len(recorded.base_model.stack), missing) == (2, [])
    assert torch.equal(again.logits, output.logits)


# Loading


def folder_of(tmp_path: Path, **settings: Any) -> Path:
    heads = {"exit_head": "pooled", "exit_layers": [0, 1, 2, 3], "exit_threshold": [0.965, 0.87, 0.2, 0.5]}
    return save(classifier(**heads, **settings), tmp_path / "model")


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_classifier_loads_no_layer_that_nobody_reaches(able_processor: None, tmp_path: Path, precision: str) -> None:
    folder = folder_of(tmp_path, depth=2)
    whole = Classifier.load(folder, precision, every_layer=True)
    expected = whole(TEXTS)
    assert {answer.exit_layer for answer in expected} <= {0, 1, 2}
    assert len({answer.exit_layer for answer in expected}) > 1

    def without_upper_layers(weights: dict[str, Tensor]) -> None:
        for name in [name for name in weights if ".layer.2." in name or ".layer.3." in name]:
            del weights[name]

    for change in (None, without_upper_layers):
        if change is not None:
            change_weights(folder, change)
        loaded = Classifier.load(folder, precision)
        assert len(loaded.model.base_model.stack) == 2
        assert not [name for name, _ in loaded.model.named_parameters() if ".layer.2." in name or ".layer.3." in name]
        assert loaded(TEXTS) == expected
        assert list(loaded.stream(iter(TEXTS))) == expected
    with pytest.raises(ValueError, match="lacks weights of the model"):
        Classifier.load(folder, precision, every_layer=True)


def test_a_server_of_some_layers(tmp_path: Path) -> None:
    loaded = Classifier.load(folder_of(tmp_path, depth=2))
    worker = ready(Worker(loaded))
    for threshold in (None, "never", 0.9):
        assert_like(loaded, outcomes_of(worker, TEXTS, threshold), TEXTS, threshold)
    assert worker.close(timeout=60)


def test_names_and_settings_are_saved(tmp_path: Path) -> None:
    model = classifier(exit_head="pooled", depth=2)
    save(model, tmp_path)
    loaded = read_classifier(tmp_path).model
    assert loaded.config.depth == 2
    assert loaded.state_dict().keys() == classifier(exit_head="pooled").state_dict().keys()
    assert describe_model(loaded)["depth"] == "everybody leaves by layer 2"
    assert "depth" not in describe_model(classifier())


def test_more_layers_than_the_configuration_has_are_refused_as_before(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, depth=2)
    change_weights(folder, lambda weights: weights.update({"bert.encoder.layer.4.output.dense.bias": torch.zeros(32)}))
    with pytest.raises(ValueError, match=r"has no place for: bert.encoder.layer.4.* the model has 4 layers"):
        Classifier.load(folder)


def test_an_untrained_head_is_no_place_to_leave_by(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, depth=2, untrained_exits=[2])
    change_json(folder / "config.json", exit_threshold=None)
    with pytest.raises(ValueError, match="no trained exits at layer 2"):
        Classifier.load(folder)
    for unused in (1, 3):
        change_json(folder / "config.json", untrained_exits=[unused])
        assert len(Classifier.load(folder)(TEXTS)) == len(TEXTS)
    assert len(Classifier.load(folder)(TEXTS, 0.5)) == len(TEXTS)
    change_json(folder / "config.json", untrained_exits=[1])
    with pytest.raises(ValueError, match="no trained exits at layer 1"):
        Classifier.load(folder)(TEXTS, 0.5)


def test_the_record_of_tuning_holds_for_its_depth(tmp_path: Path) -> None:
    model = classifier(exit_head="pooled", exit_threshold=0.5, depth=2)
    model.config.tuned_for = record_of(model, 64, 100, {"max_drop": 1})
    save(model, tmp_path)
    for every_layer in (True, False):
        Classifier.load(tmp_path, every_layer=every_layer)  # a warning would be an error
    change_json(tmp_path / "config.json", depth=1)
    with pytest.warns(TunedForOtherWarning, match="another depth"):
        Classifier.load(tmp_path)


def test_a_capped_model_is_trained_whole(tmp_path: Path) -> None:
    """A fit goes on from all layers, and gives the depth up."""
    folder = folder_of(tmp_path, depth=2)
    files = [write_rows(tmp_path / f"{n}.tsv", n, seed, names=("sport", "money")) for seed, n in enumerate((64, 32))]
    settings = replace(QUICK, epochs=0.5, exit_epochs=1)
    fit(
        str(folder),
        load_task(*files, labels=NAMES),
        tmp_path / "fit",
        "pyramid",
        settings,
        stages=("exits",),
        quiet=True,
    )
    config = read_classifier(tmp_path / "fit" / "model").model.config
    assert (config.depth, config.resolved_exit_layers()) == (None, [0, 1, 2, 3])


# Refusals


@pytest.mark.parametrize("depth", [4, 1, -1, "2", True, 2.5])
def test_depths_that_are_no_exit_layers(depth: object) -> None:
    with pytest.raises(ValueError, match=r"depth must be one of exit_layers, \[0, 2, 3\], or None; got "):
        tiny.config(exit_head="pooled", exit_layers=[0, 2, 3], depth=depth)


def test_models_without_a_depth_say_nothing_of_it(tmp_path: Path) -> None:
    tiny.config().save_pretrained(tmp_path)
    assert PyramidConfig.from_pretrained(tmp_path).depth is None
    assert PyramidConfig.from_pretrained(tmp_path).reached_layers == LAYERS


def test_states_of_all_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden states and attentions are those of all layers"):
        capped("nothing", "cls", 2)(**BATCH.padded(), output_hidden_states=True)

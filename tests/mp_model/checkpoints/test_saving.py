"""Folders in half precision and in int8: their size, their answers, the memory of loading them, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mp_model import Classifier, PyramidForSequenceClassification
from mp_model.backbones.int8 import KEPT_COLUMNS, to_int8
from mp_model.checkpoints import saving
from mp_model.checkpoints.reading import read_classifier, read_in_precision
from mp_model.checkpoints.saving import bytes_of_weights
from mp_model.checkpoints.tuned_for import TunedForOtherWarning, record_of
from support import backbones, processors, wordpiece
from support.backbones import KINDS
from support.checkpoints import TEXTS, change_json, change_weights, classifier, save
from support.commands import Command
from support.live import Live
from support.situations import situation

pytestmark = pytest.mark.usefixtures("able_processor")
OPEN = {"exit_threshold": 0.6, "prune_thresholds": [0.01] * 4, "exit_head": "pooled", "exit_layers": [0, 2]}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_the_precision_that_was_saved(kind: str, precision: str, tmp_path: Path) -> None:
    """Bit by bit, on every backbone, also after a use that has packed the weights."""
    changed = {} if kind == "modernbert" else {"pad_token_id": 1 if backbones.stock_config(kind).pad_token_id else 0}
    config = backbones.config(kind, vocab_size=len(wordpiece.VOCABULARY), **changed, **OPEN)
    model = PyramidForSequenceClassification.from_config(config)
    backbones.randomise(model)
    rounded = Classifier.load(save(model, tmp_path / "model"), precision)
    expected = {threshold: rounded(TEXTS, exit_threshold=threshold) for threshold in (0.6, 0.95, "never")}
    assert len({answer.exit_layer for answers in expected.values() for answer in answers}) > 1
    rounded.save(tmp_path / "saved")
    again = Classifier.load(tmp_path / "saved")
    assert again.precision.name == precision
    assert {threshold: again(TEXTS, exit_threshold=threshold) for threshold in expected} == expected
    states = rounded.model.state_dict(), again.model.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, x in states[0].items():
        assert x.dtype == states[1][name].dtype
        assert torch.equal(x, states[1][name]), name


def test_sizes(tmp_path: Path) -> None:
    """Int8 has a byte a weight, a float32 a row and a few columns, but for heads, norms, positions and biases; bfloat16
    half of all.
    """
    wide = classifier(hidden_size=128, intermediate_size=512, exit_layers=[])
    folder = save(wide, tmp_path / "model")
    sizes = {}
    for precision in ("float32", "bfloat16", "int8"):
        Classifier.load(folder, precision).save(tmp_path / precision)
        stored = weights_of(tmp_path / precision)
        sizes[precision] = sum(x.nbytes for x in stored.values())
        overhead = bytes_of_weights(tmp_path / precision) - sizes[precision]
        assert 0 <= overhead < 200 * len(stored), "the file is little more than its tensors"
    assert sizes["float32"] == 4 * sum(x.numel() for x in wide.parameters())
    assert sizes["bfloat16"] == sizes["float32"] / 2
    rounded = [x for name, x in wide.named_parameters() if (x.dim() == 2 and ".layer." in name) or "word_emb" in name]
    saved_bytes = sum(3 * x.numel() - 4 * x.shape[0] for x in rounded)
    keeping = [
        x
        for name, x in wide.named_parameters()
        if x.dim() == 2 and ".layer." in name and "attention.output" not in name
    ]
    kept_bytes = KEPT_COLUMNS * sum(4 * x.shape[0] + 8 for x in keeping)
    assert sizes["int8"] == sizes["float32"] - saved_bytes + kept_bytes
    assert sizes["int8"] < 0.32 * sizes["float32"]


@situation(
    "checkpoint",
    "a folder that was saved in int8 or bfloat16",
    "loaded without its weights ever being there in float32",
)
@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_memory_of_loading(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # all in this thread, where it can be counted
    wide = {"hidden_size": 128, "intermediate_size": 512, "exit_layers": []}
    folder = save(classifier(**wide), tmp_path / "model")
    Classifier.load(folder, precision).save(tmp_path / "saved")
    peaks, made = {}, {}
    for path in (folder, tmp_path / "saved"):
        with Live() as live:
            loaded = read_in_precision(path, precision)
        peaks[path.name], made[path.name] = live.peak, live.made
        size = sum(x.nbytes for x in loaded.state_dict().values())
        assert live.peak >= size
    largest = {(512, 128), (128, 512)}
    assert largest <= {shape for dtype, shape in made["model"] if dtype == torch.float32}
    assert largest.isdisjoint({shape for dtype, shape in made["saved"] if dtype == torch.float32})
    assert peaks["saved"] < 1.2 * size
    if precision == "int8":
        assert peaks["saved"] < peaks["model"] / 2


def test_every_command_takes_it(run: Command, folder: Path, table: Path, tmp_path: Path) -> None:
    for precision in ("int8", "bfloat16"):
        saved = tmp_path / precision
        Classifier.load(folder, precision).save(saved)
        for command in ("classify", "evaluate", "tune", "info"):
            ended = run(command, saved)
            assert ended.status == 0, ended.err
        assert f"{precision}, since the weights are" in ended.out
        assert Classifier.load(saved).model.config.tuned_for["precision"] == precision  # by tune; warnings are errors
        assert {x.dtype for x in weights_of(saved).values()} <= {torch.int8, torch.int64, torch.float32, torch.bfloat16}
        assert run("evaluate", saved, "--json").status == 0
        beside = json.loads(run("evaluate", saved, "--json").out.splitlines()[-1])
        assert "float32" not in beside or beside["float32"] is None


@situation(
    "checkpoint",
    "`magic-pyramid convert` on a processor that cannot compute the precision fast",
    "written all the same, for another machine; to load it here is refused in int8, and float32 in bfloat16",
)
def test_converting_needs_no_able_processor(
    run: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {name: Classifier.load(folder, name)(TEXTS) for name in ("int8", "bfloat16")}
    with monkeypatch.context() as old:
        processors.set_abilities(old, False)
        for name in expected:
            ended = run("convert", folder, str(tmp_path / name), "--precision", name, "--json")
            assert (ended.status, ended.err) == (0, "")
            sizes = {"bytes_before": bytes_of_weights(folder), "bytes": bytes_of_weights(tmp_path / name)}
            assert json.loads(ended.out) == {"precision": name, **sizes}
        with pytest.raises(
            ValueError, match=r"the weights are int8: this processor multiplies int8 no faster than float32, .*; load"
        ):
            Classifier.load(tmp_path / "int8")
        half = Classifier.load(tmp_path / "bfloat16")
        assert (half.precision.name, half.model.dtype) == ("float32", torch.float32)
        assert half.precision.why.startswith("the weights are bfloat16, but this processor lacks AVX-512 BF16")
    for name, answers in expected.items():
        assert Classifier.load(tmp_path / name)(TEXTS) == answers


def test_converting_says_what_it_reached(run: Command, folder: Path, tmp_path: Path) -> None:
    ended = run("convert", folder, str(tmp_path / "int8"))
    before, after = bytes_of_weights(folder), bytes_of_weights(tmp_path / "int8")
    sizes = f"{after / 1e6:.1f} MB of weights, {after / before:.2f} of the {before / 1e6:.1f} MB before"
    assert ended == (0, f"{tmp_path / 'int8'}: int8, {sizes}\n", "")
    assert sorted(path.name for path in (tmp_path / "int8").iterdir()) == sorted(path.name for path in folder.iterdir())


@situation(
    "checkpoint",
    "`magic-pyramid convert` of a model whose exits were tuned",
    "a line says that they were tuned for another precision, then and whenever it is loaded",
)
@pytest.mark.filterwarnings("always::mp_model.checkpoints.tuned_for.TunedForOtherWarning")
def test_exits_are_to_be_tuned_anew(run: Command, folder: Path, tmp_path: Path) -> None:
    assert run("tune", folder).status == 0
    change_json(folder / "config.json", exit_threshold=0.5)
    kept = json.loads((folder / "config.json").read_text())
    change_json(folder / "config.json", tuned_for={**kept["tuned_for"], "exit_threshold": 0.5})
    ended = run("convert", folder, str(tmp_path / "int8"))
    assert ended.status == 0
    assert "the exit threshold of this model was tuned for precision float32 (here int8); choose it anew" in ended.err
    with pytest.warns(TunedForOtherWarning, match="precision float32"):
        Classifier.load(tmp_path / "int8")


def test_exits_that_were_tuned_in_the_precision_still_hold(run: Command, folder: Path, tmp_path: Path) -> None:
    change_json(folder / "config.json", exit_threshold=0.5)
    rounded = Classifier.load(folder, "int8")
    record = record_of(rounded.model, rounded.tokenise.max_length, texts=100, goal={"max_drop": 0.5})
    change_json(folder / "config.json", tuned_for=record)
    assert run("convert", folder, str(tmp_path / "int8")).err == ""
    again = Classifier.load(tmp_path / "int8")  # warnings are errors
    assert again.model.config.exit_threshold == 0.5
    assert again(TEXTS) == rounded(TEXTS)


@situation(
    "checkpoint",
    "a place to save a model that is not empty, a file, read-only, or on a full disk; a precision that is none",
    "one line, exit status 2; nothing is replaced, and nothing half written is left",
)
def test_places_that_are_none(run: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for place, message in (
        (tmp_path / "file", "is a file, where a folder is needed"),
        (tmp_path / "file" / "in", "is a file, where a folder is needed"),
        (tmp_path / "full", "is not empty, and nothing in it is replaced; choose a new folder"),
        (folder, "is not empty, and nothing in it is replaced; choose a new folder"),
    ):
        ended = run("convert", folder, str(place))
        assert (ended.status, message in ended.err, ended.err.count("\n")) == (2, True, 1), ended.err
        with pytest.raises((ValueError, OSError), match=message):
            Classifier.load(folder).save(place)
    ended = run("convert", tmp_path / "full", str(tmp_path / "new"))
    assert (ended.status, "must be a folder of a saved model" in ended.err) == (2, True)
    ended = run("convert", folder, str(tmp_path / "new"), "--precision", "int4")
    assert (ended.status, "precision must be one of 'float32', 'bfloat16', 'int8'; got 'int4'" in ended.err) == (
        2,
        True,
    )

    with monkeypatch.context() as readonly:
        readonly.setattr(os, "access", lambda _, mode, **__: not mode & os.W_OK)  # nothing is forbidden to root
        ended = run("convert", folder, str(tmp_path / "new"))
        assert (ended.status, "cannot be written to" in ended.err) == (2, True), ended.err

    def is_full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as full:
        full.setattr(wordpiece.PreTrainedTokenizerFast, "save_pretrained", is_full)
        ended = run("convert", folder, str(tmp_path / "new"))
    assert (ended.status, "new could not be written: is the disk full?" in ended.err, ended.err.count("\n")) == (
        2,
        True,
        1,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full", "model", "table.tsv"]
    assert (tmp_path / "full" / "mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    Classifier.load(folder, "int8").save(tmp_path / "link")
    assert (tmp_path / "empty" / "config.json").is_file()


@situation(
    "checkpoint",
    "an int8 folder whose scales or settings are lost, or do not fit, or that was cut short",
    "one line, exit status 2; int8 numbers are never taken for floats",
)
@pytest.mark.parametrize("damage", ["scale", "settings", "other settings", "size", "cut", "NaN"])
def test_damaged_int8_folders(damage: str, run: Command, folder: Path, tmp_path: Path) -> None:
    saved, name = tmp_path / "int8", "bert.encoder.layer.1.output.dense.scale"
    Classifier.load(folder, "int8").save(saved)
    path = saved / "model.safetensors"
    if damage == "scale":
        change_weights(saved, lambda weights: weights.pop(name))
        message = f"lacks weights of the model: {name}"
    elif damage == "settings":
        change_json(saved / "config.json", precision=None)
        message = "has weights that config.json has no place for"
    elif damage == "other settings":
        shutil.copy(folder / "model.safetensors", path)
        message = "lacks weights of the model: bert."
    elif damage == "size":
        change_weights(saved, lambda weights: weights.update({name: weights[name][:-1].clone()}))
        message = f"do not fit: {name} is [31] in the file and [32]"
    elif damage == "NaN":
        change_weights(saved, lambda weights: weights[name].fill_(torch.nan))
        message = f"has NaN or infinite numbers in {name}"
    else:
        path.write_bytes(path.read_bytes()[:-4])
        message = "model.safetensors is cut short or damaged; copy it again"
    ended = run("classify", saved)
    assert ended.status == 2
    assert message in ended.err
    assert ended.err.count("\n") == 1


def test_int8_is_not_made_float_again(run: Command, folder: Path, tmp_path: Path) -> None:
    Classifier.load(folder, "int8").save(tmp_path / "int8")
    ended = run("convert", tmp_path / "int8", str(tmp_path / "new"), "--precision", "float32")
    assert (ended.status, "cannot be had of int8 weights; load the checkpoint" in ended.err) == (2, True)
    ended = run("convert", tmp_path / "int8", str(tmp_path / "new"))
    assert ended.status == 0
    stored = (weights_of(tmp_path / name) for name in ("int8", "new"))
    for x, y in zip(*(dict(sorted(weights.items())).values() for weights in stored), strict=True):
        assert torch.equal(x, y)


def test_half_weights_may_be_computed_in_float32(folder: Path, tmp_path: Path) -> None:
    Classifier.load(folder, "bfloat16").save(tmp_path / "half")
    exact = Classifier.load(tmp_path / "half", "float32")
    assert exact.model.dtype == torch.float32
    for name, x in read_classifier(folder).model.named_parameters():
        assert torch.equal(exact.model.get_parameter(name), x.bfloat16().float()), name
    exact.save(tmp_path / "float32")
    assert Classifier.load(tmp_path / "float32").model.config.precision == "float"


def test_a_dtype_that_is_no_precision(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model's weights are float16, in which no folder is loaded for inference"):
        Classifier(classifier().half(), wordpiece.tokenizer()).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_of_ones_own_is_saved(tmp_path: Path) -> None:
    model = classifier()
    to_int8(model)
    Classifier(model, wordpiece.tokenizer()).save(tmp_path / "new" / "int8")
    assert Classifier.load(tmp_path / "new" / "int8")(TEXTS) == Classifier(model, wordpiece.tokenizer())(TEXTS)
    assert saving.bytes_of_weights(tmp_path) == 0

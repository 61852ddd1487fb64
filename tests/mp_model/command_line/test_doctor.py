"""The doctor says what is so, and ends with 1 where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mp_kernels import extension
from mp_model import PyramidBertForSequenceClassification
from mp_model.checkpoints.tuned_for import record_of
from support import tiny, wordpiece
from support.checkpoints import change_json
from support.commands import Command
from support.situations import situation


def save(folder: Path, tuned: bool = True, **settings: Any) -> Path:
    names = {0: "sport", 1: "money", 2: "weather"}
    model = tiny.classifier(
        vocab_size=len(wordpiece.VOCABULARY), **{"id2label": names, "exit_threshold": 0.5, **settings}
    )
    if tuned:
        model.config.tuned_for = record_of(model, 64, 200, {"max_drop": 0.5})
    model.save_pretrained(folder)
    wordpiece.tokenizer().save_pretrained(folder)
    return folder


def says(magic_pyramid: Command, *arguments: object) -> tuple[int, dict[str, list[str]]]:
    """The exit status, and the sentences by verdict."""
    ended = magic_pyramid("doctor", *arguments, "--json")
    found = json.loads(ended.out)
    assert found["ok"] == (ended.status == 0)
    verdicts: dict[str, list[str]] = {"fine": [], "note": [], "wrong": []}
    for finding in found["findings"]:
        verdicts[finding["verdict"]].append(finding["says"])
    return int(ended.status), verdicts


def test_the_installation(magic_pyramid: Command) -> None:
    status, said = says(magic_pyramid)
    assert status == 0
    chosen = extension.chosen_instruction_set()
    assert f"The compiled kernels run for {chosen}, the best that this processor can." in said["fine"]
    assert "float32 can be used on cpu." in said["fine"]


@situation(
    "run",
    "`magic-pyramid doctor` where the compiled kernels are missing",
    "it says so, and how to get them, and ends with exit status 1",
)
def test_missing_kernels(magic_pyramid: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "_library", None)
    status, said = says(magic_pyramid)
    assert status == 1
    (wrong,) = said["wrong"]
    assert wrong.startswith("The compiled kernels are missing")


def test_kernels_that_somebody_chose(magic_pyramid: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "chosen_instruction_set", lambda: "portable")
    monkeypatch.setattr(extension, "instruction_sets", lambda: ["avx2", "portable"])
    status, said = says(magic_pyramid)
    assert status == 0
    assert "The compiled kernels run for portable, since MP_KERNELS_ISA says so; avx2 would be faster." in said["note"]


def test_a_model_in_order(magic_pyramid: Command, tmp_path: Path) -> None:
    save(tmp_path, prune_thresholds=[0.01] * 4)
    status, said = says(magic_pyramid, tmp_path)
    assert status == 0
    assert "It has 4 layers of width 32, and gives one label for a text: 'sport', 'money', 'weather'." in said["fine"]
    assert "It reads texts of up to 64 tokens." in said["fine"]
    assert "All its 5 parts run in prepared form, the fast one." in said["fine"]
    assert "Its exit threshold still holds: it was tuned on 200 texts for max drop 0.5." in said["fine"]
    assert any(sentence.startswith("It loads, and answers a text after layer ") for sentence in said["fine"])

    lines = magic_pyramid("doctor", tmp_path).out.splitlines()
    assert lines[0] == "installation"
    assert f"model: {tmp_path}" in lines
    assert lines[-1] == "Nothing is wrong."


@situation(
    "checkpoint",
    "`magic-pyramid doctor` on a model whose thresholds were tuned for other weights, pruning, precision or length",
    "it names what changed, and ends with exit status 1",
)
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prune_thresholds": [0.02] * 4}, "other pruning"),
        ({"max_length": 32}, "texts of up to 64 tokens (here 32)"),
        ({"weights": True}, "other weights"),
    ],
    ids=["pruning", "length", "weights"],
)
def test_thresholds_that_no_longer_hold(
    magic_pyramid: Command, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    save(tmp_path, prune_thresholds=[0.01] * 4)
    if "weights" in change:
        model = PyramidBertForSequenceClassification.from_pretrained(tmp_path)
        tiny.randomise(model, 9)
        model.save_pretrained(tmp_path)
    elif "max_length" in change:
        wordpiece.tokenizer(change["max_length"]).save_pretrained(tmp_path)
    else:
        change_json(tmp_path / "config.json", **change)
    status, said = says(magic_pyramid, tmp_path)
    assert status == 1
    assert said["wrong"] == [f"Its exit threshold was tuned for {named}; choose it anew with `magic-pyramid tune`."]
    ended = magic_pyramid("doctor", tmp_path)
    assert ended.status == 1
    assert ended.out.endswith("1 thing is wrong.\n")
    assert ended.err == ""


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"exit_threshold": None}, "Its exits are closed; `magic-pyramid tune` chooses a threshold."),
        ({}, "Its exit threshold, 0.5, was set by hand; nobody knows what it costs."),
        (
            {"exit_threshold": None, "untrained_exits": [1, 2]},
            "Its exits stay closed: this checkpoint has no trained exits",
        ),
        ({"exit_layers": [], "exit_threshold": None}, "It has no exits: every text goes through all layers."),
        ({"id2label": {n: f"LABEL_{n}" for n in range(3)}}, "Its labels have no names; give them as id2label"),
        ({}, "It prunes no tokens."),
    ],
)
def test_what_may_be_as_somebody_wants_it(
    magic_pyramid: Command, tmp_path: Path, settings: dict[str, Any], sentence: str
) -> None:
    status, said = says(magic_pyramid, save(tmp_path, tuned=False, **settings))
    assert status == 0
    assert any(note.startswith(sentence) for note in said["note"]), said


def test_a_fits_folder_is_followed_to_its_model(magic_pyramid: Command, tmp_path: Path) -> None:
    save(tmp_path / "model")
    status, said = says(magic_pyramid, tmp_path)
    assert status == 0
    assert f"This is the folder of a fit; its model is {tmp_path / 'model'}." in said["note"]


def test_folders_without_a_whole_model(magic_pyramid: Command, tmp_path: Path) -> None:
    status, said = says(magic_pyramid, tmp_path)
    assert status == 1
    assert said["wrong"] == [f"a saved model is a folder with config.json; got {tmp_path}."]
    save(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    status, said = says(magic_pyramid, tmp_path)
    assert status == 1
    assert len(said["wrong"]) == 1


def test_a_device_that_is_not_there(magic_pyramid: Command) -> None:
    ended = magic_pyramid("doctor", "--device", "toaster")
    assert ended.status == 2
    assert "device 'toaster' cannot be used here" in ended.err

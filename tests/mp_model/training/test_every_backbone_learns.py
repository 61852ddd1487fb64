"""Every backbone through the program: trained, tuned, measured, and asked for answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mp_model import Classifier, PyramidForSequenceClassification
from mp_model.command_line import app
from mp_model.training import RECIPES, Settings, fit, load_task
from support import backbones, wordpiece
from support.backbones import KINDS
from support.fits import QUICK, write_rows


def checkpoint_of(kind: str, folder: Path) -> Path:
    """A stock classifier's checkpoint, still untrained, with a tokenizer."""
    changed = {} if kind == "modernbert" else {"pad_token_id": 1 if backbones.stock_config(kind).pad_token_id else 0}
    make = backbones.BACKBONES[kind].classifier
    config = backbones.stock_config(kind, vocab_size=len(wordpiece.VOCABULARY), num_labels=2, **changed)
    make(config).save_pretrained(folder)
    wordpiece.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_from_fit_to_answers(kind: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint = checkpoint_of(kind, tmp_path / "checkpoint")
    summary = fit(str(checkpoint), load_task(*files), tmp_path / "fit", "pyramid", QUICK, max_drop=0.02, quiet=True)
    assert summary.validation_accuracy > 0.8
    model = tmp_path / "fit" / "model"
    kept = json.loads((model / "config.json").read_text())
    assert kept["model_type"] == f"pyramid_{kind}"
    assert [level["name"] for level in kept["tuned_for"]["levels"]][:2] == ["tuned", "high"]
    run = CliRunner().invoke
    for command in (
        ["tune", str(files[1]), "--model", str(model), "--max-drop", "2"],
        ["evaluate", str(files[1]), "--model", str(model), "--json"],
    ):
        ended = run(app, command)
        assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["evaluations"][0]["accuracy"] > 0.8
    classifier = Classifier.load(model)
    answers = classifier(["a b the c", "d e rate f"])
    assert [answer.label for answer in answers] == ["no", "yes"]
    pairs = classifier([("a b", "the c"), ("d e", "rate f")])
    assert len(pairs) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_get_exits_that_compare_them(kind: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(kind, tmp_path / "checkpoint")
    files = [write_rows(tmp_path / f"{n}.tsv", n, seed, pairs=True) for seed, n in enumerate((400, 150))]
    summary = fit(str(checkpoint), load_task(*files), tmp_path / "fit", "pyramid", QUICK, max_drop=0.02, quiet=True)
    assert summary.validation_accuracy > 0.8
    model = tmp_path / "fit" / "model"
    config = json.loads((model / "config.json").read_text())
    assert (config["exit_head"], config["exit_layers"]) == ("pair", [0, 1, 2, 3])
    assert "token_type_ids" in json.loads((model / "tokenizer_config.json").read_text())["model_input_names"]
    again = fit(str(checkpoint), load_task(*files), tmp_path / "fit", "pyramid", QUICK, max_drop=0.02, quiet=True)
    assert again.already_done == ["fine-tune", "soft", "joint", "exits"]
    classifier = Classifier.load(model)
    answers = classifier([("a b", "a b the c"), ("d e", "d rate f")])
    assert [answer.label for answer in answers] == ["no", "yes"]


@pytest.mark.parametrize("kind", KINDS)
def test_half_of_the_layers_learn_from_all(kind: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint = checkpoint_of(kind, tmp_path / "checkpoint")
    settings = Settings(**{**vars(QUICK), "epochs": 2})
    fit(str(checkpoint), load_task(*files), tmp_path / "fit", "distilbert", settings, max_drop=0.02, quiet=True)
    model = PyramidForSequenceClassification.from_pretrained(tmp_path / "fit" / "model")
    assert model.config.num_hidden_layers == len(model.base_model.stack) == backbones.LAYERS // 2
    assert RECIPES["distilbert"].stages == ("fine-tune", "distil")


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_on_a_frozen_encoder(kind: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    """The own head of each backbone, drawn anew on a bare encoder, learns on standardised features."""
    checkpoint = checkpoint_of(kind, tmp_path / "checkpoint")
    bare = PyramidForSequenceClassification.from_pretrained(checkpoint).base_model
    stock = bare.backbone.encoder.from_pretrained(checkpoint)
    backbones.randomise(stock)  # into features that say something, since nothing teaches the encoder
    stock.save_pretrained(tmp_path / "bare")
    wordpiece.tokenizer().save_pretrained(tmp_path / "bare")
    summary = fit(
        str(tmp_path / "bare"),
        load_task(*files),
        tmp_path / "fit",
        "pyramid",
        QUICK,
        max_drop=0.02,
        freeze_backbone=True,
        train_head=True,
        quiet=True,
    )
    assert next(iter(summary.stages)) == "head"
    assert summary.validation_accuracy > 0.5

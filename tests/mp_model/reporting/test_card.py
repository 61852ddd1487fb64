"""Fitted folders say what they hold; what somebody else wrote there is never touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mp_model import Classifier
from mp_model.command_line import app
from mp_model.reporting.card import BEGIN, CARD, OURS, Figure, escaped, figures_of, refresh_card, write_card
from support import tiny, wordpiece
from support.fits import write_rows
from support.situations import situation

FIGURES = figures_of(
    [Figure("exits closed", 0.9, 1.5, 1.1), Figure("as set", 0.89, 0.5, 3.3)], 200, {"pruning": "none"}
)

FIT = "--freeze-backbone --train-head --exit-epochs 3 --soft-epochs 0 --final-threshold 0.05 "
FIT += "--importance-normalizer alive"


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


@pytest.fixture
def fitted(tmp_path: Path) -> Path:
    tiny.encoder_of(tiny.classifier(vocab_size=len(wordpiece.VOCABULARY))).save_pretrained(tmp_path / "tiny-bert")
    wordpiece.tokenizer().save_pretrained(tmp_path / "tiny-bert")
    train, dev = write_rows(tmp_path / "train.tsv", 60, 0), write_rows(tmp_path / "dev.tsv", 40, 1)
    given = ("--model", tmp_path / "tiny-bert", "--output", tmp_path / "fit", "--validation", dev, "--threads", 1)
    run("fit", train, *given, *FIT.split())
    return tmp_path / "fit" / "model"


def test_a_fit_leaves_a_card(fitted: Path, tmp_path: Path) -> None:
    card, summary = (fitted / CARD).read_text(), json.loads((tmp_path / "fit" / "summary.json").read_text())
    assert card.startswith("---\nlibrary_name: magic-pyramid\n")
    assert "# fit\n" in card
    assert "made from tiny-bert by the recipe pyramid" in card
    assert "0: no, 1: yes" in card
    assert "| texts | 60 | 40 |" in card
    for name, accuracy in (("whole", "validation_accuracy"), ("exits", "exits_accuracy")):
        work = summary["work"][name]
        assert f"| {summary[accuracy]:.1%} | {work['gflops']:.3g} | {work['speed_up']:.2f}x |" in card
    assert f"| exit threshold | {summary['exit_threshold']} |" in card
    assert "| longest text | 64 tokens |" in card

    (code,) = [part.removeprefix("python\n") for part in card.split("```") if part.startswith("python\n")]
    exec(code, {})
    assert f'Classifier.load("{fitted}")' in code


def test_tuning_refreshes_the_figures_alone(fitted: Path, tmp_path: Path) -> None:
    before = (fitted / CARD).read_text()
    run("tune", tmp_path / "train.tsv", "--model", fitted, "--max-drop", 30)
    after = (fitted / CARD).read_text()
    assert after.partition(BEGIN)[0] == before.partition(BEGIN)[0]
    assert after.partition("## Use")[2] == before.partition("## Use")[2]
    threshold = json.loads((fitted / "config.json").read_text())["exit_threshold"]
    assert f"| exit threshold | {threshold} |" in after
    assert "Measured on the 60 validation texts" in after
    assert "Measured on the 40 validation texts" in before
    run("tune", tmp_path / "dev.tsv", "--model", fitted, "--max-drop", 0, "--dry-run")
    assert (fitted / CARD).read_text() == after


@situation(
    "fit",
    "a README.md in the folder of a fitted model that somebody wrote, or made their own",
    "neither a fit that is given again nor `tune` touches it",
)
def test_what_somebody_wrote_stays(fitted: Path, tmp_path: Path) -> None:
    own = (fitted / CARD).read_text().replace(OURS, "") + "\nMy own words.\n"
    (fitted / CARD).write_text(own)
    run("tune", tmp_path / "dev.tsv", "--model", fitted, "--max-drop", 30)
    assert (fitted / CARD).read_text() == own
    given = ("--model", tmp_path / "tiny-bert", "--output", tmp_path / "fit", "--validation", tmp_path / "dev.tsv")
    run("fit", tmp_path / "train.tsv", *given, "--threads", 1, *FIT.split())
    assert (fitted / CARD).read_text() == own
    Classifier.load(fitted)


def test_other_readmes_and_folders_without_one(tmp_path: Path) -> None:
    assert not refresh_card(tmp_path, FIGURES)
    assert list(tmp_path.iterdir()) == []
    for content in (b"# Mine\n", b"\xff\xfe", b""):
        (tmp_path / CARD).write_bytes(content)
        assert not write_card(tmp_path, "About.", ["a"], FIGURES)
        assert not refresh_card(tmp_path, FIGURES)
        assert (tmp_path / CARD).read_bytes() == content
    (tmp_path / CARD).unlink()
    assert write_card(tmp_path, "About.", ["a"], FIGURES)
    assert write_card(tmp_path, "About it.", ["a"], FIGURES)
    (tmp_path / CARD).write_text((tmp_path / CARD).read_text().replace(BEGIN, ""))
    assert not refresh_card(tmp_path, FIGURES)


def test_names_are_no_markup(tmp_path: Path) -> None:
    write_card(tmp_path, "About.", ["a|b", "<script>", "*bold*\nline"], FIGURES, [("", "texts"), ("x|y", "3")])
    card = (tmp_path / CARD).read_text()
    assert r"0: a\|b, 1: \<script\>, 2: \*bold\* line" in card
    assert r"| x\|y | 3 |" in card
    assert escaped("plain words, 3.5%") == "plain words, 3.5%"

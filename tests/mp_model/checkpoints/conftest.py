"""A finished classifier's folder to damage, stock BERT's beside it, and commands run as a user runs them."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from mp_model.command_line import main
from support.checkpoints import NAMES, TEXTS, classifier, save, stock_classifier
from support.commands import Command, Ended


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished classifier, its exits trained and closed."""
    return save(classifier(), tmp_path / "model")


@pytest.fixture
def stock(tmp_path: Path) -> Path:
    """Stock BERT's classifier."""
    return save(stock_classifier(), tmp_path / "stock")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Labelled texts."""
    path = tmp_path / "table.tsv"
    path.write_text("label\ttext\n" + "".join(f"{NAMES[n % 3]}\t{text}\n" for n, text in enumerate(TEXTS)))
    return path


@pytest.fixture
def run(table: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command on a model as the program does; texts and goals are filled in."""
    needs = {
        "classify": [],
        "info": [],
        "convert": [],
        "evaluate": [str(table), "--no-time"],
        "tune": [str(table), "--max-drop", "1"],
    }

    def run_command(command: str, model: Path, *options: str) -> Ended:
        place = [str(model)] if command in ("info", "convert") else ["--model", str(model)]
        monkeypatch.setattr(sys, "argv", ["magic-pyramid", command, *place, *needs[command], *options])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(TEXTS).encode())))
        capfd.readouterr()
        status: Any = 0
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
        return Ended(status, *capfd.readouterr())

    return run_command

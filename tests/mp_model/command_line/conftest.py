"""The program in this process, and a saved model for it."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from mp_model.command_line import main
from support import tiny, wordpiece
from support.commands import Command, Ended


@pytest.fixture
def magic_pyramid(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process, through the entry point."""

    def run(*arguments: object, stdin: str | bytes | None = "") -> Ended:
        given = io.BytesIO(stdin.encode() if isinstance(stdin, str) else stdin or b"")
        monkeypatch.setattr(sys, "argv", ["magic-pyramid", *map(str, arguments)])
        # None: closed, as by "<&-".
        monkeypatch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(given, errors="surrogateescape"))
        with pytest.raises(SystemExit) as ended:
            main()
        # Some build services have colours forced on.
        out, err = (re.sub(r"\x1b\[[0-9;]*m", "", printed) for printed in capsys.readouterr())
        return Ended(ended.value.code or 0, out, err)

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    names = {0: "sport", 1: "money", 2: "météo"}
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), id2label=names, exit_threshold=0.8)
    model.save_pretrained(folder)
    wordpiece.tokenizer().save_pretrained(folder)
    return folder

"""A model's folder holds data: none of its code runs, and nobody is asked whether it may."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from mp_model import Classifier
from mp_model.command_line import main
from support import tiny, wordpiece
from support.situations import situation

SCRIPT = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({mark!r}).write_text("ran")
class Hostile(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that the hostile folder's code would write."""
    return tmp_path / "mark"


@pytest.fixture
def hostile(tmp_path: Path, mark: Path) -> Path:
    """A folder of a model whose tokenizer asks for a class that lies beside it."""
    folder = tmp_path / "model"
    tiny.classifier(vocab_size=len(wordpiece.VOCABULARY)).save_pretrained(folder)
    wordpiece.tokenizer().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings |= {"tokenizer_class": "Hostile", "auto_map": {"AutoTokenizer": [None, "hostile.Hostile"]}}
    path.write_text(json.dumps(settings))
    (folder / "hostile.py").write_text(SCRIPT.format(mark=str(mark)))
    return folder


@situation("checkpoint", "a tokenizer that wants to run code of its own", "refused; the code does not run")
def test_a_tokenizer_with_code_is_refused(hostile: Path, mark: Path) -> None:
    with pytest.raises(ValueError, match="wants to run code of its own"):
        Classifier.load(hostile)
    assert not mark.exists()


@situation(
    "checkpoint",
    'the same in a command whose first text is "y"',
    "one line, exit status 2; no text is taken for an answer",
)
@pytest.mark.parametrize("command", ["classify", "evaluate", "tune", "fit"])
def test_no_command_takes_the_answer_from_the_texts(
    hostile: Path, mark: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Asked on standard output whether the code may run, the first line of the texts would say yes."""
    table = tmp_path / "table.tsv"
    table.write_text("label\ttext\n" + "".join(f"LABEL_{n % 3}\tthe rate\n" for n in range(30)))
    options = {
        "classify": [],
        "evaluate": [str(table)],
        "tune": [str(table), "--max-drop", "1"],
        "fit": [str(table), "--output", str(tmp_path / "fit")],
    }[command]
    monkeypatch.setattr(sys, "argv", ["magic-pyramid", command, "--model", str(hostile), *options])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"y\ny\ny\n")))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "wants to run code of its own" in capsys.readouterr().err
    assert not mark.exists()


@situation(
    "checkpoint",
    "a configuration that names code of its own",
    "a line says that it is not run; the model is built as BERT, and saved without the name",
)
def test_a_configuration_with_code_is_built_as_bert(tmp_path: Path, mark: Path) -> None:
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY))
    model.save_pretrained(tmp_path / "model")
    wordpiece.tokenizer().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "hostile.Hostile"}}))
    (tmp_path / "model" / "hostile.py").write_text(SCRIPT.format(mark=str(mark)))
    with pytest.warns(UserWarning, match=r"names code of the checkpoint's own \(auto_map\), which is not run"):
        classifier = Classifier.load(tmp_path / "model")
    assert not mark.exists()
    assert classifier(["the rate"])[0].label.startswith("LABEL_")
    classifier.model.save_pretrained(tmp_path / "again")
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())

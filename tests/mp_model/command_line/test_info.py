"""The description of a saved model says what it is and in which form it runs, with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from mp_model.command_line import app
from mp_model.command_line.info import describe_model
from support import tiny, wordpiece


def test_a_saved_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {0: "sport", 1: "money", 2: "weather"}
    settings = {"exit_head": "pooled", "exit_layers": [0, 2], "prune_thresholds": [0, 0, 0.01, 0.02]}
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), id2label=names, **settings)
    model.save_pretrained(tmp_path)
    wordpiece.tokenizer().save_pretrained(tmp_path)
    app(["info", str(tmp_path), "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "4 layers of width 32"
    assert found["labels"] == "sport, money, weather"
    assert found["pruning"] == "thresholds by layer: 0, 0, 0.01, 0.02; importance over alive"
    assert found["exit heads"] == "pooled, at layers 0, 2"
    assert found["exit threshold"] == "none: exits are closed"
    assert found["prepared form"] == "5 of 5 parts"
    assert found["module form"] == "none"
    assert "cpu kernels" in found
    app(["info", str(tmp_path)], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(found)


def test_the_reason_of_the_module_form() -> None:
    model = tiny.classifier(top_k=[0.9] * 4, exit_layers=[])
    assert describe_model(model)["pruning"].startswith("the most important tokens")
    assert describe_model(model)["exit heads"] == "cls, at layers none"
    model.bert.stack[1].output.register_forward_hook(lambda *_: None)
    model.bert.stack[2].attention.self.query = nn.Sequential(model.bert.stack[2].attention.self.query)
    found = describe_model(model)
    assert found["prepared form"] == "3 of 5 parts"
    assert "layer 2, since a BertOutput has hooks" in found["module form"]
    assert "layer 3, since a layer is a torch.nn.modules.container.Sequential" in found["module form"]

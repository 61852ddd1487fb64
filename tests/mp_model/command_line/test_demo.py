"""The demo is the other commands, one after the other: here with a tiny model, on tiny articles."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mp_model.command_line import app, demo
from mp_model.data import samples
from mp_model.data.tables import read_labelled
from support import tiny, wordpiece
from support.situations import situation

TOPICS = ["cabs", "rates"]


def articles(count: int) -> tuple[list[str], list[int], list[str]]:
    """Texts of single letters; the label says which of two words they hold twice."""
    draw = random.Random(0)
    labels = [draw.randint(0, 1) for _ in range(count)]
    texts = []
    for label in labels:
        words = draw.choices("abcdefgh", k=draw.randint(3, 20)) + 2 * [("the", "rate")[label]]
        draw.shuffle(words)
        texts.append(" ".join(words))
    return texts, labels, TOPICS


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny checkpoint without a classifier, in the place of the real one; tiny articles in the place of the real ones."""
    folder = tmp_path / "checkpoint"
    tiny.encoder_of(tiny.classifier(vocab_size=len(wordpiece.VOCABULARY))).save_pretrained(folder)
    wordpiece.tokenizer().save_pretrained(folder)
    monkeypatch.setattr(samples, "minilm", lambda: folder)
    monkeypatch.setattr(samples, "bbc_news", lambda: articles(sum(demo.SPLITS.values())))
    return folder


@situation(
    "run",
    "the demo, given again after it was cut off",
    "it goes on with what is trained; what a kill has left does no harm",
)
def test_the_demo(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures: pip install 'magic-pyramid[demo]'")
    output = tmp_path / "out"
    result = CliRunner().invoke(app, ["demo", "--output", str(output), "--threads", "1"])
    assert result.exit_code == 0, result.exception
    commands = [line.split()[2] for line in result.stdout.splitlines() if line.startswith("$ magic-pyramid")]
    assert commands == ["fit", "tune", "evaluate", "classify"]
    for words in ("validation accuracy", "no more than 2 points with confidence 0.9", "160 texts", "padded", "Try: "):
        assert words in result.stdout
    assert (
        result.stdout.splitlines()[-1]
        == f"Serve it: magic-pyramid serve {output}/model, with the extra serve installed"
    )
    assert "soft: left out, with 0 passes" in result.stderr
    assert "Of 160 texts" in (output / "report.html").read_text(encoding="utf-8")
    assert "exit threshold" in (output / "model" / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in output.iterdir()} == {
        "answers.jsonl", "articles", "demo.json", "demo.png", "fit", "model", "report.html",
    }  # fmt: skip

    document = json.loads((output / "demo.json").read_text())
    config = json.loads((output / "model" / "config.json").read_text())
    assert document["exit_threshold"] == config["exit_threshold"] == document["evaluations"][0]["exit_threshold"]
    assert document["prune_thresholds"] == config["prune_thresholds"]
    answers = [json.loads(line) for line in (output / "answers.jsonl").read_text().splitlines()]
    labels = [label for _, label in read_labelled(output / "articles" / "test.tsv")]
    right = sum(answer["label"] == label for answer, label in zip(answers, labels, strict=True))
    assert right / 160 == pytest.approx(document["evaluations"][0]["accuracy"], abs=1e-9)
    assert right / 160 > 0.75

    # Given again, with texts of one's own: what is trained is not trained again, and leftovers of a kill do no harm.
    trained = (output / "fit" / "stages" / "1-head" / "model" / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "texts.txt").write_text("the cab\nthe rates\n")
    (output / "model" / "config.json").write_text("{")
    for name in ("answers.jsonl.partial", "answers.jsonl.partial.json"):
        (output / name).write_text('{"lines": 1, "bytes": 1, "rows": "", "made_by": {}}')
    options = ["--texts", str(tmp_path / "texts.txt"), "--threads", "1", "--json"]
    result = CliRunner().invoke(app, ["demo", "--output", str(output), *options])
    assert result.exit_code == 0, result.exception
    again = json.loads(result.stdout)
    assert again["evaluations"][0]["accuracy"] == document["evaluations"][0]["accuracy"]
    assert (output / "fit" / "stages" / "1-head" / "model" / "model.safetensors").stat().st_mtime_ns == trained


def test_tables_follow_one_another(tmp_path: Path) -> None:
    texts, labels, _ = articles(7)
    demo.write_tables(tmp_path, texts, labels, TOPICS, {"train": 4, "dev": 2})
    train, dev = (list(read_labelled(tmp_path / f"{name}.tsv")) for name in ("train", "dev"))
    assert train + dev == [(text, TOPICS[label]) for text, label in zip(texts[:6], labels[:6], strict=True)]
    assert len(train) == 4


def test_the_furthest_and_the_longest_of_the_first_are_shown(tmp_path: Path) -> None:
    demo.write_tables(tmp_path / "articles", list("abcde"), [0] * 5, TOPICS, {"test": 5})
    layers, tokens = (0, 3, 0, 3, 1), (5, 7, 9, 8, 20)
    rows = [json.dumps({"exit_layer": layer, "tokens": n}) for layer, n in zip(layers, tokens, strict=True)]
    (tmp_path / "answers.jsonl").write_text("\n".join(rows))
    assert demo.texts_to_show(tmp_path) == ["d", "c"]


def test_without_its_packages_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    result = CliRunner().invoke(app, ["demo", "--output", str(tmp_path / "out")])
    assert isinstance(result.exception, ModuleNotFoundError)
    assert "pip install 'magic-pyramid[demo]'" in str(result.exception)
    assert not (tmp_path / "out").exists()

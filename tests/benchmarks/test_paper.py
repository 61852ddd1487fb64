"""The paper's experiments from beginning to end, on a tiny model and a few texts: one command, which can be given again."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers.utils import logging
from typer.testing import CliRunner

from paper.__main__ import app
from support import backbones, fits, tiny, wordpiece

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


def write_split(path: Path, count: int, seed: int) -> None:
    """Pairs of texts; the label says whether they share a word."""
    draw = random.Random(seed)
    lines = ["label\ttext_a\ttext_b"]
    for _ in range(count):
        label, word = draw.randint(0, 1), draw.choice(("the", "rate"))
        other = word if label else {"the": "rate", "rate": "the"}[word]
        filling = [" ".join(draw.choices("abcdefgh", k=draw.randint(1, 15))) for _ in range(2)]
        lines.append(f"{label}\t{filling[0]} {word}\t{other} {filling[1]}")
    path.write_text("\n".join(lines) + "\n")


def test_one_command(tmp_path: Path) -> None:
    (tmp_path / "corpora" / "qqp").mkdir(parents=True)
    write_split(tmp_path / "corpora" / "qqp" / "train.tsv", 120, 0)
    write_split(tmp_path / "corpora" / "qqp" / "test.tsv", 60, 1)
    tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), num_labels=2).save_pretrained(tmp_path / "checkpoint")
    wordpiece.tokenizer().save_pretrained(tmp_path / "checkpoint")
    options = {"corpora": "corpora", "model": "checkpoint", "runs": "runs", "output": "docs"}
    command = [sys.executable, "-m", "paper", "--only", "qqp", "--only", "rte", "--threads", "1"]
    for name in ("pyramid", "mp", "fastbert"):
        command += ["--fit", name]
    for name, folder in options.items():
        command += [f"--{name}", str(tmp_path / folder)]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS), "OMP_NUM_THREADS": "1"}

    def run(*more: str) -> str:
        ended = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=500)
        assert ended.returncode == 0, ended.stderr[-3000:]
        return " ".join(ended.stdout.split())

    first = run()
    assert "MiniLM-L6, QQP, seed 0: pyramid (exits)" in first
    assert "RTE is left out" in first
    document = json.loads((tmp_path / "docs" / "results" / "results.json").read_text())
    result = document["backbones"]["minilm"]["qqp"]
    assert list(result["systems"]) == ["bert", "ltp", "fastbert", "mp", "pyramid", "tfidf", "layer-0"]
    assert list(result["losses"]) == list(result["systems"])
    assert list(result["guarantees"]) == ["fastbert", "mp", "pyramid", "tfidf", "layer-0"]
    assert result["texts"] == {"validation": 12, "test": 60}
    for order in ("sorted", "as they come"):
        took = result["clock"][order]["milliseconds"]
        assert {"tfidf@0.5", "layer-0@careful 0.5", "mp@careful 0.5"} <= set(took)
        assert all(x > 0 for x in took.values())
    first, of_set = tmp_path / "docs" / "results.md", tmp_path / "docs" / "results" / "minilm_qqp.md"
    for words in ("## QQP, another bert", "`pyramid`: ours", "`tfidf`: TF-IDF", "| exceeded |", "## Beside the paper"):
        assert words in first.read_text()
    for words in ("# QQP, another bert", "Work by length", "1.0 points, guaranteed"):
        assert words in of_set.read_text()
    for page in (first, of_set):
        for link in re.findall(r"\]\(([^)]*)\)", page.read_text()):
            assert link == "findings.md" or (page.parent / link).is_file()

    (tmp_path / "docs" / "results.md").unlink()
    again = run("--step", "train", "--step", "measure", "--step", "report")
    assert "seed 0" not in again  # nothing is trained or read twice
    assert (tmp_path / "docs" / "results.md").exists()


@pytest.fixture
def quiet_libraries_again() -> Iterator[None]:
    """Undoes what the command sets for its process."""
    verbosity, threads = logging.get_verbosity(), torch.get_num_threads()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()
    torch.set_num_threads(threads)


def in_process(folder: Path, *options: str) -> str:
    """What the command prints for a folder with corpora and a checkpoint."""
    places = {"corpora": "corpora", "model": "checkpoint", "runs": "runs", "output": "docs"}
    given = [part for name, place in places.items() for part in (f"--{name}", str(folder / place))]
    ended = CliRunner().invoke(app, [*given, "--threads", "1", *options], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return " ".join(ended.output.split())


@pytest.mark.usefixtures("quiet_libraries_again")
def test_another_backbone_stands_beside_the_first(tmp_path: Path) -> None:
    """Twelve layers, of which the lower six prune; its results and pictures are its own."""
    (tmp_path / "corpora" / "rte").mkdir(parents=True)
    write_split(tmp_path / "corpora" / "rte" / "train.tsv", 60, 0)
    write_split(tmp_path / "corpora" / "rte" / "test.tsv", 30, 1)
    (tmp_path / "docs" / "results").mkdir(parents=True)
    before = json.loads((ROOT / "docs" / "results" / "results.json").read_text())
    kept = {"backbones": {"minilm": {"rte": before["backbones"]["minilm"]["rte"]}}}
    (tmp_path / "docs" / "results" / "results.json").write_text(json.dumps(kept))
    model = backbones.pyramid("mpnet", num_hidden_layers=12, vocab_size=len(wordpiece.VOCABULARY), num_labels=2)
    model.save_pretrained(tmp_path / "checkpoint")
    wordpiece.tokenizer().save_pretrained(tmp_path / "checkpoint")

    tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), num_labels=2).save_pretrained(tmp_path / "smaller")
    wordpiece.tokenizer().save_pretrained(tmp_path / "smaller")
    smaller = str(tmp_path / "smaller")
    in_process(tmp_path, "--only", "rte", "--fit", "bert", "--step", "train", "--model", smaller)

    steps = [part for step in ("train", "measure", "clock", "report") for part in ("--step", step)]
    said = in_process(tmp_path, "--backbone", "mpnet", "--only", "rte", "--fit", "pyramid", *steps)
    assert "MPNet-base, RTE, seed 0: soft-lower (soft)" in said
    folder = tmp_path / "runs" / "mpnet" / "rte" / "seed-0"
    assert {path.name for path in folder.iterdir()} == {"bert", "soft-lower", "joint", "pyramid", "tfidf"}
    config = json.loads((folder / "pyramid" / "stages" / "1-exits" / "model" / "config.json").read_text())
    assert all(config["prune_thresholds"][:6])
    assert config["prune_thresholds"][6:] == [0.0] * 6
    document = json.loads((tmp_path / "docs" / "results" / "results.json").read_text())
    assert document["backbones"]["minilm"] == kept["backbones"]["minilm"]
    result = document["backbones"]["mpnet"]["rte"]
    assert list(result["systems"]) == ["bert", "pyramid", "tfidf", "layer-0", "six-layer"]
    assert result["systems"]["six-layer"]["0.0"]["dense_gflops"] < result["systems"]["bert"]["0.0"]["dense_gflops"]
    assert result["clock"]["sorted"]["milliseconds"]["six-layer"] > 0
    assert (result["about"]["model"], result["about"]["layers"]) == ("another mpnet", 12)
    assert result["settings"]["head_learning_rate"] == 3e-4


@pytest.mark.usefixtures("quiet_libraries_again")
def test_several_labels_a_text(tmp_path: Path) -> None:
    (tmp_path / "corpora" / "go_emotions").mkdir(parents=True)
    fits.write_several(tmp_path / "corpora" / "go_emotions" / "train.tsv", 120, 0)
    fits.write_several(tmp_path / "corpora" / "go_emotions" / "test.tsv", 60, 1)
    tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), num_labels=2).save_pretrained(tmp_path / "checkpoint")
    wordpiece.tokenizer().save_pretrained(tmp_path / "checkpoint")
    in_process(tmp_path, "--only", "go_emotions", "--fit", "mp", "--fit", "pyramid")
    document = json.loads((tmp_path / "docs" / "results" / "results.json").read_text())
    result = document["backbones"]["minilm"]["go_emotions"]
    assert list(result["systems"]) == ["bert", "ltp", "mp", "pyramid", "tfidf", "layer-0"]
    test = tmp_path / "corpora" / "go_emotions" / "test.tsv"
    labels = Counter(line.split("\t")[0] for line in test.read_text().splitlines()[1:])
    assert result["most_frequent_label"] == max(labels.values()) / 60
    score = result["systems"]["bert"]["without exits"]["several"]["micro_f1"]
    assert 0 < score <= 1
    assert result["losses"]["bert"]["0.5"]["score"] == pytest.approx(score)
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "|  | micro F1 | points lost |" in page
    assert f"| `bert`: fine-tuned, nothing removed | {score:.2%} | 0.00 |" in page

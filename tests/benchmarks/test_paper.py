"""The paper's experiments from beginning to end, on a tiny model and a few texts: one command, which can be given again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from support import tiny, wordpiece

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


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
    assert list(result["systems"]) == ["bert", "ltp", "fastbert", "mp", "pyramid"]
    assert result["texts"] == {"validation": 12, "test": 60}
    assert all(x > 0 for x in result["clock"]["sorted"]["milliseconds"].values())
    page = (tmp_path / "docs" / "results.md").read_text()
    for words in ("## QQP, another bert", "`pyramid`: ours", "Work by length", "## Beside the paper"):
        assert words in page
    for line in page.splitlines():
        if line.startswith("!["):
            assert (tmp_path / "docs" / line.split("](")[1].rstrip(")")).is_file()

    (tmp_path / "docs" / "results.md").unlink()
    again = run("--step", "train", "--step", "measure", "--step", "report")
    assert "seed 0" not in again  # nothing is trained or read twice
    assert (tmp_path / "docs" / "results.md").exists()

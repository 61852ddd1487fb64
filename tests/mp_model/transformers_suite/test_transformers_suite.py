"""transformers' own tests of models: what stock BERT passes, a pyramid passes, with nothing pruned and without exits.

The tests come from transformers' source distribution, which is fetched once; without it they are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

from support.situations import situation

SUITE = Path(__file__).with_name("suite.py")

# Tests that a pyramid does not pass where stock BERT does, by the beginnings of their names, each with the reason.
REFUSALS = {
    "test_flash_attn_": "attention is the pyramid's own; flash_attention_2, _3 and _4 are refused with a sentence",
    "test_flex_attention_": "attention is the pyramid's own; flex_attention is refused with a sentence",
}


def fetch(folder: Path) -> None:
    """Puts transformers' folder ``tests`` into a folder."""
    name = f"transformers=={transformers.__version__}"
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--retries", "0", "--dest", str(folder)]
    download = [sys.executable, "-m", "pip", "download", "--quiet", *options, name]
    done = subprocess.run(download, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"the source distribution of {name} cannot be had: {done.stderr.strip().splitlines()[-1]}")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        members = [x for x in source.getmembers() if x.name.split("/")[1:2] == ["tests"]]
        for member in members:
            member.name = member.name.partition("/")[2]
        source.extractall(folder, members, filter="data")
    archive.unlink()
    (folder / "tests" / "__init__.py").touch()  # not in the source distribution


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The outcome of each test, by model."""
    pytest.importorskip("parameterized", reason="transformers' tests: pip install parameterized")
    folder = request.config.cache.mkdir(f"transformers-{transformers.__version__}")
    if not (folder / "tests" / "__init__.py").exists():
        fetch(folder)
    path = tmp_path_factory.mktemp("suite") / "outcomes.json"
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, str(SUITE), str(folder), str(path)]
    done = subprocess.run(command, env=environment, cwd=path.parent, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(path.read_text())


@situation(
    "drop-in",
    "transformers' own tests of models and configurations, nothing pruned and no exits",
    "a pyramid passes all that stock BERT passes, but those for attention by flash-attn or flex-attention",
)
def test_a_pyramid_passes_what_stock_bert_passes(outcomes: dict[str, dict[str, str]]) -> None:
    bert, pyramid = outcomes["bert"], outcomes["pyramid"]
    if Version(transformers.__version__) < Version("5.23"):  # layers that were asked for are counted otherwise there
        bert.pop("test_can_capture_specific_layers_hidden_states")
    passed = [name for name, outcome in bert.items() if outcome == "passed"]
    assert len(passed) > 90, "the suite did not run"
    differing = {
        name: pyramid[name] for name in passed if pyramid[name] != "passed" and not name.startswith(tuple(REFUSALS))
    }
    assert not differing, "\n\n".join(f"{name}\n{outcome}" for name, outcome in differing.items())

"""Benchmarks keep figures where they are told to and nowhere else, and pages hold what their figures say."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mp_kernels

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "benchmarks" / "figures.json"


def benchmark(*options: object) -> subprocess.CompletedProcess[str]:
    """Runs the shortest case, without leaving pytest's own cache behind."""
    command = [sys.executable, "-m", "pytest", "benchmarks", "-k", "test_gelu", "--benchmark-only", "-q"]
    command += ["-p", "no:cacheprovider", *map(str, options)]
    # Where these tests run beside others, that run would count as one of them, and time nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.skipif(not mp_kernels.extension.is_built(), reason="nothing is timed without the compiled kernels")
def test_figures_are_kept_only_where_asked(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    before = FIGURES.read_bytes()
    ended = benchmark()
    assert ended.returncode == 0, ended.stdout + ended.stderr

    kept = tmp_path / "kept.json"
    ended = benchmark("--figures", kept)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    known = json.loads(kept.read_text())
    assert list(known["figures"]) == ["test_operators.py::test_gelu"]
    assert known["figures"]["test_operators.py::test_gelu"]["ratio"] > 0

    known["machine"]["device"] = "another device"
    kept.write_text(json.dumps(known))
    ended = benchmark("--figures", kept)
    assert ended.returncode == 4
    assert "holds figures of another device" in ended.stderr
    assert json.loads(kept.read_text()) == known
    assert FIGURES.read_bytes() == before


def test_the_page_on_performance_is_its_figures() -> None:
    report = importlib.import_module("report")
    assert (ROOT / "docs" / "performance.md").read_text() == report.page(json.loads(FIGURES.read_text()))
    readme = (ROOT / "README.md").read_text()
    assert report.PLACE.begin in readme
    assert readme == report.PLACE.filled(readme, report.in_short())

"""Loading of the compiled kernels: every build, and installations without any."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import mp_kernels
from mp_kernels import extension
from support import parity

# The package's own folder comes first in the path: if the package is installed in editable mode, its name would otherwise
# import the folder tests/mp_kernels.
PROGRAM = f"""
import importlib.util, pathlib, sys
package = pathlib.Path(importlib.util.find_spec("mp_kernels").origin).parent
sys.path += [str(package.parent), {str(Path(__file__).parents[1])!r}]
from support import parity
parity.main()
"""


def run_parity(**environment: str) -> dict:
    """Outcome of :mod:`support.parity` in a fresh interpreter with these environment variables."""
    result = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_compiled_kernels_are_loaded() -> None:
    """Without the kernels the other tests would pass too, but test only the definitions."""
    assert extension.is_built()
    assert extension.instruction_sets()[-1] == "portable"
    assert extension.chosen_instruction_set() in extension.instruction_sets()


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm of the binutils")
@pytest.mark.parametrize("library", [extension.PATH, extension.CUDA_PATH], ids=["cpu", "cuda"])
def test_libraries_show_their_own_names_alone(library: Path) -> None:
    """Names of a C++ library inside ours would be taken for those of torch's own, which breaks the process."""
    if not library.exists():
        pytest.skip(f"{library.name} is not built")
    shown = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    assert [line for line in shown.splitlines() if not line.split()[-1].startswith("mp_")] == []


def test_parity_covers_every_public_operator() -> None:
    errors = parity.worst_errors()
    assert set(errors) == {name for name in mp_kernels.__all__ if inspect.isfunction(getattr(mp_kernels, name))}
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("name", extension.instruction_sets())
def test_every_instruction_set(name: str) -> None:
    outcome = run_parity(MP_KERNELS_ISA=name)
    assert outcome["instruction_set"] == name
    assert outcome["warnings"] == []
    assert max(outcome["errors"].values()) < 1e-5, outcome["errors"]


def _leave_out(library: Path) -> None:
    assert not library.exists()


def _break(library: Path) -> None:
    library.write_bytes(b"not a library")


@pytest.mark.parametrize(
    ("spoil", "warning"),
    [
        (_leave_out, "mp_kernels was installed without its compiled kernels"),
        (_break, "mp_kernels could not load _C.so"),
    ],
)
def test_without_compiled_kernels_the_definitions_run(spoil: Callable, warning: str, tmp_path: Path) -> None:
    package = Path(mp_kernels.__file__).parent
    shutil.copytree(package, tmp_path / "mp_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    spoil(tmp_path / "mp_kernels" / "_C.so")
    outcome = run_parity(PYTHONPATH=str(tmp_path))
    assert Path(outcome["file"]).is_relative_to(tmp_path)
    assert (outcome["built"], outcome["instruction_sets"], outcome["instruction_set"]) == (False, [], None)
    assert max(outcome["errors"].values()) < 1e-6, outcome["errors"]
    assert len(outcome["warnings"]) == 1
    assert warning in outcome["warnings"][0]
    assert "pip install -e . --no-build-isolation" in outcome["warnings"][0]

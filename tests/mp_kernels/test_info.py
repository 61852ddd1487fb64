"""``python -m mp_kernels.info``: what an installation says about itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mp_kernels import extension, info


def parse(printed: str) -> dict[str, str]:
    names = list(info.describe())
    width = max(map(len, names))
    return {line[:width].rstrip(): line[width + 2 :] for line in printed.splitlines()}


def test_every_field_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    info.main()
    described = info.describe()
    assert parse(capsys.readouterr().out) == described
    assert all(described.values())


def test_as_a_program() -> None:
    ended = subprocess.run([sys.executable, "-m", "mp_kernels.info"], capture_output=True, text=True, check=True)
    assert list(parse(ended.stdout)) == list(info.describe())
    assert "RuntimeWarning" not in ended.stderr


def test_fields_say_what_is_in_use() -> None:
    described = info.describe()
    assert described["torch"] == torch.__version__
    assert described["threads"] == str(torch.get_num_threads())
    if extension.is_built():
        assert described["cpu kernels"] == str(extension.PATH)
        assert described["instruction set in use"] in described["instruction sets, best first"].split(", ")
    else:
        assert described["cpu kernels"] == "not built"


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise info.importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(info.importlib.metadata, "version", version)
    monkeypatch.setattr(extension, "_library", None)
    described = info.describe()
    assert described["triton"] == described["transformers"] == "not installed"
    assert described["cpu kernels"] == "not built"
    assert described["instruction sets, best first"] == "none"
    assert described["instruction set in use"] == "none: plain PyTorch definitions"

"""Loading of the compiled CUDA kernels: only beside a torch built for CUDA, and a failure breaks nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mp_kernels import extension


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Path of a library that does not exist yet, beside a torch that says it was built for CUDA."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(extension, "CUDA_PATH", tmp_path / "_C_cuda.so")
    return extension.CUDA_PATH


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch was built for CUDA")
def test_torch_without_cuda_leaves_the_library_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not extension.is_cuda_built()
    monkeypatch.setattr(extension, "CUDA_PATH", tmp_path / "_C_cuda.so")
    extension.CUDA_PATH.write_bytes(b"not a library")
    assert not extension._load_cuda()


def test_absent_library_is_nothing_to_warn_of(library: Path) -> None:
    assert not library.exists()
    assert not extension._load_cuda()


def test_broken_library_is_one_warning_that_says_what_to_do(library: Path) -> None:
    library.write_bytes(b"not a library")
    with pytest.warns(UserWarning, match=r"could not load _C_cuda\.so") as warned:
        assert not extension._load_cuda()
    assert len(warned) == 1
    assert "pip install -e . --no-build-isolation" in str(warned[0].message)
    assert "nvcc of CUDA 13.0" in str(warned[0].message)


def test_a_library_is_loaded(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.touch()
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert extension._load_cuda()
    assert loaded == [library]

"""Fixtures that compile the CUDA kernels for the emulator, once per session."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pybind11
import pytest
import torch

from mp_kernels.schemas import SCHEMAS

FOLDER = Path(__file__).parent
# Set by `make simt-sanitize`.
SANITIZERS = os.environ.get("MP_SIMT_SANITIZE", "")


def compile_with_emulator(source: str, output: Path, sanitizers: str, *flags: str) -> Path:
    """Compiles a source file of this folder with the system's compiler and the emulator instead of CUDA's headers."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    assert compiler, "tests/simt needs a C++17 compiler: set CXX, or install g++"
    if sanitizers:
        flags = (*flags, f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
    warnings = ("-Wall", "-Wextra", "-Wno-psabi", "-Wno-unknown-pragmas")  # such as nvcc's
    command = [compiler, "-std=c++17", "-O1", "-g1", *warnings, f"-I{FOLDER / 'include'}"]
    ended = subprocess.run([*command, FOLDER / source, *flags, "-o", output], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return output


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The Python module compiled from ``kernels.cpp``."""
    output = tmp_path_factory.mktemp("simt") / f"simt_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = (f"-I{sysconfig.get_path('include')}", f"-I{pybind11.get_include()}")
    compile_with_emulator("kernels.cpp", output, SANITIZERS, "-fPIC", "-shared", "-fvisibility=hidden", *includes)
    spec = importlib.util.spec_from_file_location("simt_kernels", output)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def ops(tmp_path_factory: pytest.TempPathFactory) -> object:
    """The operators of ``csrc/cuda/ops_cuda.cu``, compiled for CPU tensors: see ``ops.cpp``."""
    folder = Path(torch.__file__).parent
    headers = ("-isystem", str(folder / "include"), "-DTORCH_TARGET_VERSION=0x020a000000000000")
    libraries = (f"-L{folder / 'lib'}", "-ltorch_cpu", f"-Wl,-rpath,{folder / 'lib'}")
    output = tmp_path_factory.mktemp("simt") / "simt_ops.so"
    compile_with_emulator("ops.cpp", output, SANITIZERS, "-fPIC", "-shared", *headers, *libraries)
    for name in ("ragged_gather", "ragged_gather_backward"):
        torch.library.define(f"simt_mp_kernels::{name}", SCHEMAS[name])
    torch.ops.load_library(output)
    return torch.ops.simt_mp_kernels


@pytest.fixture(scope="session")
def bugs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program compiled from ``bugs.cpp``, with AddressSanitizer."""
    return compile_with_emulator("bugs.cpp", tmp_path_factory.mktemp("simt") / "bugs", "address")

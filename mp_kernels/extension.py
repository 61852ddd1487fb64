"""Loading of the compiled kernels. Where they are missing, one warning says how to build them."""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from pathlib import Path

import torch

PATH = Path(__file__).parent / "_C.so"
CUDA_PATH = Path(__file__).parent / "_C_cuda.so"

_HOW_TO_BUILD = (
    "Every operator still works through its plain PyTorch definition, only much slower. To build the kernels, install a "
    "C++17 compiler (GCC 12 or newer, or Clang) and run `pip install -e . --no-build-isolation` in the project's folder "
    "(wheels: `pip install --force-reinstall --no-deps magic-pyramid`)."
)


def _load() -> ctypes.CDLL | None:
    if not PATH.exists():
        warnings.warn(f"mp_kernels was installed without its compiled kernels. {_HOW_TO_BUILD}", stacklevel=3)
        return None
    try:
        torch.ops.load_library(PATH)
    except OSError as error:
        warnings.warn(f"mp_kernels could not load {PATH.name} ({error}). {_HOW_TO_BUILD}", stacklevel=3)
        return None
    library = ctypes.CDLL(str(PATH))
    library.mp_runnable_isa.restype = library.mp_chosen_isa.restype = ctypes.c_char_p
    library.mp_multiplies_bfloat16.restype = ctypes.c_bool
    library.mp_float_rows.restype = library.mp_int8_group.restype = ctypes.c_int64
    for function in (library.mp_multiplies_bfloat16, library.mp_float_rows, library.mp_int8_group):
        function.argtypes = (ctypes.c_int64, ctypes.c_int64)
    return library


def _load_cuda() -> bool:
    # A missing file is no reason for a warning: Triton serves the same operators.
    if torch.version.cuda is None or not CUDA_PATH.exists():
        return False
    try:
        torch.ops.load_library(CUDA_PATH)
    except OSError as error:
        warnings.warn(
            f"mp_kernels could not load {CUDA_PATH.name} ({error}). CUDA tensors go through the Triton kernels and plain "
            "PyTorch instead. To build it for this torch, run `pip install -e . --no-build-isolation` in the project's "
            f"folder, with nvcc of CUDA {torch.version.cuda} on the PATH.",
            stacklevel=3,
        )
        return False
    return True


_library = _load()
_cuda_is_loaded = _load_cuda()


def is_built() -> bool:
    """Whether the compiled CPU kernels are loaded."""
    return _library is not None


def is_cuda_built() -> bool:
    """Whether the compiled CUDA kernels are loaded."""
    return _cuda_is_loaded


def instruction_sets() -> list[str]:
    """Names of the builds of the CPU kernels that this processor can run, best first; empty without compiled kernels."""
    if _library is None:
        return []
    names: list[str] = []
    while name := _library.mp_runnable_isa(len(names)):
        names.append(name.decode())
    return names


def chosen_instruction_set() -> str | None:
    """Name of the build in use: the best one, or the one that the environment variable ``MP_KERNELS_ISA`` names.

    None without compiled kernels.
    """
    if _library is None:
        return None
    name: bytes = _library.mp_chosen_isa()
    return name.decode()


@functools.cache
def multiplies_bfloat16(outputs: int, features: int) -> bool:
    """Whether weights ``[outputs, features]`` of bfloat16 are multiplied by the build in use."""
    return _library is not None and _library.mp_multiplies_bfloat16(outputs, features)


@functools.cache
def float_rows(outputs: int, features: int) -> int:
    """Number of rows up to which weights ``[outputs, features]`` of float32 are multiplied faster by the build in use.

    0: torch multiplies them faster, however few the rows.
    """
    return 0 if _library is None else int(_library.mp_float_rows(outputs, features))


@functools.cache
def int8_group(outputs: int, features: int) -> int:
    """Number of features that lie together in an int8 weight ``[outputs, features]`` as the build in use packs it.

    0: it packs none of that shape, as torch multiplies them.
    """
    return 0 if _library is None else int(_library.mp_int8_group(outputs, features))


def multiplies_int8() -> bool:
    """Whether the build in use multiplies int8 matrices itself, faster than torch multiplies those of float32."""
    return int8_group(64, 64) > 0


_wanted = os.environ.get("MP_KERNELS_ISA")
if _library is not None and _wanted and _wanted != chosen_instruction_set():
    warnings.warn(
        f"MP_KERNELS_ISA={_wanted!r} is none of the builds that this processor can run "
        f"({', '.join(instruction_sets())}); using {chosen_instruction_set()}",
        stacklevel=2,
    )

"""Loads the compiled kernels, or says once how to build them."""

from __future__ import annotations

import ctypes
import warnings
from pathlib import Path

import torch

PATH = Path(__file__).parent / "_C.so"

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
    return ctypes.CDLL(str(PATH))


_library = _load()


def is_built() -> bool:
    """Whether the compiled CPU kernels are loaded."""
    return _library is not None


def instruction_sets() -> list[str]:
    """Builds of the CPU kernels that this processor can run, best first; empty without compiled kernels."""
    if _library is None:
        return []
    _library.mp_runnable_isa.restype = ctypes.c_char_p
    names: list[str] = []
    while name := _library.mp_runnable_isa(len(names)):
        names.append(name.decode())
    return names


def chosen_instruction_set() -> str | None:
    """The build in use: the best one, or the one that the environment variable ``MP_KERNELS_ISA`` names."""
    if _library is None:
        return None
    _library.mp_chosen_isa.restype = ctypes.c_char_p
    return _library.mp_chosen_isa().decode()

"""Fixtures for tests of the Triton kernels: in the interpreter, its bfloat16 repaired and accesses checked, or on a GPU."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import triton
import triton.language as tl
from triton.runtime import interpreter

from mp_kernels.triton import configurations
from mp_kernels.triton.configurations import Tile
from support import hardware, memory_rules

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=True)
def through_triton(on_triton: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Operators on CPU tensors run their Triton kernels, and every kernel is held to the memory rules."""
    if not INTERPRETED:
        yield
        return
    memory_rules.enforce(monkeypatch)

    patch, execute = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched: set[int] = set()

    def execute_afresh(self: interpreter.GridExecutor, *arguments: Any, **options: Any) -> None:
        patched.clear()
        execute(self, *arguments, **options)

    def patch_once(function: Callable) -> interpreter._LangPatchScope:
        if id(function.__globals__) in patched:
            return interpreter._LangPatchScope()
        patched.add(id(function.__globals__))
        return patch(function)

    # Otherwise every call inside a kernel patches triton.language again, which takes a third of all time.
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", execute_afresh)
    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "All-NaN slice encountered", RuntimeWarning
        )  # from tl.max of a block that is all NaN
        yield


def _widened(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
    """float32 values of a bfloat16 block, which the interpreter stores as the upper halves of float32 bits."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _narrowed(x: np.ndarray) -> np.ndarray:
    """bfloat16 bits, as the interpreter stores them, of float32 values: to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


@pytest.fixture
def honest_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repairs the interpreter, which multiplies bfloat16 matrices as integers and truncates float32 to bfloat16."""
    builder = interpreter.InterpreterBuilder
    dot, cast = builder.create_dot, builder.cast_impl

    def honest_dot(self: interpreter.InterpreterBuilder, a: Any, b: Any, *rest: Any) -> interpreter.TensorHandle:
        return dot(self, _widened(a), _widened(b), *rest)

    def honest_cast(self: interpreter.InterpreterBuilder, source: Any, target: Any) -> interpreter.TensorHandle:
        if (source.dtype.scalar, target.scalar) == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(_narrowed(source.data), tl.bfloat16)
        if (source.dtype.scalar, target.scalar) == (tl.bfloat16, tl.float32):
            return _widened(source)
        return cast(self, source, target)

    monkeypatch.setattr(builder, "create_dot", honest_dot)
    monkeypatch.setattr(builder, "cast_impl", honest_cast)


@pytest.fixture
def interpreted() -> None:
    """Only in the interpreter."""
    if not INTERPRETED:
        pytest.skip(hardware.REASON)


@pytest.fixture
def one_pass_in_float32(interpreted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass for float32 too, which shows errors that the rounding of half types would hide."""
    of_half = configurations.one_pass
    monkeypatch.setattr(
        configurations, "one_pass", lambda architecture, keys, width, _: of_half(architecture, keys, width, 2)
    )


@pytest.fixture(params=["one", "two"])
def passes(request: pytest.FixtureRequest) -> None:
    """Attention in one pass, and in two; on a GPU one pass is for half types alone."""
    if request.param == "two":
        request.getfixturevalue("small_tiles")
    elif INTERPRETED:
        request.getfixturevalue("one_pass_in_float32")
    else:
        request.getfixturevalue("monkeypatch").setattr(configurations, "processors_of", lambda device: 1)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in two passes with small tiles, so that short samples have several; not square, to tell sides apart."""
    monkeypatch.setattr(configurations, "one_pass", lambda *_: None)
    monkeypatch.setattr(configurations, "streaming", lambda *_: Tile(16, 32, 1))
    monkeypatch.setattr(configurations, "column_means", lambda *_: Tile(32, 16, 1))
    monkeypatch.setattr(configurations, "backward", lambda *_: (Tile(32, 16, 1), Tile(16, 32, 1)))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Names of the kernels that have run since the test began, in order."""
    started: list[str] = []
    place = (interpreter.GridExecutor, "__call__") if INTERPRETED else (triton.runtime.JITFunction, "run")
    execute = getattr(*place)

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        started.append(self.fn.__name__)
        return execute(self, *arguments, **options)

    monkeypatch.setattr(*place, counted)
    return lambda: started

"""How the tests of the Triton kernels run: in Triton's interpreter, mended and watched."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime import interpreter

from mp_kernels.triton import configurations
from mp_kernels.triton.configurations import Tile
from support import memory_rules


@pytest.fixture(autouse=True)
def through_triton(on_triton: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every operator on CPU tensors is its Triton kernel, and every kernel keeps the rules of memory."""
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

    # Every call inside a kernel would replace triton.language anew, which takes a third of all time.
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", execute_afresh)
    monkeypatch.setattr(interpreter, "_patch_lang", patch_once)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice encountered", RuntimeWarning)  # tl.max of nothing but NaN
        yield


def _widened(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
    """bfloat16, which the interpreter keeps as the upper half of a float32, as that float32."""
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _narrowed(x: np.ndarray) -> np.ndarray:
    """float32 as the interpreter keeps bfloat16, rounded to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


@pytest.fixture
def honest_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mends the interpreter, which multiplies matrices of bfloat16 as integers and cuts float32 off to make bfloat16."""
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
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in two passes, by tiles so small that short samples have many; not square, lest sides be mixed up."""
    monkeypatch.setattr(configurations, "one_pass", lambda *_: None)
    monkeypatch.setattr(configurations, "streaming", lambda *_: Tile(16, 32, 1))
    monkeypatch.setattr(configurations, "backward", lambda *_: Tile(32, 16, 1))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Names of the kernels that were really started since the test began, in their order."""
    started: list[str] = []
    execute = interpreter.GridExecutor.__call__

    def counted(self: interpreter.GridExecutor, *arguments: Any, **options: Any) -> None:
        started.append(self.fn.__name__)
        execute(self, *arguments, **options)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted)
    return lambda: started

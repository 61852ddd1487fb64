"""Triton's interpreter, mended where it differs from a device: assertions, TF32 products, and scalars under newer NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime import interpreter

from mp_kernels.triton import launching


def mend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mends the interpreter until ``monkeypatch`` is undone."""
    monkeypatch.setattr(interpreter.interpreter_builder, "options", interpreter.InterpreterOptions(**launching.CHECKED))
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_assert", _assert)
    monkeypatch.setattr(
        interpreter.InterpreterBuilder, "create_dot", _with_tf32(interpreter.InterpreterBuilder.create_dot)
    )
    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: type, scope: Any) -> None:
        patch_tensor(tensor, scope)
        # Triton 3.6 converts an array of one element as it is, which NumPy refuses from 2.4 on.
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch)


def _assert(self: interpreter.InterpreterBuilder, condition: interpreter.TensorHandle, message: str) -> None:
    assert condition.data.all(), message


def _tf32(x: np.ndarray) -> np.ndarray:
    """float32 rounded to the 10 bits of TF32's mantissa, ties away from zero, as ``cvt.rna.tf32`` does."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return np.where(np.isfinite(x), ((bits + 0x1000) & 0xFFFFE000).view(np.float32), x)


def _with_tf32(dot: Any) -> Any:
    """``create_dot`` that computes ``tf32x3`` as a device does, where the interpreter multiplies in float32.

    Each factor is split into two TF32 numbers, and the three largest of their products are added, small ones first.
    """

    def create_dot(
        self: interpreter.InterpreterBuilder, a: Any, b: Any, d: Any, precision: Any, *rest: Any
    ) -> interpreter.TensorHandle:
        if precision != ir.INPUT_PRECISION.TF32x3 or a.dtype.scalar != tl.float32:
            return dot(self, a, b, d, precision, *rest)
        (a_big, a_small), (b_big, b_small) = (
            (big := _tf32(x.data), _tf32(np.nan_to_num(x.data - big, posinf=0.0, neginf=0.0))) for x in (a, b)
        )
        small = np.nan_to_num(a_small @ b_big + a_big @ b_small, posinf=np.inf, neginf=-np.inf)
        return interpreter.TensorHandle(d.data + small + a_big @ b_big, tl.float32)

    return create_dot

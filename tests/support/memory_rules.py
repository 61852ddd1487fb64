"""Memory rules for kernels, which Triton's interpreter does not check, since it runs one program after the other.

In one launch, a kernel accesses nothing outside its tensors. It writes no element twice, nor after reading it. It reads an
element that was written only in the program that wrote it, and only after a barrier, as another thread may have written it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime import interpreter


class Span:
    """The memory of one tensor, and how a launch has accessed each of its elements."""

    def __init__(self, x: torch.Tensor) -> None:
        last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        self.begin, self.itemsize = x.data_ptr(), x.element_size()
        count = last + 1 if x.numel() else 0
        self.end = self.begin + count * self.itemsize
        self.was_read = np.zeros(count, bool)
        self.writer = np.full(count, -1)
        self.written_before_barrier = np.zeros(count, int)


class MemoryRules:
    """Checks of the accesses of one launch at a time."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.grid = (1, 1, 1)
        self.program = self.barriers = 0

    def begin_launch(self, arguments: Sequence[object]) -> None:
        self.spans = [Span(x) for x in arguments if isinstance(x, torch.Tensor)]

    def begin_program(self, x: int, y: int, z: int) -> None:
        self.program, self.barriers = (x * self.grid[1] + y) * self.grid[2] + z, 0

    def _touched(self, pointers: np.ndarray, mask: np.ndarray, verb: str) -> tuple[Span | None, np.ndarray]:
        active = pointers[np.broadcast_to(mask, pointers.shape).astype(bool)].astype(np.int64)
        if not active.size:
            return None, active
        first, last = active.min(), active.max()
        for span in self.spans:
            if span.begin <= first and last + span.itemsize <= span.end:
                return span, (active - span.begin) // span.itemsize
        raise AssertionError(f"{verb} outside every tensor of the kernel")

    def load(self, pointers: np.ndarray, mask: np.ndarray) -> None:
        span, elements = self._touched(pointers, mask, "reads")
        if span is None:
            return
        written = elements[span.writer[elements] >= 0]
        assert (span.writer[written] == self.program).all(), "reads what another program writes"
        assert (span.written_before_barrier[written] < self.barriers).all(), "reads what it wrote without a barrier"
        span.was_read[elements] = True

    def store(self, pointers: np.ndarray, mask: np.ndarray) -> None:
        span, elements = self._touched(pointers, mask, "writes")
        if span is None:
            return
        assert (span.writer[elements] < 0).all(), "writes an element twice"
        assert np.unique(elements).size == elements.size, "writes an element from two lanes"
        assert not span.was_read[elements].any(), "writes an element after it was read"
        span.writer[elements] = self.program
        span.written_before_barrier[elements] = self.barriers


def enforce(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every kernel that breaks a rule in the interpreter fail, until ``monkeypatch`` is undone."""
    rules = MemoryRules()
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    execute, set_grid_dim, set_grid_idx = executor.__call__, builder.set_grid_dim, builder.set_grid_idx
    load, store, barrier = builder.create_masked_load, builder.create_masked_store, builder.create_barrier

    def checked_execute(self: interpreter.GridExecutor, *arguments: Any, **options: Any) -> None:
        rules.begin_launch(arguments)
        execute(self, *arguments, **options)

    def checked_grid_dim(self: interpreter.InterpreterBuilder, *grid: int) -> None:
        rules.grid = grid
        set_grid_dim(self, *grid)

    def checked_grid_idx(self: interpreter.InterpreterBuilder, *place: int) -> None:
        rules.begin_program(*place)
        set_grid_idx(self, *place)

    def checked_load(self: interpreter.InterpreterBuilder, pointers: Any, mask: Any, *rest: Any) -> Any:
        rules.load(pointers.data, mask.data)
        return load(self, pointers, mask, *rest)

    def checked_store(self: interpreter.InterpreterBuilder, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        rules.store(pointers.data, mask.data)
        return store(self, pointers, value, mask, *rest)

    def counted_barrier(self: interpreter.InterpreterBuilder) -> None:
        rules.barriers += 1
        barrier(self)

    monkeypatch.setattr(executor, "__call__", checked_execute)
    for name, function in (
        ("set_grid_dim", checked_grid_dim),
        ("set_grid_idx", checked_grid_idx),
        ("create_masked_load", checked_load),
        ("create_masked_store", checked_store),
        ("create_barrier", counted_barrier),
    ):
        monkeypatch.setattr(builder, name, function)

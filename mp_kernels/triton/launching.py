"""Launches of kernels: on their tensors' device, with the warps and stages of a tile, and never with an empty grid."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from .configurations import Tile

# ``tl.device_assert`` is compiled in, so that no kernel reaches outside its tensors; checks of integer overflow are not.
CHECKED = {"debug": True, "sanitize_overflow": False}
LONGEST_AXIS = 65_535  # the most programs along the second and the third axis of a grid, on CUDA devices


def launch(kernel: triton.JITFunction, grid: tuple[int, ...], *arguments: Any, tile: Tile, **constants: Any) -> None:
    """Starts ``kernel`` with the programs of ``grid``; an empty grid starts nothing.

    Args:
        kernel: function decorated with ``triton.jit``.
        grid: number of programs along each axis.
        arguments: arguments of the kernel; it runs on the device of the first tensor among them.
        tile: numbers of warps and pipeline stages.
        constants: compile-time constants of the kernel.

    Raises:
        ValueError: the batch has more samples than a grid can hold.
    """
    if 0 in grid:
        return
    if max(grid[1:], default=0) > LONGEST_AXIS:
        raise ValueError(
            f"a GPU takes at most {LONGEST_AXIS:,} samples at once; got {max(grid[1:]):,}, split the batch"
        )
    with _on_device_of(next(x for x in arguments if isinstance(x, Tensor))):
        kernel[grid](*arguments, **constants, num_warps=tile.num_warps, num_stages=tile.num_stages, **CHECKED)


def _on_device_of(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def bisection_stride(most: int) -> int:
    """The first stride, halved from step to step, that finds a number up to ``most``: its highest bit, 0 for 0."""
    return 1 << most.bit_length() - 1 if most > 0 else 0


def padded_width(size: int, least: int = 16) -> int:
    """Smallest power of two that holds ``size`` elements, but at least ``least``, the shortest side of a ``tl.dot``."""
    return max(least, triton.next_power_of_2(size))

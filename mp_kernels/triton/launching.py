"""How a kernel is started: on its tensors' device, with a tile from the table, and never with an empty grid."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from .configurations import Tile

LONGEST_AXIS = 65_535  # programs along the second and the third axis of a grid, on CUDA devices


def launch(kernel: triton.JITFunction, grid: tuple[int, ...], *arguments: Any, tile: Tile, **constants: Any) -> None:
    """Starts ``kernel`` on ``grid`` programs; an empty grid starts nothing.

    Args:
        kernel: the kernel.
        grid: programs along each axis.
        arguments: its arguments; the first tensor among them says on which device it runs.
        tile: warps and pipeline stages.
        constants: its compile-time constants.

    Raises:
        ValueError: a batch of more samples than a device can be given at once.
    """
    if 0 in grid:
        return
    if max(grid[1:], default=0) > LONGEST_AXIS:
        raise ValueError(
            f"a GPU takes at most {LONGEST_AXIS:,} samples at once; got {max(grid[1:]):,}, split the batch"
        )
    with _on_device_of(next(x for x in arguments if isinstance(x, Tensor))):
        kernel[grid](*arguments, **constants, num_warps=tile.num_warps, num_stages=tile.num_stages)


def _on_device_of(x: Tensor) -> AbstractContextManager:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def padded_width(size: int, least: int = 16) -> int:
    """The power of two that holds ``size`` elements, at least ``least`` (16: the smallest side of a tensor core's tile)."""
    return max(least, triton.next_power_of_2(size))

"""Tile sizes, warps and stages by architecture: a plain table, chosen by reasoning and not by trials at run time.

What the attention kernels must fit, for ``n`` keys of ``d`` elements in half precision:

* One pass keeps all keys and values of a head in shared memory, ``4 n d`` bytes, and a block of probabilities beside them.
  512 keys of 64 make 128 KiB: they fit sm_80 (163 KiB a program), sm_90 and sm_100 (227), not sm_86, sm_89 and sm_120
  (99), and not gfx942 (64 KiB).
* A block of scores lives in registers as float32, twice while it is exponentiated: ``8 BLOCK_Q n`` bytes over
  ``32 num_warps`` threads of at most 255 registers each, and few enough that a processor holds several programs:
  32 x 128 scores on 4 warps, 32 x 256 on 8 (on 4 they fit, at half the occupancy), 32 x 512 on 16.
* Beyond that, blocks of keys pass through a tile that leaves room for two programs on a processor.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """What one program works on at a time.

    Attributes:
        rows: queries, or rows, of a block.
        columns: keys, or columns, of a block.
        num_warps, num_stages: of the program.
    """

    rows: int
    columns: int
    num_warps: int
    num_stages: int = 1


# Shared memory that one program may use, in KiB.
SHARED_MEMORY = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}


@functools.cache
def architecture_of(device: torch.device) -> str:
    """The entry of the table for ``device``; an unknown one is treated like the smallest of its kind."""
    if device.type != "cuda":
        return "sm_80"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return "gfx942"
    name = f"sm_{properties.major}{properties.minor}"
    return name if name in SHARED_MEMORY else "sm_86"


@functools.cache
def processors_of(device: torch.device) -> int:
    """Processors of ``device`` that run programs side by side."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


# Queries by keys, and warps. A block of 64 queries is what the tensor cores of sm_100 take in one instruction.
_ONE_PASS = {
    "sm_100": ((64, 128, 8), (64, 256, 8), (32, 512, 16)),
    "others": ((32, 128, 4), (32, 256, 8), (32, 512, 16)),
}
# Narrow heads: the compiler keeps keys and values as operands in registers, so the scores must take fewer.
_ONE_PASS_NARROW = {
    "gfx942": ((32, 128, 4), (16, 256, 4)),
    "others": ((32, 128, 4), (16, 256, 8), (16, 512, 16)),
}


def one_pass(architecture: str, keys: int, width: int, itemsize: int) -> Tile | None:
    """Tile of the one-pass attention for at most ``keys`` keys of padded ``width``; None where they do not fit."""
    room = SHARED_MEMORY[architecture] * 1024
    table = _ONE_PASS_NARROW if width <= 32 else _ONE_PASS
    for rows, most_keys, num_warps in table.get(architecture, table["others"]):
        needed = (2 * keys * width + rows * keys) * itemsize
        if keys <= most_keys and needed <= room:
            return Tile(rows, keys, num_warps)
    return None


def streaming(architecture: str, width: int, itemsize: int) -> Tile:
    """Tile of the kernels that pass blocks of keys by blocks of queries, forward and column means."""
    if itemsize > 2 or architecture == "gfx942":
        return Tile(32, 32, 4)
    return Tile(64, 64, 4, 2) if width == 64 else Tile(64, 32, 4, 2)


def backward(architecture: str, width: int, itemsize: int) -> Tile:
    """Tile of the backward kernels, which hold five blocks at once."""
    if itemsize > 2:
        return Tile(32, 32, 4)
    return Tile(64, 32, 4) if width == 64 else Tile(32, 32, 4)


# A row, or a piece of one, that passes through registers once: as wide as a few 16-byte accesses a thread.
ROWS = Tile(1, 1024, 4)
# Rows of a sample are added in blocks, so that several loads are in flight.
MEANS = Tile(16, 128, 4)
# One program walks over all rows of a usual batch; a block a step, with as many warps as a program may have.
COMPACTION = Tile(1, 4096, 16)
ONE_PROGRAM_ROWS = 32768
# Every row of a sample is compared with every other, a block with a block.
RANKING = Tile(1, 64, 4)
# Samples by hidden units: few units a program, so that many programs share the reading of the dense layer's weights.
HEAD = Tile(16, 32, 4)


def one_row(width: int) -> Tile:
    """Tile of the kernels that keep a whole row of padded ``width`` in registers: 8 elements a thread or so."""
    return Tile(1, width, min(16, max(1, width // 256)))

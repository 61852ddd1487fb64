"""Tile sizes, warps and stages by architecture: a plain table, derived from the limits below and not tuned at run time.

The limits of the attention kernels, for ``n`` keys of ``d`` elements in half precision:

* One pass keeps all keys and values of a head in shared memory, ``4 n d`` bytes, and a block of probabilities beside them.
* A block of scores is held in registers as float32, twice while it is exponentiated: ``8 BLOCK_Q n`` bytes over
  ``32 num_warps`` threads of at most 255 registers each, and few enough that a processor holds several programs. This
  allows 32 x 128 scores on 4 warps. More keys pass block by block through a tile that leaves room for two programs on a
  processor.

float32 always takes two passes: a block of all keys in float32 would spill registers by the thousand. So a sample's results
in float32 do not depend on the samples beside it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tile:
    """Block that a program works on at a time, and the program's resources.

    Attributes:
        rows: number of queries, or of rows, in a block.
        columns: number of keys, or of columns, in a block.
        num_warps: warps of the program.
        num_stages: stages of the pipeline that loads blocks ahead.
    """

    rows: int
    columns: int
    num_warps: int
    num_stages: int = 1


# Shared memory that one program may use, in KiB.
SHARED_MEMORY = {"sm_80": 163, "sm_86": 99, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}


@functools.cache
def architecture_of(device: torch.device) -> str:
    """Key of ``SHARED_MEMORY`` for ``device``; an unknown CUDA device counts as sm_86, the one with the least memory."""
    if device.type != "cuda":
        return "sm_80"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return "gfx942"
    name = f"sm_{properties.major}{properties.minor}"
    return name if name in SHARED_MEMORY else "sm_86"


def precision(architecture: str) -> str:
    """Precision in which tensor cores multiply float32 matrices; products of half types are exact in any.

    NVIDIA's multiply TF32, so each factor is split into two such numbers and three products are added, which loses little
    more than float32 itself. AMD's multiply float32.
    """
    return "tf32x3" if architecture.startswith("sm_") else "ieee"


@functools.cache
def processors_of(device: torch.device) -> int:
    """Number of processors of ``device`` that run programs side by side; 1 if it is not a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


# Queries in a block, maximum number of keys, and warps. The tensor cores of sm_90 and sm_100 take 64 queries in one
# instruction; 64 x 128 scores would take registers for which sm_90 holds fewer programs.
_ONE_PASS_USUALLY = ((32, 128, 4),)
_ONE_PASS = {"sm_90": ((64, 64, 4), (32, 128, 4)), "sm_100": ((64, 64, 4), (64, 128, 8))}
# For heads of 17 to 32 elements the compiler keeps keys and values in registers as well, so there is room for fewer scores.
_ONE_PASS_NARROW = {"sm_86": ((16, 128, 4),), "sm_89": ((16, 128, 4),)}


# Keys in the narrowest tile that is launched: shorter samples find theirs within the kernel, if there is one.
FEWEST_KEYS = 64


def one_pass(architecture: str, keys: int, width: int, itemsize: int) -> Tile | None:
    """Tile of the one-pass attention for at most ``keys`` keys of padded ``width``; None if they do not fit.

    ``itemsize`` is the size of an element in bytes, here and below. In float32 none fit.
    """
    if itemsize > 2:
        return None
    room = SHARED_MEMORY[architecture] * 1024
    table = _ONE_PASS if width > 32 else _ONE_PASS_NARROW if width > 16 else {}
    for rows, most_keys, num_warps in table.get(architecture, _ONE_PASS_USUALLY):
        needed = (2 * keys * width + rows * keys) * itemsize
        if keys <= most_keys and needed <= room:
            return Tile(rows, keys, num_warps)
    return None


def short_rows(architecture: str, tile: Tile, width: int) -> tuple[int, int]:
    """Queries in a block of samples of at most 32 keys, and of at most 64, where one pass takes ``tile`` for longer ones.

    0: they take the next tile. For the narrowest heads, more tiles would take registers that are not there.
    """
    if width <= 16:
        return 0, 0
    of_64 = 0 if tile.columns <= 64 else tile.rows
    return (16, 64 if of_64 else 0) if architecture == "sm_90" else (0, of_64)


# Queries and keys in a block of streaming attention in float32, by architecture and width, where the usual would spill.
_STREAMING_FLOAT32 = {("sm_90", 32): (32, 16), ("sm_100", 128): (16, 16), ("sm_120", 64): (32, 16)}


def streaming(architecture: str, width: int, itemsize: int, placed: bool = False) -> Tile:
    """Tile of streaming attention, which passes over keys block by block.

    With ``placed``, here and below, scores depend on the rows' positions too, which takes more registers.
    """
    if itemsize > 2 and placed:
        return Tile(16, 32, 4) if width > 64 else Tile(32, 32, 8)
    if itemsize > 2:
        rows, columns = _STREAMING_FLOAT32.get((architecture, width), (16 if width > 64 else 32, 32))
        return Tile(rows, columns, 4)
    if architecture == "gfx942":
        return Tile(32, 32, 4)
    if architecture == "sm_100" and (width < 64 or placed):  # a block loaded ahead would spill
        return Tile(64, 32, 8 if placed else 4)
    if width == 64 and not placed:
        return Tile(64, 64, 4, 3 if architecture == "sm_90" else 2)
    return Tile(64, 32, 4, 2)


def column_means(architecture: str, width: int, itemsize: int, placed: bool = False) -> Tile:
    """Tile of the column means, which pass over queries block by block."""
    if architecture == "sm_90" and width == 64 and not placed:  # as measured there; 64 keys reach its tensor cores
        return Tile(32, 64, 4) if itemsize > 2 else Tile(128, 64, 4, 2)
    return streaming(architecture, width, itemsize, placed)


def masks_apart(architecture: str, itemsize: int) -> bool:
    """Whether streaming attention has a loop without masks for the blocks of keys that are whole.

    On an H100 that saves a tenth of the time in half types; in float32 it takes longer, and elsewhere the second loop would
    spill registers.
    """
    return architecture == "sm_90" and itemsize == 2


def backward(architecture: str, width: int, itemsize: int, placed: bool = False) -> tuple[Tile, Tile]:
    """Tiles of the backward kernels, the queries' and the keys', smaller because they hold five blocks at once."""
    if itemsize > 2 and width > 64:
        return Tile(16, 16, 4) if architecture == "gfx942" else Tile(16, 32, 8), Tile(16, 16, 4)
    if width <= 16:
        tile = Tile(16, 16, 4) if itemsize > 2 else Tile(32, 16, 4)
    elif itemsize > 2:
        tile = Tile(16, 32, 4)
    else:
        tile = Tile(64, 32, 4) if width == 64 else Tile(32, 32, 4)
    if placed and itemsize > 2:
        return Tile(16, 16, 4), tile
    if placed and width == 64 and architecture in ("sm_100", "sm_120"):  # more would spill
        return Tile(32, 16, 4), tile
    return tile, tile


# A row, or a piece of one, that passes through registers once: a few accesses of 16 bytes for each thread.
ROWS = Tile(1, 1024, 4)
# One program walks over the samples of a batch, block by block.
SAMPLES = Tile(1, 128, 4)
# Rows of a sample are added block by block, so that several loads are in flight.
MEANS = Tile(16, 128, 4)
# Blocks of rows of a batch of so many samples that a program for each, which adds up all others, would take too long.
COMPACTION = Tile(1, 4096, 8)
MOST_SAMPLES_AT_ONCE = 4096
# Every row of a sample is compared with every other, block by block.
RANKING = Tile(1, 64, 4)
# Samples by hidden units: few units for each program, so that many programs read the dense layer's weights in parallel.
HEAD = Tile(16, 32, 4, 4)


def samples(rows: int) -> Tile:
    """Tile of the kernels that keep a sample's rows, where samples have so many on average."""
    return Tile(1, 128, 4) if rows <= 256 else Tile(1, 1024, 4)


def one_row(width: int) -> Tile:
    """Tile of the kernels that keep a whole row of padded ``width`` in registers: about 8 elements for each thread."""
    return Tile(1, width, min(16, max(1, width // 256)))

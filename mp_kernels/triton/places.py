"""Positions of rows in their texts, for the attention kernels: bias by distance, windows, and the rows in a window's reach.

Positions rise within a sample and have gaps where tokens were pruned, so the rows within a window of some others follow
each other, and are found by bisection.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import LOG2_E

WIDEST_WINDOW = 1 << 30  # any wider one sees as much, and positions plus this still fit int32


@triton.jit
def rows_below(p_positions, rows, places):
    """Number of a sample's rows whose positions lie below each of ``places``, a scalar or a block.

    Between its first and its last row a sample misses some positions. If it missed none, the number would follow from the
    first position; so it is that or up to as many less as are missing, and the bisection is over these only.
    """
    first = tl.load(p_positions, mask=rows > 0, other=0)
    last = tl.load(p_positions + rows - 1, mask=rows > 0, other=-1)
    missing = last - first + 1 - rows
    tl.device_assert(missing >= 0, "positions must rise within each sample")
    below = tl.maximum(places - first - missing, 0)  # at least; and at most as many more as are still open
    unsure = missing
    while unsure > 0:
        half = (unsure + 1) // 2
        row = below + half - 1
        position = tl.load(p_positions + row, mask=row < rows, other=2147483647)
        below = tl.where(position < places, below + half, below)
        unsure -= half
    return tl.minimum(below, rows)


@triton.jit
def rows_in_reach(
    p_own, first, own_rows, p_others, other_rows, window, BLOCK: tl.constexpr, BLOCK_OTHERS: tl.constexpr
):
    """First row, a multiple of ``BLOCK_OTHERS``, and end of the others that one of ``BLOCK`` rows from ``first`` on sees."""
    lowest = tl.load(p_own + first)
    highest = tl.load(p_own + tl.minimum(first + BLOCK, own_rows) - 1)
    begin = rows_below(p_others, other_rows, lowest - window)
    end = rows_below(p_others, other_rows, highest + window + 1)
    return begin // BLOCK_OTHERS * BLOCK_OTHERS, end


@triton.jit
def queries_seeing(p_positions_q, queries, b_positions, window, HAS_WINDOW: tl.constexpr):
    """Number, as a divisor, of the queries that see a key, for a block of keys; without a window all queries see all."""
    count = queries
    if HAS_WINDOW:
        count = rows_below(p_positions_q, queries, b_positions + window + 1)
        count -= rows_below(p_positions_q, queries, b_positions - window)
    return tl.maximum(count, 1).to(tl.float32)


@triton.jit
def entry_of(b_distance, reach):
    """Entry of each distance in a table of those from ``-reach`` to ``reach``, to which farther ones are clamped."""
    return tl.minimum(tl.maximum(b_distance, -reach), reach) + reach


@triton.jit
def placed_scores(b_s, b_distance, p_bias, reach, window, HAS_BIAS: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """Scores in units of log 2 with the bias of each pair's distance, and minus infinity outside the window."""
    if HAS_BIAS:
        b_s += tl.load(p_bias + entry_of(b_distance, reach)) * LOG2_E
    if HAS_WINDOW:
        b_s = tl.where(tl.abs(b_distance) <= window, b_s, float("-inf"))
    return b_s


def _rows_in_order(cu_seqlens: Tensor, total: int) -> Tensor:
    rows = torch.arange(total, device=cu_seqlens.device)
    sample = torch.searchsorted(cu_seqlens, rows, right=True) - 1
    return (rows - cu_seqlens[sample]).int()


def places_of(
    cu_seqlens: Tensor,
    total: int,
    positions_q: Tensor | None,
    positions: Tensor | None,
    bias: Tensor | None,
    buckets: Tensor | None,
    window: int,
) -> tuple[tuple[Tensor | int, ...], dict[str, bool]]:
    """Arguments ``p_positions_q`` to ``window`` of the kernels, and their constants.

    ``p_bias`` becomes float32 ``[heads, 2 R + 1]``, the bias of each distance. Pointers that are not read get a stand-in.
    """
    constants = {"HAS_BIAS": bias is not None, "HAS_WINDOW": window >= 0}
    if not any(constants.values()):
        return (cu_seqlens, cu_seqlens, cu_seqlens, 0, 0), constants
    if positions is None or positions_q is None:
        positions = positions_q = _rows_in_order(cu_seqlens, total)
    table, reach = cu_seqlens, 0
    if bias is not None and buckets is not None:
        table, reach = bias.float().index_select(1, buckets), buckets.shape[0] // 2
    return (positions_q.contiguous(), positions.contiguous(), table, reach, min(window, WIDEST_WINDOW)), constants

"""Parts that the attention kernels share: spans of samples, and tiles of rows of a head."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def sample_span(p_cu_seqlens, sample, total):
    """First row of a sample (int64) and number of its rows (int32), which must lie within ``total`` rows."""
    begin, end = tl.load(p_cu_seqlens + sample), tl.load(p_cu_seqlens + sample + 1)
    tl.device_assert(
        (begin >= 0) & (begin <= end) & (end <= total), "cu_seqlens must ascend from 0 to the number of rows"
    )
    return begin.to(tl.int64), end - begin


@triton.jit
def rows_of_head(first, count, row_stride, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Offsets of a tile, rows ``first`` to ``first + BLOCK`` of a head, and a mask of those that lie below row ``count``."""
    rows = first + tl.arange(0, BLOCK)
    columns = tl.arange(0, BLOCK_D)
    inside = rows[:, None] < count
    if HEAD_DIM < BLOCK_D:
        inside &= columns[None, :] < HEAD_DIM
    return rows[:, None].to(tl.int64) * row_stride + columns[None, :], inside


@triton.jit
def load_rows(
    p_x,
    row_stride,
    first,
    count,
    BLOCK: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IS_WHOLE: tl.constexpr = False,
):
    """Tile ``[BLOCK, BLOCK_D]`` of the rows from ``first`` on, with zeros from row ``count`` on; IS_WHOLE: it has none."""
    offsets, inside = rows_of_head(first, count, row_stride, BLOCK, HEAD_DIM, BLOCK_D)
    if IS_WHOLE and HEAD_DIM == BLOCK_D:
        return tl.load(p_x + offsets)
    return tl.load(p_x + offsets, mask=inside, other=0.0)


@triton.jit
def store_rows(p_x, row_stride, first, count, b_x, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes the rows of a tile ``[BLOCK, BLOCK_D]`` that lie below row ``count``."""
    offsets, inside = rows_of_head(first, count, row_stride, BLOCK, HEAD_DIM, BLOCK_D)
    tl.store(p_x + offsets, b_x.to(p_x.dtype.element_ty), mask=inside)


@triton.jit
def fill_rows(
    p_x, row_stride, p_beside, begin, end, BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Writes zeros, for a sample that is skipped, to rows ``begin`` to ``end`` of a head and of the vector ``p_beside``."""
    for first in range(begin, end, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        store_rows(p_x, row_stride, first, end, tl.zeros([BLOCK, BLOCK_D], tl.float32), BLOCK, HEAD_DIM, BLOCK_D)
        tl.store(p_beside + rows, tl.zeros([BLOCK], tl.float32), mask=rows < end)

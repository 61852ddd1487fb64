"""Sizes of a padded batch, and its real tokens packed: all that the host and the embeddings want, in three launches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configurations, launching
from .tiles import sample_span

MOST_XS = 3  # integers that go along with a mask


@triton.jit
def real_columns(p_mask, first, width, BLOCK: tl.constexpr):
    """A block of columns from ``first`` on, and which of them hold real tokens."""
    columns = first + tl.arange(0, BLOCK)
    inside = columns < width
    return columns, inside & (tl.load(p_mask + columns, mask=inside, other=0) != 0)


@triton.jit
def widened(low, high, p_x, columns, real):
    """The range from ``low`` to ``high``, widened by the values of real columns."""
    b_x = tl.load(p_x + columns, mask=real, other=0).to(tl.int64)
    return tl.minimum(low, tl.min(b_x, 0)), tl.maximum(high, tl.max(b_x, 0))


_STRIDES = ["mask_stride", "x_stride", "y_stride", "z_stride"]


@triton.jit(do_not_specialize=[*_STRIDES, "batch", "width"])
def measure_rows(
    p_mask,
    p_x,
    p_y,
    p_z,
    p_facts,
    mask_stride,
    x_stride,
    y_stride,
    z_stride,
    batch,
    width,
    XS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (sample): facts ``[2 + 2 XS, batch]``, the sample's tokens, the columns they span, and each x's range."""
    sample = tl.program_id(0).to(tl.int64)
    p_mask += sample * mask_stride
    p_x += sample * x_stride
    p_y += sample * y_stride
    p_z += sample * z_stride
    count = tl.full([], 0, tl.int32)
    begin = tl.full([], 2147483647, tl.int32)
    end = tl.full([], 0, tl.int32)
    zero = tl.full([], 0, tl.int64)
    x_low, y_low, z_low = zero, zero, zero
    x_high, y_high, z_high = zero, zero, zero
    for first in range(0, width, BLOCK):
        columns, real = real_columns(p_mask, first, width, BLOCK)
        count += tl.sum(real.to(tl.int32), 0)
        begin = tl.minimum(begin, tl.min(tl.where(real, columns, 2147483647), 0))
        end = tl.maximum(end, tl.max(tl.where(real, columns + 1, 0), 0))
        if XS > 0:
            x_low, x_high = widened(x_low, x_high, p_x, columns, real)
        if XS > 1:
            y_low, y_high = widened(y_low, y_high, p_y, columns, real)
        if XS > 2:
            z_low, z_high = widened(z_low, z_high, p_z, columns, real)
    p_facts += sample
    tl.store(p_facts, count.to(tl.int64))
    tl.store(p_facts + batch, tl.maximum(end - begin, 0).to(tl.int64))
    if XS > 0:
        tl.store(p_facts + 2 * batch, x_low)
        tl.store(p_facts + 3 * batch, x_high)
    if XS > 1:
        tl.store(p_facts + 4 * batch, y_low)
        tl.store(p_facts + 5 * batch, y_high)
    if XS > 2:
        tl.store(p_facts + 6 * batch, z_low)
        tl.store(p_facts + 7 * batch, z_high)


@triton.jit(do_not_specialize=["batch"])
def sum_measures(p_facts, p_cu_seqlens, p_extents, batch, FACTS: tl.constexpr, BLOCK: tl.constexpr):
    """One program: the starts of all samples, and the extents, from the facts of each sample."""
    total = tl.full([], 0, tl.int32)
    longest = tl.full([], 0, tl.int32)
    shortest = tl.full([], 2147483647, tl.int32)
    shortest_row = tl.full([], 0, tl.int32)
    tl.store(p_cu_seqlens, total)
    for first in range(0, batch, BLOCK):
        samples = first + tl.arange(0, BLOCK)
        inside = samples < batch
        b_counts = tl.load(p_facts + samples, mask=inside, other=0).to(tl.int32)
        tl.store(p_cu_seqlens + 1 + samples, total + tl.cumsum(b_counts, 0), mask=inside)
        total += tl.sum(b_counts, 0)
        longest = tl.maximum(longest, tl.max(b_counts, 0))
        b_counts = tl.where(inside, b_counts, 2147483647)
        fewest = tl.min(b_counts, 0)
        row = tl.min(tl.where(b_counts == fewest, samples, 2147483647), 0)
        shortest_row = tl.where(fewest < shortest, row, shortest_row)
        shortest = tl.minimum(fewest, shortest)
    tl.store(p_extents, total.to(tl.int64))
    tl.store(p_extents + 1, longest.to(tl.int64))
    tl.store(p_extents + 2, tl.where(batch > 0, shortest, 0).to(tl.int64))
    tl.store(p_extents + 3, shortest_row.to(tl.int64))
    for fact in tl.static_range(1, FACTS):  # the span, then the lowest and the highest of each x
        p_facts += batch
        extreme = tl.full([], 0, tl.int64)
        for first in range(0, batch, BLOCK):
            samples = first + tl.arange(0, BLOCK)
            b_fact = tl.load(p_facts + samples, mask=samples < batch, other=0)
            b_widest = tl.min(b_fact, 0) if fact % 2 == 0 else tl.max(b_fact, 0)
            extreme = tl.minimum(extreme, b_widest) if fact % 2 == 0 else tl.maximum(extreme, b_widest)
        tl.store(p_extents + 3 + fact, extreme)


@triton.jit(do_not_specialize=[*_STRIDES, "total", "width"])
def pack_rows(
    p_mask,
    p_x,
    p_y,
    p_z,
    p_cu_seqlens,
    p_index,
    p_places,
    p_packed,
    mask_stride,
    x_stride,
    y_stride,
    z_stride,
    total,
    width,
    XS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (sample): its real tokens' places in the padded batch and in the sample, and ``p_packed [XS, total]``."""
    sample = tl.program_id(0).to(tl.int64)
    begin, length = sample_span(p_cu_seqlens, sample, total)
    end = begin + length
    p_mask += sample * mask_stride
    p_x += sample * x_stride
    p_y += sample * y_stride
    p_z += sample * z_stride
    first_column = tl.full([], 2147483647, tl.int32)
    for first in range(0, width, BLOCK):
        columns, real = real_columns(p_mask, first, width, BLOCK)
        keep = real.to(tl.int32)
        rows = begin + tl.cumsum(keep, 0) - keep
        begin += tl.sum(keep, 0)
        tl.device_assert(begin <= end, "cu_seqlens must count the tokens of attention_mask")
        first_column = tl.minimum(first_column, tl.min(tl.where(real, columns, 2147483647), 0))
        tl.store(p_index + rows, sample * width + columns, mask=real)
        tl.store(p_places + rows, (columns - first_column).to(tl.int64), mask=real)
        if XS > 0:
            tl.store(p_packed + rows, tl.load(p_x + columns, mask=real, other=0).to(tl.int64), mask=real)
        if XS > 1:
            tl.store(p_packed + total + rows, tl.load(p_y + columns, mask=real, other=0).to(tl.int64), mask=real)
        if XS > 2:
            tl.store(p_packed + 2 * total + rows, tl.load(p_z + columns, mask=real, other=0).to(tl.int64), mask=real)


def _columns_together(mask: Tensor, xs: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """The mask and three integers, as many as there are and the mask as a stand-in, and their strides from row to row."""
    together = [x if x.stride(1) == 1 else x.contiguous() for x in (mask, *xs)]
    together += together[:1] * (MOST_XS - len(xs))
    return together, [x.stride(0) for x in together]


def measure_padded(attention_mask: Tensor, xs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    batch, width = attention_mask.shape
    facts = 2 + 2 * len(xs)
    of_samples = attention_mask.new_empty(facts, batch, dtype=torch.int64)
    cu_seqlens = attention_mask.new_empty(batch + 1, dtype=torch.int32)
    extents = attention_mask.new_empty(facts + 3, dtype=torch.int64)
    pointers, strides = _columns_together(attention_mask, xs)
    tile = configurations.ROWS
    launching.launch(
        measure_rows,
        (batch,),
        *(*pointers, of_samples, *strides, batch, width),
        tile=tile,
        XS=len(xs),
        BLOCK=tile.columns,
    )
    tile = configurations.SAMPLES
    launching.launch(
        sum_measures, (1,), *(of_samples, cu_seqlens, extents, batch), tile=tile, FACTS=facts, BLOCK=tile.columns
    )
    return cu_seqlens, extents


def pack_padded(
    attention_mask: Tensor, cu_seqlens: Tensor, total: int, xs: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    batch, width = attention_mask.shape
    index, places = (cu_seqlens.new_empty(total, dtype=torch.int64) for _ in range(2))
    packed = cu_seqlens.new_empty(len(xs), total, dtype=torch.int64)
    pointers, strides = _columns_together(attention_mask, xs)
    tile = configurations.ROWS
    launching.launch(
        pack_rows,
        (batch,),
        *(*pointers, cu_seqlens.contiguous(), index, places, packed, *strides, total, width),
        tile=tile,
        XS=len(xs),
        BLOCK=tile.columns,
    )
    return index, places, packed

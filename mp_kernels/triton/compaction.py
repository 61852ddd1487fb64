"""Compaction of a packed batch: which rows are kept, and where the samples then begin.

Token pruning and sample exits are one compaction over different flags. In a usual batch a program owns a sample: one launch
finds the rows that each sample keeps, where there is a choice, and one places them behind those of the samples before it,
whose counts every program adds up for itself; it may move a tensor's rows there as well. A batch of very many samples takes
three launches: one for the flags and counts of each block of rows, one for the places of the rows, one for the samples.
There are no atomics, so no result depends on timing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import configurations, launching
from .rows import as_integers, ragged_gather
from .tiles import sample_span


@triton.jit
def samples_of_rows(rows, p_cu_seqlens, batch, stride):
    """Sample of each row, found by bisection: the last one that begins at the row or before it.

    stride: the largest power of two below ``batch``; 0 for a lone sample.
    """
    sample = tl.zeros_like(rows)
    while stride > 0:
        later = sample + stride
        begins = tl.load(p_cu_seqlens + later, mask=later < batch, other=2147483647)
        sample = tl.where(begins <= rows, later, sample)
        stride = stride // 2
    return sample


@triton.jit
def mean_of_heads(p_importance, rows, inside, head_stride, HEADS: tl.constexpr):
    """Mean over the heads, summed in their order."""
    b_sum = tl.load(p_importance + rows, mask=inside, other=0.0)
    for head in tl.static_range(1, HEADS):
        b_sum += tl.load(p_importance + head * head_stride + rows, mask=inside, other=0.0)
    return b_sum * (1.0 / HEADS)


@triton.jit
def kept_rows(
    rows,
    p_importance,
    p_flags,
    p_cu_seqlens,
    p_stays,
    head_stride,
    threshold,
    total,
    batch,
    stride,
    HEADS: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    HAS_STAYS: tl.constexpr,
):
    """1 for each row that is kept and 0 for the others, and the first row with NaN importance (2147483647 if there is none).

    HEADS is 0 if importance does not decide. Flag 2 marks a row that is kept with NaN importance. Rows beyond the last
    sample belong to none.
    """
    inside = rows < tl.minimum(total, tl.load(p_cu_seqlens + batch))
    keep = inside
    broken = rows < 0
    if HEADS > 0 or HAS_STAYS:
        sample = samples_of_rows(rows, p_cu_seqlens, batch, stride)
    if HEADS > 0:
        b_importance = mean_of_heads(p_importance, rows.to(tl.int64), inside, head_stride, HEADS)
        protected = rows == tl.load(p_cu_seqlens + sample, mask=inside, other=0)
        broken = inside & (b_importance != b_importance)
        keep = inside & ((b_importance >= threshold) | protected)
    if HAS_FLAGS:
        flags = tl.load(p_flags + rows, mask=inside, other=0)
        broken = flags == 2
        keep = flags != 0
    if HAS_STAYS:
        stays = tl.load(p_stays + sample, mask=inside, other=0) != 0
        broken = broken & stays
        keep = keep & stays
    return keep.to(tl.int32), tl.min(tl.where(broken, rows, 2147483647), 0)


@triton.jit
def bound_samples(
    p_places,
    p_cu_seqlens,
    p_stays,
    p_new_cu_seqlens,
    p_samples,
    p_extents,
    kept,
    first_nan,
    total,
    batch,
    BLOCK: tl.constexpr,
    HAS_STAYS: tl.constexpr,
):
    """Writes the starts and numbers of the samples that stay, and the extents, from the places of all rows."""
    count = tl.full([], 0, tl.int32)
    longest = tl.full([], 0, tl.int32)
    for first in range(0, batch, BLOCK):
        samples = first + tl.arange(0, BLOCK)
        inside = samples < batch
        stays = inside
        if HAS_STAYS:
            stays = tl.load(p_stays + samples, mask=inside, other=0) != 0
        first_row = tl.load(p_cu_seqlens + samples, mask=inside, other=0)
        beyond = tl.load(p_cu_seqlens + samples + 1, mask=inside, other=0)
        ascend = (first_row >= 0) & (first_row <= beyond) & (beyond <= total)
        tl.device_assert(ascend, "cu_seqlens must ascend from 0 to the number of rows")
        begins = tl.load(p_places + first_row, mask=inside, other=0)
        ends = tl.load(p_places + beyond, mask=inside, other=0)
        staying = stays.to(tl.int32)
        rank = count + tl.cumsum(staying, 0) - staying
        tl.store(p_new_cu_seqlens + rank, begins, mask=stays)
        tl.store(p_samples + rank, samples.to(tl.int64), mask=stays)
        longest = tl.maximum(longest, tl.max(tl.where(stays, ends - begins, 0), 0))
        count += tl.sum(staying, 0)
    # Buffers are defined to the end: the last start is repeated, and sample 0 fills the rest.
    for first in range(0, batch + 1, BLOCK):
        beyond = first + tl.arange(0, BLOCK)
        tl.store(
            p_new_cu_seqlens + beyond, tl.zeros([BLOCK], tl.int32) + kept, mask=(beyond >= count) & (beyond <= batch)
        )
        tl.store(p_samples + beyond, tl.zeros([BLOCK], tl.int64), mask=(beyond >= count) & (beyond < batch))
    tl.store(p_extents, kept.to(tl.int64))
    tl.store(p_extents + 1, count.to(tl.int64))
    tl.store(p_extents + 2, longest.to(tl.int64))
    tl.store(p_extents + 3, tl.where(first_nan == 2147483647, -1, first_nan).to(tl.int64))


@triton.jit(do_not_specialize=["head_stride", "total"])
def keep_in_samples(
    p_importance,
    p_flags,
    p_cu_seqlens,
    p_stays,
    p_places,
    p_counts,
    p_first_nan,
    head_stride,
    threshold,
    total,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    HAS_STAYS: tl.constexpr,
):
    """Program (sample): the place of each of its rows among those that it keeps, or -1; their number; its first NaN."""
    sample = tl.program_id(0)
    begin, length = sample_span(p_cu_seqlens, sample, total)
    kept = tl.full([], 0, tl.int32)
    first_nan = tl.full([], 2147483647, tl.int32)
    if HAS_STAYS:
        stays = tl.load(p_stays + sample) != 0
    for first in range(0, length, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        inside = rows < length
        if HAS_FLAGS:
            flags = tl.load(p_flags + begin + rows, mask=inside, other=0)
            keep, broken = flags != 0, flags == 2
        else:
            b_importance = mean_of_heads(p_importance, begin + rows, inside, head_stride, HEADS)
            broken = inside & (b_importance != b_importance)
            keep = inside & ((b_importance >= threshold) | (rows == 0))
        if HAS_STAYS:
            keep, broken = keep & stays, broken & stays
        count = keep.to(tl.int32)
        places = kept + tl.cumsum(count, 0) - count
        tl.store(p_places + begin + rows, tl.where(keep, places, -1), mask=inside)
        kept += tl.sum(count, 0)
        nan_rows = tl.where(broken, begin.to(tl.int32) + rows, 2147483647)
        first_nan = tl.minimum(first_nan, tl.min(nan_rows, 0))
    tl.store(p_counts + sample, kept)
    tl.store(p_first_nan + sample, first_nan)


@triton.jit
def copy_rows(p_x, p_out, sources, targets, inside, x_stride, width, BLOCK_W: tl.constexpr):
    """Copies whole rows, where ``inside``."""
    p_x += sources[:, None] * x_stride
    p_out += targets[:, None].to(tl.int64) * width
    for first in range(0, width, BLOCK_W):
        columns = first + tl.arange(0, BLOCK_W)[None, :]
        there = inside[:, None] & (columns < width)
        tl.store(p_out + columns, tl.load(p_x + columns, mask=there), mask=there)


@triton.jit(do_not_specialize=["total", "batch"])
def place_in_batch(
    p_places,
    p_counts,
    p_first_nan,
    p_cu_seqlens,
    p_stays,
    p_index,
    p_new_cu_seqlens,
    p_samples,
    p_extents,
    p_x,
    p_rows,
    total,
    batch,
    x_stride,
    width,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_W: tl.constexpr,
    HAS_PLACES: tl.constexpr,
    HAS_STAYS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
):
    """Program (sample, part): where its rows and itself come to lie, after all that the samples before it keep.

    Without places, a sample that stays keeps all its rows. Buffers are defined to the end: behind the rows that are kept
    row 0, behind the samples that stay sample 0 and the last start. Where rows of ``x`` are moved as well, the parts of a
    sample share its blocks of rows.
    """
    sample = tl.program_id(0)
    part, parts = tl.program_id(1), tl.num_programs(1)
    begin, length = sample_span(p_cu_seqlens, sample, total)
    before = tl.full([], 0, tl.int32)
    kept = tl.full([], 0, tl.int32)
    rank = tl.full([], 0, tl.int32)
    staying = tl.full([], 0, tl.int32)
    longest = tl.full([], 0, tl.int32)
    first_nan = tl.full([], 2147483647, tl.int32)
    for first in range(0, batch, BLOCK_S):
        others = first + tl.arange(0, BLOCK_S)
        inside = others < batch
        stays = inside
        if HAS_STAYS:
            stays = tl.load(p_stays + others, mask=inside, other=0) != 0
        if HAS_PLACES:
            counts = tl.load(p_counts + others, mask=inside, other=0)
            nan_rows = tl.load(p_first_nan + others, mask=inside, other=2147483647)
            first_nan = tl.minimum(first_nan, tl.min(nan_rows, 0))
        else:
            begins = tl.load(p_cu_seqlens + others, mask=inside, other=0)
            counts = tl.where(stays, tl.load(p_cu_seqlens + others + 1, mask=inside, other=0) - begins, 0)
        longest = tl.maximum(longest, tl.max(counts, 0))
        kept += tl.sum(counts, 0)
        before += tl.sum(tl.where(others < sample, counts, 0), 0)
        staying += tl.sum(stays.to(tl.int32), 0)
        rank += tl.sum((stays & (others < sample)).to(tl.int32), 0)

    stays = sample >= 0
    if HAS_STAYS:
        stays = tl.load(p_stays + sample) != 0
    for first in range(part * BLOCK, length, parts * BLOCK):
        rows = first + tl.arange(0, BLOCK)
        inside = (rows < length) & stays
        places = rows
        if HAS_PLACES:
            places = tl.load(p_places + begin + rows, mask=inside, other=-1)
        tl.store(p_index + before + places, begin + rows, mask=inside & (places >= 0))
    turn = sample * parts + part
    for first in range(kept + turn * BLOCK, total, batch * parts * BLOCK):
        rows = first + tl.arange(0, BLOCK)
        tl.store(p_index + rows, tl.zeros([BLOCK], tl.int64), mask=rows < total)
    if HAS_ROWS:
        for first in range(part * BLOCK_R, length, parts * BLOCK_R):
            rows = first + tl.arange(0, BLOCK_R)
            inside = (rows < length) & stays
            places = rows
            if HAS_PLACES:
                places = tl.load(p_places + begin + rows, mask=inside, other=-1)
            copy_rows(p_x, p_rows, begin + rows, before + places, inside & (places >= 0), x_stride, width, BLOCK_W)
        for first in range(kept + turn * BLOCK_R, total, batch * parts * BLOCK_R):
            rows = first + tl.arange(0, BLOCK_R)
            copy_rows(p_x, p_rows, tl.zeros([BLOCK_R], tl.int64), rows, rows < total, x_stride, width, BLOCK_W)
    if part == 0:
        place = tl.where(stays, rank, staying + sample - rank)
        tl.store(p_new_cu_seqlens + place, tl.where(stays, before, kept))
        tl.store(p_samples + place, tl.where(stays, sample, 0).to(tl.int64))
        if sample == 0:
            tl.store(p_new_cu_seqlens + batch, kept)
            tl.store(p_extents, kept.to(tl.int64))
            tl.store(p_extents + 1, staying.to(tl.int64))
            tl.store(p_extents + 2, longest.to(tl.int64))
            tl.store(p_extents + 3, tl.where(first_nan == 2147483647, -1, first_nan).to(tl.int64))


@triton.jit(do_not_specialize=["head_stride", "total", "batch", "stride"])
def count_kept(
    p_importance,
    p_flags,
    p_cu_seqlens,
    p_stays,
    p_keep,
    p_counts,
    p_first_nan,
    head_stride,
    threshold,
    total,
    batch,
    stride,
    BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    HAS_FLAGS: tl.constexpr,
    HAS_STAYS: tl.constexpr,
):
    """Program (row block): which of the block's rows are kept, their number, and its first row with NaN importance."""
    block = tl.program_id(0)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    keep, nan = kept_rows(
        *(rows, p_importance, p_flags, p_cu_seqlens, p_stays, head_stride, threshold, total, batch),
        *(stride, HEADS, HAS_FLAGS, HAS_STAYS),
    )
    tl.store(p_keep + rows, keep.to(tl.int8), mask=rows < total)
    tl.store(p_counts + block, tl.sum(keep, 0))
    tl.store(p_first_nan + block, nan)


@triton.jit
def sum_before(p_counts, count, BLOCK: tl.constexpr):
    """Sum of the first ``count`` entries."""
    total = tl.full([], 0, tl.int32)
    for first in range(0, count, BLOCK):
        entries = first + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(p_counts + entries, mask=entries < count, other=0), 0)
    return total


@triton.jit(do_not_specialize=["total", "blocks"])
def place_kept(p_keep, p_counts, p_index, p_places, total, blocks, BLOCK: tl.constexpr):
    """Program (row block): the places of the block's rows, and row 0 in the rest of the index."""
    block = tl.program_id(0)
    before = sum_before(p_counts, block, BLOCK)
    everything = sum_before(p_counts, blocks, BLOCK)
    rows = block * BLOCK + tl.arange(0, BLOCK)
    keep = tl.load(p_keep + rows, mask=rows < total, other=0).to(tl.int32)
    places = before + tl.cumsum(keep, 0) - keep
    tl.store(p_index + places, rows.to(tl.int64), mask=keep != 0)
    tl.store(p_places + rows, places, mask=rows < total)
    if block == blocks - 1:
        tl.store(p_places + total, everything)
    tl.store(p_index + rows, tl.zeros([BLOCK], tl.int64), mask=(rows >= everything) & (rows < total))


@triton.jit(do_not_specialize=["total", "blocks", "batch"])
def place_samples(
    p_places,
    p_first_nan,
    p_cu_seqlens,
    p_stays,
    p_new_cu_seqlens,
    p_samples,
    p_extents,
    total,
    blocks,
    batch,
    BLOCK: tl.constexpr,
    HAS_STAYS: tl.constexpr,
):
    """One program: the samples and the extents, from the places of all rows."""
    first_nan = tl.full([], 2147483647, tl.int32)
    for first in range(0, blocks, BLOCK):
        entries = first + tl.arange(0, BLOCK)
        found = tl.load(p_first_nan + entries, mask=entries < blocks, other=2147483647)
        first_nan = tl.minimum(first_nan, tl.min(found, 0))
    bound_samples(
        *(p_places, p_cu_seqlens, p_stays, p_new_cu_seqlens, p_samples, p_extents, tl.load(p_places + total)),
        *(first_nan, total, batch, BLOCK, HAS_STAYS),
    )


@triton.jit(do_not_specialize=["total"])
def rank_tokens(p_importance, p_cu_seqlens, p_k, p_flags, total, BLOCK: tl.constexpr):
    """Program (sample): flag 1 for the k most important rows, the first always among them; 0 for the others; 2 for NaN.

    Ties go to the lower row.
    """
    sample = tl.program_id(0)
    begin, length = sample_span(p_cu_seqlens, sample, total)
    k = tl.load(p_k + sample)
    tl.device_assert(k >= 1, "k must be at least 1")
    for first in range(0, length, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        b_row = tl.load(p_importance + begin + rows, mask=rows < length, other=0.0)
        nan = b_row != b_row
        b_row = tl.where(rows == 0, float("inf"), b_row)
        rank = tl.zeros([BLOCK], tl.int32)
        for other in range(0, length, BLOCK):
            others = other + tl.arange(0, BLOCK)
            b_other = tl.load(p_importance + begin + others, mask=others < length, other=float("-inf"))
            b_other = tl.where(others == 0, float("inf"), b_other)
            ahead = b_other[None, :] > b_row[:, None]
            ahead = ahead | ((b_other[None, :] == b_row[:, None]) & (others[None, :] < rows[:, None]))
            rank += tl.sum((ahead & (others[None, :] < length)).to(tl.int32), 1)
        flags = tl.where(nan, 2, (rank < k).to(tl.int32))
        tl.store(p_flags + begin + rows, flags.to(tl.int8), mask=rows < length)


@triton.jit(do_not_specialize=["head_stride", "total"])
def mean_heads(p_importance, p_mean, head_stride, total, BLOCK: tl.constexpr, HEADS: tl.constexpr):
    """Program (row block): mean over the heads of ``[heads, total]``."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_mean = mean_of_heads(p_importance, rows.to(tl.int64), rows < total, head_stride, HEADS)
    tl.store(p_mean + rows, b_mean, mask=rows < total)


def mean_over_heads(importance: Tensor) -> Tensor:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    importance = importance if importance.stride(1) == 1 else importance.contiguous()
    heads, total = importance.shape
    mean = importance.new_empty(total)
    tile = configurations.ROWS
    launching.launch(
        mean_heads,
        (triton.cdiv(total, tile.columns),),
        *(importance, mean, importance.stride(0), total),
        tile=tile,
        BLOCK=tile.columns,
        HEADS=heads,
    )
    return mean


class _Choice(NamedTuple):
    """All that decides which rows are kept, and the kernels' first arguments; what is None is not read.

    Attributes:
        importance: float32 ``[heads, total]``, with the threshold.
        flags: int8 ``[total]``.
        cu_seqlens: int32 ``[batch + 1]``.
        stays: bool ``[batch]``.
        threshold: of importance.
        total: number of rows.
    """

    importance: Tensor | None
    flags: Tensor | None
    cu_seqlens: Tensor
    stays: Tensor | None
    threshold: float
    total: int

    @property
    def pointers(self) -> tuple[Tensor, ...]:
        return tuple(self.cu_seqlens if x is None else x for x in self[:4])

    @property
    def constants(self) -> dict[str, int]:
        heads = 0 if self.importance is None else self.importance.shape[0]
        return {"HEADS": heads, "HAS_FLAGS": self.flags is not None, "HAS_STAYS": self.stays is not None}

    @property
    def head_stride(self) -> int:
        return 0 if self.importance is None else self.importance.stride(0)

    @property
    def batch(self) -> int:
        return self.cu_seqlens.shape[0] - 1


def _compact(
    importance: Tensor | None,
    flags: Tensor | None,
    threshold: float,
    cu_seqlens: Tensor,
    stays: Tensor | None,
    total: int,
    x: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The four results of a compaction; with ``x``, rows ``[total, width]``, those that are kept come first."""
    cu_seqlens = cu_seqlens.contiguous()
    stays = None if stays is None else stays.contiguous()
    choice = _Choice(importance, flags, cu_seqlens, stays, threshold, total)
    index, new_cu_seqlens = cu_seqlens.new_empty(total, dtype=torch.int64), cu_seqlens.new_empty(choice.batch + 1)
    samples, extents = (cu_seqlens.new_empty(size, dtype=torch.int64) for size in (choice.batch, 4))
    made = (index, new_cu_seqlens, samples, extents)
    if choice.batch == 0:
        index.zero_()
        new_cu_seqlens.zero_()
        extents.zero_()[3] = -1
    elif choice.batch <= configurations.MOST_SAMPLES_AT_ONCE or total == 0:
        return _compact_by_samples(choice, made, x)
    else:
        _compact_by_blocks(choice, made)
    return made if x is None else (*ragged_gather([x], index), *made)


def _compact_by_samples(choice: _Choice, made: tuple[Tensor, ...], x: Tensor | None) -> tuple[Tensor, ...]:
    cu_seqlens, batch, total = choice.cu_seqlens, choice.batch, choice.total
    chosen = choice.importance is not None or choice.flags is not None
    tile, moving = configurations.samples(total // batch), configurations.MEANS
    places, counts, first_nan = (cu_seqlens.new_empty(size) for size in (total, batch, batch))
    if chosen:
        launching.launch(
            keep_in_samples,
            (batch,),
            *(*choice.pointers, places, counts, first_nan, choice.head_stride, choice.threshold, total),
            tile=tile,
            BLOCK=tile.columns,
            **choice.constants,
        )
    parts, rows, moved, sizes = 1, None, (places, places), (0, 0)
    if x is not None:
        rows = x.new_empty(x.shape)
        source = as_integers(x)
        moved, sizes = (source, as_integers(rows)), (source.stride(0), source.shape[1])
        parts = max(1, triton.cdiv(triton.cdiv(total, batch), moving.rows))
    launching.launch(
        place_in_batch,
        (batch, parts),
        *(places, counts, first_nan, *choice.pointers[2:], *made, *moved, total, batch, *sizes),
        tile=tile,
        BLOCK=tile.columns,
        BLOCK_S=configurations.ROWS.columns,
        BLOCK_R=moving.rows,
        BLOCK_W=moving.columns,
        HAS_PLACES=chosen,
        HAS_STAYS=choice.stays is not None,
        HAS_ROWS=x is not None,
    )
    return made if rows is None else (rows, *made)


def _compact_by_blocks(choice: _Choice, made: tuple[Tensor, ...]) -> None:
    cu_seqlens, batch, total = choice.cu_seqlens, choice.batch, choice.total
    tile = configurations.COMPACTION
    blocks = triton.cdiv(total, tile.columns)
    index, *of_samples = made
    keep, places = cu_seqlens.new_empty(total, dtype=torch.int8), cu_seqlens.new_empty(total + 1)
    counts, first_nan = cu_seqlens.new_empty(blocks), cu_seqlens.new_empty(blocks)
    sizes = (choice.head_stride, choice.threshold, total, batch, launching.bisection_stride(batch - 1))
    launching.launch(
        count_kept,
        (blocks,),
        *(*choice.pointers, keep, counts, first_nan, *sizes),
        tile=tile,
        BLOCK=tile.columns,
        **choice.constants,
    )
    launching.launch(
        place_kept, (blocks,), *(keep, counts, index, places, total, blocks), tile=tile, BLOCK=tile.columns
    )
    launching.launch(
        place_samples,
        (1,),
        *(places, first_nan, *choice.pointers[2:], *of_samples, total, blocks, batch),
        tile=tile,
        BLOCK=tile.columns,
        HAS_STAYS=choice.stays is not None,
    )


def _by_head(importance: Tensor) -> Tensor:
    by_head = importance.unsqueeze(0) if importance.dim() == 1 else importance
    return by_head if by_head.stride(1) == 1 else by_head.contiguous()


def prune_tokens(importance: Tensor, cu_seqlens: Tensor, stays: Tensor | None, threshold: float) -> tuple[Tensor, ...]:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    return _compact(_by_head(importance), None, threshold, cu_seqlens, stays, importance.shape[-1])


def prune_rows(x: Tensor, importance: Tensor, cu_seqlens: Tensor, threshold: float) -> tuple[Tensor, ...]:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    return _compact(_by_head(importance), None, threshold, cu_seqlens, None, importance.shape[-1], x)


def top_k_tokens(importance: Tensor, cu_seqlens: Tensor, stays: Tensor | None, k: Tensor) -> tuple[Tensor, ...]:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    of_tokens = importance.contiguous() if importance.dim() == 1 else mean_over_heads(importance)
    flags = of_tokens.new_empty(of_tokens.shape, dtype=torch.int8)
    tile = configurations.RANKING
    launching.launch(
        rank_tokens,
        (k.shape[0],),
        *(of_tokens, cu_seqlens.contiguous(), k.contiguous(), flags, of_tokens.shape[0]),
        tile=tile,
        BLOCK=tile.columns,
    )
    return _compact(None, flags, 0.0, cu_seqlens, stays, of_tokens.shape[0])


def select_samples(cu_seqlens: Tensor, stays: Tensor, total: int) -> tuple[Tensor, ...]:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    return _compact(None, None, 0.0, cu_seqlens, stays, total)

"""The record of a layer in one launch: answers of the samples that were looked at, and the tokens that each came with."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import configurations, launching


@triton.jit(do_not_specialize=["layer", "batch"])
def record(
    p_count,
    p_extents,
    p_samples,
    p_entered,
    p_survived,
    p_logits,
    p_uncertainty,
    p_stays,
    p_all_logits,
    p_all_uncertainty,
    p_exit_layer,
    p_tokens,
    p_nan_rows,
    layer,
    batch,
    classes,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HAS_ANSWERS: tl.constexpr,
    HAS_STAYS: tl.constexpr,
):
    """Program (sample block): everything that is written down of these samples at a layer."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = rows < tl.load(p_count)
    places = tl.load(p_samples + rows, mask=there, other=0)
    for part in tl.static_range(2):
        p_starts = p_survived if part else p_entered
        count = tl.load(p_starts + rows + 1, mask=there, other=0) - tl.load(p_starts + rows, mask=there, other=0)
        tl.store(p_tokens + (2 * layer + part) * batch + places, count, mask=there)
    if tl.program_id(0) == 0:
        tl.store(p_nan_rows + layer, tl.load(p_extents + 3))
    if HAS_ANSWERS:
        columns = tl.arange(0, BLOCK_C)
        inside = there[:, None] & (columns[None, :] < classes)
        b_logits = tl.load(p_logits + rows[:, None].to(tl.int64) * classes + columns[None, :], mask=inside)
        tl.store(p_all_logits + places[:, None] * classes + columns[None, :], b_logits, mask=inside)
        tl.store(p_all_uncertainty + places, tl.load(p_uncertainty + rows, mask=there), mask=there)
        tl.store(p_exit_layer + places, layer.to(tl.int64), mask=there)
    if HAS_STAYS:
        tl.store(p_stays + rows, tl.zeros([ROWS], tl.int1), mask=(there == 0) & (rows < batch))


def record_answers(
    count: Tensor,
    extents: Tensor,
    samples: Tensor,
    entered: Tensor,
    survived: Tensor,
    logits: Tensor | None,
    uncertainty: Tensor | None,
    stays: Tensor | None,
    layer: int,
    all_logits: Tensor,
    all_uncertainty: Tensor,
    exit_layer: Tensor,
    tokens: Tensor,
    nan_rows: Tensor,
) -> None:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    batch, classes = all_logits.shape
    block = launching.padded_width(classes, 2)
    rows = max(1, 1024 // block)
    read = (x.contiguous() for x in (count, extents, samples, entered, survived))
    answers = (all_logits, all_uncertainty) if logits is None or uncertainty is None else (logits, uncertainty)
    launching.launch(
        record,
        (triton.cdiv(batch, rows),),
        *(*read, *(x.contiguous() for x in answers), exit_layer if stays is None else stays),
        *(all_logits, all_uncertainty, exit_layer, tokens, nan_rows, layer, batch, classes),
        tile=configurations.ROWS,
        ROWS=rows,
        BLOCK_C=block,
        HAS_ANSWERS=logits is not None,
        HAS_STAYS=stays is not None,
    )

"""Exit heads (dense, tanh, classifier, uncertainty and decision) in two launches, and the uncertainty alone.

In the first kernel each program computes the share of some hidden units in the logits, so that many processors read the
weights of the dense layer in parallel. The second kernel adds the shares, in a fixed order, and decides.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from mp_kernels import schemas

from . import configurations, launching
from .rows import entropy, entropy_of_logits, label_entropy_of_logits

MOST_CLASSES_AT_ONCE = 128


@triton.jit(do_not_specialize=["batch"])
def head_shares(
    p_features,
    p_dense_weight,
    p_dense_bias,
    p_weight,
    p_shares,
    features_stride,
    batch,
    width,
    hidden,
    classes,
    ROWS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (sample block, block of hidden units): the units' share in the samples' logits."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    units = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    labels = tl.arange(0, BLOCK_C)
    b_hidden = tl.zeros([ROWS, BLOCK_H], tl.float32)
    for first in range(0, width, BLOCK_F):
        columns = first + tl.arange(0, BLOCK_F)
        b_features = tl.load(
            p_features + rows[:, None].to(tl.int64) * features_stride + columns[None, :],
            mask=(rows[:, None] < batch) & (columns[None, :] < width),
            other=0.0,
        )
        b_weight = tl.load(
            p_dense_weight + units[:, None].to(tl.int64) * width + columns[None, :],
            mask=(units[:, None] < hidden) & (columns[None, :] < width),
            other=0.0,
        )
        b_hidden = tl.dot(b_features, tl.trans(b_weight), b_hidden, input_precision=PRECISION)
    b_hidden += tl.load(p_dense_bias + units, mask=units < hidden, other=0.0).to(tl.float32)[None, :]
    b_hidden = 2.0 * tl.sigmoid(2.0 * b_hidden) - 1.0  # tanh
    b_weight = tl.load(
        p_weight + labels[:, None].to(tl.int64) * hidden + units[None, :],
        mask=(labels[:, None] < classes) & (units[None, :] < hidden),
        other=0.0,
    )
    b_share = tl.dot(b_hidden.to(b_weight.dtype), tl.trans(b_weight), input_precision=PRECISION)  # [ROWS, BLOCK_C]
    p_shares += tl.program_id(1).to(tl.int64) * batch * classes
    offsets = rows[:, None].to(tl.int64) * classes + labels[None, :]
    tl.store(p_shares + offsets, b_share, mask=(rows[:, None] < batch) & (labels[None, :] < classes))


@triton.jit(do_not_specialize=["batch"])
def head_decision(
    p_shares,
    p_bias,
    p_thresholds,
    p_logits,
    p_uncertainty,
    p_stays,
    thresholds_stride,
    shares,
    threshold,
    batch,
    classes,
    log_classes,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    HAS_THRESHOLDS: tl.constexpr,
    MULTI_LABEL: tl.constexpr,
):
    """Program (sample block): logits, uncertainty, and whether the uncertainty exceeds the threshold."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    labels = tl.arange(0, BLOCK_C)
    inside = (rows[:, None] < batch) & (labels[None, :] < classes)
    offsets = rows[:, None].to(tl.int64) * classes + labels[None, :]
    b_logits = tl.zeros([ROWS, BLOCK_C], tl.float32)
    for _ in range(shares):
        b_logits += tl.load(p_shares + offsets, mask=inside, other=0.0)
        p_shares += batch * classes
    b_logits += tl.load(p_bias + labels, mask=labels < classes, other=0.0).to(tl.float32)[None, :]
    b_logits = b_logits.to(p_logits.dtype.element_ty)
    tl.store(p_logits + offsets, b_logits, mask=inside)
    if MULTI_LABEL:
        b_uncertainty = label_entropy_of_logits(b_logits.to(tl.float32), labels[None, :] < classes)
    else:
        b_uncertainty = entropy_of_logits(b_logits.to(tl.float32), labels[None, :] < classes, log_classes)
    tl.store(p_uncertainty + rows, b_uncertainty, mask=rows < batch)
    if HAS_THRESHOLDS:
        leaves = b_uncertainty <= tl.load(p_thresholds + rows * thresholds_stride, mask=rows < batch, other=0.0)
    else:
        leaves = b_uncertainty <= threshold
    tl.store(p_stays + rows, leaves == 0, mask=rows < batch)


def exit_head(
    features: Tensor,
    dense_weight: Tensor,
    dense_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    thresholds: Tensor | None,
    threshold: float,
    multi_label: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    batch, width = features.shape
    hidden, classes = dense_weight.shape[0], weight.shape[0]
    if classes > MOST_CLASSES_AT_ONCE:
        return schemas.exit_head(features, dense_weight, dense_bias, weight, bias, thresholds, threshold, multi_label)
    features = features if features.stride(1) == 1 else features.contiguous()
    tile = configurations.HEAD
    block_c = launching.padded_width(classes)
    samples, shares = triton.cdiv(batch, tile.rows), triton.cdiv(hidden, tile.columns)
    partial = features.new_empty(shares, batch, classes, dtype=torch.float32)
    logits = features.new_empty(batch, classes)
    uncertainty = features.new_empty(batch, dtype=torch.float32)
    stays = features.new_empty(batch, dtype=torch.bool)
    launching.launch(
        head_shares,
        (samples, shares),
        *(features, dense_weight.contiguous(), dense_bias.contiguous(), weight.contiguous(), partial),
        *(features.stride(0), batch, width, hidden, classes),
        tile=tile,
        ROWS=tile.rows,
        BLOCK_F=64,
        BLOCK_H=tile.columns,
        BLOCK_C=block_c,
        PRECISION=configurations.precision(configurations.architecture_of(features.device)),
    )
    launching.launch(
        head_decision,
        (samples,),
        *(partial, bias.contiguous(), features if thresholds is None else thresholds),
        *(
            logits,
            uncertainty,
            stays,
            1 if thresholds is None else thresholds.stride(0),
            shares,
            threshold,
            batch,
            classes,
            math.log(classes),
        ),
        tile=configurations.ROWS,
        ROWS=tile.rows,
        BLOCK_C=block_c,
        HAS_THRESHOLDS=thresholds is not None,
        MULTI_LABEL=multi_label,
    )
    return logits, uncertainty, stays


def normalized_entropy(logits: Tensor) -> Tensor:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    return _uncertainty(logits, multi_label=False)


def label_entropy(logits: Tensor) -> Tensor:
    """Implementation of the operator of this name in :mod:`mp_kernels.schemas`."""
    return _uncertainty(logits, multi_label=True)


def _uncertainty(logits: Tensor, multi_label: bool) -> Tensor:
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    batch, classes = logits.shape
    uncertainty = logits.new_empty(batch, dtype=torch.float32)
    block = launching.padded_width(classes, 2)
    rows = max(1, 1024 // block)
    launching.launch(
        entropy,
        (triton.cdiv(batch, rows),),
        *(logits, uncertainty, logits.stride(0), batch, classes, math.log(classes)),
        tile=configurations.ROWS,
        ROWS=rows,
        BLOCK=block,
        MULTI_LABEL=multi_label,
    )
    return uncertainty

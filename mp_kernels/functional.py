"""The public operators: arguments checked, defaults filled in, results cut to size.

Shapes and dtypes are checked here, for every backend alike, and any strides are welcome. The values of ``cu_seqlens``, of
``max_seqlen``, of ``k`` and of indices are checked by the kernels. On a CPU a wrong one raises RuntimeError. On a GPU that
would cost a synchronisation; a kernel that would reach outside its tensors, or leave out keys, stops with a device-side
assertion instead, as torch's own indexing does: the error comes with a later call, and the process must start anew. Rows
that ``cu_seqlens`` passes over are undefined there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import torch
import torch.nn.functional as F

from . import reference
from .checks import (
    FLOATING,
    check_cu_seqlens,
    check_heads,
    check_importance,
    check_places,
    check_queries,
    check_stays,
    check_tensor,
    describe,
)
from .memory import read_by_host
from .ragged import Kept, Ragged

_ops = torch.ops.mp_kernels

# Types of devices on which a launch costs more than moving the rows that nobody keeps.
MOVE_WHILE_PRUNING = {"cuda"}


def ragged_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    scale: float | None = None,
    *,
    cu_seqlens_q: torch.Tensor | None = None,
    need_importance: bool = True,
    by_head: bool = False,
    stays: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    positions_q: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    buckets: torch.Tensor | None = None,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention within each sample of a packed ragged batch, and the importance of each token.

    ``P[h,i,j] = softmax_j(scale q_i . k_j)`` and ``importance[j] = (1 / (H n)) sum_h sum_i P[h,i,j]``, the column mean of
    the probabilities: how much attention token j receives (Magic Pyramid's Eq. 4; its indices say row mean, its text column
    mean). Differentiable in q, k and v, and in bias, through both results.

    ``bias`` adds to each score what is learned for its distance, ``scale q_i . k_j + bias[h, buckets[d + R]]`` with
    ``d = positions[j] - positions_q[i]``, clamped to -R..R, as MPNet does. With a ``window``, only the pairs with
    ``|d| <= window`` exist, as in the local layers of ModernBERT: softmax runs over them, and so does the mean in
    ``importance[j]``, over the queries that see key j. A query that sees no key gets zeros.

    Args:
        q: ``[total, heads, head_dim]``, float32, float16, bfloat16 or float64. Strided views are welcome.
        k, v: like ``q``.
        cu_seqlens: int32 ``[batch + 1]``, the first row of each sample; 0 first, ``total`` last.
        max_seqlen: length of the longest sample, or more.
        scale: factor on the scores; ``1 / sqrt(head_dim)`` if None.
        cu_seqlens_q: int32 ``[batch + 1]``, the first *query* of each sample, if only some tokens have one (``q`` is then
            ``[total_q, heads, head_dim]``). Importance is the mean over these queries. Queries of a sample without keys
            get zeros.
        need_importance: False skips the importance; None is returned in its place.
        by_head: True returns the importance by head, ``[heads, total]``, instead of its mean over the heads.
        stays: bool ``[batch]``; samples for which it is False are skipped and get zeros. None: all samples are computed.
        positions: int32 ``[total]``, the place of each key's token in its text, 0 or more and rising within each sample,
            with gaps where tokens were pruned. None: the rows' own order. Only with bias or window.
        positions_q: int32 ``[total_q]``, the same for the queries. None: ``positions``; with ``cu_seqlens_q``, both are
            needed.
        bias: ``[heads, buckets]`` of ``q``'s dtype or float32; float64 for float64 inputs. Needs ``buckets``.
        buckets: int32 ``[2 R + 1]``, the bucket of each distance from -R to R; farther ones count as R.
        window: largest distance at which a query sees a key. None: any distance.

    Returns:
        out: ``[total_q, heads, head_dim]`` of ``q``'s dtype.
        importance: float32 ``[total]`` (float64 for float64 inputs); without a window, sums to 1 over each sample.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
        RuntimeError: ``cu_seqlens`` decreases or does not end at ``total``, ``max_seqlen`` is too small, ``positions``
            do not rise within each sample, or ``buckets`` names none of ``bias``.
        NotImplementedError: in the backward pass, a second derivative is wanted.
    """
    check_heads(q, k, v)
    check_cu_seqlens(cu_seqlens, q)
    check_places(q, k, cu_seqlens_q is not None, positions_q, positions, bias, buckets, window)
    check_queries(q, k, cu_seqlens, cu_seqlens_q)
    if stays is not None:
        check_stays(stays, cu_seqlens)
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    cu_seqlens_q = cu_seqlens if cu_seqlens_q is None else cu_seqlens_q
    positions_q = positions if positions_q is None else positions_q
    places = (positions_q, positions, bias, buckets, -1 if window is None else window)
    if q.dtype == torch.float64:  # for checking gradients, so the definition itself runs
        out, importance, _ = reference.attention_with_logsumexp(
            q, k, v, cu_seqlens_q, cu_seqlens, scale, stays, *places
        )
    else:
        out, importance, _ = _ops.ragged_attention(
            q, k, v, cu_seqlens_q, cu_seqlens, stays, max_seqlen, scale, need_importance, *places
        )
    if not need_importance:
        return out, None
    return out, importance if by_head else _mean_over_heads(importance)


def _mean_over_heads(importance: torch.Tensor) -> torch.Tensor:
    return (reference if importance.dtype == torch.float64 else _ops).mean_over_heads(importance)


def _kept(index: torch.Tensor, cu_seqlens: torch.Tensor, samples: torch.Tensor | None, extents: torch.Tensor) -> Kept:
    rows, batch, max_seqlen, nan_row = read_by_host(extents)
    if nan_row >= 0:
        raise reference.nan_importance_error(nan_row)
    return Kept(index[:rows], cu_seqlens[: batch + 1], max_seqlen, None if samples is None else samples[:batch])


def prune_tokens(
    importance: torch.Tensor, cu_seqlens: torch.Tensor, threshold: float, stays: torch.Tensor | None = None
) -> Kept:
    """Tokens that survive a layer: those with ``importance[j] >= threshold``, and always the first of each sample ([CLS]).

    Magic Pyramid's Eq. 7: the sigmoid of Eq. 5 is at least one half.

    Args:
        importance: float32 or float64, ``[total]``, or ``[heads, total]``, which stands for its mean over the heads.
        cu_seqlens: int32 ``[batch + 1]``.
        threshold: pruning threshold of the layer; compared in importance's dtype.
        stays: bool ``[batch]``; samples for which it is False lose all their tokens, [CLS] too. None: all stay.

    Returns:
        The rows that survive; ``samples`` is None unless ``stays`` is given.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape; importance or threshold is NaN.
        RuntimeError: ``cu_seqlens`` decreases or does not end at ``total``.
    """
    check_importance(importance, cu_seqlens, stays)
    threshold = _number(threshold)
    if importance.dtype == torch.float64:
        return reference.prune_tokens(importance, cu_seqlens, threshold, stays)
    index, new_cu_seqlens, samples, extents = _ops.prune_tokens(importance, cu_seqlens, stays, threshold)
    return _kept(index, new_cu_seqlens, None if stays is None else samples, extents)


def prune_rows(
    xs: Sequence[torch.Tensor], importance: torch.Tensor, cu_seqlens: torch.Tensor, threshold: float
) -> tuple[list[torch.Tensor], Kept]:
    """The tokens that survive a layer (:func:`prune_tokens`), and their rows of some tensors (:func:`ragged_gather`).

    Args:
        xs: ``[total, ...]`` each, of any dtype. On a GPU, the rows of a single ``[total, width]`` are moved by the kernel
            that finds their places.
        importance, cu_seqlens, threshold: as for :func:`prune_tokens`.

    Returns:
        rows: ``[total', ...]`` of each x, the x itself where all tokens survive. Differentiable in ``xs``.
        kept: as of :func:`prune_tokens`.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape; importance or threshold is NaN.
        RuntimeError: ``cu_seqlens`` decreases or does not end at ``total``.
    """
    total = importance.shape[-1]
    for part in xs:
        if part.shape[:1] != (total,) or part.device != importance.device:
            raise ValueError(
                f"xs must have a row for each of the {total} tokens, on {importance.device}; got {describe(part)}"
            )
    x = xs[0] if len(xs) == 1 and importance.device.type in MOVE_WHILE_PRUNING else None
    recorded = x is not None and torch.is_grad_enabled() and x.requires_grad
    if x is None or recorded or x.dim() != 2 or importance.dtype == torch.float64:
        kept = prune_tokens(importance, cu_seqlens, threshold)
        return list(xs if kept.index.shape[0] == total else ragged_gather(xs, kept.index)), kept
    check_importance(importance, cu_seqlens, None)
    rows, index, new_cu_seqlens, _, extents = _ops.prune_rows(x, importance, cu_seqlens, _number(threshold))
    kept = _kept(index, new_cu_seqlens, None, extents)
    return [rows[: kept.index.shape[0]]], kept


def _number(threshold: float) -> float:
    threshold = float(threshold)
    if threshold != threshold:  # NaN, written so that torch.compile can trace it
        raise ValueError("threshold must be a number; got NaN")
    return threshold


def top_k_tokens(
    importance: torch.Tensor, cu_seqlens: torch.Tensor, k: int | torch.Tensor, stays: torch.Tensor | None = None
) -> Kept:
    """The ``k`` most important tokens of each sample, its first always among them; ties go to the lower position.

    Args:
        importance: float32 or float64, ``[total]``, or ``[heads, total]``, which stands for its mean over the heads.
        cu_seqlens: int32 ``[batch + 1]``.
        k: number of tokens that survive in each sample, at least 1: an int, or an int64 or int32 tensor ``[batch]``. A
            sample with fewer tokens keeps them all.
        stays: bool ``[batch]`` or None, as for :func:`prune_tokens`.

    Returns:
        The rows that survive; ``samples`` is None unless ``stays`` is given.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape; ``k`` below 1; importance is NaN.
        RuntimeError: ``cu_seqlens`` decreases or does not end at ``total``; an entry of a tensor ``k`` is below 1 (float64
            importance: ValueError).
    """
    check_importance(importance, cu_seqlens, stays)
    batch = cu_seqlens.shape[0] - 1
    if isinstance(k, torch.Tensor):
        check_tensor("k", k, 1, (torch.int64, torch.int32), importance)
        if k.shape[0] != batch:
            raise ValueError(f"k must have one entry per sample, {batch}; got {describe(k)}")
        counts = k.long()
    elif isinstance(k, int) and not isinstance(k, bool):
        if k < 1:
            raise ValueError(f"k must be at least 1 (the first token always stays); got {k}")
        counts = torch.full((batch,), k, dtype=torch.int64, device=importance.device)
    else:
        raise TypeError(f"k must be an int or an int tensor [batch]; got {describe(k)}")
    if importance.dtype == torch.float64:
        return reference.top_k_tokens(importance, cu_seqlens, counts, stays)
    index, new_cu_seqlens, samples, extents = _ops.top_k_tokens(importance, cu_seqlens, stays, counts)
    return _kept(index, new_cu_seqlens, None if stays is None else samples, extents)


def select_samples(cu_seqlens: torch.Tensor, stays: torch.Tensor, total: int | None = None) -> Kept:
    """The rows of the samples that stay, and the batch they make.

    Args:
        cu_seqlens: int32 ``[batch + 1]``.
        stays: bool ``[batch]``.
        total: number of rows, ``cu_seqlens[-1]``. If None, it is read from the device, which costs a synchronisation.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
        RuntimeError: ``cu_seqlens`` decreases or does not end at ``total``.
    """
    check_cu_seqlens(cu_seqlens, cu_seqlens)
    check_stays(stays, cu_seqlens)
    if total is None:
        (total,) = read_by_host(cu_seqlens[-1:])
    return _kept(*_ops.select_samples(cu_seqlens, stays, total))


@overload
def ragged_gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor: ...
@overload
def ragged_gather(x: Sequence[torch.Tensor], index: torch.Tensor) -> tuple[torch.Tensor, ...]: ...
def ragged_gather(
    x: torch.Tensor | Sequence[torch.Tensor], index: torch.Tensor
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Rows ``index`` of ``x``, or of several tensors at once.

    Args:
        x: ``[rows, ...]`` of any dtype, or a sequence of such tensors (their rows and widths may differ).
        index: int64 ``[rows']``.

    Returns:
        ``[rows', ...]``, contiguous; a tuple of them for a sequence. Differentiable in ``x``.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
        RuntimeError: an index outside the rows of ``x``.
    """
    xs = [x] if isinstance(x, torch.Tensor) else list(x)
    if not xs:
        return ()
    for part in xs:
        if not isinstance(part, torch.Tensor) or part.dim() < 1:
            raise ValueError(f"x must be [rows, ...] or a sequence of such tensors; got {describe(part)}")
    check_tensor("index", index, 1, (torch.int64,), xs[0])
    for part in xs:
        if part.device != index.device:
            raise ValueError(f"x must be on {index.device} like index; got {describe(part)}")
    gathered = _ops.ragged_gather(xs, index)
    return gathered[0] if isinstance(x, torch.Tensor) else tuple(gathered)


def ragged_mean(x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Mean of each sample's rows, accumulated in float32.

    Args:
        x: ``[total, width]``, floating.
        cu_seqlens: int32 ``[batch + 1]``.

    Returns:
        ``[batch, width]`` of ``x``'s dtype; zero for a sample without rows.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
        RuntimeError: ``cu_seqlens`` decreases or does not end at ``total``.
    """
    check_tensor("x", x, 2, FLOATING, x)
    check_cu_seqlens(cu_seqlens, x)
    return (reference if x.dtype == torch.float64 else _ops).ragged_mean(x, cu_seqlens)


def pair_features(
    first: torch.Tensor, x: torch.Tensor, cu_seqlens: torch.Tensor, middles: torch.Tensor
) -> torch.Tensor:
    """A row for each sample, the mean of the sample's rows, and ``|a - b|`` and ``a * b`` of its two parts.

    ``a`` and ``b`` are the means of the rows before ``middles`` and from there on, zero for a part without rows. All is
    computed in float32.

    Args:
        first: ``[batch, width]`` of ``x``'s dtype, a row for each sample.
        x: ``[total, width]``, floating.
        cu_seqlens: int32 ``[batch + 1]``.
        middles: int64 ``[batch]``, the row at which each sample's second part begins, within the sample's span.

    Returns:
        ``[batch, 4 width]`` of ``x``'s dtype. Differentiable in ``first`` and ``x``.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
        RuntimeError: ``cu_seqlens`` decreases or does not end at ``total``; an entry of ``middles`` is outside its sample.
    """
    check_tensor("x", x, 2, FLOATING, x)
    check_tensor("first", first, 2, (x.dtype,), x)
    check_cu_seqlens(cu_seqlens, x)
    check_tensor("middles", middles, 1, (torch.int64,), x)
    batch = cu_seqlens.shape[0] - 1
    if tuple(first.shape) != (batch, x.shape[1]):
        raise ValueError(f"first must be [batch, width], {[batch, x.shape[1]]}; got {describe(first)}")
    if middles.shape[0] != batch:
        raise ValueError(f"middles must have one entry per sample, {batch}; got {describe(middles)}")
    return (reference if x.dtype == torch.float64 else _ops).pair_features(first, x, cu_seqlens, middles)


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    index: torch.Tensor | None = None,
    x_index: torch.Tensor | None = None,
) -> torch.Tensor:
    """``LayerNorm(x[x_index] + residual[index])`` in one pass; mean and variance are computed in float32.

    Args:
        x: ``[rows, width]``, or with ``x_index`` ``[any, width]``, floating.
        residual: ``[rows, width]``, or with ``index`` ``[any, width]``, of ``x``'s dtype.
        weight, bias: ``[width]`` of ``x``'s dtype.
        eps: number added to the variance.
        index: int64 ``[rows]``, the row of ``residual`` for each row of the result; None: the same row.
        x_index: int64 ``[rows]``, the row of ``x`` for each row of the result; None: the same row.

    Returns:
        ``[rows, width]`` of ``x``'s dtype.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
        RuntimeError: an index outside its tensor's rows.
    """
    check_tensor("x", x, 2, FLOATING, x)
    check_tensor("residual", residual, 2, (x.dtype,), x)
    check_tensor("weight", weight, 1, (x.dtype,), x)
    check_tensor("bias", bias, 1, (x.dtype,), x)
    for name, places in (("index", index), ("x_index", x_index)):
        if places is not None:
            check_tensor(name, places, 1, (torch.int64,), x)
    if residual.shape[1] != x.shape[1] or not weight.shape == bias.shape == x.shape[1:]:
        raise ValueError(
            "x, residual, weight and bias must have one width; "
            f"got {', '.join(describe(t) for t in (x, residual, weight, bias))}"
        )
    rows, other_rows = ((t if i is None else i).shape[0] for t, i in ((x, x_index), (residual, index)))
    if rows != other_rows:
        raise ValueError(f"x and residual must have the same rows, after their indices; got {rows} and {other_rows}")
    if x.dtype == torch.float64:
        return reference.add_layer_norm(x, residual, weight, bias, eps, index, x_index)
    return _ops.add_layer_norm(x, x_index, residual, index, weight, bias, eps)


def bias_gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``gelu(x + bias)`` in one pass, with the exact GELU (by erf), not its tanh approximation.

    Args:
        x: ``[rows, width]``, floating.
        bias: ``[width]`` of ``x``'s dtype; None: no bias is added.

    Returns:
        ``[rows, width]`` of ``x``'s dtype.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
    """
    check_tensor("x", x, 2, FLOATING, x)
    if bias is not None:
        check_tensor("bias", bias, 1, (x.dtype,), x)
        if bias.shape[0] != x.shape[1]:
            raise ValueError(f"bias must be [width], {x.shape[1]}; got {describe(bias)}")
    return (reference if x.dtype == torch.float64 else _ops).bias_gelu(x, bias)


def gelu_gate(x: torch.Tensor) -> torch.Tensor:
    """``gelu(x[:, :w]) * x[:, w:]`` in one pass (GeGLU), with the exact GELU of :func:`bias_gelu`.

    Args:
        x: ``[rows, 2 w]``, floating.

    Returns:
        ``[rows, w]`` of ``x``'s dtype.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
    """
    check_tensor("x", x, 2, FLOATING, x)
    if x.shape[1] % 2:
        raise ValueError(f"x must be [rows, 2 w], two halves of one width; got {describe(x)}")
    return (reference if x.dtype == torch.float64 else _ops).gelu_gate(x)


def rotary_embedding(x: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding: turns the pairs ``x[..., i]`` and ``x[..., h + i]``, h half of head_dim, by an angle.

    ``out[..., :h] = x1 cos - x2 sin`` and ``out[..., h:] = x2 cos + x1 sin`` with ``x1`` and ``x2`` the two halves and the
    row ``positions`` of the tables, computed in float32. Differentiable in x.

    Args:
        x: ``[rows, heads, head_dim]``, floating; head_dim even. Strided views are welcome.
        positions: int32 ``[rows]``, the place of each row's token in its text.
        cos, sin: float32 ``[places, head_dim / 2]``, cosine and sine of each place's angles; float64 for float64 inputs.

    Returns:
        ``[rows, heads, head_dim]`` of ``x``'s dtype, contiguous.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
        RuntimeError: a position outside the tables.
    """
    check_tensor("x", x, 3, FLOATING, x)
    if 0 in x.shape[1:] or x.shape[2] % 2:
        raise ValueError(f"x must have at least one head and an even head_dim, as pairs are turned; got {describe(x)}")
    check_tensor("positions", positions, 1, (torch.int32,), x)
    if positions.shape[0] != x.shape[0]:
        raise ValueError(f"positions must have one entry per row, {x.shape[0]}; got {describe(positions)}")
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(name, table, 2, (torch.promote_types(x.dtype, torch.float32),), x)
        if table.shape[1] != x.shape[2] // 2 or table.shape != cos.shape:
            raise ValueError(
                f"{name} must be [places, head_dim / 2], {[cos.shape[0], x.shape[2] // 2]}; got {describe(table)}"
            )
    return (reference if x.dtype == torch.float64 else _ops).rotary_embedding(x, positions, cos, sin)


def normalized_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Uncertainty of a prediction: ``u = -sum p log p / log N`` with ``p = softmax(logits)``; 0 is certain, 1 uniform.

    Args:
        logits: ``[batch, N]``, floating, N at least 2.

    Returns:
        float32 ``[batch]`` (float64 for float64 logits). A probability of 0 contributes 0.

    Raises:
        TypeError, ValueError: a wrong dtype or shape; N is 1 (there is nothing to be uncertain about).
    """
    check_tensor("logits", logits, 2, FLOATING, logits)
    if logits.shape[1] < 2:
        raise ValueError(
            f"logits must have 2 classes or more, or there is no uncertainty to measure; got {describe(logits)}"
        )
    return (reference if logits.dtype == torch.float64 else _ops).normalized_entropy(logits)


def label_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Uncertainty of a prediction of any number of labels: that of the label which is the least certain.

    ``u = max_j H(p_j) / log 2`` with ``p_j = sigmoid(logit_j)`` and the binary entropy
    ``H(p) = -p log p - (1 - p) log(1 - p)``; 0 where every label is certain, 1 where one is a toss-up.

    Args:
        logits: ``[batch, N]``, floating, N at least 1.

    Returns:
        float32 ``[batch]`` (float64 for float64 logits). A probability of 0 contributes 0.

    Raises:
        TypeError, ValueError: a wrong dtype or shape; N is 0.
    """
    check_tensor("logits", logits, 2, FLOATING, logits)
    if logits.shape[1] < 1:
        raise ValueError(f"logits must have 1 label or more; got {describe(logits)}")
    return (reference if logits.dtype == torch.float64 else _ops).label_entropy(logits)


def exit_head(
    features: torch.Tensor,
    dense_weight: torch.Tensor,
    dense_bias: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    threshold: float | torch.Tensor,
    multi_label: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prediction of an exit head (dense, tanh, classifier), its uncertainty, and which samples stay. Not differentiable.

    Args:
        features: ``[batch, features]``, floating.
        dense_weight, dense_bias: ``[hidden, features]`` and ``[hidden]``, of the features' dtype.
        weight, bias: ``[N, hidden]`` and ``[N]`` of the classifier, of the features' dtype; N at least 2, or with
            ``multi_label`` at least 1.
        threshold: exit threshold, one number or a floating tensor ``[batch]``; a sample leaves if its uncertainty is at most
            its threshold.
        multi_label: whether a sample may have any number of labels, so that uncertainty is :func:`label_entropy`; else one
            is chosen, and it is :func:`normalized_entropy`.

    Returns:
        logits: ``[batch, N]`` of the features' dtype.
        uncertainty: float32 ``[batch]`` (float64 for float64 features).
        stays: bool ``[batch]``, False for the samples that leave.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape; N is too small.
    """
    check_tensor("features", features, 2, FLOATING, features)
    for name, x, dims in (
        ("dense_weight", dense_weight, 2),
        ("dense_bias", dense_bias, 1),
        ("weight", weight, 2),
        ("bias", bias, 1),
    ):
        check_tensor(name, x, dims, (features.dtype,), features)
    hidden, labels = dense_weight.shape[0], weight.shape[0]
    for name, x, shape in (
        ("dense_weight", dense_weight, (hidden, features.shape[1])),
        ("dense_bias", dense_bias, (hidden,)),
        ("weight", weight, (labels, hidden)),
        ("bias", bias, (labels,)),
    ):
        if x.shape != shape:
            raise ValueError(f"{name} must be {list(shape)} to fit the others; got {describe(x)}")
    if labels < (1 if multi_label else 2):
        raise ValueError(
            f"an exit head must have {'1 label' if multi_label else '2 classes'} or more, or there is no uncertainty to "
            f"measure; got {describe(weight)}"
        )
    thresholds = threshold if isinstance(threshold, torch.Tensor) else None
    if thresholds is not None:
        check_tensor("threshold", thresholds, 1, FLOATING, features)
        if thresholds.shape[0] != features.shape[0]:
            raise ValueError(
                f"threshold must have one entry per sample, {features.shape[0]}; got {describe(thresholds)}"
            )
    if features.dtype == torch.float64:
        return reference.exit_head(features, dense_weight, dense_bias, weight, bias, threshold, multi_label)
    common = 0.0 if thresholds is not None else float(threshold)
    if common != common:
        raise ValueError("threshold must be a number; got NaN")
    return _ops.exit_head(features, dense_weight, dense_bias, weight, bias, thresholds, common, multi_label)


def measure_padded(attention_mask: torch.Tensor, xs: Sequence[torch.Tensor] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Sizes of a padded batch and ranges of its integers, in one small tensor that the host may read.

    Args:
        attention_mask: ``[batch, width]`` of any dtype but complex, 0 for padding, on whichever side.
        xs: up to three int64 or int32 tensors ``[batch, width]``.

    Returns:
        cu_seqlens: int32 ``[batch + 1]``, of the batch without its padding.
        extents: int64 ``[5 + 2 len(xs)]``: the number of real tokens; that of the longest sample, and of the shortest; the
            first sample as short as that; the most columns from a sample's first real token to its last; then for each x
            the lowest and the highest of 0 and its values at real tokens. All are 0 for a batch without samples.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
    """
    _check_padded(attention_mask, xs)
    return _ops.measure_padded(attention_mask, list(xs))


def pack_padded(
    attention_mask: torch.Tensor, cu_seqlens: torch.Tensor, total: int, xs: Sequence[torch.Tensor] = ()
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integers of a padded batch without its padding, row by row in the order of :func:`pack`.

    Args:
        attention_mask: as for :func:`measure_padded`.
        cu_seqlens, total: the starts of its samples and the number of its real tokens, as :func:`measure_padded` gives
            them; they are not checked against the mask.
        xs: up to three int64 or int32 tensors ``[batch, width]``.

    Returns:
        index: int64 ``[total]``, each row's place in the padded batch seen as ``[batch * width]``.
        places: int64 ``[total]``, the columns from the sample's first real token to each row's.
        packed: int64 ``[len(xs), total]``, the values of each x.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
    """
    _check_padded(attention_mask, xs)
    check_cu_seqlens(cu_seqlens, attention_mask)
    return _ops.pack_padded(attention_mask, cu_seqlens, total, list(xs))


def _check_padded(attention_mask: torch.Tensor, xs: Sequence[torch.Tensor]) -> None:
    if attention_mask.dim() != 2 or attention_mask.is_complex():
        raise ValueError(f"attention_mask must be [batch, width], of numbers or bool; got {describe(attention_mask)}")
    if len(xs) > 3:
        raise ValueError(f"xs must be up to three tensors; got {len(xs)}")
    for x in xs:
        check_tensor("each of xs", x, 2, (torch.int64, torch.int32), attention_mask)
        if x.shape != attention_mask.shape:
            raise ValueError(f"each of xs must be [batch, width] like {describe(attention_mask)}; got {describe(x)}")


def pack(padded: torch.Tensor, attention_mask: torch.Tensor, lengths: tuple[int, int] | None = None) -> Ragged:
    """Packs a padded batch: the rows where the mask is set, sample after sample.

    Args:
        padded: ``[batch, width, ...]``.
        attention_mask: ``[batch, width]``, 1 (or True) for real tokens, 0 for padding, on whichever side.
        lengths: number of real tokens in the batch and in its longest sample, if the host knows them; they are not
            checked. If None, they are read from the device, which costs a synchronisation.

    Returns:
        The batch, with what :func:`unpack` needs to restore the padding.

    Raises:
        ValueError: the mask's shape or device does not fit ``padded``.
    """
    if attention_mask.dim() != 2 or padded.shape[:2] != attention_mask.shape:
        raise ValueError(
            "attention_mask must be [batch, width] as the first two dimensions of padded; "
            f"got {describe(attention_mask)} for {describe(padded)}"
        )
    if attention_mask.device != padded.device:
        raise ValueError(f"attention_mask must be on {padded.device} like padded; got {describe(attention_mask)}")
    keep = attention_mask != 0
    starts = F.pad(keep.sum(1).cumsum(0), (1, 0))
    if lengths is None:
        longest = starts.diff().amax() if keep.shape[0] else starts[0]
        total, max_seqlen = read_by_host(torch.stack([starts[-1], longest]))
    else:
        total, max_seqlen = lengths
    index = torch.nonzero_static(keep.flatten(), size=total).squeeze(1)
    return Ragged(padded.flatten(0, 1)[index], starts.int(), max_seqlen, index, padded.shape[1])


def unpack(ragged: Ragged, fill: float = 0.0) -> torch.Tensor:
    """Padded batch ``[batch, width, ...]`` of a packed one, with ``fill`` as padding.

    Rows return to the places that :func:`pack` took them from; a batch that :func:`pack` did not make is padded on the right
    to the length of its longest sample.
    """
    return reference.unpack(ragged, fill)

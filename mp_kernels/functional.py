"""The public operators: arguments checked, defaults filled in, results cut to size.

What can be told from shapes and dtypes is checked here, for every backend alike; the compiled kernels also check the
values of ``cu_seqlens`` and of indices, where reading them costs no synchronisation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from . import reference
from .ragged import Kept, Ragged

_ops = torch.ops.mp_kernels

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _describe(x: object) -> str:
    if not isinstance(x, torch.Tensor):
        return f"{type(x).__name__} {x!r}"
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} on {x.device}"


def _check_tensor(name: str, x: torch.Tensor, dims: int, dtypes: Sequence[torch.dtype], like: torch.Tensor) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor; got {_describe(x)}")
    if x.dtype not in dtypes:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise TypeError(f"{name} must be {wanted}; got {_describe(x)}")
    if x.dim() != dims:
        raise ValueError(f"{name} must have {dims} dimension{'s' if dims > 1 else ''}; got {_describe(x)}")
    if x.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the other arguments; got {_describe(x)}")


def _check_cu_seqlens(cu_seqlens: torch.Tensor, like: torch.Tensor, name: str = "cu_seqlens") -> None:
    _check_tensor(name, cu_seqlens, 1, (torch.int32,), like)
    if cu_seqlens.shape[0] < 1:
        raise ValueError(f"{name} must have batch + 1 entries, 0 first; got none")


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
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention within each sample of a packed ragged batch, with how much attention each token receives.

    ``P[h,i,j] = softmax_j(scale q_i . k_j)`` and ``importance[j] = (1 / (H n)) sum_h sum_i P[h,i,j]``, the column mean of
    the probabilities (Magic Pyramid's Eq. 4, as its text means it). Differentiable in q, k and v through both results.

    Args:
        q: ``[total, heads, head_dim]``, float32, float16, bfloat16 or float64. Strided views are welcome.
        k, v: like ``q``.
        cu_seqlens: int32 ``[batch + 1]``, where each sample begins; 0 first, ``total`` last.
        max_seqlen: length of the longest sample, or more.
        scale: factor on the scores; ``1 / sqrt(head_dim)`` if None.
        cu_seqlens_q: where each sample's *queries* begin, if only some tokens ask (``q`` is then ``[total_q, ...]``).
            Importance is the mean over these queries.
        need_importance: False saves computing the importance; None is returned in its place.

    Returns:
        out: ``[total_q, heads, head_dim]`` of ``q``'s dtype.
        importance: float32 ``[total]`` (float64 for float64 inputs); sums to 1 over each sample.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
        RuntimeError: ``cu_seqlens`` decreases or does not end at ``total``; ``max_seqlen`` is too small.
    """
    _check_tensor("q", q, 3, FLOATING, q)
    if 0 in q.shape[1:]:
        raise ValueError(f"q must have at least one head and a head_dim of at least 1; got {_describe(q)}")
    for name, x in (("k", k), ("v", v)):
        _check_tensor(name, x, 3, (q.dtype,), q)
        if x.shape[1:] != q.shape[1:] or x.shape[0] != k.shape[0]:
            raise ValueError(
                f"{name} must have q's heads and head_dim and k's rows; q is {_describe(q)}, {name} {_describe(x)}"
            )
    _check_cu_seqlens(cu_seqlens, q)
    if cu_seqlens_q is None:
        if q.shape[0] != k.shape[0]:
            raise ValueError(
                f"q and k must have the same rows unless cu_seqlens_q is given; got {q.shape[0]} and {k.shape[0]}"
            )
        cu_seqlens_q = cu_seqlens
    else:
        _check_cu_seqlens(cu_seqlens_q, q, "cu_seqlens_q")
        if cu_seqlens_q.shape != cu_seqlens.shape:
            raise ValueError(
                f"cu_seqlens_q must have as many entries as cu_seqlens, {cu_seqlens.shape[0]}; got {cu_seqlens_q.shape[0]}"
            )
    if scale is None:
        scale = 1.0 / math.sqrt(q.shape[-1])
    run = reference_attention if q.dtype == torch.float64 else _ops.ragged_attention
    out, importance, _ = run(q, k, v, cu_seqlens_q, cu_seqlens, max_seqlen, scale, need_importance)
    return out, importance if need_importance else None


def reference_attention(q, k, v, cu_seqlens_q, cu_seqlens, max_seqlen, scale, need_importance):
    """float64 is for checking gradients: there the definition itself runs."""
    return reference.attention_with_logsumexp(q, k, v, cu_seqlens_q, cu_seqlens, scale)


def _kept(
    index: torch.Tensor, cu_seqlens: torch.Tensor, extents: torch.Tensor, samples: torch.Tensor | None = None
) -> Kept:
    rows, batch, max_seqlen, nan_row = extents.tolist()
    if nan_row >= 0:
        raise reference.nan_importance_error(nan_row)
    return Kept(index[:rows], cu_seqlens[: batch + 1], max_seqlen, None if samples is None else samples[:batch])


def _check_importance(importance: torch.Tensor, cu_seqlens: torch.Tensor) -> None:
    _check_tensor("importance", importance, 1, (torch.float32, torch.float64), importance)
    _check_cu_seqlens(cu_seqlens, importance)


def prune_tokens(importance: torch.Tensor, cu_seqlens: torch.Tensor, threshold: float) -> Kept:
    """Tokens that survive a layer: ``importance[j] >= threshold``, and the first of each sample ([CLS]) always.

    Magic Pyramid's Eq. 7, where the sigmoid of Eq. 5 passes one half.

    Args:
        importance: float32 ``[total]``.
        cu_seqlens: int32 ``[batch + 1]``.
        threshold: the layer's threshold; compared in importance's dtype.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape; importance or threshold is NaN.
        RuntimeError: ``cu_seqlens`` decreases or does not end at ``total``.
    """
    _check_importance(importance, cu_seqlens)
    threshold = float(threshold)
    if math.isnan(threshold):
        raise ValueError("threshold must be a number; got NaN")
    if importance.dtype == torch.float64:
        return reference.prune_tokens(importance, cu_seqlens, threshold)
    return _kept(*_ops.prune_tokens(importance, cu_seqlens, threshold))


def top_k_tokens(importance: torch.Tensor, cu_seqlens: torch.Tensor, k: int | torch.Tensor) -> Kept:
    """The ``k`` most important tokens of each sample, its first among them; ties go to the lower position.

    Args:
        importance: float32 ``[total]``.
        cu_seqlens: int32 ``[batch + 1]``.
        k: how many tokens go on, at least 1: one number, or an int tensor ``[batch]``. Shorter samples are kept whole.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape; ``k`` below 1; importance is NaN.
        RuntimeError: ``cu_seqlens`` decreases or does not end at ``total``; an entry of a tensor ``k`` is below 1.
    """
    _check_importance(importance, cu_seqlens)
    batch = cu_seqlens.shape[0] - 1
    if isinstance(k, torch.Tensor):
        _check_tensor("k", k, 1, (torch.int64, torch.int32), importance)
        if k.shape[0] != batch:
            raise ValueError(f"k must have one entry a sample, {batch}; got {_describe(k)}")
        counts = k.long()
    elif isinstance(k, int) and not isinstance(k, bool):
        if k < 1:
            raise ValueError(f"k must be at least 1 (the first token always stays); got {k}")
        counts = torch.full((batch,), k, dtype=torch.int64, device=importance.device)
    else:
        raise TypeError(f"k must be an int or an int tensor [batch]; got {_describe(k)}")
    if importance.dtype == torch.float64:
        return reference.top_k_tokens(importance, cu_seqlens, counts)
    return _kept(*_ops.top_k_tokens(importance, cu_seqlens, counts))


def select_samples(cu_seqlens: torch.Tensor, stays: torch.Tensor, total: int | None = None) -> Kept:
    """The rows of the samples that stay, and the batch they make.

    Args:
        cu_seqlens: int32 ``[batch + 1]``.
        stays: bool ``[batch]``.
        total: number of rows, ``cu_seqlens[-1]``; given, it need not be read from the device.

    Raises:
        TypeError, ValueError: a wrong dtype, device or shape.
        RuntimeError: ``cu_seqlens`` decreases or does not end at ``total``.
    """
    _check_cu_seqlens(cu_seqlens, cu_seqlens)
    _check_tensor("stays", stays, 1, (torch.bool,), cu_seqlens)
    if stays.shape[0] != cu_seqlens.shape[0] - 1:
        raise ValueError(f"stays must have one entry a sample, {cu_seqlens.shape[0] - 1}; got {_describe(stays)}")
    if total is None:
        total = int(cu_seqlens[-1])
    index, new_cu_seqlens, samples, extents = _ops.select_samples(cu_seqlens, stays, total)
    return _kept(index, new_cu_seqlens, extents, samples)


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
        RuntimeError: an index outside the rows.
    """
    xs = [x] if isinstance(x, torch.Tensor) else list(x)
    if not xs:
        return ()
    for part in xs:
        if not isinstance(part, torch.Tensor) or part.dim() < 1:
            raise ValueError(f"x must be [rows, ...] or a sequence of such tensors; got {_describe(part)}")
    _check_tensor("index", index, 1, (torch.int64,), xs[0])
    for part in xs:
        if part.device != index.device:
            raise ValueError(f"x must be on {index.device} like index; got {_describe(part)}")
    gathered = _ops.ragged_gather(xs, index)
    return gathered[0] if isinstance(x, torch.Tensor) else tuple(gathered)


def ragged_mean(x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Mean of each sample's rows, accumulated in float32.

    Args:
        x: ``[total, width]``, floating.
        cu_seqlens: int32 ``[batch + 1]``.

    Returns:
        ``[batch, width]`` of ``x``'s dtype; zero for a sample without rows.
    """
    _check_tensor("x", x, 2, FLOATING, x)
    _check_cu_seqlens(cu_seqlens, x)
    return (reference if x.dtype == torch.float64 else _ops).ragged_mean(x, cu_seqlens)


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    index: torch.Tensor | None = None,
) -> torch.Tensor:
    """``LayerNorm(x + residual[index])`` in one pass; the statistics are float32.

    Args:
        x: ``[rows, width]``, floating.
        residual: ``[rows, width]``, or with an index ``[any, width]``, of ``x``'s dtype.
        weight, bias: ``[width]`` of ``x``'s dtype.
        eps: added to the variance.
        index: int64 ``[rows]``, the row of ``residual`` that belongs to each row of ``x``; None: the same row.
    """
    _check_tensor("x", x, 2, FLOATING, x)
    _check_tensor("residual", residual, 2, (x.dtype,), x)
    _check_tensor("weight", weight, 1, (x.dtype,), x)
    _check_tensor("bias", bias, 1, (x.dtype,), x)
    if index is not None:
        _check_tensor("index", index, 1, (torch.int64,), x)
    if x.dtype == torch.float64:
        return reference.add_layer_norm(x, residual, weight, bias, eps, index)
    return _ops.add_layer_norm(x, residual, index, weight, bias, eps)


def bias_gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``gelu(x + bias)``, the exact GELU (by erf), in one pass. x: ``[rows, width]``; bias: ``[width]`` or None."""
    _check_tensor("x", x, 2, FLOATING, x)
    if bias is not None:
        _check_tensor("bias", bias, 1, (x.dtype,), x)
        if bias.shape[0] != x.shape[1]:
            raise ValueError(f"bias must be [width], {x.shape[1]}; got {_describe(bias)}")
    return (reference if x.dtype == torch.float64 else _ops).bias_gelu(x, bias)


def normalized_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Uncertainty of a prediction: ``u = -sum p log p / log N`` with ``p = softmax(logits)``; 0 certain, 1 uniform.

    Args:
        logits: ``[batch, N]``, floating, N at least 2.

    Returns:
        float32 ``[batch]`` (float64 for float64 logits). A probability of 0 contributes 0.

    Raises:
        ValueError: N is 1 (there is nothing to be uncertain about).
    """
    _check_tensor("logits", logits, 2, FLOATING, logits)
    if logits.shape[1] < 2:
        raise ValueError(
            f"logits must have 2 classes or more, or there is no uncertainty to measure; got {_describe(logits)}"
        )
    return (reference if logits.dtype == torch.float64 else _ops).normalized_entropy(logits)


def pack(padded: torch.Tensor, attention_mask: torch.Tensor) -> Ragged:
    """Packs a padded batch: the rows where the mask is set, sample after sample.

    Args:
        padded: ``[batch, width, ...]``.
        attention_mask: ``[batch, width]``, 1 (or True) for real tokens, 0 for padding, on whichever side.

    Raises:
        ValueError: the mask's shape is not the first two dimensions of ``padded``.
    """
    if attention_mask.dim() != 2 or padded.shape[:2] != attention_mask.shape:
        raise ValueError(
            "attention_mask must be [batch, width] as the first two dimensions of padded; "
            f"got {_describe(attention_mask)} for {_describe(padded)}"
        )
    if attention_mask.device != padded.device:
        raise ValueError(f"attention_mask must be on {padded.device} like padded; got {_describe(attention_mask)}")
    return reference.pack(padded, attention_mask)


def unpack(ragged: Ragged, fill: float = 0.0) -> torch.Tensor:
    """The padded batch ``[batch, width, ...]`` of a packed one, ``fill`` where it has no rows.

    Rows return to the places that :func:`pack` took them from; a batch that did not come from there is padded on the right
    to its longest sample.
    """
    return reference.unpack(ragged, fill)

"""The operators in plain PyTorch: the definition that every faster version is tested against.

They take any floating dtype, handle one sample after the other, and are differentiable by autograd. They compute in float32,
or in float64 for float64 inputs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .checks import int8_weight_shape
from .ragged import Kept, Ragged


def _spans(cu_seqlens: torch.Tensor, total: int, name: str = "cu_seqlens") -> list[tuple[int, int]]:
    starts = cu_seqlens.tolist()
    if starts[0] != 0 or starts[-1] != total or starts != sorted(starts):
        raise RuntimeError(
            f"{name} must start with 0, must not decrease and must end with the number of rows, {total}; got {starts}"
        )
    return list(itertools.pairwise(starts))


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def attention_with_logsumexp(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens: torch.Tensor,
    scale: float,
    stays: torch.Tensor | None = None,
    positions_q: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    buckets: torch.Tensor | None = None,
    window: int = -1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``out`` and ``importance`` of :func:`ragged_attention` by head, and the log-sum-exp of each row of scores.

    A sample that does not stay, or has no keys, gets zeros in all three, and so does a query that sees no key.

    Args:
        positions_q, positions: int32 ``[total_q]`` and ``[total]``; both None: the rows' own order in each sample.
        window: largest distance at which a query sees a key; -1: any distance.
        (others): those of :func:`mp_kernels.ragged_attention`.

    Returns:
        out ``[total_q, heads, head_dim]``, importance ``[heads, total]``, log-sum-exp ``[heads, total_q]``.
    """
    wide_q, wide_k, wide_v = map(_at_least_float32, (q, k, v))
    heads = q.shape[1]
    outs, importances = [wide_q[:0]], [wide_k[:0].sum(2).t()]  # empty, to keep a batch without samples in the graph
    logsumexps = [wide_q.new_empty(heads, 0)]
    q_spans, spans = _spans(cu_seqlens_q, q.shape[0], "cu_seqlens_q"), _spans(cu_seqlens, k.shape[0])
    places_q = _places("positions_q", positions_q, q_spans, q.device)
    places = _places("positions", positions, spans, q.device)
    if bias is not None and buckets is not None:
        refuse_outside(buckets, bias.shape[1], "buckets")
        outs[0] = outs[0] + bias.sum()
    computed = [True] * len(spans) if stays is None else stays.tolist()
    for (q_begin, q_end), (begin, end), wanted in zip(q_spans, spans, computed, strict=True):
        if not wanted or begin == end:
            outs.append(torch.zeros_like(wide_q[q_begin:q_end]))
            importances.append(wide_k.new_zeros(heads, end - begin))
            logsumexps.append(wide_q.new_zeros(heads, q_end - q_begin))
            continue
        scores = torch.einsum("ihd,jhd->hij", wide_q[q_begin:q_end], wide_k[begin:end]) * scale
        distances = places[begin:end] - places_q[q_begin:q_end, None]
        if bias is not None and buckets is not None:
            reach = buckets.shape[0] // 2
            scores = scores + bias.to(scores.dtype)[:, buckets.long()[distances.clamp(-reach, reach) + reach]]
        exists = distances.abs() <= window if window >= 0 else torch.ones_like(distances, dtype=torch.bool)
        probabilities, logsumexp = _softmax(scores, exists)
        outs.append(torch.einsum("hij,jhd->ihd", probabilities, wide_v[begin:end]))
        importances.append(probabilities.sum(1) / exists.sum(0).clamp(min=1))
        logsumexps.append(logsumexp)
    return torch.cat(outs).to(q.dtype), torch.cat(importances, dim=1), torch.cat(logsumexps, dim=1)


def _places(
    name: str, positions: torch.Tensor | None, spans: Sequence[tuple[int, int]], device: torch.device
) -> torch.Tensor:
    """int64 ``[rows]``: ``positions``, which must rise within each sample, or else the rows' own order in it."""
    if positions is None:
        return torch.cat([torch.arange(end - begin, device=device) for begin, end in [(0, 0), *spans]])
    for begin, end in spans:
        part = positions[begin:end]
        if (part < 0).any() or (part.diff() <= 0).any():
            raise RuntimeError(f"{name} must rise from 0 or more within each sample; got {part.tolist()}")
    return positions.long()


def _softmax(scores: torch.Tensor, exists: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax of each row of ``scores [heads, queries, keys]`` over the pairs that exist, and its log-sum-exp.

    Both are zero in a row without a pair.
    """
    empty = ~exists.any(-1, keepdim=True)
    scores = scores.masked_fill(~exists, -math.inf).masked_fill(empty, 0.0)
    probabilities = torch.softmax(scores, dim=-1).masked_fill(~exists, 0.0)
    return probabilities, torch.logsumexp(scores, dim=-1).masked_fill(empty.squeeze(-1), 0.0)


def mean_over_heads(importance: torch.Tensor) -> torch.Tensor:
    """Importance ``[total]``, the mean over the heads of importance by head ``[heads, total]``."""
    return importance.mean(0)


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
    """Definition of :func:`mp_kernels.ragged_attention`."""
    del max_seqlen
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    queries = cu_seqlens if cu_seqlens_q is None else cu_seqlens_q
    positions_q = positions if positions_q is None else positions_q
    places = (positions_q, positions, bias, buckets, -1 if window is None else window)
    out, importance, _ = attention_with_logsumexp(q, k, v, queries, cu_seqlens, scale, stays, *places)
    if not need_importance:
        return out, None
    return out, importance if by_head else mean_over_heads(importance)


def _compact(keep: torch.Tensor, cu_seqlens: torch.Tensor, stays: torch.Tensor | None = None) -> Kept:
    spans = _spans(cu_seqlens, keep.shape[0])
    samples = None
    if stays is not None:
        samples = stays.nonzero().squeeze(1)
        keep = keep & torch.repeat_interleave(stays, cu_seqlens.diff().long())
        spans = [spans[sample] for sample in samples.tolist()]
    lengths = [int(keep[begin:end].sum()) for begin, end in spans]
    new_cu_seqlens = F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))
    return Kept(keep.nonzero().squeeze(1), new_cu_seqlens.to(cu_seqlens.device), max(lengths, default=0), samples)


def refuse_nan(importance: torch.Tensor) -> None:
    """Raises ValueError if importance is NaN anywhere."""
    rows = importance.isnan().nonzero()
    if rows.numel():
        raise nan_importance_error(int(rows[0]))


def nan_importance_error(row: int) -> ValueError:
    """The error for NaN importance, first found at ``row``."""
    return ValueError(
        f"importance is NaN at row {row}: the states that the attention read are not finite; "
        "look for overflow in half precision or for broken weights"
    )


def _of_staying_tokens(importance: torch.Tensor, cu_seqlens: torch.Tensor, stays: torch.Tensor | None) -> torch.Tensor:
    importance = importance if importance.dim() == 1 else mean_over_heads(importance)
    if stays is not None:
        importance = torch.where(torch.repeat_interleave(stays, cu_seqlens.diff().long()), importance, 0.0)
    refuse_nan(importance)
    return importance


def prune_tokens(
    importance: torch.Tensor, cu_seqlens: torch.Tensor, threshold: float, stays: torch.Tensor | None = None
) -> Kept:
    """Definition of :func:`mp_kernels.prune_tokens`."""
    spans = _spans(cu_seqlens, importance.shape[-1])
    keep = _of_staying_tokens(importance, cu_seqlens, stays) >= threshold
    for begin, end in spans:
        keep[begin : min(begin + 1, end)] = True
    return _compact(keep, cu_seqlens, stays)


def prune_rows(
    xs: Sequence[torch.Tensor], importance: torch.Tensor, cu_seqlens: torch.Tensor, threshold: float
) -> tuple[list[torch.Tensor], Kept]:
    """Definition of :func:`mp_kernels.prune_rows`."""
    kept = prune_tokens(importance, cu_seqlens, threshold)
    return list(ragged_gather(list(xs), kept.index)), kept


def top_k_tokens(
    importance: torch.Tensor, cu_seqlens: torch.Tensor, k: int | torch.Tensor, stays: torch.Tensor | None = None
) -> Kept:
    """Definition of :func:`mp_kernels.top_k_tokens`."""
    spans = _spans(cu_seqlens, importance.shape[-1])
    importance = _of_staying_tokens(importance, cu_seqlens, stays)
    counts = [k] * len(spans) if isinstance(k, int) else k.tolist()
    keep = torch.zeros(importance.shape, dtype=torch.bool, device=importance.device)
    for (begin, end), count in zip(spans, counts, strict=True):
        if count < 1:
            raise ValueError(f"k must be at least 1 (the first token always stays); got {count}")
        by_rank = torch.argsort(importance[begin + 1 : end], descending=True, stable=True) + begin + 1
        keep[begin : min(begin + 1, end)] = True
        keep[by_rank[: count - 1]] = True
    return _compact(keep, cu_seqlens, stays)


def select_samples(cu_seqlens: torch.Tensor, stays: torch.Tensor, total: int | None = None) -> Kept:
    """Definition of :func:`mp_kernels.select_samples`."""
    everything = torch.ones(int(cu_seqlens[-1]) if total is None else total, dtype=torch.bool, device=stays.device)
    return _compact(everything, cu_seqlens, stays)


def ragged_gather(
    x: torch.Tensor | Sequence[torch.Tensor], index: torch.Tensor
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Definition of :func:`mp_kernels.ragged_gather`."""
    # Not x[index], where a negative index would count from the end.
    if isinstance(x, torch.Tensor):
        return x.index_select(0, index)
    return tuple(part.index_select(0, index) for part in x)


def add_rows(x: torch.Tensor, index: torch.Tensor, rows: int) -> torch.Tensor:
    """Gradient of :func:`ragged_gather`, ``[rows, ...]``: row r is the sum of all ``x[i]`` with ``index[i] == r``."""
    wide = _at_least_float32(x)
    return wide.new_zeros((rows, *x.shape[1:])).index_add(0, index, wide).to(x.dtype)


def ragged_mean(x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """Definition of :func:`mp_kernels.ragged_mean`."""
    wide = _at_least_float32(x)
    means = [
        wide[begin:end].sum(0, keepdim=True) / max(end - begin, 1) for begin, end in _spans(cu_seqlens, x.shape[0])
    ]
    return torch.cat([wide[:0], *means]).to(x.dtype)


def pair_features(
    first: torch.Tensor, x: torch.Tensor, cu_seqlens: torch.Tensor, middles: torch.Tensor
) -> torch.Tensor:
    """Definition of :func:`mp_kernels.pair_features`."""
    wide = _at_least_float32(x)
    mean = ragged_mean(wide, cu_seqlens)
    outside = (middles < cu_seqlens[:-1]) | (middles > cu_seqlens[1:])
    if outside.any():
        raise RuntimeError(f"middles must lie within their samples; got {int(middles[outside][0])}")
    parts = ragged_mean(wide, parts_of_pairs(cu_seqlens, middles))
    a, b = parts[0::2], parts[1::2]
    return torch.cat([_at_least_float32(first), mean, (a - b).abs(), a * b], dim=1).to(x.dtype)


def parts_of_pairs(cu_seqlens: torch.Tensor, middles: torch.Tensor) -> torch.Tensor:
    """int32 ``[2 batch + 1]``, the first row of each text of each pair, and the number of all rows.

    middles: int64 ``[batch]``, the first row of each sample's second text.
    """
    starts = torch.stack([cu_seqlens[:-1], middles.int()], dim=1).flatten()
    return torch.cat([starts, cu_seqlens[-1:]])


def _rows(x: torch.Tensor, index: torch.Tensor | None, name: str) -> torch.Tensor:
    if index is None:
        return x
    refuse_outside(index, x.shape[0], name)
    return x[index]


def refuse_outside(index: torch.Tensor, rows: int, name: str = "index") -> None:
    """Raises RuntimeError if an index is outside ``0..rows - 1``: a negative one does not count from the end."""
    outside = (index < 0) | (index >= rows)
    if outside.any():
        raise RuntimeError(f"{name} must lie in 0..{rows - 1}; got {int(index[outside][0])}")


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    index: torch.Tensor | None = None,
    x_index: torch.Tensor | None = None,
) -> torch.Tensor:
    """Definition of :func:`mp_kernels.add_layer_norm`."""
    x, residual = _rows(x, x_index, "x_index"), _rows(residual, index, "index")
    added = _at_least_float32(x) + _at_least_float32(residual)
    wide_weight, wide_bias = _at_least_float32(weight), _at_least_float32(bias)
    return F.layer_norm(added, x.shape[-1:], wide_weight, wide_bias, eps).to(x.dtype)


def bias_gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Definition of :func:`mp_kernels.bias_gelu`."""
    wide = _at_least_float32(x)
    return F.gelu(wide if bias is None else wide + _at_least_float32(bias)).to(x.dtype)


def gelu_gate(x: torch.Tensor) -> torch.Tensor:
    """Definition of :func:`mp_kernels.gelu_gate`."""
    gated, gate = _at_least_float32(x).chunk(2, dim=1)
    return (F.gelu(gated) * gate).to(x.dtype)


def rotary_embedding(x: torch.Tensor, positions: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Definition of :func:`mp_kernels.rotary_embedding`."""
    refuse_outside(positions, cos.shape[0], "positions")
    row_cos, row_sin = cos[positions.long()].unsqueeze(1), sin[positions.long()].unsqueeze(1)
    first, second = _at_least_float32(x).chunk(2, dim=2)
    return torch.cat([first * row_cos - second * row_sin, second * row_cos + first * row_sin], dim=2).to(x.dtype)


def normalized_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Definition of :func:`mp_kernels.normalized_entropy`."""
    classes = logits.shape[-1]
    if classes < 2:
        raise ValueError(f"logits must have 2 classes or more, or there is no uncertainty to measure; got {classes}")
    log_p = torch.log_softmax(_at_least_float32(logits), dim=-1)
    p = log_p.exp()
    return (-torch.where(p == 0, 0.0, p * log_p).sum(-1) / math.log(classes)).clamp(0.0, 1.0)


def label_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Definition of :func:`mp_kernels.label_entropy`."""
    if logits.shape[-1] < 1:
        raise ValueError(f"logits must have 1 label or more; got {logits.shape[-1]}")
    logits = _at_least_float32(logits)
    entropy = torch.zeros_like(logits)
    for log_p in (F.logsigmoid(logits), F.logsigmoid(-logits)):  # that a text has the label, and that it has not
        p = log_p.exp()
        entropy = entropy - torch.where(p == 0, 0.0, p * log_p)
    return (entropy.amax(-1) / math.log(2)).clamp(0.0, 1.0)


def head_logits(
    features: torch.Tensor,
    dense_weight: torch.Tensor,
    dense_bias: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """Logits ``[batch, N]`` of an exit head: dense, tanh, classifier."""
    return F.linear(torch.tanh(F.linear(features, dense_weight, dense_bias)), weight, bias)


def ordered_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Definition of :func:`mp_kernels.ordered_linear`."""
    return F.linear(x, weight, bias)


def exit_head(
    features: torch.Tensor,
    dense_weight: torch.Tensor,
    dense_bias: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    threshold: float | torch.Tensor,
    multi_label: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Definition of :func:`mp_kernels.exit_head`."""
    logits = head_logits(features, dense_weight, dense_bias, weight, bias)
    uncertainty = label_entropy(logits) if multi_label else normalized_entropy(logits)
    return logits, uncertainty, ~(uncertainty <= threshold)


def measure_padded(attention_mask: torch.Tensor, xs: Sequence[torch.Tensor] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Definition of :func:`mp_kernels.measure_padded`."""
    keep = attention_mask != 0
    counts = keep.sum(1)
    cu_seqlens = F.pad(counts.cumsum(0), (1, 0)).int()
    if 0 in keep.shape:
        return cu_seqlens, counts.new_zeros(5 + 2 * len(xs))
    first, past = (part.byte().argmax(1) for part in (keep, keep.flip(1)))
    span = torch.where(counts > 0, keep.shape[1] - past - first, 0)
    facts = [counts.sum(), counts.amax(), counts.amin(), counts.argmin(), span.amax()]
    for x in xs:
        lowest, highest = torch.where(keep, x, 0).aminmax()
        facts += [lowest.clamp(max=0), highest.clamp(min=0)]
    return cu_seqlens, torch.stack([x.long() for x in facts])


def pack_padded(
    attention_mask: torch.Tensor, cu_seqlens: torch.Tensor, total: int, xs: Sequence[torch.Tensor] = ()
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Definition of :func:`mp_kernels.pack_padded`."""
    keep = attention_mask != 0
    index = torch.nonzero_static(keep.flatten(), size=total).squeeze(1)
    if 0 in keep.shape:
        return index, index.clone(), index.new_empty(len(xs), total)
    columns = torch.arange(keep.shape[1], device=keep.device) - keep.byte().argmax(1, keepdim=True)
    places, *packed = (x.reshape(-1)[index].long() for x in (columns, *xs))
    return index, places, torch.stack(packed) if packed else index.new_empty(0, total)


def record_answers(
    count: torch.Tensor,
    extents: torch.Tensor,
    samples: torch.Tensor,
    entered: torch.Tensor,
    survived: torch.Tensor,
    logits: torch.Tensor | None,
    uncertainty: torch.Tensor | None,
    stays: torch.Tensor | None,
    layer: int,
    all_logits: torch.Tensor,
    all_uncertainty: torch.Tensor,
    exit_layer: torch.Tensor,
    tokens: torch.Tensor,
    nan_rows: torch.Tensor,
) -> None:
    """Writes down what a layer did with the samples that are there, of buffers that may have room for more.

    The first ``count`` of ``samples`` are there. Answers go to the places that these numbers say, where they replace
    those of earlier layers, and nobody else's place is touched. The engine calls the operator itself, unchecked.

    Args:
        count: int64 ``[1]``, the samples that entered the layer.
        extents: int64 ``[4]``, of the layer's pruning, or any with no NaN row; its NaN row is written down.
        samples: int64 ``[batch]``, the samples' numbers, below ``batch``.
        entered, survived: int32 ``[batch + 1]``, starts of their tokens before and after the layer.
        logits: ``[batch, labels]``, with ``uncertainty`` float32 ``[batch]``; None: nobody was looked at.
        stays: bool ``[batch]``, becomes False for samples that are not there; None: nobody leaves.
        layer: the layer's number.
        all_logits, all_uncertainty, exit_layer: ``[batch, labels]``, float32 and int64 ``[batch]``, written.
        tokens: int32 ``[layers, 2, batch]``, tokens that entered each layer and that survived it, written.
        nan_rows: int64 ``[layers]``, the first row with NaN importance at each layer, or -1, written.
    """
    there = torch.arange(samples.shape[0], device=samples.device) < count
    places = samples[there]
    tokens[layer, 0, places] = entered.diff()[there]
    tokens[layer, 1, places] = survived.diff()[there]
    nan_rows[layer] = extents[3]
    if logits is not None and uncertainty is not None:
        all_logits[places] = logits[there]
        all_uncertainty[places] = uncertainty[there]
        exit_layer[places] = layer
    if stays is not None:
        stays &= there


def pack(padded: torch.Tensor, attention_mask: torch.Tensor, lengths: tuple[int, int] | None = None) -> Ragged:
    """Definition of :func:`mp_kernels.pack`."""
    del lengths
    keep = attention_mask != 0
    counts = keep.sum(1)
    return Ragged(
        values=padded[keep],
        cu_seqlens=F.pad(counts.cumsum(0), (1, 0)).int(),
        max_seqlen=max(counts.tolist(), default=0),
        index=keep.flatten().nonzero().squeeze(1),
        width=padded.shape[1],
    )


def unpack(ragged: Ragged, fill: float = 0.0) -> torch.Tensor:
    """Definition of :func:`mp_kernels.unpack`."""
    if ragged.index is not None and ragged.width is not None:
        padded = ragged.values.new_full((ragged.batch_size * ragged.width, *ragged.values.shape[1:]), fill)
        padded = padded.index_copy(0, ragged.index, ragged.values)
        return padded.unflatten(0, (ragged.batch_size, ragged.width))
    rows = [
        torch.cat(
            [ragged.values[a:b], ragged.values.new_full((ragged.max_seqlen - (b - a), *ragged.values.shape[1:]), fill)]
        )
        for a, b in _spans(ragged.cu_seqlens, ragged.values.shape[0])
    ]
    empty = ragged.values.new_empty(0, ragged.max_seqlen, *ragged.values.shape[1:])
    return torch.stack(rows) if rows else empty


def _wide_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    wide_bias = None if bias is None else _at_least_float32(bias)
    return F.linear(_at_least_float32(x), _at_least_float32(weight), wide_bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Definition of :func:`mp_kernels.linear`."""
    return _wide_linear(x, weight, bias).to(x.dtype)


def linear_add_layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    index: torch.Tensor | None = None,
) -> torch.Tensor:
    """Definition of :func:`mp_kernels.linear_add_layer_norm`."""
    residual, norm_weight, norm_bias = map(_at_least_float32, (residual, norm_weight, norm_bias))
    return add_layer_norm(_wide_linear(x, weight, bias), residual, norm_weight, norm_bias, eps, index).to(x.dtype)


def feed_forward(
    x: torch.Tensor,
    grow_weight: torch.Tensor,
    grow_bias: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """Definition of :func:`mp_kernels.feed_forward`."""
    grown = F.gelu(_wide_linear(x, grow_weight, grow_bias)).to(x.dtype)
    return linear_add_layer_norm(grown, weight, bias, x, norm_weight, norm_bias, eps)


def post_norm_rest(
    x: torch.Tensor,
    residual: torch.Tensor,
    dense: Sequence[torch.Tensor],
    dense_norm: Sequence[torch.Tensor],
    dense_eps: float,
    grow: Sequence[torch.Tensor],
    shrink: Sequence[torch.Tensor],
    norm: Sequence[torch.Tensor],
    eps: float,
    index: torch.Tensor | None = None,
) -> torch.Tensor:
    """Definition of :func:`mp_kernels.post_norm_rest`."""
    (dense_weight, dense_bias), (grow_weight, grow_bias), (weight, bias) = map(with_bias, (dense, grow, shrink))
    (factor, offset), (last_factor, last_offset) = dense_norm, norm
    attended = linear_add_layer_norm(x, dense_weight, dense_bias, residual, factor, offset, dense_eps, index)
    return feed_forward(attended, grow_weight, grow_bias, weight, bias, last_factor, last_offset, eps)


def post_norm_layer(
    x: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    heads: int,
    projections: Sequence[torch.Tensor],
    dense: Sequence[torch.Tensor],
    dense_norm: Sequence[torch.Tensor],
    dense_eps: float,
    grow: Sequence[torch.Tensor],
    shrink: Sequence[torch.Tensor],
    norm: Sequence[torch.Tensor],
    eps: float,
) -> torch.Tensor:
    """Definition of :func:`mp_kernels.post_norm_layer`."""
    context = _self_attention(linear(x, *with_bias(projections)), cu_seqlens, heads)
    return post_norm_rest(context, x, dense, dense_norm, dense_eps, grow, shrink, norm, eps)


def post_norm_first(
    x: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    heads: int,
    queries: Sequence[torch.Tensor],
    keys_values: Sequence[torch.Tensor],
    dense: Sequence[torch.Tensor],
    dense_norm: Sequence[torch.Tensor],
    dense_eps: float,
    grow: Sequence[torch.Tensor],
    shrink: Sequence[torch.Tensor],
    norm: Sequence[torch.Tensor],
    eps: float,
) -> torch.Tensor:
    """Definition of :func:`mp_kernels.post_norm_first`."""
    first = x[cu_seqlens[:-1].long()]
    asking, answering = linear(first, *with_bias(queries)), linear(x, *with_bias(keys_values))
    context = _first_attention(asking, answering, cu_seqlens, heads)
    return post_norm_rest(context, first, dense, dense_norm, dense_eps, grow, shrink, norm, eps)


def _first_attention(
    asking: torch.Tensor, answering: torch.Tensor, cu_seqlens: torch.Tensor, heads: int
) -> torch.Tensor:
    """Context ``[batch, width]`` of a query a sample, ``[batch, width]``, and keys and values, ``[total, 2 width]``."""
    q, (k, v) = asking.unflatten(1, (heads, -1)), answering.unflatten(1, (2, heads, -1)).unbind(1)
    starts_q = torch.arange(cu_seqlens.shape[0], dtype=torch.int32, device=q.device)
    return attention_with_logsumexp(q, k, v, starts_q, cu_seqlens, 1.0 / math.sqrt(q.shape[-1]))[0].flatten(1)


def _self_attention(projected: torch.Tensor, cu_seqlens: torch.Tensor, heads: int) -> torch.Tensor:
    """Context ``[total, width]`` of queries, keys and values ``[total, 3 width]``."""
    q, k, v = projected.unflatten(1, (3, heads, -1)).unbind(1)
    return attention_with_logsumexp(q, k, v, cu_seqlens, cu_seqlens, 1.0 / math.sqrt(q.shape[-1]))[0].flatten(1)


def with_bias(layer: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of a layer, ``[weight, bias]`` or ``[weight]``."""
    weight, *bias = layer
    return weight, bias[0] if bias else None


def quantize_rows(
    x: torch.Tensor, index: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Definition of :func:`mp_kernels.quantize_rows`."""
    rows = _rows(x, index, "index")
    if columns is not None:
        others = rows.new_ones(rows.shape[1]).index_fill_(0, columns, 0)
        return *quantize_rows(rows * others), rows[:, columns]
    largest = rows.abs().amax(1) if rows.shape[1] else rows.new_zeros(rows.shape[0])
    factors = (127 / largest).clamp(max=torch.finfo(rows.dtype).max).nan_to_num(0.0)
    scales = torch.where(rows.isfinite().all(1), largest / 127, torch.nan)
    rounded = torch.where(largest[:, None] > 0, rows * factors[:, None], 0.0).nan_to_num(0.0).round()
    return rounded.clamp(-127, 127).to(torch.int8), scales.float()


def dequantize_rows(rows: torch.Tensor, scales: torch.Tensor, index: torch.Tensor | None = None) -> torch.Tensor:
    """Definition of :func:`mp_kernels.dequantize_rows`."""
    return _rows(rows, index, "index").to(scales.dtype) * _rows(scales, index, "index")[:, None]


def pack_int8_weight(weight: torch.Tensor, group: int) -> torch.Tensor:
    """Definition of a packed int8 weight, ``[outputs / 16, features / group, 16, group]``, from ``[outputs, features]``.

    In panels of 16 outputs, ``group`` features of one output lie beside those of the next.
    """
    outputs, features = weight.shape
    return weight.view(outputs // 16, 16, features // group, group).transpose(1, 2).contiguous()


def unpack_int8_weight(weight: torch.Tensor) -> torch.Tensor:
    """Definition of :func:`mp_kernels.unpack_int8_weight`."""
    return weight if weight.dim() == 2 else weight.transpose(1, 2).reshape(int8_weight_shape(weight))


def int8_linear(
    rows: torch.Tensor,
    row_scales: torch.Tensor,
    weight: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
    kept_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Definition of :func:`mp_kernels.int8_linear`. Sums of products of int8 are exact in float64."""
    product = rows.double() @ unpack_int8_weight(weight).double().t()
    values = product.to(row_scales.dtype) * row_scales[:, None] * column_scales
    values = values if bias is None else values + bias
    return values if kept is None or kept_weight is None else values + kept @ kept_weight.t()


def int8_linear_gelu(
    rows: torch.Tensor,
    row_scales: torch.Tensor,
    weight: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
    kept_weight: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
) -> tuple[torch.Tensor, ...]:
    """Definition of :func:`mp_kernels.int8_linear_gelu`."""
    grown = F.gelu(int8_linear(rows, row_scales, weight, column_scales, bias, kept, kept_weight))
    return quantize_rows(grown, columns=columns)


def int8_dynamic_linear(x: torch.Tensor, layer: Sequence[torch.Tensor]) -> torch.Tensor:
    """Definition of :func:`mp_kernels.int8_dynamic_linear`."""
    weight, scale, bias, *kept = layer
    columns, kept_weight = kept or (None, None)
    rows, scales, *floats = quantize_rows(x, columns=columns)
    return int8_linear(rows, scales, weight, scale, bias, *floats, *([] if kept_weight is None else [kept_weight]))


def int8_post_norm_rest(
    x: torch.Tensor,
    residual: torch.Tensor,
    dense: Sequence[torch.Tensor],
    dense_norm: Sequence[torch.Tensor],
    dense_eps: float,
    grow: Sequence[torch.Tensor],
    shrink: Sequence[torch.Tensor],
    norm: Sequence[torch.Tensor],
    eps: float,
    index: torch.Tensor | None = None,
) -> torch.Tensor:
    """Definition of :func:`mp_kernels.int8_post_norm_rest`."""
    (factor, offset), (last_factor, last_offset) = dense_norm, norm
    attended = add_layer_norm(int8_dynamic_linear(x, dense), residual, factor, offset, dense_eps, index)
    grown = F.gelu(int8_dynamic_linear(attended, grow))
    return add_layer_norm(int8_dynamic_linear(grown, shrink), attended, last_factor, last_offset, eps)


def int8_post_norm_layer(
    x: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    heads: int,
    projections: Sequence[torch.Tensor],
    dense: Sequence[torch.Tensor],
    dense_norm: Sequence[torch.Tensor],
    dense_eps: float,
    grow: Sequence[torch.Tensor],
    shrink: Sequence[torch.Tensor],
    norm: Sequence[torch.Tensor],
    eps: float,
) -> torch.Tensor:
    """Definition of :func:`mp_kernels.int8_post_norm_layer`."""
    context = _self_attention(int8_dynamic_linear(x, projections), cu_seqlens, heads)
    return int8_post_norm_rest(context, x, dense, dense_norm, dense_eps, grow, shrink, norm, eps)


def int8_post_norm_first(
    x: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    heads: int,
    queries: Sequence[torch.Tensor],
    keys_values: Sequence[torch.Tensor],
    dense: Sequence[torch.Tensor],
    dense_norm: Sequence[torch.Tensor],
    dense_eps: float,
    grow: Sequence[torch.Tensor],
    shrink: Sequence[torch.Tensor],
    norm: Sequence[torch.Tensor],
    eps: float,
) -> torch.Tensor:
    """Definition of :func:`mp_kernels.int8_post_norm_first`."""
    first = x[cu_seqlens[:-1].long()]
    asking, answering = int8_dynamic_linear(first, queries), int8_dynamic_linear(x, keys_values)
    context = _first_attention(asking, answering, cu_seqlens, heads)
    return int8_post_norm_rest(context, first, dense, dense_norm, dense_eps, grow, shrink, norm, eps)


def int8_linear_add_layer_norm(
    rows: torch.Tensor,
    row_scales: torch.Tensor,
    weight: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
    eps: float,
    index: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
    kept_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Definition of :func:`mp_kernels.int8_linear_add_layer_norm`."""
    x = int8_linear(rows, row_scales, weight, column_scales, bias, kept, kept_weight)
    return add_layer_norm(x, residual, norm_weight, norm_bias, eps, index)

"""Attention of a layer over the tokens of the same sample, in a packed batch or in a masked one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import mp_kernels
from mp_kernels import Ragged

from .forms import Survive, first_rows


@dataclass(frozen=True)
class Relation:
    """A layer's attention as far as it depends on the places of two tokens in their text; pruning changes no place.

    Attributes:
        bias: ``[heads, buckets]``, added to the scores.
        buckets: int32 ``[2 R + 1]``, the bucket of each distance from -R to R, of a key's place from its query's; farther
            ones count as these.
        window: the distance at which a query still sees a key; None: any.
    """

    bias: Tensor | None = None
    buckets: Tensor | None = None
    window: int | None = None

    def bias_of(self, distances: Tensor) -> Tensor:
        """The bias of distances ``[queries, keys]``: ``[heads, queries, keys]``."""
        assert self.bias is not None
        assert self.buckets is not None
        farthest = self.buckets.shape[0] // 2
        return self.bias[:, self.buckets[distances.clamp(-farthest, farthest) + farthest].long()]


def attend(
    heads: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: Ragged,
    need_importance: bool,
    cu_seqlens_q: Tensor | None = None,
    asking: Tensor | None = None,
    relation: Relation | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Context of the projected queries, and importance by head, float32 ``[heads, total]``.

    Args:
        heads: number of heads.
        query: ``[total, hidden]``; or one row for each sample, ``[batch, hidden]``; or as ``cu_seqlens_q`` says.
        key, value: ``[total, hidden]``.
        batch: their samples, with positions where there is a relation.
        need_importance: whether importance is wanted; else None comes in its place.
        cu_seqlens_q: int32 ``[batch + 1]``, the first query of each sample.
        asking: int64 ``[queries]``, the rows of the batch that ask, where ``cu_seqlens_q`` is given; None: all.
        relation: the layer's; None: places play no part.
    """
    if cu_seqlens_q is None and query.shape[0] != key.shape[0]:
        cu_seqlens_q = torch.arange(batch.batch_size + 1, dtype=torch.int32, device=query.device)
        asking = batch.cu_seqlens[:-1]
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in (query, key, value))
    places: dict[str, Tensor | int | None] = {}
    if relation is not None:
        assert batch.positions is not None
        own = batch.positions if asking is None else batch.positions[asking]
        places = {"positions": batch.positions, "positions_q": own, **vars(relation)}
    out, importance = mp_kernels.ragged_attention(
        q,
        k,
        v,
        batch.cu_seqlens,
        batch.max_seqlen,
        cu_seqlens_q=cu_seqlens_q,
        need_importance=need_importance,
        by_head=True,
        **places,  # type: ignore[arg-type]
    )
    return out.flatten(1), importance


@dataclass
class MaskedBatch:
    """Samples of a padded batch as a layer sees them that takes nothing out of memory; in plain PyTorch.

    Attributes:
        alive: bool ``[batch, width]``, the tokens that enter the layer.
        keep_probabilities: whether the layer is to leave its attention probabilities here.
        probabilities: ``[batch, heads, width, width]`` of the last layer that did; 0 in rows and columns of other tokens.
    """

    alive: Tensor
    keep_probabilities: bool = False
    probabilities: Tensor | None = None

    def attend(
        self,
        heads: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_importance: bool,
        relation: Relation | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Context ``[batch, width, hidden]``, and importance by head, float32 ``[batch, heads, width]``.

        Args:
            heads: number of heads.
            query, key, value: projected states ``[batch, width, hidden]``.
            need_importance: whether importance is wanted; else None comes in its place.
            relation: the layer's; None: places play no part.
        """
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
        visible = self.alive[:, None, None, :]  # [batch, 1, 1 or queries, keys]
        bias: Tensor | None = None
        if relation is not None:
            columns = torch.arange(self.alive.shape[1], device=query.device)
            distances = columns - columns.unsqueeze(1)
            if relation.window is not None:  # padding far from any token sees itself, so that its row is no NaN
                visible = (visible & (distances.abs() <= relation.window)) | (distances == 0)
            if relation.bias is not None:
                bias = relation.bias_of(distances)
        if not need_importance and not self.keep_probabilities:
            mask = visible if bias is None else bias.to(q.dtype).masked_fill(~visible, float("-inf"))
            context = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return context.transpose(1, 2).flatten(2), None
        scores = (q @ k.transpose(2, 3)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
        if bias is not None:
            scores = scores + bias
        probabilities = scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1)
        exists = visible & self.alive[:, None, :, None]
        probabilities = probabilities.masked_fill(~exists, 0)
        importance = probabilities.sum(2) / exists.sum(2).clamp(min=1)
        probabilities = probabilities.to(v.dtype)
        self.probabilities = probabilities if self.keep_probabilities else None
        return (probabilities @ v).transpose(1, 2).flatten(2), importance


Projection = Callable[[Tensor], Tensor]


def attend_by_modules(
    heads: int,
    query: Projection,
    key: Projection,
    value: Projection,
    values: Tensor,
    batch: Ragged | MaskedBatch,
    first_only: bool,
    need_importance: bool,
    relation: Relation | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Context and importance of a layer whose projections are called as the modules that they are.

    Args:
        heads: number of heads.
        query, key, value: the projections.
        values: ``[total, hidden]``, the rows that enter; ``[batch, width, hidden]`` for a masked batch.
        batch: their samples; its own values are not read.
        first_only: whether each sample's [CLS] asks alone.
        need_importance: whether importance is wanted; else None comes in its place.
        relation: the layer's; None: places play no part.
    """
    if isinstance(batch, MaskedBatch):
        return batch.attend(heads, query(values), key(values), value(values), need_importance, relation)
    queries = query(first_rows(values, batch) if first_only else values)
    return attend(heads, queries, key(values), value(values), batch, need_importance, relation=relation)


def going_on(
    context: Tensor,
    importance: Tensor | None,
    values: Tensor,
    batch: Ragged | MaskedBatch,
    survive: Survive | None,
    first_only: bool,
) -> tuple[Tensor, Tensor]:
    """Context and entering states of the tokens that go on: the survivors, or [CLS] alone.

    Args:
        context: of the tokens that asked.
        importance: of the tokens that entered, where there is a choice.
        values: states of the tokens that entered.
        batch: their samples.
        survive: the choice of survivors; None: all.
        first_only: whether [CLS] alone asked.
    """
    if first_only:
        assert isinstance(batch, Ragged)
        return context, first_rows(values, batch)
    if survive is not None:
        assert importance is not None
        (context, values), _ = survive(importance, [context, values])
    return context, values

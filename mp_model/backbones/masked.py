"""Attention over a padded batch by a mask, in plain PyTorch, with the probabilities in full."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class MaskedBatch:
    """Samples of a padded batch as a layer sees them that takes nothing out of memory.

    Attributes:
        alive: bool ``[batch, width]``, the tokens that enter the layer.
        keep_probabilities: whether the layer is to leave its attention probabilities here.
        probabilities: ``[batch, heads, width, width]`` of the last layer that did; 0 in rows and columns of other tokens.
    """

    alive: Tensor
    keep_probabilities: bool = False
    probabilities: Tensor | None = None

    def attend(
        self, heads: int, query: Tensor, key: Tensor, value: Tensor, need_importance: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Context ``[batch, width, hidden]``, and importance by head, float32 ``[batch, heads, width]``.

        Args:
            heads: number of heads.
            query, key, value: projected states ``[batch, width, hidden]``.
            need_importance: whether importance is wanted; else None comes in its place.
        """
        q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
        may_be_read = self.alive[:, None, None, :]
        if not need_importance and not self.keep_probabilities:
            context = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=may_be_read)
            return context.transpose(1, 2).flatten(2), None
        scores = (q @ k.transpose(2, 3)).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
        probabilities = scores.masked_fill(~may_be_read, torch.finfo(scores.dtype).min).softmax(-1)
        probabilities = probabilities.masked_fill(~self.alive[:, None, :, None], 0)
        importance = probabilities.sum(2) / self.alive.sum(1).clamp(min=1)[:, None, None]
        probabilities = probabilities.to(v.dtype)
        self.probabilities = probabilities if self.keep_probabilities else None
        return (probabilities @ v).transpose(1, 2).flatten(2), importance

"""Soft pruning: thresholds that are learned, because a token fades out instead of disappearing.

Every layer's output is multiplied by ``sigmoid((importance - threshold) / temperature)`` (Magic Pyramid's Eq. 5), through
which the loss reaches the thresholds, and through the importance the attention. A penalty on the mean of these masks pulls
the thresholds up.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mp_kernels import Ragged

from ..pruning import Pruning


class SoftPruning(Pruning):
    """Fades tokens out, in place of :class:`mp_model.pruning.Pruning`.

    Args:
        thresholds: to be learned, of all layers or of the lower ones; those above prune nothing.
        temperature: width of the step from fading to staying, in units of importance.
        normalizer: as in :class:`mp_model.PyramidConfig`.
        protect_first: whether [CLS], which is never pruned, is not faded either.

    Attributes:
        masks: ``[total]`` of every layer that was run, for the penalty; empty it before a forward pass.
    """

    def __init__(
        self,
        thresholds: Tensor,
        temperature: float,
        normalizer: str | int | float = "alive",
        protect_first: bool = True,
    ) -> None:
        super().__init__(None, None, normalizer)
        self.learned = thresholds
        self.temperature = temperature
        self.protect_first = protect_first
        self.masks: list[Tensor] = []

    def sparing_last(self) -> SoftPruning:
        return self  # the last layer is asked for nothing but its features

    def happens(self, layer: int) -> bool:
        return layer <= len(self.learned)

    def soft_mask(self, layer: int, importance: Tensor, batch: Ragged, input_lengths: Tensor) -> Tensor:
        importance = self.normalized(importance.mean(0), batch, input_lengths)
        mask = torch.sigmoid((importance - self.learned[layer - 1]) / self.temperature)
        if self.protect_first:
            mask = mask.index_fill(0, batch.cu_seqlens[:-1].long(), 1.0)
        self.masks.append(mask)
        return mask

    def penalty(self) -> Tensor:
        """Mean of the masks, layers weighing alike: 1 where everything stays."""
        return torch.stack([mask.mean() for mask in self.masks]).mean()


def rising_thresholds(final: float, layers: int) -> Tensor:
    """``[L]``, ``final * l / L`` for layer l: where the thresholds start."""
    return final * torch.arange(1, layers + 1) / layers

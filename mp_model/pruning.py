"""The choice of a layer's survivors: by thresholds on importance, or the most important tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import mp_kernels
from mp_kernels import Kept, Ragged

from .configuration import PyramidConfig


@dataclass
class Pruning:
    """A rule for each layer.

    Attributes:
        thresholds: L floats, or None.
        top_k: L ints or shares of the entering tokens, or None.
        normalizer: the divisor of importance; see :class:`PyramidConfig`.
    """

    thresholds: list[float] | None
    top_k: list[int | float] | None
    normalizer: str | int | float

    @classmethod
    def of(cls, config: PyramidConfig, thresholds: Sequence[float] | None = None) -> Pruning:
        """The configuration's rules, or the given thresholds instead of them.

        Raises:
            ValueError, TypeError: settings that cannot be followed.
        """
        if thresholds is not None:
            return cls(config.resolved_thresholds(thresholds), None, config.importance_normalizer)
        return cls(config.resolved_thresholds(), config.resolved_top_k(), config.importance_normalizer)

    def sparing_last(self) -> Pruning:
        """The same rules but for layer L, which prunes nothing: its head reads all the tokens that enter."""
        thresholds = None if self.thresholds is None else [*self.thresholds[:-1], 0.0]
        top_k = None if self.top_k is None else [*self.top_k[:-1], 1.0]
        return replace(self, thresholds=thresholds, top_k=top_k)

    def happens(self, layer: int) -> bool:
        """Whether layer ``layer`` (from 1) can prune at all; importance is never negative."""
        if self.top_k is not None:
            return self.top_k[layer - 1] != 1 or isinstance(self.top_k[layer - 1], int)
        return self.thresholds is not None and self.thresholds[layer - 1] > 0

    def survivors(
        self, layer: int, importance: Tensor, batch: Ragged, input_lengths: Tensor, rows: Sequence[Tensor] = ()
    ) -> tuple[Sequence[Tensor], Kept | None]:
        """Rows of the tokens that survive layer ``layer``, and which these are; None: all of them.

        Args:
            layer: the layer's number, from 1.
            importance: float32 ``[heads, total]``, by head, of the tokens that entered the layer.
            batch: these tokens.
            input_lengths: int64 ``[batch]``, the tokens that each sample came with.
            rows: ``[total, ...]`` each, of which the survivors' rows are wanted.
        """
        if self.top_k is not None:
            counts = top_k_counts(self.top_k[layer - 1], batch.lengths)
            kept = mp_kernels.top_k_tokens(importance, batch.cu_seqlens, counts)
            if kept.index.shape[0] < importance.shape[-1]:
                rows = mp_kernels.ragged_gather(rows, kept.index)
        else:
            assert self.thresholds is not None
            importance = self.normalized(importance, batch, input_lengths)
            rows, kept = mp_kernels.prune_rows(rows, importance, batch.cu_seqlens, self.thresholds[layer - 1])
        return rows, None if kept.index.shape[0] == importance.shape[-1] else kept

    def normalized(self, importance: Tensor, batch: Ragged, input_lengths: Tensor) -> Tensor:
        """Importance ``[..., total]``, divided by the :attr:`normalizer` instead of by the number of entering tokens."""
        if self.normalizer == "alive":
            return importance
        lengths = batch.lengths
        divisor = input_lengths if isinstance(self.normalizer, str) else self.normalizer
        factor = (lengths / divisor).to(importance.dtype)
        return importance * torch.repeat_interleave(factor, lengths, output_size=importance.shape[-1])

    def soft_mask(self, layer: int, importance: Tensor, batch: Ragged, input_lengths: Tensor) -> Tensor | None:
        """Factor ``[total]`` for each of layer ``layer``'s output rows, where tokens fade out instead of leaving.

        None, here always: they leave.
        """
        return None


def top_k_counts(k: int | float, lengths: Tensor) -> Tensor:
    """int64 ``[batch]``: k itself, or that share of the lengths, rounded up."""
    if isinstance(k, int):
        return torch.full_like(lengths, k)
    rounding = 1e-6  # 0.55 of 20 tokens is 11, though the product in floating point lies above it
    return torch.ceil(lengths.double() * k - rounding).long()

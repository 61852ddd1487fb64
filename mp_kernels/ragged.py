"""The packed ragged batch, and the part of one that a compaction keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Ragged:
    """A packed ragged batch: the rows of all samples back to back.

    Attributes:
        values: ``[total, ...]``, the rows of all samples, in order.
        cu_seqlens: int32 ``[batch + 1]``; sample ``b`` is rows ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``.
        max_seqlen: length of the longest sample.
        index: int64 ``[total]``, each row's place in the padded batch seen as ``[batch * width, ...]``; None if the
            batch did not come from a padded one.
        width: width of that padded batch, or None.
        positions: int32 ``[total]``, the place that each row's token has in its text, rising within a sample; None where
            nobody asks for it.
        middles: int64 ``[batch]``, the row at which the second text of each sample begins; None where nobody tells two
            texts apart.
    """

    values: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    index: torch.Tensor | None = None
    width: int | None = None
    positions: torch.Tensor | None = None
    middles: torch.Tensor | None = None

    @property
    def batch_size(self) -> int:
        """Number of samples."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def lengths(self) -> torch.Tensor:
        """int64 ``[batch]``, the rows of each sample."""
        lengths = torch.empty(self.batch_size, dtype=torch.int64, device=self.cu_seqlens.device)
        return torch.sub(self.cu_seqlens[1:], self.cu_seqlens[:-1], out=lengths)

    def reduced(self, values: torch.Tensor, kept: Kept) -> Ragged:
        """The batch of the rows that a compaction keeps; values: theirs, ``[total', ...]``."""
        positions = None if self.positions is None else self.positions[kept.index]
        middles = self.middles
        if middles is not None:
            middles = middles if kept.samples is None else middles[kept.samples]
            middles = torch.searchsorted(kept.index, middles)  # as many kept rows lie before each
        return Ragged(values, kept.cu_seqlens, kept.max_seqlen, positions=positions, middles=middles)


@dataclass
class Kept:
    """Rows and samples that a compaction keeps of a packed ragged batch, and the shape of the batch they make.

    Attributes:
        index: int64 ``[total']``, the rows kept, ascending.
        cu_seqlens: int32 ``[batch' + 1]`` of the batch made of these rows.
        max_seqlen: length of its longest sample.
        samples: int64 ``[batch']``, the samples kept, ascending; None where no ``stays`` was given, so that all are.
    """

    index: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    samples: torch.Tensor | None = None

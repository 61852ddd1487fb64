"""The packed ragged batch, and what is left of one after a compaction."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Ragged:
    """A packed ragged batch: the rows of all samples back to back.

    Attributes:
        values: ``[total, ...]``, the samples' rows in order.
        cu_seqlens: int32 ``[batch + 1]``; sample ``b`` is rows ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``.
        max_seqlen: length of the longest sample.
        index: int64 ``[total]``, each row's place in the padded batch seen as ``[batch * width, ...]``; None if the
            batch did not come from a padded one.
        width: padded width that the batch came from; None as above.
    """

    values: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    index: torch.Tensor | None = None
    width: int | None = None

    @property
    def batch_size(self) -> int:
        return self.cu_seqlens.shape[0] - 1

    @property
    def lengths(self) -> torch.Tensor:
        """int64 ``[batch]``, the rows of each sample."""
        return self.cu_seqlens.diff().long()


@dataclass
class Kept:
    """What a compaction keeps of a packed ragged batch.

    Attributes:
        index: int64 ``[total']``, the rows that go on, rising.
        cu_seqlens: int32 ``[batch' + 1]`` of the batch made of those rows.
        max_seqlen: length of its longest sample.
        samples: int64 ``[batch']``, the samples that go on, rising; None where all of them do.
    """

    index: torch.Tensor
    cu_seqlens: torch.Tensor
    max_seqlen: int
    samples: torch.Tensor | None = None

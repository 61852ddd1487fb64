"""Packed ragged batches to test with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

# Around the sizes of vectors, register tiles, blocks of queries and chunks of threads; unsorted on purpose.
EDGE_LENGTHS = (
    *(65, 0, 1, 513, 2, 15, 16, 17, 23, 24, 25, 0, 31, 32, 33),
    *(63, 64, 127, 128, 129, 255, 256, 257, 511, 512),
)


def cu_seqlens_of(lengths: Sequence[int]) -> torch.Tensor:
    """int32 ``[batch + 1]``: the first row of each sample of these lengths, and the number of all rows."""
    return torch.tensor([0, *lengths]).cumsum(0).int()


def stays_of(pattern: Iterable[object]) -> torch.Tensor:
    """bool ``[batch]``: True for the samples that stay, which are the true entries of ``pattern``."""
    return torch.tensor([bool(stay) for stay in pattern], dtype=torch.bool)


def random_heads(
    total: int, heads: int, head_dim: int, count: int = 3, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, ...]:
    """``count`` independent random tensors ``[total, heads, head_dim]``."""
    return tuple(torch.randn(total, heads, head_dim).to(dtype) for _ in range(count))


def rows_of_samples(cu_seqlens: torch.Tensor, samples: Sequence[int]) -> torch.Tensor:
    """Rows of these samples, one sample after the other: an index that permutes or selects the samples of a batch."""
    starts = cu_seqlens.tolist()
    return torch.cat([torch.arange(0), *(torch.arange(starts[b], starts[b + 1]) for b in samples)])

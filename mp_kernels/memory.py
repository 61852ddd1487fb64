"""Where time goes besides arithmetic: the C library's memory, the caches, and the host's reads from a device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def keep_freed_memory() -> None:
    """Makes the C library hold on to up to 64 MiB of freed memory instead of returning it to the system.

    Every layer frees what the next one allocates again, in blocks of megabytes. By default glibc hands such blocks back, and
    each page that comes again costs a fault and a clearing. It learns from the largest block it has seen freed (to keep
    twice as much), 32 MiB at most: so it is shown one, which is never touched. With another C library this does nothing.
    """
    just_below_the_limit = 31 * 2**20
    torch.empty(just_below_the_limit, dtype=torch.uint8)


def cache_blocks(x: torch.Tensor, bytes_per_row: int) -> Sequence[torch.Tensor]:
    """Splits rows into the blocks in which a token-wise step that grows each row to ``bytes_per_row`` is best done.

    On a CPU, of such a size that the grown rows stay in cache between two matrix products and their memory is reused from
    block to block, yet large enough for the products. Elsewhere, and where gradients are recorded, ``x`` whole.

    Args:
        x: ``[rows, ...]``.
        bytes_per_row: memory that a row takes while it is grown.

    Returns:
        Views of ``x``'s rows, in order; at least one.
    """
    best_bytes = 12 * 2**20
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return (x,)
    rows = max(1, best_bytes // bytes_per_row)
    return x.tensor_split(max(1, math.ceil(x.shape[0] / rows)))


def read_by_host(x: torch.Tensor) -> list[int]:
    """A few integers of a device, for the host: the one place where it waits.

    The copy goes to pinned memory on the stream of the computation, and only it is waited for.

    Args:
        x: integers ``[n]``.
    """
    if x.device.type != "cuda":
        return x.tolist()
    pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    pinned.copy_(x, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(x.device))
    arrived.synchronize()
    return pinned.tolist()

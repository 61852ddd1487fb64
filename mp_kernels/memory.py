"""Memory where it costs time: blocks that are freed and allocated again, the caches, and reads from a device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch


def keep_freed_memory() -> None:
    """Makes the C library keep up to 64 MiB of freed memory instead of returning it to the system.

    Every layer frees what the next one allocates again, in blocks of megabytes. By default glibc returns such blocks to the
    system, and every page that it gets back costs a page fault. How much it keeps follows from the largest block freed so
    far: twice its size, counting blocks of up to 32 MiB. So one such block is allocated and freed here, without being
    touched. With another C library this does nothing.
    """
    just_below_the_limit = 31 * 2**20
    torch.empty(just_below_the_limit, dtype=torch.uint8)


def cache_blocks(x: torch.Tensor, bytes_per_row: int) -> Sequence[torch.Tensor]:
    """Blocks of rows for a token-wise step that widens each row to ``bytes_per_row`` in between, as a feed-forward does.

    On a CPU a block is so small that its widened rows stay in cache between two matrix products and their memory is reused
    by the next block, yet large enough for efficient products. On other devices, and where gradients are recorded, there is
    one block.

    Args:
        x: ``[rows, ...]``.
        bytes_per_row: memory of a widened row, in bytes.

    Returns:
        Views of ``x``'s rows, in order; at least one.
    """
    best_bytes = 12 * 2**20
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return (x,)
    rows = max(1, best_bytes // bytes_per_row)
    return x.tensor_split(max(1, math.ceil(x.shape[0] / rows)))


def in_cache_blocks(step: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, bytes_per_row: int) -> torch.Tensor:
    """``step(x)`` for a token-wise step, by the blocks of :func:`cache_blocks`."""
    done = [step(block) for block in cache_blocks(x, bytes_per_row)]
    return done[0] if len(done) == 1 else torch.cat(done)


def read_by_host(x: torch.Tensor) -> list[int]:
    """Values of a small integer tensor. No other function of this package makes the host wait for a device.

    The copy goes to pinned memory on the current stream, and the host waits for this copy only. In a graph that
    ``torch.compile`` traces, the compiler decides how the values are read.

    Args:
        x: integers ``[n]``, on any device.
    """
    if x.device.type != "cuda" or torch.compiler.is_compiling():
        return x.tolist()
    pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    pinned.copy_(x, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(x.device))
    arrived.synchronize()
    return pinned.tolist()

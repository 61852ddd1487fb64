"""Blocks that fit the caches, and freed memory that the process keeps."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys

import pytest
import torch

from mp_kernels.memory import cache_blocks, in_cache_blocks, keep_freed_memory


@torch.no_grad()
@pytest.mark.parametrize("bytes_per_row", [1, 12_288, 2**20])
@pytest.mark.parametrize("rows", [0, 1, 7, 2500])
def test_blocks_are_the_rows_in_order(rows: int, bytes_per_row: int) -> None:
    x = torch.arange(rows * 3.0).reshape(rows, 3)
    blocks = cache_blocks(x, bytes_per_row)
    assert len(blocks) >= 1
    assert torch.equal(torch.cat(list(blocks)), x)
    assert all(block.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for block in blocks)
    # Sizes differ by one row at most, so that no product has only a few rows.
    sizes = {block.shape[0] for block in blocks}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) * bytes_per_row <= 12 * 2**20 + bytes_per_row


@torch.no_grad()
def test_what_fits_the_caches_is_not_split() -> None:
    x = torch.zeros(1000, 3)
    assert len(cache_blocks(x, 12_000)) == 1
    assert len(cache_blocks(x, 13_000)) == 2


@torch.no_grad()
@pytest.mark.parametrize("rows", [0, 1, 2500])
def test_a_step_takes_block_after_block(rows: int) -> None:
    x, seen = torch.randn(rows, 3), []

    def step(block: torch.Tensor) -> torch.Tensor:
        seen.append(block.shape[0])
        return 2 * block

    assert torch.equal(in_cache_blocks(step, x, 12_288), 2 * x)
    assert seen == [block.shape[0] for block in cache_blocks(x, 12_288)]


def test_rows_stay_whole_where_gradients_are_recorded() -> None:
    x = torch.zeros(100, 3)
    (whole,) = cache_blocks(x, 2**20)
    assert whole is x
    with torch.inference_mode():
        assert len(cache_blocks(x, 2**20)) > 1


PROGRAM = """
import resource, torch
from mp_kernels.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**20, dtype=torch.uint8) for _ in range(40)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or "LD_PRELOAD" in os.environ,
    reason="another C library, or an allocator put before it, keeps memory in its own way",
)
def test_freed_memory_comes_again_without_faults() -> None:
    """A fresh process, since the memory that one keeps depends on all that it has freed before."""
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    pages = 40 * 2**20 // resource.getpagesize()
    assert int(ended.stdout) < pages / 2


def test_keeping_memory_can_be_asked_for_twice() -> None:
    keep_freed_memory()
    keep_freed_memory()

"""Padded batches measured and packed by the Triton kernels, against their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from triton.runtime.errors import InterpreterError

import mp_kernels
from mp_kernels import reference
from mp_kernels.triton import configurations
from mp_kernels.triton.configurations import Tile
from support.accuracy import assert_same_bits
from support.ragged_batches import cu_seqlens_of


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that a row of a few columns, and a batch of a few samples, do not fit."""
    monkeypatch.setattr(configurations, "ROWS", Tile(1, 4, 1))
    monkeypatch.setattr(configurations, "SAMPLES", Tile(1, 4, 1))


def assert_packed_alike(mask: torch.Tensor, xs: list[torch.Tensor]) -> None:
    measured = mp_kernels.measure_padded(mask, xs)
    assert_same_bits(measured, reference.measure_padded(mask, xs))
    arguments = mask, measured[0], int(measured[1][0]), xs
    assert_same_bits(mp_kernels.pack_padded(*arguments), reference.pack_padded(*arguments))


@given(st.integers(1, 7), st.integers(1, 11), st.integers(0, 3), st.integers(0, 2**31))
def test_any_mask(batch: int, width: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, width, generator=generator) < 0.6
    xs = [torch.randint(-9, 9, (batch, width), generator=generator) for _ in range(count)]
    assert_packed_alike(mask, xs)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.uint8, torch.float32, torch.float16])
def test_any_dtype(dtype: torch.dtype) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]).to(dtype)
    x = torch.arange(12).reshape(2, 6)
    assert_packed_alike(mask, [x, x.int(), torch.arange(6).expand(2, 6)])


def test_values_at_padding_do_not_count() -> None:
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    _, extents = mp_kernels.measure_padded(mask, [torch.tensor([[3, 4, 99], [-99, 5, 2]])])
    assert extents.tolist() == [4, 2, 2, 0, 2, 0, 5]


def test_the_first_of_the_shortest_samples_is_named() -> None:
    mask = torch.ones(9, 3, dtype=torch.int64)
    mask[[5, 7]] = 0
    assert mp_kernels.measure_padded(mask)[1].tolist() == [21, 3, 0, 5, 3]


@pytest.mark.usefixtures("interpreted")
def test_a_mask_with_more_tokens_than_were_counted_stops() -> None:
    with pytest.raises(InterpreterError, match="cu_seqlens must count the tokens"):
        mp_kernels.pack_padded(torch.ones(2, 6), cu_seqlens_of((6, 5)), 11)

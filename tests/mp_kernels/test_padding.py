"""Padded batches measured and packed on a CPU, against their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mp_kernels
from mp_kernels import reference
from support.accuracy import assert_same_bits


def assert_packed_alike(mask: torch.Tensor, xs: list[torch.Tensor]) -> None:
    measured = mp_kernels.measure_padded(mask, xs)
    assert_same_bits(measured, reference.measure_padded(mask, xs))
    arguments = mask, measured[0], int(measured[1][0]), xs
    assert_same_bits(mp_kernels.pack_padded(*arguments), reference.pack_padded(*arguments))


@given(st.integers(0, 7), st.integers(0, 11), st.integers(0, 3), st.integers(0, 2**31))
def test_any_mask(batch: int, width: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, width, generator=generator) < 0.6
    xs = [torch.randint(-9, 9, (batch, width), generator=generator) for _ in range(count)]
    assert_packed_alike(mask, xs)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int64, torch.int32, torch.uint8, torch.float64, torch.float32, torch.float16]
)
def test_any_dtype(dtype: torch.dtype) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]]).to(dtype)
    x = torch.arange(12).reshape(2, 6)
    assert_packed_alike(mask, [x, x.int(), torch.arange(6).expand(2, 6)])
    assert_packed_alike(mask[:, ::2], [x[:, ::2], x.int()[:, 1::2]])


def test_what_is_not_zero_is_a_token() -> None:
    assert_packed_alike(torch.tensor([[0.25, 0, -0.0, -2], [torch.nan, torch.inf, 0, 1e-40]]), [])
    assert_packed_alike(torch.tensor([[256, 0, 2**32, -1]]), [torch.tensor([[5, 6, 7, 2**40]])])


def test_the_first_of_the_shortest_samples_is_named() -> None:
    mask = torch.ones(9, 3, dtype=torch.int64)
    mask[[5, 7]] = 0
    assert mp_kernels.measure_padded(mask)[1].tolist() == [21, 3, 0, 5, 3]


@pytest.mark.parametrize("total", [10, 12, -1])
def test_another_number_of_tokens_is_refused(total: int) -> None:
    mask = torch.ones(1, 11)
    with pytest.raises(RuntimeError, match=f"total must be the number of real tokens, 11; got {total}"):
        mp_kernels.pack_padded(mask, mp_kernels.measure_padded(mask)[0], total)

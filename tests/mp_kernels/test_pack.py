"""pack and unpack: conversion between padded and packed ragged batches."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mp_kernels
from mp_kernels import Ragged, functional, reference
from support.accuracy import assert_same_bits, with_gradients
from support.ragged_batches import cu_seqlens_of

LEFT = [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]
RIGHT = [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
HOLED = [[1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]]


@st.composite
def masks(draw: st.DrawFn) -> torch.Tensor:
    batch, width = draw(st.integers(0, 5)), draw(st.integers(0, 7))
    row = st.lists(st.booleans(), min_size=width, max_size=width)
    return torch.tensor(draw(st.lists(row, min_size=batch, max_size=batch)), dtype=torch.bool).reshape(batch, width)


@pytest.mark.parametrize("mask", [LEFT, RIGHT, HOLED], ids=["left", "right", "holed"])
@pytest.mark.parametrize("mask_dtype", [torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_rows_of_the_mask_in_order(mask: list[list[int]], mask_dtype: torch.dtype, dtype: torch.dtype) -> None:
    padded = torch.arange(24).reshape(3, 4, 2).to(dtype)
    ragged = mp_kernels.pack(padded, torch.tensor(mask, dtype=mask_dtype))
    lengths = [sum(row) for row in mask]
    assert ragged.values.tolist() == [padded[b, i].tolist() for b in range(3) for i in range(4) if mask[b][i]]
    assert ragged.values.dtype == dtype
    assert ragged.cu_seqlens.dtype == torch.int32
    assert ragged.cu_seqlens.tolist() == cu_seqlens_of(lengths).tolist()
    assert (ragged.max_seqlen, type(ragged.max_seqlen)) == (max(lengths), int)
    assert ragged.batch_size == 3


@given(masks(), st.sampled_from([(), (3,), (2, 3), (0,)]))
def test_round_trip(mask: torch.Tensor, row: tuple[int, ...]) -> None:
    padded = torch.randn(*mask.shape, *row)
    kept = mask.reshape(*mask.shape, *(1 for _ in row))
    assert_same_bits([mp_kernels.unpack(mp_kernels.pack(padded, mask), fill=-7)], [torch.where(kept, padded, -7.0)])


@given(masks(), st.sampled_from([(), (3,), (0,)]))
def test_lengths_that_the_host_knows_change_nothing(mask: torch.Tensor, row: tuple[int, ...]) -> None:
    padded = torch.randn(*mask.shape, *row)
    lengths = int(mask.sum()), max(mask.sum(1).tolist(), default=0)
    expected = reference.pack(padded, mask)
    for ragged in (mp_kernels.pack(padded, mask, lengths), mp_kernels.pack(padded, mask)):
        for got, wanted in zip(vars(ragged).values(), vars(expected).values(), strict=True):
            assert type(got) is type(wanted)
            torch.testing.assert_close(got, wanted, atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(0, 0), (0, 4), (3, 0)])
@pytest.mark.parametrize("lengths", [None, (0, 0)])
def test_batches_without_samples_or_width(shape: tuple[int, int], lengths: tuple[int, int] | None) -> None:
    ragged = mp_kernels.pack(torch.zeros(*shape, 5), torch.ones(shape), lengths)
    assert ragged.values.shape == (0, 5)
    assert ragged.cu_seqlens.tolist() == [0] * (shape[0] + 1)
    assert (ragged.max_seqlen, ragged.width) == (0, shape[1])
    assert mp_kernels.unpack(ragged).shape == (*shape, 5)


def test_lengths_that_the_host_knows_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(x: torch.Tensor) -> list[int]:
        raise AssertionError("the host waited")

    monkeypatch.setattr(functional, "read_by_host", read)
    mask = torch.tensor(HOLED)
    assert mp_kernels.pack(mask, mask, (5, 3)).values.tolist() == [1] * 5
    with pytest.raises(AssertionError, match="the host waited"):
        mp_kernels.pack(mask, mask)


def test_fill_is_zero_if_not_given() -> None:
    padded = torch.ones(3, 4, dtype=torch.int64)
    assert mp_kernels.unpack(mp_kernels.pack(padded, torch.tensor(HOLED))).tolist() == HOLED


def test_other_values_return_to_the_same_places() -> None:
    ragged = mp_kernels.pack(torch.randn(3, 4, 2), torch.tensor(HOLED))
    ragged.values = torch.ones(len(ragged.values), dtype=torch.int64)
    assert mp_kernels.unpack(ragged).tolist() == HOLED


def test_a_batch_that_was_never_padded_is_padded_on_the_right() -> None:
    ragged = Ragged(torch.arange(1, 7), cu_seqlens_of((2, 0, 1, 3)), max_seqlen=3)
    assert mp_kernels.unpack(ragged, fill=-1).tolist() == [[1, 2, -1], [-1, -1, -1], [3, -1, -1], [4, 5, 6]]


def test_an_empty_batch_that_was_never_padded() -> None:
    assert mp_kernels.unpack(Ragged(torch.zeros(0, 5), cu_seqlens_of(()), 0)).shape == (0, 0, 5)


@pytest.mark.parametrize("lengths_are_known", [False, True])
@pytest.mark.parametrize("mask", [LEFT, RIGHT, HOLED], ids=["left", "right", "holed"])
def test_gradients_pass_through_both(mask: list[list[int]], lengths_are_known: bool) -> None:
    mask = torch.tensor(mask)
    lengths = (int(mask.sum()), int(mask.sum(1).max())) if lengths_are_known else None
    got = with_gradients(lambda x: mp_kernels.unpack(mp_kernels.pack(x, mask, lengths)), [torch.randn(3, 4, 2)])
    expected = with_gradients(lambda x: torch.where(mask.unsqueeze(2) != 0, x, 0.0), [torch.randn(3, 4, 2)])
    assert_same_bits(got[1:], expected[1:])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            torch.ones(2, 4),
            r"attention_mask must be \[batch, width\] .* got float32 \[2, 4\] on cpu for float32 \[2, 3, 5\]",
        ),
        (torch.ones(2), r"attention_mask must be .* got float32 \[2\]"),
        (torch.ones(2, 3, 5), r"attention_mask must be .* got float32 \[2, 3, 5\]"),
        (torch.ones(2, 3, device="meta"), r"attention_mask must be on cpu like padded; got .* on meta"),
    ],
)
def test_refused_masks(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mp_kernels.pack(torch.zeros(2, 3, 5), mask)

"""normalized_entropy: the uncertainty of a prediction."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mp_kernels
from mp_kernels import reference
from support.accuracy import assert_accurate, assert_same_bits, plain_entropy, with_gradients

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("classes", [2, 3, 4, 17, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [0.1, 2.0])
def test_against_the_definition(classes: int, dtype: torch.dtype, spread: float) -> None:
    logits = (spread * torch.randn(33, classes)).to(dtype)
    assert_accurate(mp_kernels.normalized_entropy, reference.normalized_entropy, plain_entropy, [logits])


@given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=8))
def test_stays_within_zero_and_one(row: list[float]) -> None:
    logits = torch.tensor([row])
    u = mp_kernels.normalized_entropy(logits)
    assert 0 <= u.item() <= 1
    torch.testing.assert_close(u, reference.normalized_entropy(logits.double()).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_uniform_is_one_and_certain_is_zero(dtype: torch.dtype, classes: int) -> None:
    logits = torch.zeros(2, classes, dtype=dtype)
    logits[1, 1] = 300
    u = mp_kernels.normalized_entropy(logits)
    assert u.dtype == torch.float32
    assert u.tolist() == [pytest.approx(1, abs=1e-6), 0]


def test_shifting_the_logits_changes_nothing() -> None:
    logits = torch.randint(-8, 9, (9, 4)).float()  # still exact in float32 after the shift
    assert_same_bits([mp_kernels.normalized_entropy(logits + 4096)], [mp_kernels.normalized_entropy(logits)])


def test_probability_zero_contributes_nothing() -> None:
    logits = torch.tensor([[0.0, 0.0, -math.inf, -math.inf]])
    u, grad = with_gradients(mp_kernels.normalized_entropy, [logits])
    assert u.item() == pytest.approx(0.5, abs=1e-6)
    torch.testing.assert_close(grad, torch.zeros(1, 4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("row", [[math.nan, 0.0], [0.0, math.nan], [0.0, math.nan, 1.0], [math.inf, 0.0]])
def test_broken_logits_are_not_a_certain_prediction(row: list[float]) -> None:
    """NaN fails every comparison with an exit threshold, so such a sample does not exit early."""
    logits = torch.tensor([row, [0.0] * len(row)])
    assert mp_kernels.normalized_entropy(logits).isnan().tolist() == [True, False]
    assert reference.normalized_entropy(logits).isnan().tolist() == [True, False]


def test_empty_batch() -> None:
    assert [tuple(x.shape) for x in with_gradients(mp_kernels.normalized_entropy, [torch.zeros(0, 3)])] == [
        (0,),
        (0, 3),
    ]


def test_strided_logits() -> None:
    logits = torch.randn(5, 9).t()[:, 1:]
    got = with_gradients(mp_kernels.normalized_entropy, [logits])
    assert_same_bits(got, with_gradients(mp_kernels.normalized_entropy, [logits.contiguous()]))


def test_permuting_the_batch_permutes_the_result() -> None:
    logits, order = torch.randn(50, 5), torch.randperm(50)
    assert_same_bits([mp_kernels.normalized_entropy(logits[order])], [mp_kernels.normalized_entropy(logits)[order]])


def test_gradcheck() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mp_kernels.normalized_entropy, [logits])


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (torch.zeros(3, 1), ValueError, r"logits must have 2 classes or more, .* got float32 \[3, 1\]"),
        (torch.zeros(3, 0), ValueError, r"logits must have 2 classes or more, .* got float32 \[3, 0\]"),
        (torch.zeros(3, 1).double(), ValueError, r"logits must have 2 classes or more, .* got float64 \[3, 1\]"),
        (torch.zeros(3), ValueError, r"logits must have 2 dimensions; got float32 \[3\]"),
        (torch.zeros(3, 2).long(), TypeError, r"logits must be float32 or .* got int64 \[3, 2\]"),
        ([[0.0, 1.0]], TypeError, r"logits must be a tensor; got list"),
    ],
)
def test_refused_logits(logits, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mp_kernels.normalized_entropy(logits)

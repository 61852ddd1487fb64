"""label_entropy: the uncertainty of a prediction of any number of labels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import mp_kernels
from mp_kernels import reference
from support.accuracy import assert_accurate, assert_same_bits, with_gradients

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def by_probabilities(row: list[float]) -> float:
    """The largest binary entropy of a row's labels in bits, from their probabilities."""
    entropies = []
    for logit in row:
        p = 1 / (1 + math.exp(-logit))
        entropies.append(-sum(x * math.log2(x) for x in (p, 1 - p) if x > 0))
    return max(entropies)


def plain(logits: torch.Tensor) -> torch.Tensor:
    """label_entropy in plain PyTorch, computed in the dtype of the logits."""
    entropies = [-log_p.exp() * log_p for log_p in (F.logsigmoid(logits), F.logsigmoid(-logits))]
    return (sum(entropies) / math.log(2)).amax(-1)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=8))
def test_the_definition_is_the_largest_binary_entropy(row: list[float]) -> None:
    u = reference.label_entropy(torch.tensor([row], dtype=torch.float64))
    assert u.item() == pytest.approx(by_probabilities(row), abs=1e-9)


@pytest.mark.parametrize("labels", [1, 2, 3, 17, 100])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spread", [0.1, 2.0, 8.0])
def test_against_the_definition(labels: int, dtype: torch.dtype, spread: float) -> None:
    logits = (spread * torch.randn(33, labels)).to(dtype)
    assert_accurate(mp_kernels.label_entropy, reference.label_entropy, plain, [logits])


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=8))
def test_stays_within_zero_and_one(row: list[float]) -> None:
    logits = torch.tensor([row])
    u = mp_kernels.label_entropy(logits)
    assert 0 <= u.item() <= 1
    torch.testing.assert_close(u, reference.label_entropy(logits.double()).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("labels", [1, 2, 7])
def test_a_toss_up_is_one_and_certain_is_zero(dtype: torch.dtype, labels: int) -> None:
    """Whether a text has a label or not makes no difference to how certain that is."""
    logits = torch.full((3, labels), 300.0, dtype=dtype)
    logits[0, -1] = 0
    logits[2] = -300
    u = mp_kernels.label_entropy(logits)
    assert u.dtype == torch.float32
    assert u.tolist() == [1, 0, 0]


def test_every_label_must_be_certain() -> None:
    """A second label that is unsure makes the whole answer unsure, however sure the first is."""
    u = mp_kernels.label_entropy(torch.tensor([[9.0, 0.5], [9.0, -9.0], [0.5, 0.5]]))
    assert u[0] == u[2] > 0.9 > 0.01 > u[1]


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
def test_probability_zero_contributes_nothing(infinite: float) -> None:
    u, grad = with_gradients(mp_kernels.label_entropy, [torch.tensor([[infinite, 1.0], [infinite, infinite]])])
    assert u.tolist() == [pytest.approx(by_probabilities([1.0]), abs=1e-6), 0]
    assert reference.label_entropy(torch.tensor([[infinite]])).tolist() == [0]
    assert grad.isfinite().all()
    assert grad[:, 0].tolist() == [0, 0]


@pytest.mark.parametrize("row", [[math.nan], [math.nan, 9.0], [9.0, math.nan], [0.0, math.nan, 1.0]])
def test_broken_logits_are_not_a_certain_prediction(row: list[float]) -> None:
    """NaN fails every comparison with an exit threshold, so such a sample does not exit early."""
    logits = torch.tensor([row, [9.0] * len(row)])
    assert mp_kernels.label_entropy(logits).isnan().tolist() == [True, False]
    assert reference.label_entropy(logits).isnan().tolist() == [True, False]


def test_empty_batch() -> None:
    shapes = [tuple(x.shape) for x in with_gradients(mp_kernels.label_entropy, [torch.zeros(0, 3)])]
    assert shapes == [(0,), (0, 3)]


def test_strided_logits() -> None:
    logits = torch.randn(5, 9).t()[:, 1:]
    got = with_gradients(mp_kernels.label_entropy, [logits])
    assert_same_bits(got, with_gradients(mp_kernels.label_entropy, [logits.contiguous()]))


def test_permuting_the_batch_permutes_the_result() -> None:
    logits, order = torch.randn(50, 5), torch.randperm(50)
    assert_same_bits([mp_kernels.label_entropy(logits[order])], [mp_kernels.label_entropy(logits)[order]])


def test_gradcheck() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mp_kernels.label_entropy, [logits])


def test_labels_alike_share_the_gradient() -> None:
    logits = torch.tensor([[1.0, -1.0, 3.0]])
    _, grad = with_gradients(mp_kernels.label_entropy, [logits])
    _, exact = with_gradients(reference.label_entropy, [logits.double()])
    torch.testing.assert_close(grad, exact.float(), atol=1e-6, rtol=0)
    assert grad[0, 0] == -grad[0, 1] != 0 == grad[0, 2]


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (torch.zeros(3, 0), ValueError, r"logits must have 1 label or more; got float32 \[3, 0\]"),
        (torch.zeros(3, 0).double(), ValueError, r"logits must have 1 label or more; got float64 \[3, 0\]"),
        (torch.zeros(3), ValueError, r"logits must have 2 dimensions; got float32 \[3\]"),
        (torch.zeros(3, 2).long(), TypeError, r"logits must be float32 or .* got int64 \[3, 2\]"),
        ([[0.0, 1.0]], TypeError, r"logits must be a tensor; got list"),
    ],
)
def test_refused_logits(logits, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mp_kernels.label_entropy(logits)

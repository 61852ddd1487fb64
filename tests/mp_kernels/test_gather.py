"""ragged_gather: rows of one tensor or of several at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mp_kernels
from mp_kernels import reference
from support.accuracy import assert_accurate, assert_same_bits, with_gradients

DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.bool, torch.uint8, torch.int32, torch.int64),
)


def random_rows(rows: int, width: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return (torch.randint(0, 100, (rows, *width)) % (2 if dtype == torch.bool else 100)).to(dtype)


@st.composite
def gathers(draw: st.DrawFn) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Tensors of different rows, widths and dtypes, and an unsorted index with repeats into all of them."""
    shapes = draw(
        st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 5), max_size=3)), min_size=1, max_size=4)
    )
    xs = [random_rows(rows, tuple(width), draw(st.sampled_from(DTYPES))) for rows, width in shapes]
    fewest = min(rows for rows, _ in shapes)
    return xs, torch.tensor(draw(st.lists(st.integers(0, fewest - 1), max_size=20)), dtype=torch.int64)


@given(gathers())
def test_rows_of_several_tensors(case: tuple) -> None:
    xs, index = case
    gathered = mp_kernels.ragged_gather(xs, index)
    assert type(gathered) is tuple
    assert_same_bits(gathered, [x[index] for x in xs])
    assert all(x.is_contiguous() for x in gathered)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [(), (0,), (1,), (7,), (3, 2, 16)])
def test_rows_of_one_tensor(dtype: torch.dtype, width: tuple[int, ...]) -> None:
    x, index = random_rows(6, width, dtype), torch.tensor([5, 0, 0, 3])
    gathered = mp_kernels.ragged_gather(x, index)
    assert isinstance(gathered, torch.Tensor)
    assert_same_bits([gathered], [x[index]])


def test_every_row_many_times(with_threads: Callable) -> None:
    x, index = torch.randn(100, 768), torch.randint(0, 100, (3000,))
    for threads in (1, 2, 4):
        assert_same_bits([with_threads(threads, lambda: mp_kernels.ragged_gather(x, index))], [x[index]])


def test_no_rows() -> None:
    index = torch.zeros(0, dtype=torch.int64)
    for x in (torch.randn(5, 3), torch.randn(0, 3), torch.randn(0)):
        assert_same_bits([mp_kernels.ragged_gather(x, index)], [x[index]])


def test_no_tensors() -> None:
    assert mp_kernels.ragged_gather([], torch.zeros(0, dtype=torch.int64)) == ()


@pytest.mark.parametrize(
    "strided",
    [
        pytest.param(lambda: torch.randn(8, 3, 2, 4)[:, 1], id="slice of packed rows"),
        pytest.param(lambda: torch.randn(16, 5)[::2], id="every other row"),
        pytest.param(lambda: torch.randn(5, 8).t(), id="transposed"),
        pytest.param(lambda: torch.randn(8, 3, 6)[..., 1:4], id="slice of the last dimension"),
        pytest.param(lambda: torch.randn(8, 4, 3).transpose(1, 2), id="inner dimensions swapped"),
        pytest.param(lambda: torch.randn(1, 5).expand(8, 5), id="one row for all"),
        pytest.param(lambda: torch.randn(20)[3:11], id="offset into its memory"),
    ],
)
def test_strided_tensors(strided: Callable) -> None:
    x, index = strided(), torch.tensor([7, 2, 2, 0])
    assert_same_bits([mp_kernels.ragged_gather(x, index)], [x[index]])


def test_strided_index() -> None:
    x, index = torch.randn(8, 3), torch.arange(8).flip(0).repeat_interleave(2)[::2]
    assert not index.is_contiguous()
    assert_same_bits([mp_kernels.ragged_gather(x, index)], [x.flip(0)])


# ---- gradients ----


@given(st.lists(st.integers(0, 5), max_size=12))
def test_repeated_rows_add_their_gradients(rows: list[int]) -> None:
    # The gradients are multiples of 1/8, so their sums are exact in any order.
    x, index = torch.randn(6, 3), torch.tensor(rows, dtype=torch.int64)
    got = with_gradients(lambda x: mp_kernels.ragged_gather(x, index), [x])
    assert_same_bits(got, with_gradients(lambda x: x[index], [x]))


def test_gradients_of_several_tensors() -> None:
    xs, index = [torch.randn(6, 3), torch.randn(7, 2, 2), torch.randn(6)], torch.tensor([5, 0, 0, 3])
    got = with_gradients(lambda *xs: mp_kernels.ragged_gather(xs, index), xs)
    assert_same_bits(got, with_gradients(lambda *xs: tuple(x[index] for x in xs), xs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_row_taken_often_adds_its_gradients_as_well_as_plain_torch(dtype: torch.dtype) -> None:
    index = torch.tensor([2, 0, 2, 1, 2, 2] * 50)
    assert_accurate(
        lambda x: mp_kernels.ragged_gather(x, index),
        lambda x: reference.ragged_gather(x, index),
        lambda x: x[index],
        [torch.randn(4, 3, 5).to(dtype)],
    )


@st.composite
def returning_gradients(draw: st.DrawFn) -> tuple[list[torch.Tensor], torch.Tensor, list[int]]:
    """Gradients of gathered rows, their index, and for each the number of rows of the tensor that was gathered from."""
    index = torch.tensor(draw(st.lists(st.integers(0, 5), max_size=12)), dtype=torch.int64)
    dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
    widths = draw(st.lists(st.lists(st.integers(0, 4), max_size=2), min_size=1, max_size=3))
    # Small multiples of 1/8, so that their sums are exact in any order.
    grads = [(random_rows(len(index), tuple(width), torch.float32) / 8).to(draw(dtypes)) for width in widths]
    fewest = int(index.max()) + 1 if len(index) else 0
    return grads, index, [draw(st.integers(fewest, 8)) for _ in grads]


@given(returning_gradients())
def test_backward_operator(case: tuple) -> None:
    grads, index, rows = case
    sorted_index, order = index.sort(stable=True)
    # Summed in float64 and rounded once, like the operator, whose float32 sums of these numbers are exact.
    expected = [
        torch.zeros(count, *grad.shape[1:]).double().index_put((index,), grad.double(), accumulate=True).to(grad.dtype)
        for grad, count in zip(grads, rows, strict=True)
    ]
    backward = torch.ops.mp_kernels.ragged_gather_backward
    assert_same_bits(backward(grads, sorted_index, order, rows), expected)
    assert_same_bits(backward([grad[order] for grad in grads], sorted_index, None, rows), expected)


@pytest.mark.parametrize("order", [None, torch.tensor([2, 0, 1])])
def test_backward_operator_on_strides(order: torch.Tensor | None) -> None:
    backward, index = torch.ops.mp_kernels.ragged_gather_backward, torch.tensor([1, 1, 4])
    for grad in (torch.randn(1).expand(3, 2), torch.randn(2, 3).t(), torch.randn(6, 5)[::2, 1:4]):
        straight = backward([grad.contiguous()], index, order, [5])
        assert_same_bits(backward([grad], index, order, [5]), straight)


def test_gradient_beside_tensors_that_have_none() -> None:
    x, frozen, ids = torch.randn(4, 2, requires_grad=True), torch.randn(4, 2), torch.arange(4)
    gathered = mp_kernels.ragged_gather([x, frozen, ids], torch.tensor([3, 3, 1]))
    assert gathered[0].requires_grad
    assert not gathered[2].requires_grad
    gathered[0].sum().backward()
    assert x.grad.tolist() == [[0, 0], [1, 1], [0, 0], [2, 2]]


def test_gradcheck() -> None:
    xs = [torch.randn(4, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *xs: mp_kernels.ragged_gather(xs, torch.tensor([3, 3, 0])), xs)


# ---- refusals ----

X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("x", "index", "error", "message"),
    [
        (X, torch.tensor([0, 3]), RuntimeError, r"index must lie in 0\.\.2; got 3"),
        (X, torch.tensor([0, -1]), RuntimeError, r"index must lie in 0\.\.2; got -1"),
        (X[:, :0], torch.tensor([7]), RuntimeError, r"index must lie in 0\.\.2; got 7"),
        ([torch.zeros(9), X], torch.tensor([3]), RuntimeError, r"index must lie in 0\.\.2; got 3"),
        (X, torch.tensor([0], dtype=torch.int32), TypeError, r"index must be int64; got int32 \[1\]"),
        (X, torch.tensor([[0]]), ValueError, r"index must have 1 dimension; got int64 \[1, 1\]"),
        (X, [0], TypeError, r"index must be a tensor; got list \[0\]"),
        (X, torch.tensor([0]).to("meta"), ValueError, r"index must be on cpu .* on meta"),
        ([X, X.to("meta")], torch.tensor([0]), ValueError, r"x must be on cpu like index; got .* on meta"),
        (torch.tensor(1.0), torch.tensor([0]), ValueError, r"x must be \[rows, ...\] .* got float32 \[\] on cpu"),
        ([3], torch.tensor([0]), ValueError, r"x must be \[rows, ...\] .* got int 3"),
    ],
)
def test_refused_arguments(x, index, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mp_kernels.ragged_gather(x, index)

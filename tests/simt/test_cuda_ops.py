"""Results and refusals of the operators in ``csrc/cuda/ops_cuda.cu``, with the emulator as their device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

X = torch.zeros(3, 2)
INDEX = torch.zeros(2, dtype=torch.int64)


def assert_same(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one.is_contiguous()
        torch.testing.assert_close(one, other, rtol=0, atol=0)


# ---- forward ----


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex128, torch.bool, torch.uint8, torch.int64]
)
def test_gather(ops: Any, dtype: torch.dtype) -> None:
    index = torch.randint(0, 9, (20,))
    xs = [torch.randint(0, 9, (9 + t, *shape)).to(dtype) for t, shape in enumerate([(), (0,), (1,), (7,), (3, 2, 16)])]
    assert_same(ops.ragged_gather(xs, index), [x[index] for x in xs])


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(torch.randn(8, 3, 2, 4)[:, 1], id="slice of packed rows"),
        pytest.param(torch.randn(16, 5)[::2], id="every other row"),
        pytest.param(torch.randn(5, 8).t(), id="transposed"),
        pytest.param(torch.randn(8, 3, 6)[..., 1:4], id="slice of the last dimension"),
        pytest.param(torch.randn(1, 5).expand(8, 5), id="one row for all"),
        pytest.param(torch.randn(20)[3:11], id="offset into its memory"),
    ],
)
def test_gather_of_views(ops: Any, x: Tensor) -> None:
    index = torch.tensor([7, 2, 2, 0])
    assert_same(ops.ragged_gather([x, x], index), [x[index]] * 2)
    assert_same(ops.ragged_gather([x], index.repeat_interleave(2)[::2]), [x[index]])


def test_gather_of_nothing(ops: Any) -> None:
    assert ops.ragged_gather([], INDEX) == []
    for x in (X, X[:0], X[:, :0], torch.zeros(0)):
        assert_same(ops.ragged_gather([x], INDEX[:0]), [x[:0]])


@pytest.mark.parametrize(
    ("xs", "index", "told"),
    [
        ([X], INDEX.int(), r"ragged_gather: index must be int64; got dtype number 3"),
        ([X], INDEX[None], r"ragged_gather: index must be one-dimensional; got \[1, 2\]"),
        ([X, torch.tensor(1.0)], INDEX, r"ragged_gather: x must have rows; got a scalar"),
        ([X], INDEX + 3, r"device assert failed: .*ragged_gather: index out of range"),
    ],
)
def test_gather_refuses(ops: Any, xs: list[Tensor], index: Tensor, told: str) -> None:
    with pytest.raises(RuntimeError, match=told):
        ops.ragged_gather(xs, index)


# ---- backward ----


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128],
)
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 8)])
def test_backward(ops: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    index = torch.randint(0, 9, (30,))
    ordered, order = index.sort(stable=True)
    # Multiples of 1/8, so that their sums are exact in every type and order.
    grads = [torch.randint(-8, 9, (30, *shape)).to(dtype) / 8 for _ in range(3)]
    rows = [9, 12, 9]
    wanted = [grad.new_zeros(count, *shape).index_add(0, index, grad) for grad, count in zip(grads, rows, strict=True)]
    assert_same(ops.ragged_gather_backward(grads, ordered, order, rows), wanted)
    grads_in_order = [grad[order] for grad in grads]
    assert_same(ops.ragged_gather_backward(grads_in_order, ordered, None, rows), wanted)


def test_backward_of_views(ops: Any) -> None:
    index = torch.tensor([0, 0, 2, 4])
    wide = torch.randint(-8, 9, (4, 3, 10)) / 8
    for dtype in (torch.float32, torch.complex64):
        grads = [g.to(dtype) for g in (wide[:, 1], wide[..., ::2], wide[:1, 0].expand(4, 10), wide[..., 1:4])]
        grads = [*grads, wide.to(dtype)[:, 2], wide.to(dtype)[..., ::3]]
        wanted = [grad.new_zeros(5, *grad.shape[1:]).index_add(0, index, grad) for grad in grads]
        assert_same(ops.ragged_gather_backward(grads, index, None, [5] * len(grads)), wanted)


def test_backward_of_nothing(ops: Any) -> None:
    assert ops.ragged_gather_backward([], INDEX, None, []) == []
    none = INDEX[:0]
    grads = [torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, 0), torch.zeros(0)]
    wanted = [torch.zeros(3, 4), torch.zeros(0, 4), torch.zeros(3, 0), torch.zeros(2)]
    assert_same(ops.ragged_gather_backward(grads, none, none, [3, 0, 3, 2]), wanted)


@pytest.mark.parametrize(
    ("grads", "sorted_index", "order", "rows", "told"),
    [
        ([X[:2]], INDEX, None, [], r"rows must have one number for each of 1 grads; got 0"),
        ([X], INDEX, None, [1], r"grads must be \[2, ...\], a row for each entry of sorted_index; got \[3, 2\]"),
        ([torch.tensor(1.0)], INDEX, None, [1], r"grads must be \[2, ...\], .*; got \[\]"),
        ([X[:2]], INDEX, None, [-1], r"rows must not be negative; got -1"),
        ([X[:2]], INDEX, INDEX[:1], [1], r"order must be like sorted_index, \[2\]; got \[1\]"),
        ([X[:2]], INDEX.int(), None, [1], r"sorted_index must be int64; got dtype number 3"),
        ([X[:2]], INDEX, INDEX.int(), [1], r"order must be int64; got dtype number 3"),
        ([X[:2]], INDEX[None], None, [1], r"sorted_index must be one-dimensional; got \[1, 2\]"),
        ([X[:2].int()], INDEX, None, [1], r"grads must be float32, float16, .* or complex128; got dtype number 3"),
        ([X[:2]], INDEX, INDEX + 2, [1], r"device assert failed: .*order out of range"),
    ],
)
def test_backward_refuses(
    ops: Any, grads: list[Tensor], sorted_index: Tensor, order: Tensor | None, rows: list[int], told: str
) -> None:
    with pytest.raises(RuntimeError, match=told):
        ops.ragged_gather_backward(grads, sorted_index, order, rows)

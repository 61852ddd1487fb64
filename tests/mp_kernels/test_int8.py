"""Steps around products of int8 matrices, against their definitions and against exact arithmetic in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mp_kernels
from mp_kernels import reference
from support.accuracy import assert_same_bits
from support.operator_samples import int8, product

# Around the widths of vectors, and of the buffer in which a row is kept between two passes.
WIDTHS = (1, 3, 4, 7, 8, 9, 15, 16, 17, 63, 64, 65, 768, 4079, 4080, 4081, 4096, 5000)


def assert_quantised(rows: torch.Tensor, scales: torch.Tensor, x: torch.Tensor) -> None:
    """Each row's scale is its largest magnitude over 127, and each value is off by half a scale at most."""
    assert rows.dtype == torch.int8
    assert scales.dtype == torch.float32
    exact = x.double()
    torch.testing.assert_close(scales.double(), exact.abs().amax(1) / 127, rtol=1e-6, atol=0)
    off = (rows.double() * scales.double()[:, None] - exact).abs()
    assert (off <= scales.double()[:, None] * (0.5 + 1e-4)).all()
    assert rows.abs().amax(1)[scales > 0].eq(127).all(), "the largest value of a row is 127, and -128 never occurs"


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_of_every_width(width: int) -> None:
    x = torch.randn(5, width) * torch.tensor([1e-3, 1, 1e3, 1e6, 1e-6])[:, None]
    assert_quantised(*mp_kernels.quantize_rows(x), x)


def test_quantised_rows_are_those_of_the_definition() -> None:
    x = torch.randn(50, 100)
    for got, wanted in zip(mp_kernels.quantize_rows(x), reference.quantize_rows(x), strict=True):
        assert_same_bits(got, wanted)


def test_ties_go_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]])
    assert mp_kernels.quantize_rows(x)[0].tolist() == [[127, 0, 2, 2, 0, -2, -126]]


def test_rows_of_zeros_and_of_no_width() -> None:
    rows, scales = mp_kernels.quantize_rows(torch.zeros(2, 20))
    assert not rows.any()
    assert not scales.any()
    assert not mp_kernels.dequantize_rows(rows, scales).any()
    assert mp_kernels.quantize_rows(torch.zeros(3, 0))[1].tolist() == [0, 0, 0]
    assert mp_kernels.quantize_rows(torch.zeros(0, 8))[0].shape == (0, 8)


def test_tiny_rows_become_no_nonsense() -> None:
    """Below about 1e-37 a scale's inverse leaves float32; the values then are rounded towards 0."""
    x = torch.full((1, 20), 1e-42)
    rows, scales = mp_kernels.quantize_rows(x)
    assert (mp_kernels.dequantize_rows(rows, scales).abs() <= 1e-42).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 7, 18, 19])
def test_values_that_are_not_finite_are_not_lost(bad: float, place: int) -> None:
    x = torch.randn(3, 20)
    x[1, place] = bad
    scales = mp_kernels.quantize_rows(x)[1]
    assert scales.isnan().tolist() == [False, True, False]
    assert reference.quantize_rows(x)[1].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("width", WIDTHS)
def test_products_of_every_width(width: int) -> None:
    exact, row_scales, column_scales = product(5, width)
    bias, residual, weight, offset = (torch.randn(*shape) for shape in ((width,), (9, width), (width,), (width,)))
    index = torch.tensor([8, 0, 3, 3, 1])
    inputs = (exact, row_scales, column_scales, bias)
    wide = (exact, *(x.double() for x in (row_scales, column_scales, bias)))
    torch.testing.assert_close(
        mp_kernels.dequantize(*inputs).double(), reference.dequantize(*wide), rtol=1e-5, atol=1e-5
    )
    assert_quantised(*mp_kernels.dequantize_gelu(*inputs), torch.nn.functional.gelu(reference.dequantize(*wide)))
    normed = mp_kernels.dequantize_add_layer_norm(*inputs, residual, weight, offset, 1e-2, index)
    wanted = reference.dequantize_add_layer_norm(
        *wide, residual.double(), weight.double(), offset.double(), 1e-2, index
    )
    torch.testing.assert_close(normed.double(), wanted, rtol=1e-4, atol=1e-4)


def test_products_without_a_bias() -> None:
    exact, row_scales, column_scales = product(4, 20)
    torch.testing.assert_close(
        mp_kernels.dequantize(exact, row_scales, column_scales), exact * row_scales[:, None] * column_scales
    )


def test_large_products_are_exact() -> None:
    """The largest sum that 3,072 products can have is no integer of float32; its error is float32's."""
    exact = torch.full((1, 1), 127 * 127 * 3072 - 1, dtype=torch.int32)
    assert mp_kernels.dequantize(exact, torch.ones(1), torch.ones(1)).item() == float(exact.float())


def test_rows_come_back() -> None:
    x = torch.randn(6, 33)
    rows, scales = mp_kernels.quantize_rows(x)
    again = mp_kernels.dequantize_rows(rows, scales, torch.tensor([5, 0, 0]))
    assert_same_bits(again, (rows.float() * scales[:, None])[[5, 0, 0]])


def chain(x: torch.Tensor, weight: torch.Tensor, column_scales: torch.Tensor) -> torch.Tensor:
    """A feed-forward, from rows to rows."""
    rows, scales = mp_kernels.quantize_rows(x)
    rows, scales = mp_kernels.dequantize_gelu(torch._int_mm(rows, weight.t()), scales, column_scales)
    ones = torch.ones(x.shape[1])
    return mp_kernels.dequantize_add_layer_norm(
        torch._int_mm(rows, weight), scales, ones, None, x, ones, torch.zeros(x.shape[1]), 1e-12
    )


@given(seed=st.integers(0, 1000), count=st.integers(1, 70))
def test_a_row_does_not_depend_on_its_companions(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, (weight, scales) = torch.randn(count, 48, generator=generator), mp_kernels.quantize_rows(torch.randn(100, 48))
    order = torch.randperm(count, generator=generator)
    whole = chain(x, weight, scales)
    assert_same_bits(chain(x[order], weight, scales), whole[order])
    assert_same_bits(torch.cat([chain(row[None], weight, scales) for row in x]), whole)


def test_threads_change_nothing() -> None:
    x, (weight, scales) = torch.randn(300, 768), mp_kernels.quantize_rows(torch.randn(1000, 768))
    alone = chain(x, weight, scales)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_same_bits(chain(x, weight, scales), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("features", [1, 7, 16, 33, 768])
@pytest.mark.parametrize(("rows", "outputs"), [(0, 3), (1, 1), (5, 4), (18, 9), (37, 20)])
def test_ordered_linear(rows: int, outputs: int, features: int) -> None:
    """Near the exact result, and every row the same alone as among others."""
    x, weight, bias = torch.randn(rows, features), torch.randn(outputs, features) / features**0.5, torch.randn(outputs)
    got = mp_kernels.ordered_linear(x, weight, bias)
    exact = reference.ordered_linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(got.double(), exact, atol=1e-5, rtol=0)
    for row, alone in zip(got, x, strict=True):
        assert_same_bits(mp_kernels.ordered_linear(alone[None], weight, bias)[0], row)


VECTOR = torch.ones(5)
BAD: list[tuple[Callable, tuple, type[Exception], str]] = [
    (mp_kernels.quantize_rows, (torch.ones(3, 5).double(),), TypeError, "x must be float32"),
    (mp_kernels.quantize_rows, (torch.ones(5),), ValueError, "x must have 2 dimensions"),
    (mp_kernels.quantize_rows, (torch.ones(3, 5), torch.tensor([3])), RuntimeError, "index must lie in 0..2; got 3"),
    (mp_kernels.dequantize_rows, (torch.ones(3, 5), torch.ones(3)), TypeError, "rows must be int8"),
    (mp_kernels.dequantize_rows, (int8(3, 5), torch.ones(2)), ValueError, r"scales must be \[3\]"),
    (mp_kernels.dequantize, (int8(3, 5), torch.ones(3), VECTOR), TypeError, "product must be int32"),
    (mp_kernels.dequantize, (*product(3, 5), torch.ones(4)), ValueError, r"bias must be \[5\]"),
    (mp_kernels.dequantize_gelu, (product(3, 5)[0], VECTOR, VECTOR), ValueError, r"row_scales must be \[3\]"),
    (
        mp_kernels.dequantize_add_layer_norm,
        (*product(3, 5), None, torch.ones(2, 5), VECTOR, VECTOR, 1e-5),
        ValueError,
        "the same rows",
    ),
]


@pytest.mark.parametrize(("function", "arguments", "error", "message"), BAD)
def test_bad_arguments(function: Callable, arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(*arguments)


def test_gradients_are_refused() -> None:
    with pytest.raises(RuntimeError, match="have no gradient"):
        mp_kernels.quantize_rows(torch.ones(3, 5, requires_grad=True))
    with torch.inference_mode():
        mp_kernels.quantize_rows(torch.ones(3, 5, requires_grad=True))

"""The token-wise steps between the matrix products: means, features of pairs, add_layer_norm, bias_gelu and gelu_gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import mp_kernels
from mp_kernels import reference
from support.accuracy import assert_accurate, assert_no_worse_than_plain, assert_same_bits, with_gradients
from support.ragged_batches import EDGE_LENGTHS, cu_seqlens_of, rows_of_samples

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Around the widths of vectors, and (WIDE) of the buffer in which add_layer_norm keeps a row.
WIDTHS = (1, 3, 4, 7, 8, 9, 15, 16, 17, 63, 64, 65, 768)
WIDE = (4079, 4080, 4081, 4088, 4089, 4096, 5000)


def norm_inputs(
    rows: int, width: int, dtype: torch.dtype = torch.float32, residual_rows: int | None = None
) -> list[torch.Tensor]:
    shapes = (rows, width), (rows if residual_rows is None else residual_rows, width), (width,), (width,)
    return [torch.randn(shape).to(dtype) for shape in shapes]


def rows_of(x: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    return x if index is None else x[index]


def assert_norm_accurate(
    inputs: list[torch.Tensor],
    index: torch.Tensor | None = None,
    x_index: torch.Tensor | None = None,
    eps: float = 1e-2,
) -> None:
    def plain(x, residual, weight, bias):
        return F.layer_norm(rows_of(x, x_index) + rows_of(residual, index), x.shape[1:], weight, bias, eps)

    assert_accurate(
        lambda *xs: mp_kernels.add_layer_norm(*xs, eps, index, x_index),
        lambda *xs: reference.add_layer_norm(*xs, eps, index, x_index),
        plain,
        inputs,
    )


# ---- ragged_mean ----


def assert_mean_accurate(x: torch.Tensor, cu_seqlens: torch.Tensor) -> None:
    def plain(x):
        parts = x.split((cu_seqlens[1:] - cu_seqlens[:-1]).tolist())
        return torch.stack([part.sum(0) / max(len(part), 1) for part in parts])

    assert_accurate(
        lambda x: mp_kernels.ragged_mean(x, cu_seqlens), lambda x: reference.ragged_mean(x, cu_seqlens), plain, [x]
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_mean_of_every_width(width: int) -> None:
    assert_mean_accurate(torch.randn(20, width), cu_seqlens_of((17, 0, 1, 2)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_of_every_length(dtype: torch.dtype) -> None:
    assert_mean_accurate(torch.randn(sum(EDGE_LENGTHS), 20).to(dtype), cu_seqlens_of(EDGE_LENGTHS))


def test_mean_of_no_rows_is_zero() -> None:
    mean = mp_kernels.ragged_mean(torch.randn(3, 5), cu_seqlens_of((0, 3, 0)))
    assert mean[[0, 2]].tolist() == [[0] * 5] * 2


@pytest.mark.parametrize(("lengths", "width"), [((), 5), ((0, 0), 5), ((2, 1), 0)])
def test_mean_of_nothing(lengths: tuple[int, ...], width: int) -> None:
    results = with_gradients(
        lambda x: mp_kernels.ragged_mean(x, cu_seqlens_of(lengths)), [torch.randn(sum(lengths), width)]
    )
    assert [tuple(x.shape) for x in results] == [(len(lengths), width), (sum(lengths), width)]


def test_mean_sums_half_types_in_float32() -> None:
    """A running sum of ones in float16 would stop at 2048."""
    x = torch.ones(5000, 3, dtype=torch.float16)
    assert mp_kernels.ragged_mean(x, cu_seqlens_of((5000,))).tolist() == [[1, 1, 1]]


def test_mean_gradcheck() -> None:
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mp_kernels.ragged_mean(x, cu_seqlens_of((2, 0, 3))), [x])


# ---- pair_features ----


def assert_pair_accurate(first: torch.Tensor, x: torch.Tensor, lengths: Sequence[tuple[int, int]]) -> None:
    """lengths: rows of both parts of each sample."""
    cu_seqlens, middles = cu_seqlens_of([sum(parts) for parts in lengths]), middles_of(lengths)

    def plain(first, x):
        parts = x.split([n for parts in lengths for n in parts])
        a, b = (torch.stack([part.sum(0) / max(len(part), 1) for part in parts[place::2]]) for place in (0, 1))
        wholes = x.split([sum(parts) for parts in lengths])
        mean = torch.stack([whole.sum(0) / max(len(whole), 1) for whole in wholes])
        return torch.cat([first, mean, (a - b).abs(), a * b], dim=1)

    assert_accurate(
        lambda first, x: mp_kernels.pair_features(first, x, cu_seqlens, middles),
        lambda first, x: reference.pair_features(first, x, cu_seqlens, middles),
        plain,
        [first, x],
    )


def middles_of(lengths: Sequence[tuple[int, int]]) -> torch.Tensor:
    """int64 ``[batch]``, the row at which the second part of each sample begins."""
    starts = cu_seqlens_of([sum(parts) for parts in lengths])
    return starts[:-1].long() + torch.tensor([parts[0] for parts in lengths], dtype=torch.int64)


PARTS = [(1, 1), (2, 0), (0, 2), (0, 0), (1, 0), (15, 17), (16, 16), (3, 40), (0, 1)]


@pytest.mark.parametrize("width", WIDTHS)
def test_pair_of_every_width(width: int) -> None:
    assert_pair_accurate(torch.randn(len(PARTS), width), torch.randn(115, width), PARTS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pair_of_every_length(dtype: torch.dtype) -> None:
    parts = [(n // 3, n - n // 3) for n in EDGE_LENGTHS] + [(n, 1) for n in EDGE_LENGTHS]
    total = sum(map(sum, parts))
    assert_pair_accurate(torch.randn(len(parts), 20).to(dtype), torch.randn(total, 20).to(dtype), parts)


def test_pair_by_hand() -> None:
    """The second sample's first text, and the third's second, have lost their tokens."""
    x = torch.tensor([[1.0, -2], [3, -4], [8, 6], [5, 5], [7, -7]])
    first = torch.tensor([[9.0, 9], [8, 8], [7, 7]])
    features = mp_kernels.pair_features(first, x, cu_seqlens_of((3, 1, 1)), torch.tensor([2, 3, 5]))
    assert features.tolist() == [
        [9, 9, 4, 0, 6, 9, 16, -18],
        [8, 8, 5, 5, 5, 5, 0, 0],
        [7, 7, 7, -7, 7, 7, 0, 0],
    ]


@pytest.mark.parametrize(("batch", "width"), [(0, 5), (2, 5), (2, 0)])
def test_pair_of_nothing(batch: int, width: int) -> None:
    starts, middles = cu_seqlens_of([0] * batch), torch.zeros(batch, dtype=torch.int64)
    results = with_gradients(
        lambda first, x: mp_kernels.pair_features(first, x, starts, middles),
        [torch.randn(batch, width), torch.randn(0, width)],
    )
    assert [tuple(x.shape) for x in results] == [(batch, 4 * width), (batch, width), (0, width)]
    assert torch.equal(results[0][:, width:], torch.zeros(batch, 3 * width))


def test_pair_sums_half_types_in_float32() -> None:
    x, first = torch.ones(9000, 3, dtype=torch.float16), torch.zeros(1, 3, dtype=torch.float16)
    features = mp_kernels.pair_features(first, x, cu_seqlens_of((9000,)), torch.tensor([3000]))
    assert features.tolist() == [[0] * 3 + [1] * 3 + [0] * 3 + [1] * 3]


def test_pair_gradcheck() -> None:
    inputs = [torch.randn(4, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    starts, middles = cu_seqlens_of((2, 0, 1, 1)), torch.tensor([1, 2, 2, 4])

    assert torch.autograd.gradcheck(lambda first, x: mp_kernels.pair_features(first, x, starts, middles), inputs)


# ---- add_layer_norm ----


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_of_every_width(width: int, dtype: torch.dtype) -> None:
    assert_norm_accurate(norm_inputs(7, width, dtype))


@pytest.mark.parametrize("width", WIDE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_of_wide_rows(width: int, dtype: torch.dtype) -> None:
    assert_norm_accurate(norm_inputs(2, width, dtype))


INDICES = {"rising": [0, 3, 4], "any": [8, 8, 0, 2], "none": [], "one row": [5] * 40}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_norm_with_index(index: list[int], dtype: torch.dtype) -> None:
    inputs = norm_inputs(len(index), 24, dtype, residual_rows=9)
    assert_norm_accurate(inputs, torch.tensor(index, dtype=torch.int64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_norm_with_x_index(index: list[int], dtype: torch.dtype) -> None:
    inputs = norm_inputs(9, 24, dtype, residual_rows=len(index))
    assert_norm_accurate(inputs, x_index=torch.tensor(index, dtype=torch.int64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [24, 5000])
def test_norm_with_both_indices(width: int, dtype: torch.dtype) -> None:
    inputs = norm_inputs(6, width, dtype, residual_rows=9)
    assert_norm_accurate(inputs, torch.tensor([8, 0, 8, 2]), torch.tensor([1, 5, 5, 5]))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=8), st.sampled_from([*DTYPES, torch.float64]))
def test_norm_of_indexed_rows_is_that_of_the_rows(pairs: list[tuple[int, int]], dtype: torch.dtype) -> None:
    x, residual, weight, bias = norm_inputs(4, 20, dtype, residual_rows=6)
    x_index, index = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    gathered = mp_kernels.add_layer_norm(x[x_index], residual[index], weight, bias, 1e-5)
    assert_same_bits([mp_kernels.add_layer_norm(x, residual, weight, bias, 1e-5, index, x_index)], [gathered])


def test_norm_reads_no_rows_but_those_of_its_indices() -> None:
    x, residual, *vectors = norm_inputs(6, 20, residual_rows=6)
    index, x_index = torch.tensor([5, 1]), torch.tensor([3, 3])
    spoilt_x = x.index_fill(0, torch.tensor([0, 1, 2, 4, 5]), float("nan"))
    spoilt_residual = residual.index_fill(0, torch.tensor([0, 2, 3, 4]), float("nan"))

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        return with_gradients(lambda *xs: mp_kernels.add_layer_norm(*xs, 1e-5, index, x_index), inputs)

    assert_same_bits(run(spoilt_x, spoilt_residual, *vectors), run(x, residual, *vectors))


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("indexed", ["neither", "index", "x_index"])
def test_norm_of_no_rows(indexed: str, rows: int) -> None:
    indices = {} if indexed == "neither" else {indexed: torch.zeros(0, dtype=torch.int64)}
    x_rows, residual_rows = (rows if name in indices else 0 for name in ("x_index", "index"))
    inputs = norm_inputs(x_rows, 6, residual_rows=residual_rows)
    results = with_gradients(lambda *xs: mp_kernels.add_layer_norm(*xs, 1e-5, **indices), inputs)
    assert [tuple(x.shape) for x in results] == [(0, 6), (x_rows, 6), (residual_rows, 6), (6,), (6,)]
    assert not any(grad.any() for grad in results[1:])


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 1.0])
def test_norm_eps(eps: float) -> None:
    x, residual, weight, bias = norm_inputs(5, 32)
    constant = torch.ones(5, 32)
    assert_norm_accurate([x, residual, weight, bias], eps=eps)
    assert_same_bits([mp_kernels.add_layer_norm(constant, constant, weight, bias, eps)], [bias.expand(5, -1)])


def test_norm_of_rows_far_from_zero() -> None:
    """The variance would lose all its digits here if computed as a difference of squares."""
    x, residual, weight, bias = norm_inputs(5, 100)
    x = x + 1e3
    exact = reference.add_layer_norm(*(t.double() for t in (x, residual, weight, bias)), 1e-12)
    plain = F.layer_norm(x + residual, (100,), weight, bias, 1e-12)
    assert_no_worse_than_plain(mp_kernels.add_layer_norm(x, residual, weight, bias, 1e-12), plain, exact)


def test_norm_of_nan_stays_in_its_row() -> None:
    x, residual, weight, bias = norm_inputs(3, 20)
    clean = mp_kernels.add_layer_norm(x, residual, weight, bias, 1e-5)
    x[1, 7] = float("nan")
    spoilt = mp_kernels.add_layer_norm(x, residual, weight, bias, 1e-5)
    assert spoilt[1].isnan().all()
    assert_same_bits([spoilt[[0, 2]]], [clean[[0, 2]]])


@pytest.mark.parametrize("index", [None, torch.tensor([1, 1, 0])])
@pytest.mark.parametrize("x_index", [None, torch.tensor([2, 0, 2])])
def test_norm_gradcheck(index: torch.Tensor | None, x_index: torch.Tensor | None) -> None:
    inputs = [x.double().requires_grad_() for x in norm_inputs(3, 4)]
    assert torch.autograd.gradcheck(lambda *xs: mp_kernels.add_layer_norm(*xs, 1e-5, index, x_index), inputs)


# ---- bias_gelu ----


def plain_gelu(x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return F.gelu(x if bias is None else x + bias)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_of_every_width(width: int, dtype: torch.dtype) -> None:
    x, bias = (2 * torch.randn(7, width)).to(dtype), torch.randn(width).to(dtype)
    assert_accurate(mp_kernels.bias_gelu, reference.bias_gelu, plain_gelu, [x, bias])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_without_bias(dtype: torch.dtype) -> None:
    assert_accurate(mp_kernels.bias_gelu, reference.bias_gelu, plain_gelu, [torch.randn(5, 33).to(dtype)])


def test_gelu_over_its_whole_range() -> None:
    x = torch.cat([torch.linspace(-15, 15, 4001), torch.tensor([-1e30, -100, -0.0, 0.0, 1e-30])]).unsqueeze(0)
    torch.testing.assert_close(mp_kernels.bias_gelu(x).double(), reference.bias_gelu(x.double()), atol=1e-5, rtol=0)
    assert_same_bits([mp_kernels.bias_gelu(torch.tensor([[100.0, 1e30]]))], [torch.tensor([[100.0, 1e30]])])


def test_gelu_of_nan_is_nan() -> None:
    assert mp_kernels.bias_gelu(torch.tensor([[1.0, float("nan")]])).isnan().tolist() == [[False, True]]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_gelu_of_nothing(shape: tuple[int, int]) -> None:
    results = with_gradients(mp_kernels.bias_gelu, [torch.randn(shape), torch.randn(shape[1])])
    assert [tuple(x.shape) for x in results] == [shape, shape, (shape[1],)]


def test_gelu_gradcheck() -> None:
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 4), (4,))]
    assert torch.autograd.gradcheck(mp_kernels.bias_gelu, inputs)


# ---- gelu_gate ----


def plain_gate(x: torch.Tensor) -> torch.Tensor:
    gated, gate = x.chunk(2, dim=1)
    return F.gelu(gated) * gate


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gate_of_every_width(width: int, dtype: torch.dtype) -> None:
    x = (2 * torch.randn(7, 2 * width)).to(dtype)
    assert_accurate(mp_kernels.gelu_gate, reference.gelu_gate, plain_gate, [x])


def test_gate_is_the_second_half() -> None:
    x = torch.tensor([[1.0, -20.0, 2.0, 3.0]])
    torch.testing.assert_close(mp_kernels.gelu_gate(x), torch.tensor([[2 * 0.8413447, 0.0]]))


def test_gate_multiplies_what_gelu_gives() -> None:
    gated, gate = torch.linspace(-15, 15, 4001).unsqueeze(0), torch.randn(1, 4001)
    assert_same_bits([mp_kernels.gelu_gate(torch.cat([gated, gate], 1))], [mp_kernels.bias_gelu(gated) * gate])


@pytest.mark.parametrize("shape", [(0, 6), (3, 0)])
def test_gate_of_nothing(shape: tuple[int, int]) -> None:
    results = with_gradients(mp_kernels.gelu_gate, [torch.randn(shape)])
    assert [tuple(x.shape) for x in results] == [(shape[0], shape[1] // 2), shape]


def test_gate_gradcheck() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mp_kernels.gelu_gate, [x])
    assert torch.autograd.gradgradcheck(mp_kernels.gelu_gate, [x])


# ---- all of them ----

CU_SEQLENS = cu_seqlens_of(EDGE_LENGTHS)
OTHER_ROWS = torch.arange(sum(EDGE_LENGTHS))[::3]
SOME_ROWS = OTHER_ROWS.flip(0)
MIDDLES = middles_of([(n // 3, n - n // 3) for n in EDGE_LENGTHS])
STEPS = {
    "ragged_mean": lambda x, _: mp_kernels.ragged_mean(x, CU_SEQLENS),
    "pair_features": lambda x, _: mp_kernels.pair_features(x[: len(EDGE_LENGTHS)], x, CU_SEQLENS, MIDDLES),
    "add_layer_norm": lambda x, bias: mp_kernels.add_layer_norm(x, x.flip(0), bias, bias, 1e-5),
    "add_layer_norm of rows": lambda x, bias: mp_kernels.add_layer_norm(x, x, bias, bias, 1e-5, SOME_ROWS, OTHER_ROWS),
    "bias_gelu": mp_kernels.bias_gelu,
    "gelu_gate": lambda x, _: mp_kernels.gelu_gate(x),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_and_repeats_change_nothing(step: Callable, threads: int, with_threads: Callable) -> None:
    inputs = [torch.randn(sum(EDGE_LENGTHS), 100), torch.randn(100)]
    single = step(*inputs)
    assert_same_bits([with_threads(threads, lambda: step(*inputs))], [single])


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_strided_inputs(step: Callable, dtype: torch.dtype) -> None:
    x, bias = torch.randn(40, sum(EDGE_LENGTHS)).to(dtype).t(), torch.randn(40, 2).to(dtype)[:, 0]
    assert_same_bits([step(x, bias)], [step(x.contiguous(), bias.contiguous())])


@pytest.mark.parametrize("dtype", DTYPES)
def test_permuting_samples_permutes_means(dtype: torch.dtype) -> None:
    x, order = torch.randn(sum(EDGE_LENGTHS), 20).to(dtype), torch.randperm(len(EDGE_LENGTHS)).tolist()
    permuted = x[rows_of_samples(CU_SEQLENS, order)], cu_seqlens_of([EDGE_LENGTHS[b] for b in order])
    assert_same_bits([mp_kernels.ragged_mean(*permuted)], [mp_kernels.ragged_mean(x, CU_SEQLENS)[order]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_permuting_samples_permutes_features_of_pairs(dtype: torch.dtype) -> None:
    x, order = torch.randn(sum(EDGE_LENGTHS), 20).to(dtype), torch.randperm(len(EDGE_LENGTHS)).tolist()
    first, lengths = x[: len(EDGE_LENGTHS)], [EDGE_LENGTHS[b] for b in order]
    permuted = mp_kernels.pair_features(
        *(first[order], x[rows_of_samples(CU_SEQLENS, order)], cu_seqlens_of(lengths)),
        middles_of([(n // 3, n - n // 3) for n in lengths]),
    )
    assert_same_bits([permuted], [mp_kernels.pair_features(first, x, CU_SEQLENS, MIDDLES)[order]])


# ---- refusals ----

X, VECTOR = torch.zeros(3, 4), torch.zeros(4)
META = torch.zeros(4, device="meta")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X.int(), cu_seqlens_of((3,))), TypeError, r"x must be float32 or .* got int32 \[3, 4\]"),
        ((VECTOR, cu_seqlens_of((4,))), ValueError, r"x must have 2 dimensions; got float32 \[4\]"),
        ((X, torch.tensor([0, 3])), TypeError, r"cu_seqlens must be int32; got int64 \[2\]"),
        ((X, cu_seqlens_of((3,)).to("meta")), ValueError, r"cu_seqlens must be on cpu .* on meta"),
    ],
)
def test_refused_means(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mp_kernels.ragged_mean(*arguments)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": X.int()}, TypeError, r"x must be float32 or .* got int32 \[3, 4\]"),
        ({"first": X[:1].half()}, TypeError, r"first must be float32; got float16 \[1, 4\]"),
        ({"first": X}, ValueError, r"first must be \[batch, width\], \[1, 4\]; got float32 \[3, 4\]"),
        ({"middles": torch.tensor([1.0])}, TypeError, r"middles must be int64; got float32 \[1\]"),
        ({"middles": torch.tensor([1, 2])}, ValueError, r"middles must have one entry per sample, 1; got int64 \[2\]"),
        ({"middles": torch.tensor([-1])}, RuntimeError, r"middles must lie within their samples.* got -1"),
        ({"middles": torch.tensor([4])}, RuntimeError, r"middles must lie within their samples.* got 4"),
        (
            {"x": X.double(), "first": X[:1].double(), "middles": torch.tensor([4])},
            RuntimeError,
            r"middles must lie within their samples.* got 4",
        ),
    ],
)
def test_refused_pairs(changed: dict, error: type[Exception], message: str) -> None:
    arguments = {"first": X[:1], "x": X, "cu_seqlens": cu_seqlens_of((3,)), "middles": torch.tensor([2])} | changed
    with pytest.raises(error, match=message):
        mp_kernels.pair_features(**arguments)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": VECTOR}, ValueError, r"x must have 2 dimensions; got float32 \[4\]"),
        ({"x": X.bool()}, TypeError, r"x must be float32 or .* got bool \[3, 4\]"),
        ({"residual": X.half()}, TypeError, r"residual must be float32; got float16 \[3, 4\]"),
        ({"residual": X[:2]}, ValueError, r"x and residual must have the same rows, .* got 3 and 2"),
        ({"residual": X[:, :3]}, ValueError, r"must have one width; got .*\[3, 4\].*\[3, 3\].*\[4\].*\[4\]"),
        ({"weight": VECTOR.double()}, TypeError, r"weight must be float32; got float64 \[4\]"),
        ({"weight": VECTOR[:3]}, ValueError, r"must have one width; got .*\[3, 4\].*\[3, 4\].*\[3\].*\[4\]"),
        ({"bias": VECTOR[:3]}, ValueError, r"must have one width; got .*\[3, 4\].*\[3, 4\].*\[4\].*\[3\]"),
        ({"bias": X}, ValueError, r"bias must have 1 dimension; got float32 \[3, 4\]"),
        ({"bias": META}, ValueError, r"bias must be on cpu .* on meta"),
        ({"index": torch.tensor([0, 1])}, ValueError, r"x and residual must have the same rows, .* got 3 and 2"),
        ({"x_index": torch.tensor([0, 1])}, ValueError, r"x and residual must have the same rows, .* got 2 and 3"),
    ],
)
def test_refused_norms(changed: dict, error: type[Exception], message: str) -> None:
    arguments = {"x": X, "residual": X, "weight": VECTOR, "bias": VECTOR, "eps": 1e-5} | changed
    with pytest.raises(error, match=message):
        mp_kernels.add_layer_norm(**arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (torch.tensor([0, 1, 3]), RuntimeError, r" must lie in 0\.\.2; got 3"),
        (torch.tensor([0, 1, -1]), RuntimeError, r" must lie in 0\.\.2; got -1"),
        (torch.tensor([0, 1, 2]).int(), TypeError, r" must be int64; got int32 \[3\]"),
        (torch.tensor([[0, 1, 2]]), ValueError, r" must have 1 dimension; got int64 \[1, 3\]"),
        (torch.tensor([0, 1, 2]).to("meta"), ValueError, r" must be on cpu .* on meta"),
        ([0, 1, 2], TypeError, r" must be a tensor; got list \[0, 1, 2\]"),
    ],
)
@pytest.mark.parametrize("name", ["index", "x_index"])
def test_refused_indices_of_norms(name: str, index, error: type[Exception], message: str, dtype: torch.dtype) -> None:
    x, vector = X.to(dtype), VECTOR.to(dtype)
    with pytest.raises(error, match=rf"\b{name}{message}"):
        mp_kernels.add_layer_norm(x, x, vector, vector, 1e-5, **{name: index})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("x", "bias", "error", "message"),
    [
        (VECTOR, VECTOR, ValueError, r"x must have 2 dimensions; got float\d+ \[4\]"),
        (X, VECTOR[:3], ValueError, r"bias must be \[width\], 4; got float\d+ \[3\]"),
        (X, X, ValueError, r"bias must have 1 dimension; got float\d+ \[3, 4\]"),
        (X, META, ValueError, r"bias must be on cpu .* on meta"),
    ],
)
def test_refused_gelus(x, bias, error: type[Exception], message: str, dtype: torch.dtype) -> None:
    with pytest.raises(error, match=message):
        mp_kernels.bias_gelu(x.to(dtype), bias.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (VECTOR, r"x must have 2 dimensions; got float\d+ \[4\]"),
        (X[:, :3], r"x must be \[rows, 2 w\], two halves of one width; got float\d+ \[3, 3\]"),
    ],
)
def test_refused_gates(x: torch.Tensor, message: str, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=message):
        mp_kernels.gelu_gate(x.to(dtype))


def test_gelu_refuses_mixed_dtypes() -> None:
    with pytest.raises(TypeError, match=r"bias must be float32; got float16 \[4\]"):
        mp_kernels.bias_gelu(X, VECTOR.half())

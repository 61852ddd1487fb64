"""Token-wise steps, gathers and exit heads by the Triton kernels, against their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from triton.runtime.errors import InterpreterError

import mp_kernels
from mp_kernels import reference
from support.accuracy import assert_accurate, assert_no_worse_than_plain, assert_same_bits, with_gradients
from support.ragged_batches import cu_seqlens_of

HALF = (torch.float16, torch.bfloat16)
REPEATED = torch.tensor([3, 0, 3, 7, 7])
PLACES = torch.tensor([8, 0, 3, 3, 1, 2, 4, 5, 6], dtype=torch.int32)


def angles(places: int, pairs: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of random angles, ``[places, pairs]`` each, in float64 for that dtype and else in float32."""
    turns = torch.randn(places, pairs, generator=torch.Generator().manual_seed(3))
    return tuple(x.to(torch.promote_types(dtype, torch.float32)) for x in (turns.cos(), turns.sin()))


@pytest.mark.parametrize("width", [1, 2, 37, 768, 1025])
@pytest.mark.parametrize("indices", ["neither", "residual", "x", "both"])
def test_add_layer_norm(indices: str, width: int) -> None:
    index = REPEATED if indices in ("residual", "both") else None
    x_index = REPEATED.flip(0) if indices in ("x", "both") else None
    x = torch.randn(5 if x_index is None else 9, width)
    residual = torch.randn(5 if index is None else 8, width)

    def of(module: object) -> Callable:
        return lambda *xs: module.add_layer_norm(*xs, 1e-5, index, x_index)

    inputs = (x, residual, torch.randn(width), torch.randn(width))
    if width <= 2:  # over so few elements the norm is too steep to compare its gradients
        got, exact = of(mp_kernels)(*inputs), of(reference)(*(t.double() for t in inputs))
        torch.testing.assert_close(got, exact.float(), atol=1e-5, rtol=1e-3)
        return
    assert_accurate(of(mp_kernels), of(reference), None, inputs)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_half_precision_of_rows(dtype: torch.dtype, honest_bfloat16: None) -> None:
    x, residual = torch.randn(2, 9, 64).to(dtype)
    weight, bias = torch.randn(2, 64).to(dtype)
    cu_seqlens = cu_seqlens_of((4, 0, 5))
    for function, inputs in (
        (lambda m, *xs: m.add_layer_norm(*xs, 1e-5), (x, residual, weight, bias)),
        (lambda m, *xs: m.bias_gelu(*xs), (x, bias)),
        (lambda m, *xs: m.gelu_gate(*xs), (x,)),
        (lambda m, t: m.rotary_embedding(t, PLACES, *angles(9, 8, t.dtype)), (x.view(9, 4, 16),)),
        (lambda m, *xs: m.ragged_mean(*xs, cu_seqlens), (x,)),
        (lambda m, *xs: m.pair_features(*xs, cu_seqlens, torch.tensor([1, 4, 9])), (x[:3], x)),
    ):
        got = function(mp_kernels, *inputs)
        exact = function(reference, *(t.double() for t in inputs))
        once_rounded = exact.to(got.dtype)
        assert_no_worse_than_plain(got, once_rounded, exact)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("width", [1, 37, 1024, 1500])
def test_bias_gelu(width: int, biased: bool) -> None:
    inputs = [torch.randn(5, 2 * width)[:, ::2][:, :width]] + [torch.randn(width)] * biased
    assert_accurate(mp_kernels.bias_gelu, reference.bias_gelu, None, inputs)


@pytest.mark.parametrize("width", [0, 1, 37, 1024, 1500])
def test_gelu_gate(width: int) -> None:
    x = torch.randn(5, 4 * width)[:, ::2]
    assert_accurate(mp_kernels.gelu_gate, reference.gelu_gate, None, [x])
    assert_accurate(mp_kernels.gelu_gate, reference.gelu_gate, None, [torch.randn(5, 2 * width + 3)[:, 3:]])


def rotations() -> list[Callable]:
    """The operator and its definition, for rows at ``PLACES``."""

    def of(module: object) -> Callable:
        return lambda x: module.rotary_embedding(x, PLACES, *angles(9, x.shape[2] // 2, x.dtype))

    return [of(mp_kernels), of(reference)]


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("head_dim", [2, 22, 64, 512])
def test_rotary_embedding(head_dim: int, heads: int) -> None:
    assert_accurate(*rotations(), None, [torch.randn(9, heads, head_dim)])


def test_rotary_embedding_of_views() -> None:
    """Slices of one projection, heads that lie apart, and elements that do."""
    packed = torch.randn(9, 3, 4, 32)
    ours, _ = rotations()
    for x in (packed[:, 1], packed[:, 2, ::2], packed[:, 0, :, ::2], packed[:, 0].transpose(1, 2)):
        assert_accurate(*rotations(), None, [x])
        assert ours(x).is_contiguous()


@pytest.mark.parametrize("outside", [9, -1])
@pytest.mark.usefixtures("interpreted")
def test_a_position_outside_the_table_stops_the_kernel(outside: int) -> None:
    positions = torch.tensor([0, outside, 1], dtype=torch.int32)
    with pytest.raises(InterpreterError, match="positions must lie within the table"):
        mp_kernels.rotary_embedding(torch.randn(3, 2, 4), positions, *angles(9, 2))


@pytest.mark.parametrize("width", [1, 37, 150])
def test_pair_features(width: int) -> None:
    parts = ((0, 0), (0, 1), (1, 0), (16, 1), (7, 10), (16, 16), (15, 18), (0, 33))
    lengths = [sum(pair) for pair in parts]
    cu_seqlens = cu_seqlens_of(lengths)
    middles = cu_seqlens[:-1].long() + torch.tensor([pair[0] for pair in parts])
    inputs = [torch.randn(len(parts), 2 * width)[:, ::2], torch.randn(sum(lengths), width + 3)[:, 3:]]
    assert_accurate(
        lambda *xs: mp_kernels.pair_features(*xs, cu_seqlens, middles),
        lambda *xs: reference.pair_features(*xs, cu_seqlens, middles),
        None,
        inputs,
    )


@pytest.mark.parametrize("outside", [2, 18])
def test_a_second_part_outside_its_sample_stops_the_kernel(outside: int, interpreted: None) -> None:
    with pytest.raises(InterpreterError, match="middles must lie within their samples"):
        mp_kernels.pair_features(
            torch.rand(2, 5), torch.rand(17, 5), cu_seqlens_of((3, 14)), torch.tensor([1, outside])
        )


def test_ragged_mean() -> None:
    lengths = (0, 1, 16, 17, 33, 0)
    cu_seqlens = cu_seqlens_of(lengths)
    assert_accurate(
        lambda x: mp_kernels.ragged_mean(x, cu_seqlens),
        lambda x: reference.ragged_mean(x, cu_seqlens),
        None,
        [torch.randn(sum(lengths), 150)],
    )


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(8, 5) < 0.5,
        torch.randint(-100, 100, (8, 3), dtype=torch.int8),
        torch.randn(8).half(),
        torch.randn(8, 2, 3).bfloat16(),
        torch.randn(8, 1500),
        torch.randn(8, 3, dtype=torch.float64),
        torch.randn(8, 2, dtype=torch.complex64),
        torch.randn(8, 0),
        torch.randn(16, 6)[::2, :3],
    ],
    ids=lambda x: f"{x.dtype}{list(x.shape)}",
)
def test_gather_of_any_rows(x: torch.Tensor) -> None:
    for index in (REPEATED, torch.tensor([], dtype=torch.int64)):
        assert_same_bits([mp_kernels.ragged_gather(x, index)], [x[index]])


def test_gather_of_several_and_back() -> None:
    xs = [torch.randn(8, 5), torch.randn(9, 2, 3), torch.randn(8)]
    assert_accurate(
        lambda *x: mp_kernels.ragged_gather(x, REPEATED), lambda *x: reference.ragged_gather(x, REPEATED), None, xs
    )


def test_gradients_of_doubles_are_summed_in_double() -> None:
    x = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(5, 5, dtype=torch.float64)
    mp_kernels.ragged_gather(x, REPEATED).backward(grad)
    torch.testing.assert_close(x.grad, torch.zeros_like(x).index_add(0, REPEATED, grad), atol=1e-15, rtol=1e-14)


@pytest.mark.parametrize("outside", [3, -1])
@pytest.mark.usefixtures("interpreted")
def test_an_index_outside_the_rows_stops_the_kernel(outside: int) -> None:
    x, index = torch.ones(3, 2), torch.tensor([0, outside, 1])
    weight, bias = torch.ones(2), torch.zeros(2)
    with pytest.raises(InterpreterError, match="index must lie within the rows of x"):
        mp_kernels.ragged_gather(x, index)
    with pytest.raises(InterpreterError, match="x_index must lie within the rows of x"):
        mp_kernels.add_layer_norm(x, x, weight, bias, 1e-5, x_index=index)
    with pytest.raises(InterpreterError, match="index must lie within the rows of residual"):
        mp_kernels.add_layer_norm(x, x, weight, bias, 1e-5, index=index)
    with pytest.raises(InterpreterError, match="order must lie within the rows of grads"):
        torch.ops.mp_kernels.ragged_gather_backward([x], torch.tensor([0, 1, 2]), index, [3])


@pytest.mark.parametrize("classes", [2, 3, 77, 1000])
def test_normalized_entropy(classes: int) -> None:
    logits = torch.randn(9, classes) * torch.tensor([1.0, 5, 30, 1e4, 0, 1, 1, 1, 1]).unsqueeze(1)
    logits[5, 0] = -math.inf
    got, exact = mp_kernels.normalized_entropy(logits), reference.normalized_entropy(logits.double())
    torch.testing.assert_close(got, exact.float(), atol=1e-5, rtol=0)
    assert_accurate(mp_kernels.normalized_entropy, reference.normalized_entropy, None, [torch.randn(7, classes)])
    logits[6, 1] = math.nan
    assert mp_kernels.normalized_entropy(logits).isnan().tolist() == [False] * 6 + [True] + [False] * 2


@pytest.mark.parametrize("labels", [1, 3, 77, 1000])
def test_label_entropy(labels: int) -> None:
    logits = 3 + torch.rand(9, labels) * torch.tensor([1.0, 5, 30, 1e4, 0, 1, 1, 1, 1]).unsqueeze(1)
    logits[1] *= -1
    logits[5, 0], logits[7, -1] = -math.inf, 0
    got, exact = mp_kernels.label_entropy(logits), reference.label_entropy(logits.double())
    torch.testing.assert_close(got, exact.float(), atol=1e-5, rtol=0)
    assert got[7] == 1
    assert_accurate(mp_kernels.label_entropy, reference.label_entropy, None, [torch.randn(7, labels)])
    logits[6, 0] = math.nan
    assert mp_kernels.label_entropy(logits).isnan().tolist() == [False] * 6 + [True] + [False] * 2


def head_inputs(batch: int, width: int, hidden: int, classes: int) -> list[torch.Tensor]:
    shapes = ((batch, width), (hidden, width), (hidden,), (classes, hidden), (classes,))
    return [torch.randn(*shape) / max(1, shape[-1]) ** (0.5 * (len(shape) == 2)) for shape in shapes]


@pytest.mark.parametrize("batch", [0, 1, 16, 17])
@pytest.mark.parametrize(("width", "hidden", "classes"), [(64, 32, 2), (100, 50, 4), (20, 70, 77), (20, 20, 200)])
def test_exit_head(batch: int, width: int, hidden: int, classes: int) -> None:
    inputs = head_inputs(batch, width, hidden, classes)
    exact_logits, exact_uncertainty, _ = reference.exit_head(*(x.double() for x in inputs), 0.9)
    for threshold in (0.9, torch.linspace(0, 1, batch)):
        logits, uncertainty, stays = mp_kernels.exit_head(*inputs, threshold)
        torch.testing.assert_close(logits, exact_logits.float(), atol=1e-5, rtol=0)
        torch.testing.assert_close(uncertainty, exact_uncertainty.float(), atol=1e-5, rtol=0)
        assert stays.tolist() == (uncertainty > threshold).tolist()
        with torch.autocast("cpu", torch.bfloat16):
            assert_same_bits(mp_kernels.exit_head(*inputs, threshold), (logits, uncertainty, stays))


@pytest.mark.parametrize("labels", [1, 28, 200])
def test_exit_head_of_several_labels(labels: int) -> None:
    inputs = head_inputs(17, 100, 50, labels)
    exact_logits, exact_uncertainty, _ = reference.exit_head(*(x.double() for x in inputs), 0.9, multi_label=True)
    for threshold in (0.97, torch.linspace(0.9, 1, 17)):
        logits, uncertainty, stays = mp_kernels.exit_head(*inputs, threshold, multi_label=True)
        torch.testing.assert_close(logits, exact_logits.float(), atol=1e-5, rtol=0)
        torch.testing.assert_close(uncertainty, exact_uncertainty.float(), atol=1e-5, rtol=0)
        assert stays.tolist() == (uncertainty > threshold).tolist()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_exit_head_in_half_precision(dtype: torch.dtype, honest_bfloat16: None) -> None:
    inputs = [x.to(dtype) for x in head_inputs(17, 100, 50, 4)]
    plain, exact = reference.head_logits(*inputs), reference.head_logits(*(x.double() for x in inputs))
    logits, uncertainty, _ = mp_kernels.exit_head(*inputs, 0.5)
    assert_no_worse_than_plain(logits, plain, exact)
    assert uncertainty.dtype == torch.float32
    torch.testing.assert_close(uncertainty, mp_kernels.normalized_entropy(logits), atol=1e-6, rtol=0)


def test_same_bits_again() -> None:
    inputs = head_inputs(17, 100, 50, 4)
    assert_same_bits(mp_kernels.exit_head(*inputs, 0.5), mp_kernels.exit_head(*inputs, 0.5))
    xs = [torch.randn(8, 5)]

    def gather(x):
        return mp_kernels.ragged_gather(x, REPEATED)

    assert_same_bits(with_gradients(gather, xs), with_gradients(gather, xs))

"""Attention with a relative position bias and in windows, by the Triton kernels, against the definition in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

from mp_kernels.triton import places
from support.accuracy import assert_accurate, assert_no_worse_than_plain, assert_same_bits, with_gradients
from support.places import placed, plain_placed, positions_of, with_bias
from support.ragged_batches import cu_seqlens_of, random_heads, rows_of_samples, stays_of

LENGTHS = (17, 0, 1, 2, 65, 33)
HEADS = 2

pytestmark = pytest.mark.usefixtures("small_tiles")


# ---- answers and gradients ----


@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize("window", [0, 1, 9, 64, 1 << 31])
def test_windows(window: int, gap: int) -> None:
    ours, definition = placed(LENGTHS, window=window, positions=positions_of(LENGTHS, gap))
    assert_accurate(ours, definition, None, random_heads(sum(LENGTHS), HEADS, 20))


@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize("window", [None, 1, 40])
def test_bias(window: int | None, gap: int) -> None:
    ours, definition = placed(LENGTHS, window=window, positions=positions_of(LENGTHS, gap))
    assert_accurate(ours, definition, None, with_bias(random_heads(sum(LENGTHS), HEADS, 16)))


def test_rows_in_order_by_default() -> None:
    inputs = with_bias(random_heads(sum(LENGTHS), HEADS, 16))
    expected = with_gradients(placed(LENGTHS, window=9, positions=positions_of(LENGTHS, 0))[0], inputs)
    assert_same_bits(with_gradients(placed(LENGTHS, window=9)[0], inputs), expected)


def test_a_window_over_everything_is_none() -> None:
    qkv = random_heads(sum(LENGTHS), HEADS, 16)
    windowed, whole = (with_gradients(placed(LENGTHS, window=window)[0], qkv) for window in (64, None))
    for got, expected in zip(windowed, whole, strict=True):  # the tiles differ, and so the order of sums
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("query_lengths", [(1, 0, 1, 1, 1, 1), (0, 3, 5, 40, 2, 0)], ids=str)
def test_queries_of_their_own(query_lengths: tuple[int, ...], biased: bool) -> None:
    """One query per sample (an exit decision), none, or more than there are keys."""
    positions = {"positions": positions_of(LENGTHS, 3), "positions_q": positions_of(query_lengths, 1)}
    q, (k, v) = random_heads(sum(query_lengths), HEADS, 16, 1)[0], random_heads(sum(LENGTHS), HEADS, 16, 2)
    inputs = with_bias((q, k, v)) if biased else [q, k, v]
    assert_accurate(*placed(LENGTHS, query_lengths, window=9, **positions), None, inputs)


@pytest.mark.parametrize("biased", [False, True])
def test_queries_that_see_no_key(biased: bool) -> None:
    """The first ten of sixty positions are near a key, so that some blocks of queries are empty, and others in part."""
    lengths, query_lengths = (10, 3), (60, 3)
    positions = {"positions": positions_of(lengths, 0), "positions_q": positions_of(query_lengths, 0)}
    q, (k, v) = random_heads(63, HEADS, 16, 1)[0], random_heads(13, HEADS, 16, 2)
    inputs = with_bias((q, k, v)) if biased else [q, k, v]
    ours, definition = placed(lengths, query_lengths, window=4, **positions)
    assert_accurate(ours, definition, None, inputs)
    out, _, *grads = with_gradients(ours, inputs)
    assert out[:14].any(-1).all()
    for x in (out, grads[0]):
        assert not x[14:60].any()


def test_keys_that_no_query_sees() -> None:
    lengths, query_lengths = (60, 3), (2, 1)
    positions = {"positions": positions_of(lengths, 0), "positions_q": positions_of(query_lengths, 0)}
    q, (k, v) = random_heads(3, HEADS, 16, 1)[0], random_heads(63, HEADS, 16, 2)
    ours, definition = placed(lengths, query_lengths, window=4, **positions)
    assert_accurate(ours, definition, None, [q, k, v])
    assert not ours(q, k, v)[1][6:60].any()


@pytest.mark.parametrize("stays", ["100011", "000000"])
def test_samples_that_leave(stays: str) -> None:
    flags = stays_of(map(int, stays))
    inputs = with_bias(random_heads(sum(LENGTHS), HEADS, 16))
    ours, definition = placed(LENGTHS, window=9, stays=flags, positions=positions_of(LENGTHS, 1))
    assert_accurate(ours, definition, None, inputs)


def test_without_importance_and_by_head() -> None:
    inputs = with_bias(random_heads(sum(LENGTHS), HEADS, 16))

    def alone(call: Callable) -> Callable:
        return lambda *xs: call(*xs)[0]

    out_only = placed(LENGTHS, window=9, need_importance=False)
    assert_accurate(*map(alone, out_only), None, inputs)
    assert_accurate(*placed(LENGTHS, window=9, by_head=True), None, inputs)
    assert_same_bits([out_only[0](*inputs)[0]], [placed(LENGTHS, window=9)[0](*inputs)[0]])


def test_views() -> None:
    """Slices of one projection, of which only the last dimension is contiguous, and every other entry of the rest."""
    packed = torch.randn(sum(LENGTHS), 3, HEADS, 16)
    bias = torch.randn(HEADS, 20)
    positions = torch.stack([positions_of(LENGTHS, 2)] * 2, 1)[:, 0]
    assert not positions.is_contiguous()

    def of_packed(call: Callable) -> Callable:
        return lambda x, b: call(*x.unbind(1), b[:, ::2])

    ours, definition = placed(LENGTHS, window=9, positions=positions)
    assert_accurate(of_packed(ours), of_packed(definition), None, [packed, bias])


@pytest.mark.parametrize(
    ("dtype", "bias_dtype", "window"),
    [
        (torch.float16, torch.float16, 9),
        (torch.bfloat16, torch.bfloat16, None),
        (torch.bfloat16, torch.float32, 9),
    ],
    ids=str,
)
def test_half_precision(dtype: torch.dtype, bias_dtype: torch.dtype, window: int | None, honest_bfloat16: None) -> None:
    positions = positions_of(LENGTHS, 2)
    ours, definition = placed(LENGTHS, window=window, positions=positions)
    inputs = with_bias(random_heads(sum(LENGTHS), HEADS, 32, dtype=dtype), bias_dtype)
    exact = with_gradients(definition, [x.double() for x in inputs])
    near = with_gradients(plain_placed(LENGTHS, positions, window), inputs)
    for got, x, true in zip(with_gradients(ours, inputs), near, exact, strict=True):
        assert_no_worse_than_plain(got.to(x.dtype), x, true)


# ---- the same bits ----


def test_same_bits_again_and_elsewhere_in_the_batch() -> None:
    positions = positions_of(LENGTHS, 1)
    inputs = with_bias(random_heads(sum(LENGTHS), HEADS, 16))
    ours = placed(LENGTHS, window=9, positions=positions)[0]
    first = with_gradients(ours, inputs)
    assert_same_bits(with_gradients(ours, inputs), first)
    order = torch.randperm(len(LENGTHS)).tolist()
    rows = rows_of_samples(cu_seqlens_of(LENGTHS), order)
    permuted = placed([LENGTHS[b] for b in order], window=9, positions=positions[rows])[0]
    got = permuted(*(x[rows] for x in inputs[:3]), inputs[3])
    assert_same_bits(got, [x[rows] for x in first[:2]])


@pytest.mark.parametrize("window", [None, 9])
def test_companions_change_nothing(window: int | None) -> None:
    """A companion without a gradient of its own leaves even the bias's gradient as it was."""
    lengths, total = (70, 130), 70
    positions = positions_of(lengths, 1)
    q, k, v, bias = with_bias(random_heads(sum(lengths), HEADS, 16))

    def of_first_sample(lengths: Sequence[int], own: torch.Tensor) -> Callable:
        ours = placed(lengths, window=window, positions=own)[0]
        return lambda *xs: [x[:total] for x in ours(*xs)]

    together = with_gradients(of_first_sample(lengths, positions), [q, k, v, bias])
    alone = with_gradients(of_first_sample((total,), positions[:total]), [q[:total], k[:total], v[:total], bias])
    assert_same_bits([x[:total] if len(x) == sum(lengths) else x for x in together], alone)


@pytest.mark.parametrize("window", [None, 9])
def test_a_query_alone_gives_the_bits_that_it_gives_among_others(window: int | None) -> None:
    lengths = (100,)
    positions = positions_of(lengths, 1)
    q, k, v, bias = with_bias(random_heads(100, HEADS, 16))
    out = placed(lengths, window=window, positions=positions)[0](q, k, v, bias)[0]
    for row in (0, 1, 50, 99):
        one = {"positions": positions, "positions_q": positions[row : row + 1]}
        got = placed(lengths, (1,), window=window, **one)[0](q[row : row + 1], k, v, bias)[0]
        assert_same_bits([got], [out[row : row + 1]])


# ---- work ----


def products_of(monkeypatch: pytest.MonkeyPatch, call: Callable[[], object]) -> int:
    """Number of matrix products that kernels compute during a call."""
    count = 0
    dot = interpreter.InterpreterBuilder.create_dot

    def counted(self: interpreter.InterpreterBuilder, *arguments: object) -> interpreter.TensorHandle:
        nonlocal count
        count += 1
        return dot(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", counted)
        call()
    return count


@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.usefixtures("interpreted")
def test_work_in_a_window_is_linear_in_the_tokens(gap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of twice the length takes twice the products, and not four times as many."""

    def products(length: int, window: int | None) -> int:
        inputs = random_heads(length, 1, 16)
        ours = placed((length,), window=window, positions=None if window is None else positions_of((length,), gap))[0]
        return products_of(monkeypatch, lambda: with_gradients(ours, inputs))

    once, twice = products(256, 8), products(512, 8)
    assert once < 0.3 * products(256, None)
    assert twice < 2.2 * once


def test_a_bias_adds_one_kernel_to_the_backward_pass(launches: Callable[[], list[str]]) -> None:
    with_gradients(placed((20,), need_importance=True)[0], with_bias(random_heads(20, HEADS, 16)))
    assert launches() == [
        *("attention_streaming", "attention_column_means", "mean_heads"),
        *("attention_query_gradient", "attention_key_value_gradient", "attention_bias_gradient"),
    ]


def test_nothing_to_do() -> None:
    for lengths in ((), (0, 0)):
        inputs = with_bias(random_heads(0, HEADS, 16))
        *_, bias_grad = with_gradients(placed(lengths, window=3)[0], inputs)
        assert not bias_grad.any()


# ---- errors ----


@pytest.mark.usefixtures("interpreted")
def test_positions_that_do_not_rise_stop_the_kernel() -> None:
    positions = torch.tensor([0, 1, 2, 2, 1], dtype=torch.int32)
    with pytest.raises(InterpreterError, match="positions must rise within each sample"):
        placed((5,), window=3, positions=positions)[0](*random_heads(5, HEADS, 16))


# ---- the bisection ----


@triton.jit
def counted_below(p_positions, rows, p_wanted, p_block, p_scalars):
    """Rows below each of 256 places, searched for in one block and one by one."""
    numbers = tl.arange(0, 256)
    tl.store(p_block + numbers, places.rows_below(p_positions, rows, tl.load(p_wanted + numbers)))
    for number in range(256):
        tl.store(p_scalars + number, places.rows_below(p_positions, rows, tl.load(p_wanted + number)))


@pytest.mark.parametrize("gap", [0, 1, 5])
@pytest.mark.parametrize(("rows", "first"), [(0, 0), (1, 0), (1, 4), (2, 0), (7, 4), (30, 0), (30, 4)])
def test_rows_below(rows: int, first: int, gap: int) -> None:
    positions = positions_of((rows,), gap, first)
    wanted = torch.cat([torch.arange(-2, 252), torch.tensor([-(1 << 30), 1 << 30])]).int()
    block, scalars = torch.empty_like(wanted), torch.empty_like(wanted)
    counted_below[(1,)](torch.cat([positions, wanted]), rows, wanted, block, scalars)
    expected = torch.searchsorted(positions, wanted).tolist()
    assert block.tolist() == expected
    assert scalars.tolist() == expected

"""ragged_attention with a bias for each distance, and in windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mp_kernels
from mp_kernels import reference
from support.accuracy import assert_accurate, assert_near_exact, assert_same_bits, with_gradients
from support.attention import FEW_LENGTHS, FEW_STAY, ONE_QUERY, attention
from support.places import BUCKETS, REACH, placed, plain_placed, positions_of, with_bias
from support.ragged_batches import EDGE_LENGTHS, cu_seqlens_of, random_heads, rows_of_samples, stays_of

HALF = (torch.float16, torch.bfloat16)
WINDOWS = (0, 1, 7, 64, 1000, 1 << 40)
FORMS = [(True, None), (False, 7), (True, 7)]
FORM_NAMES = ["bias", "window", "bias and window"]
every_form = pytest.mark.parametrize(("biased", "window"), FORMS, ids=FORM_NAMES)


def heads_and_bias(
    total: int, head_dim: int, biased: bool, total_q: int | None = None, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """q, k, v of two heads, and a bias if there is to be one."""
    (q,) = random_heads(total if total_q is None else total_q, 2, head_dim, 1, dtype)
    qkv = [q, *random_heads(total, 2, head_dim, 2, dtype)]
    return with_bias(qkv) if biased else qkv


# ---- against the definition ----


@pytest.mark.parametrize("window", [None, 0, 1, 7, 64, 1000])
@pytest.mark.parametrize("gap", [0, 3])
def test_the_definition_is_plain_attention(gap: int, window: int | None) -> None:
    positions = positions_of(FEW_LENGTHS, gap)
    inputs = [x.double() for x in heads_and_bias(sum(FEW_LENGTHS), 8, True)]
    _, definition = placed(FEW_LENGTHS, positions=positions, window=window)
    for got, wanted in zip(
        with_gradients(definition, inputs),
        with_gradients(plain_placed(FEW_LENGTHS, positions, window), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


@every_form
@pytest.mark.parametrize("head_dim", [16, 20])
def test_every_edge_length(head_dim: int, biased: bool, window: int | None) -> None:
    ours, definition = placed(EDGE_LENGTHS, positions=positions_of(EDGE_LENGTHS, 1), window=window)
    inputs = heads_and_bias(sum(EDGE_LENGTHS), head_dim, biased)
    got, exact = with_gradients(ours, inputs), with_gradients(definition, [x.double() for x in inputs])
    assert_near_exact(got[:5], None, exact[:5], torch.float32)
    for x, y in zip(got[5:], exact[5:], strict=True):  # the bias's gradient sums a million terms
        torch.testing.assert_close(x, y.float(), atol=2e-6 * y.abs().max().item(), rtol=0)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("gap", [0, 1, 40])
def test_windows(gap: int, window: int, biased: bool) -> None:
    inputs = heads_and_bias(sum(FEW_LENGTHS), 20, biased)
    assert_accurate(*placed(FEW_LENGTHS, positions=positions_of(FEW_LENGTHS, gap), window=window), None, inputs)


@pytest.mark.parametrize("reach", [0, 1, 5, 128])
@pytest.mark.parametrize("window", [None, 3])
def test_reaches_of_the_bias(window: int | None, reach: int) -> None:
    """Also shorter than the window, and longer than the text."""
    *qkv, bias = *random_heads(sum(FEW_LENGTHS), 2, 20), torch.randn(2, 7)
    options = {"positions": positions_of(FEW_LENGTHS, 2), "buckets": torch.randint(0, 7, (2 * reach + 1,)).int()}
    arguments = cu_seqlens_of(FEW_LENGTHS), max(FEW_LENGTHS)
    assert_accurate(
        lambda q, k, v, bias: mp_kernels.ragged_attention(q, k, v, *arguments, bias=bias, window=window, **options),
        lambda q, k, v, bias: reference.ragged_attention(q, k, v, *arguments, bias=bias, window=window, **options),
        None,
        [*qkv, bias],
    )


@every_form
@pytest.mark.parametrize("dtype", HALF)
def test_half_types_are_no_worse_than_plain_torch(dtype: torch.dtype, biased: bool, window: int | None) -> None:
    lengths = (1, 2, 17, 64, 129)
    positions, inputs = positions_of(lengths, 1), heads_and_bias(sum(lengths), 20, biased, dtype=dtype)
    ours, definition = placed(lengths, positions=positions, window=window)
    no_bias = torch.zeros(2, 10)
    plain = plain_placed(lengths, positions, window)
    assert_accurate(ours, definition, lambda q, k, v, bias=no_bias: plain(q, k, v, bias), inputs)


@pytest.mark.parametrize("dtype", HALF)
def test_a_wide_bias_for_half_types(dtype: torch.dtype) -> None:
    """A bias of float32 is not rounded, and its gradient has its type."""
    lengths = (17, 64)
    inputs = heads_and_bias(sum(lengths), 20, True, dtype=dtype)
    wide = [*inputs[:3], inputs[3].float()]
    ours, _ = placed(lengths, window=7)
    got, same = with_gradients(ours, wide), with_gradients(ours, inputs)
    assert got[-1].dtype == torch.float32
    assert same[-1].dtype == dtype
    assert_same_bits([*got[:-1], got[-1].to(dtype)], same)
    finer = [*inputs[:3], wide[3] * (1 + torch.finfo(dtype).eps / 4)]
    assert not torch.equal(with_gradients(ours, finer)[1], got[1])


@st.composite
def placed_batches(draw: st.DrawFn) -> tuple[list[int], list[int], torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch: lengths of its samples, their numbers of queries, stays, and the positions of keys and queries."""
    lengths = draw(st.lists(st.integers(0, 40), max_size=5))
    query_lengths = [draw(st.sampled_from([n, min(n, 1), n // 2, 0])) for n in lengths]
    stays = stays_of(draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    places = [positions_of(n, draw(st.integers(0, 5)), draw(st.integers(0, 30))) for n in (lengths, query_lengths)]
    return lengths, query_lengths, stays, *places


@given(placed_batches(), st.booleans(), st.sampled_from([0, 1, 5, 30, 500]))
def test_random_batches(batch: tuple, biased: bool, window: int) -> None:
    lengths, query_lengths, stays, positions, positions_q = batch
    inputs = heads_and_bias(sum(lengths), 12, biased, sum(query_lengths))
    options = {"stays": stays, "positions": positions, "positions_q": positions_q, "window": window}
    assert_accurate(*placed(lengths, query_lengths, **options), None, inputs)


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 0)])
@every_form
def test_batches_without_rows(biased: bool, window: int | None, lengths: tuple[int, ...]) -> None:
    for function in placed(lengths, window=window):
        results = with_gradients(function, heads_and_bias(0, 16, biased))
        assert [tuple(x.shape) for x in results[:5]] == [(0, 2, 16), (0,), *3 * [(0, 2, 16)]]
        assert not any(x.any() for x in results[5:])


@pytest.mark.parametrize("options", [{"window": 2}, {"by_head": True, "stays": stays_of([0, 1, 1])}])
@pytest.mark.parametrize("query_lengths", [None, (1, 0, 2)])
def test_gradcheck(query_lengths: Sequence[int] | None, options: dict) -> None:
    lengths = (2, 0, 3)
    options["positions"] = torch.tensor([1, 2, 0, 1, 5], dtype=torch.int32)
    if query_lengths:
        options["positions_q"] = torch.tensor([1, 0, 9], dtype=torch.int32)
    inputs = [torch.randn(n, 2, 2).double() for n in (sum(query_lengths or lengths), sum(lengths), sum(lengths))]
    inputs = [x.requires_grad_() for x in with_bias(inputs)]
    assert torch.autograd.gradcheck(placed(lengths, query_lengths, **options)[0], inputs)


# ---- what a query sees ----


def test_windows_by_hand() -> None:
    """Five tokens are left of a text, at 0, 1, 4, 5 and 9; with equal scores, a window of 3 shares attention evenly."""
    zeros, v = torch.zeros(5, 1, 1), torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]).reshape(5, 1, 1)
    positions = torch.tensor([0, 1, 4, 5, 9], dtype=torch.int32)
    out, importance = mp_kernels.ragged_attention(zeros, zeros, v, cu_seqlens_of([5]), 5, positions=positions, window=3)
    torch.testing.assert_close(out.flatten(), torch.tensor([3 / 2, 7 / 3, 14 / 3, 12 / 2, 16]))
    # Token 0 is seen by queries 0 and 1, with 1/2 and 1/3; token 4 only by itself.
    wanted = torch.tensor([5 / 12, (1 / 2 + 1 / 3 + 1 / 3) / 3, (1 / 3 + 1 / 3 + 1 / 2) / 3, 5 / 12, 1])
    torch.testing.assert_close(importance, wanted)


def test_a_bias_by_hand() -> None:
    """Keys before a query weigh 1, itself 2, and keys after it 5; nearest and far ones alike."""
    zeros, v = torch.zeros(3, 1, 1), torch.tensor([1.0, 10.0, 100.0]).reshape(3, 1, 1)
    bias, buckets = torch.tensor([[1.0, 2.0, 5.0]]).log(), torch.tensor([0, 1, 2], dtype=torch.int32)
    out, _ = mp_kernels.ragged_attention(zeros, zeros, v, cu_seqlens_of([3]), 3, bias=bias, buckets=buckets)
    torch.testing.assert_close(out.flatten(), torch.tensor([552 / 12, 521 / 8, 211 / 4]))


@every_form
def test_queries_that_see_no_key(biased: bool, window: int | None) -> None:
    """Keys lie at 0..9, queries at 0..59: with a window, most see none."""
    places = {"positions": positions_of((10, 3), 0), "positions_q": positions_of((60, 3), 0)}
    inputs = heads_and_bias(13, 20, biased, total_q=63)
    ours, definition = placed((10, 3), (60, 3), window=window, **places)
    assert_accurate(ours, definition, None, inputs)
    if window is not None:
        out, _, *grads = with_gradients(ours, inputs)
        assert out[: 10 + window].any(-1).all()
        assert not out[10 + window : 60].any()
        assert not grads[0][10 + window : 60].any()
    starts = cu_seqlens_of((60, 3)), cu_seqlens_of((10, 3))
    options = places["positions_q"], places["positions"], None, None, 7
    logsumexp = torch.ops.mp_kernels.ragged_attention(*inputs[:3], *starts, None, 10, 0.2, True, *options)[2]
    assert not logsumexp[:, 17:60].any()
    assert logsumexp[:, :17].all()


def test_keys_that_no_query_sees() -> None:
    """Their importance is 0, and its gradient, even if infinite (that of a logarithm), reaches nothing."""
    places = {"positions": positions_of((60,), 0), "positions_q": positions_of((10,), 0)}
    q, k, v = (x.requires_grad_() for x in heads_and_bias(60, 20, False, total_q=10))

    def grads(fill: float) -> Sequence[torch.Tensor]:
        out, importance = placed((60,), (10,), window=7, **places)[0](q, k, v)
        assert not importance[17:].any()
        weights = torch.ones(60).index_fill(0, torch.arange(17, 60), fill)
        return torch.autograd.grad([out, importance], [q, k, v], [torch.ones_like(out), weights])

    assert_same_bits(grads(math.inf), grads(1.0))


@pytest.mark.parametrize("query_lengths", [None, (1,)], ids=["all queries", "one query"])
def test_far_keys_are_not_visited(query_lengths: Sequence[int] | None) -> None:
    """They hold NaN, which a weight of 0 would not hide; so a window's work grows with the text, not with its square."""
    inputs = random_heads(4000, 1, 16)
    weights = torch.randn(4000 if query_lengths is None else 1, 1, 16)

    def run(fill: float) -> list[torch.Tensor]:
        q, k, v = (x.clone().requires_grad_() for x in inputs)
        poisoned = [x.index_fill(0, torch.arange(2000, 4000), fill) for x in (q, k, v)]
        if query_lengths:
            poisoned[0] = poisoned[0][:1]
        places = {"positions": positions_of((4000,), 0), "positions_q": positions_of((len(poisoned[0]),), 0)}
        out, importance = placed((4000,), (len(poisoned[0]),), window=64, **places)[0](*poisoned)
        grads = torch.autograd.grad([out[:1800], importance[:1800]], [q, k, v], [weights[:1800], torch.ones(1800)])
        return [out[:1800], importance[:1800], *(x[:1800] for x in grads)]

    assert_same_bits(run(math.nan), run(1.0))


def test_a_long_text_in_windows() -> None:
    """The middle of 8,000 tokens is what it is in a text that holds only this middle and a window on both sides."""
    qkv, positions = random_heads(8000, 2, 32), positions_of((8000,), 1)
    inside, around = slice(4000, 4400), slice(3840, 4560)
    ours = with_gradients(lambda *x: placed((8000,), positions=positions, window=64)[0](*x)[0][inside], qkv)
    alone = with_gradients(
        lambda *x: placed((720,), positions=positions[around], window=64)[0](*x)[0][160:560], [x[around] for x in qkv]
    )
    torch.testing.assert_close(ours[0], alone[0], atol=1e-6, rtol=0)
    for x, y in zip(ours[1:], alone[1:], strict=True):
        torch.testing.assert_close(x[around], y, atol=1e-6, rtol=0)
        assert not x[:3840].any()
        assert not x[4560:].any()


# ---- the same bits ----


@every_form
def test_rows_in_their_own_order_by_default(biased: bool, window: int | None) -> None:
    inputs = heads_and_bias(sum(FEW_LENGTHS), 20, biased)
    given_positions = placed(FEW_LENGTHS, positions=positions_of(FEW_LENGTHS, 0), window=window)[0]
    assert_same_bits(
        with_gradients(placed(FEW_LENGTHS, window=window)[0], inputs), with_gradients(given_positions, inputs)
    )


@pytest.mark.parametrize("first", [0, 1000, 2**31 - 100])
@every_form
def test_only_distances_matter(biased: bool, window: int | None, first: int) -> None:
    inputs = heads_and_bias(sum(FEW_LENGTHS), 20, biased)
    shifted = placed(FEW_LENGTHS, positions=positions_of(FEW_LENGTHS, 0, first), window=window)[0]
    assert_same_bits(with_gradients(shifted, inputs), with_gradients(placed(FEW_LENGTHS, window=window)[0], inputs))


@pytest.mark.parametrize("window", [64, 1 << 40])
def test_a_window_over_everything_is_none(window: int) -> None:
    inputs = random_heads(sum(FEW_LENGTHS), 2, 20)
    assert_same_bits(
        with_gradients(placed(FEW_LENGTHS, window=window)[0], inputs), with_gradients(attention(FEW_LENGTHS), inputs)
    )


def test_a_bias_of_zeros_is_none() -> None:
    qkv = random_heads(sum(FEW_LENGTHS), 2, 20)
    biased = with_gradients(placed(FEW_LENGTHS)[0], [*qkv, torch.zeros(2, 10)])
    assert_same_bits(biased[:-1], with_gradients(attention(FEW_LENGTHS), qkv))


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("row", [0, 1, 23, 24, 40, 63])
def test_a_query_alone_is_as_among_others(row: int, dtype: torch.dtype, biased: bool, window: int | None) -> None:
    """An exit decision must not depend on whether the whole layer was computed for its companions."""
    lengths = (64, 65)
    positions, rows = positions_of(lengths, 2), torch.tensor([row, 64 + row])
    q, *rest = heads_and_bias(sum(lengths), 20, biased, dtype=dtype)
    every, _ = placed(lengths, positions=positions, window=window)[0](q, *rest)
    options = {"positions": positions, "positions_q": positions[rows], "window": window}
    alone, _ = placed(lengths, (1, 1), **options)[0](q[rows], *rest)
    assert_same_bits([alone], [every[rows]])


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_permuting_samples_permutes_results(dtype: torch.dtype, biased: bool, window: int | None) -> None:
    """All but the bias's gradient, which is summed in another order."""
    positions, order = positions_of(EDGE_LENGTHS, 1), torch.randperm(len(EDGE_LENGTHS)).tolist()
    rows, inputs = rows_of_samples(cu_seqlens_of(EDGE_LENGTHS), order), heads_and_bias(sum(EDGE_LENGTHS), 20, biased)
    inputs = [x.to(dtype) for x in inputs]
    weights = [torch.randn(sum(EDGE_LENGTHS), 2, 20).to(dtype), torch.randn(sum(EDGE_LENGTHS))]

    def run(lengths, positions, inputs, weights):
        leaves = [x.detach().requires_grad_() for x in inputs]
        results = placed(lengths, positions=positions, window=window)[0](*leaves)
        return [*results, *torch.autograd.grad(results, leaves, weights)]

    straight = run(EDGE_LENGTHS, positions, inputs, weights)
    qkv, bias = [x[rows] for x in inputs[:3]], inputs[3:]
    permuted = run([EDGE_LENGTHS[b] for b in order], positions[rows], [*qkv, *bias], [x[rows] for x in weights])
    assert_same_bits(permuted[:5], [x[rows] for x in straight[:5]])
    for x, y in zip(permuted[5:], straight[5:], strict=True):
        torch.testing.assert_close(x, y, atol=1e-5 + 2 * torch.finfo(dtype).eps * y.abs().max().item(), rtol=0)


@every_form
def test_a_sample_does_not_depend_on_its_batch(biased: bool, window: int | None) -> None:
    """Its share of the bias's gradient, too."""
    inputs, positions = heads_and_bias(sum(EDGE_LENGTHS), 16, biased), positions_of(EDGE_LENGTHS, 1)
    together = with_gradients(placed(EDGE_LENGTHS, positions=positions, window=window)[0], inputs)
    weights = [torch.randn(sum(EDGE_LENGTHS), 2, 16), torch.randn(sum(EDGE_LENGTHS))]

    def run(lengths: Sequence[int], rows: torch.Tensor) -> list[torch.Tensor]:
        leaves = [x.detach().requires_grad_() for x in [*(x[rows] for x in inputs[:3]), *inputs[3:]]]
        results = placed(lengths, positions=positions[rows], window=window)[0](*leaves)
        return [*results, *torch.autograd.grad(results, leaves, [x[rows] for x in weights])]

    together = run(EDGE_LENGTHS, torch.arange(sum(EDGE_LENGTHS)))
    bias_grad = torch.zeros(2, 10)
    for sample, length in enumerate(EDGE_LENGTHS):
        rows = rows_of_samples(cu_seqlens_of(EDGE_LENGTHS), [sample])
        alone = run((length,), rows)
        assert_same_bits(alone[:5], [x[rows] for x in together[:5]])
        bias_grad += alone[5] if biased else 0
    if biased:
        assert_same_bits([bias_grad], together[5:])


@pytest.mark.parametrize("threads", [1, 2, 4])
@every_form
def test_threads_and_repeats_change_nothing(
    with_threads: Callable, biased: bool, window: int | None, threads: int
) -> None:
    inputs = heads_and_bias(sum(EDGE_LENGTHS), 32, biased)
    run = placed(EDGE_LENGTHS, positions=positions_of(EDGE_LENGTHS, 1), window=window)[0]
    single = with_gradients(run, inputs)
    assert_same_bits(with_threads(threads, lambda: with_gradients(run, inputs)), single)


def apart(x: torch.Tensor) -> torch.Tensor:
    """The same values with others between them in memory."""
    return torch.stack([x, x + 1], dim=-1)[..., 0]


def test_strided_views() -> None:
    packed, bias = torch.randn(sum(FEW_LENGTHS), 3, 2, 20), torch.randn(2, 10)
    options = {"positions": positions_of(FEW_LENGTHS, 1), "buckets": BUCKETS, "window": 7}

    def run(qkv, bias, options):
        arguments = cu_seqlens_of(FEW_LENGTHS), max(FEW_LENGTHS)
        return with_gradients(
            lambda q, k, v, bias: mp_kernels.ragged_attention(q, k, v, *arguments, bias=bias, **options), [*qkv, bias]
        )

    spread = {name: apart(x) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    assert_same_bits(
        run(packed.unbind(1), apart(bias), spread), run([x.contiguous() for x in packed.unbind(1)], bias, options)
    )


# ---- samples that leave ----


@every_form
@pytest.mark.parametrize("query_lengths", [FEW_LENGTHS, ONE_QUERY], ids=["all queries", "one query"])
@pytest.mark.parametrize("stays", [FEW_STAY, ~FEW_STAY])
def test_samples_that_leave(
    stays: torch.Tensor, query_lengths: Sequence[int], biased: bool, window: int | None
) -> None:
    places = {"positions": positions_of(FEW_LENGTHS, 1), "positions_q": positions_of(query_lengths, 1)}
    inputs = heads_and_bias(sum(FEW_LENGTHS), 20, biased, sum(query_lengths))
    assert_accurate(*placed(FEW_LENGTHS, query_lengths, stays=stays, window=window, **places), None, inputs)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_a_leaving_sample_holds_reaches_nothing(dtype: torch.dtype, broken: float) -> None:
    """The bias's gradient, a sum over all samples, least of all."""
    *qkv, bias = heads_and_bias(sum(FEW_LENGTHS), 20, True, dtype=dtype)
    rows = rows_of_samples(cu_seqlens_of(FEW_LENGTHS), (~FEW_STAY).nonzero().squeeze(1).tolist())
    positions = positions_of(FEW_LENGTHS, 1)

    def run(fill: float) -> list[torch.Tensor]:
        leaves = [*(x.index_fill(0, rows, fill) for x in qkv), bias]
        leaves = [x.detach().requires_grad_() for x in leaves]
        results = placed(FEW_LENGTHS, stays=FEW_STAY, positions=positions, window=7)[0](*leaves)
        weights = [torch.ones_like(x).index_fill(0, rows, fill) for x in results]
        return [*results, *torch.autograd.grad(results, leaves, weights)]

    assert_same_bits(run(broken), run(1.0))


# ---- torch.compile ----


def test_compiled_graph() -> None:
    torch.compiler.reset()

    def attend(q, k, v, bias, starts, positions):
        options = {"bias": bias, "buckets": BUCKETS, "positions": positions, "window": 7}
        return mp_kernels.ragged_attention(q, k, v, starts, 65, **options)

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for lengths in (FEW_LENGTHS, (5, 9)):
        others = cu_seqlens_of(lengths), positions_of(lengths, 1)
        inputs = heads_and_bias(sum(lengths), 16, True)
        got = with_gradients(lambda *xs, others=others: compiled(*xs, *others), inputs)
        assert_same_bits(got, with_gradients(lambda *xs, others=others: attend(*xs, *others), inputs))


# ---- refusals ----

Q = torch.zeros(10, 2, 16)
CU_SEQLENS = cu_seqlens_of((4, 6))
BIAS = torch.zeros(2, 10)
POSITIONS, IN_ORDER = positions_of((4, 6), 1), positions_of((4, 6), 0)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"buckets": None}, ValueError, r"bias and buckets must be given together; got only one of them"),
        ({"bias": None}, ValueError, r"bias and buckets must be given together; got only one of them"),
        ({"bias": [1.0]}, TypeError, r"bias must be a tensor; got list \[1.0\]"),
        ({"bias": BIAS.half()}, TypeError, r"bias must be float32; got float16 \[2, 10\]"),
        ({"bias": BIAS[0]}, ValueError, r"bias must have 2 dimensions; got float32 \[10\]"),
        ({"bias": BIAS[:1]}, ValueError, r"bias must be \[heads, buckets\] with 2 heads; got float32 \[1, 10\]"),
        ({"bias": BIAS[:, :0]}, ValueError, r"bias must be \[heads, buckets\] .* got float32 \[2, 0\]"),
        ({"bias": BIAS.to("meta")}, ValueError, r"bias must be on cpu like the other arguments; got .* on meta"),
        ({"buckets": BUCKETS.long()}, TypeError, r"buckets must be int32; got int64 \[19\]"),
        ({"buckets": BUCKETS[1:]}, ValueError, r"buckets must have an entry for each distance .* got int32 \[18\]"),
        ({"buckets": BUCKETS + 1}, RuntimeError, r"buckets must lie in 0..9; got 10"),
        ({"buckets": BUCKETS - 1}, RuntimeError, r"buckets must lie in 0..9; got -1"),
        ({"window": -1}, ValueError, r"window must be an int of 0 or more, or None for no window; got int -1"),
        ({"window": 1.0}, ValueError, r"window must be an int of 0 or more, .* got float 1.0"),
        ({"window": True}, ValueError, r"window must be an int of 0 or more, .* got bool True"),
        ({"positions": POSITIONS.long()}, TypeError, r"positions must be int32; got int64 \[10\]"),
        ({"positions": POSITIONS[1:]}, ValueError, r"positions must have one entry per row, 10; got int32 \[9\]"),
        ({"positions": IN_ORDER - 1}, RuntimeError, r"positions\w* must rise from 0 or more within each sample; got"),
        ({"positions": POSITIONS.clamp(max=3)}, RuntimeError, r"positions\w* must rise from 0 or more within each sam"),
        ({"positions_q": POSITIONS.flip(0)}, RuntimeError, r"positions_q must rise from 0 or more within each sample"),
        ({"positions": None, "positions_q": POSITIONS}, ValueError, r"positions_q must be None without positions"),
        ({"cu_seqlens_q": CU_SEQLENS}, ValueError, r"positions and positions_q must be given for bias or window with"),
        (
            {"bias": None, "buckets": None, "window": None},
            ValueError,
            r"positions must be None without bias and window",
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_refused_arguments(changed: dict, error: type[Exception], message: str, dtype: torch.dtype) -> None:
    arguments = {"cu_seqlens": CU_SEQLENS, "max_seqlen": 6, "bias": BIAS, "buckets": BUCKETS, "window": 4}
    arguments |= {"positions": POSITIONS} | changed
    if dtype == torch.float64:
        if isinstance(arguments["bias"], torch.Tensor):
            arguments["bias"] = arguments["bias"].double() if arguments["bias"].dtype == torch.float32 else BIAS.half()
        message = message.replace("float32", "float64")
    with pytest.raises(error, match=message):
        mp_kernels.ragged_attention(Q.to(dtype), Q.to(dtype), Q.to(dtype), **arguments)


def test_reach_names_the_middle() -> None:
    """The tests above need a bias that differs on both sides of a query, and near and far."""
    assert len(BUCKETS) == 2 * REACH + 1
    assert len({*BUCKETS[:REACH].tolist()} & {*BUCKETS[REACH + 1 :].tolist()}) == 0

"""ragged_attention: attention and importance of packed ragged batches, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mp_kernels
from mp_kernels import reference
from support.accuracy import assert_accurate, assert_same_bits, with_gradients
from support.ragged_batches import EDGE_LENGTHS, cu_seqlens_of, random_heads, rows_of_samples, stays_of

HALF = (torch.float16, torch.bfloat16)
FEW_LENGTHS = (17, 0, 1, 65, 2, 24, 33)
FEW_STAY = stays_of([1, 0, 0, 1, 0, 1, 0])
ONE_QUERY = [min(n, 1) for n in FEW_LENGTHS]


def attention(lengths: Sequence[int], query_lengths: Sequence[int] | None = None, definition: bool = False, **options):
    """The operator (or its definition) as a function of q, k and v only."""
    module = reference if definition else mp_kernels
    if query_lengths is not None:
        options["cu_seqlens_q"] = cu_seqlens_of(query_lengths)
    return lambda q, k, v: module.ragged_attention(q, k, v, cu_seqlens_of(lengths), max(lengths, default=0), **options)


def plain_attention(lengths: Sequence[int], by_head: bool = False) -> Callable:
    """The maths of the definition at the inputs' own dtype throughout."""

    def run(q, k, v):
        outs, importances = [], []
        for q_b, k_b, v_b in zip(*(x.split(list(lengths)) for x in (q, k, v)), strict=True):
            scores = torch.einsum("ihd,jhd->hij", q_b, k_b) / math.sqrt(q.shape[-1])
            probabilities = torch.softmax(scores, dim=-1)
            outs.append(torch.einsum("hij,jhd->ihd", probabilities, v_b))
            importances.append(probabilities.mean(1 if by_head else (0, 1)))
        return torch.cat(outs), torch.cat(importances, dim=-1)

    return run


def assert_matches_definition(inputs: Sequence[torch.Tensor], *args, **options) -> None:
    assert_accurate(attention(*args, **options), attention(*args, **options, definition=True), None, inputs)


# ---- against the definition ----


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 16), (2, 20), (3, 64)])
def test_every_edge_length(heads: int, head_dim: int) -> None:
    assert_matches_definition(random_heads(sum(EDGE_LENGTHS), heads, head_dim), EDGE_LENGTHS)


@pytest.mark.parametrize("head_dim", [1, 16, 20, 32, 48, 64, 128])
@pytest.mark.parametrize("heads", [1, 3, 12])
def test_heads_and_head_dims(heads: int, head_dim: int) -> None:
    assert_matches_definition(random_heads(sum(FEW_LENGTHS), heads, head_dim), FEW_LENGTHS)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 16), (2, 20), (3, 64)])
def test_half_types_are_no_worse_than_plain_torch(dtype: torch.dtype, heads: int, head_dim: int) -> None:
    lengths = (1, 2, 17, 64, 129)
    inputs = random_heads(sum(lengths), heads, head_dim, dtype=dtype)
    assert_accurate(attention(lengths), attention(lengths, definition=True), plain_attention(lengths), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_result_dtypes(dtype: torch.dtype) -> None:
    out, importance = attention((3, 4))(*random_heads(7, 2, 16, dtype=dtype))
    assert out.dtype == dtype
    assert importance.dtype == torch.float32


@pytest.mark.parametrize("length", [1, 2, 31, 64, 257])
def test_batch_of_one(length: int) -> None:
    assert_matches_definition(random_heads(length, 2, 32), (length,))


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 0)])
def test_batches_without_rows(lengths: tuple[int, ...]) -> None:
    results = with_gradients(attention(lengths), random_heads(0, 2, 16))
    assert [tuple(x.shape) for x in results] == [(0, 2, 16), (0,), *3 * [(0, 2, 16)]]


def test_max_seqlen_may_be_generous() -> None:
    inputs, cu_seqlens = random_heads(12, 2, 16), cu_seqlens_of((5, 7))
    generous = mp_kernels.ragged_attention(*inputs, cu_seqlens, 512)
    assert_same_bits(generous, mp_kernels.ragged_attention(*inputs, cu_seqlens, 7))


@pytest.mark.parametrize("scale", [0.0, 0.3, -0.5])
def test_explicit_scale(scale: float) -> None:
    assert_matches_definition(random_heads(sum(FEW_LENGTHS), 2, 16), FEW_LENGTHS, scale=scale)


def test_large_scores_neither_overflow_nor_lose_the_sum() -> None:
    q, k, v = random_heads(40, 2, 64)
    out, importance = attention((40,))(1e3 * q, 1e3 * k, v)
    assert out.isfinite().all()
    assert importance.sum().item() == pytest.approx(1, abs=1e-5)
    tops = torch.einsum("ihd,jhd->ihj", q, k).argmax(-1)
    torch.testing.assert_close(out, v.gather(0, tops.unsqueeze(-1).expand(-1, -1, 64)))


@pytest.mark.parametrize("sign", [-1, 1])
def test_scores_far_from_zero(sign: int) -> None:
    """Where every score is near -256, what fills up the last vector of keys must not pass for a score of 0."""
    lengths = (17, 1, 5)
    q, k, v = random_heads(sum(lengths), 2, 16)
    q, k = 4 + q / 4, sign * (4 + k / 4)
    got = with_gradients(attention(lengths, scale=1.0), (q, k, v))
    exact = with_gradients(attention(lengths, scale=1.0, definition=True), [x.double() for x in (q, k, v)])
    for x, y in zip(got, exact, strict=True):
        # float32 holds such a score to 1.5e-5 only, and a gradient sums dozens of terms of that precision.
        torch.testing.assert_close(x, y.float(), atol=1e-3, rtol=0)


# ---- queries of some tokens ----


@pytest.mark.parametrize(
    ("lengths", "query_lengths"),
    [
        pytest.param(EDGE_LENGTHS, [min(n, 1) for n in EDGE_LENGTHS], id="one each"),
        pytest.param((9, 40, 64, 65, 3, 16), (2, 25, 24, 23, 7, 1), id="a few"),
        pytest.param((9, 40, 0, 5), (0, 1, 0, 2), id="some none"),
        pytest.param((5, 3), (0, 0), id="none at all"),
    ],
)
def test_queries_of_some_tokens(lengths: Sequence[int], query_lengths: Sequence[int]) -> None:
    (q,), (k, v) = random_heads(sum(query_lengths), 3, 20, 1), random_heads(sum(lengths), 3, 20, 2)
    assert_matches_definition((q, k, v), lengths, query_lengths)


@pytest.mark.parametrize("dtype", HALF)
def test_single_queries_in_half_types(dtype: torch.dtype) -> None:
    lengths = (40, 1, 65)
    q, k, v = random_heads(sum(lengths), 2, 20, dtype=dtype)
    first = cu_seqlens_of(lengths)[:-1]
    out, _ = attention(lengths, (1, 1, 1))(q[first], k, v)
    # The same float32 sums in another order: one rounding to the half type apart.
    torch.testing.assert_close(out, attention(lengths)(q, k, v)[0][first], rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_importance_without_queries_is_zero() -> None:
    (q,), (k, v) = random_heads(2, 2, 16, 1), random_heads(7, 2, 16, 2)
    _, importance = attention((4, 3), (0, 2))(q, k, v)
    assert importance[:4].tolist() == [0, 0, 0, 0]
    assert importance[4:].sum().item() == pytest.approx(1, abs=1e-6)


# ---- importance ----


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_importance_sums_to_one_over_each_sample(dtype: torch.dtype) -> None:
    _, importance = attention(EDGE_LENGTHS)(*random_heads(sum(EDGE_LENGTHS), 2, 16, dtype=dtype))
    sums = torch.stack([part.sum() for part in importance.split(list(EDGE_LENGTHS))])
    torch.testing.assert_close(sums, torch.tensor(EDGE_LENGTHS).clamp(max=1).float(), atol=1e-5, rtol=0)


def test_importance_that_nobody_needs() -> None:
    inputs = random_heads(sum(FEW_LENGTHS), 2, 32)
    out, importance = attention(FEW_LENGTHS, need_importance=False)(*inputs)
    assert importance is None
    assert_same_bits([out], attention(FEW_LENGTHS)(*inputs)[:1])


def test_gradients_without_importance() -> None:
    inputs = random_heads(sum(FEW_LENGTHS), 2, 32)
    without = with_gradients(lambda *x: attention(FEW_LENGTHS, need_importance=False)(*x)[0], inputs)
    assert_same_bits(without, with_gradients(lambda *x: attention(FEW_LENGTHS)(*x)[0], inputs))


# ---- importance by head ----


@pytest.mark.parametrize("heads", [1, 2, 3, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALF])
def test_the_mean_over_heads_is_the_importance(heads: int, dtype: torch.dtype) -> None:
    inputs = random_heads(sum(FEW_LENGTHS), heads, 20, dtype=dtype)
    out, importance = attention(FEW_LENGTHS)(*inputs)
    same_out, by_head = attention(FEW_LENGTHS, by_head=True)(*inputs)
    assert by_head.shape == (heads, sum(FEW_LENGTHS))
    assert by_head.dtype == importance.dtype
    mean = by_head.mean(0) if dtype == torch.float64 else torch.ops.mp_kernels.mean_over_heads(by_head)
    assert_same_bits([same_out, mean], [out, importance])
    torch.testing.assert_close(mean.double(), by_head.double().mean(0), atol=1e-7, rtol=0)


@pytest.mark.parametrize("query_lengths", [None, ONE_QUERY], ids=["all queries", "one query"])
@pytest.mark.parametrize("heads", [1, 3])
def test_importance_by_head(heads: int, query_lengths: Sequence[int] | None) -> None:
    (q,) = random_heads(sum(query_lengths or FEW_LENGTHS), heads, 20, 1)
    k, v = random_heads(sum(FEW_LENGTHS), heads, 20, 2)
    assert_matches_definition((q, k, v), FEW_LENGTHS, query_lengths, by_head=True)


@pytest.mark.parametrize("dtype", HALF)
def test_importance_by_head_of_half_types_is_no_worse_than_plain_torch(dtype: torch.dtype) -> None:
    lengths, inputs = (1, 2, 17, 64), random_heads(84, 3, 20, dtype=dtype)
    definition = attention(lengths, by_head=True, definition=True)
    assert_accurate(attention(lengths, by_head=True), definition, plain_attention(lengths, by_head=True), inputs)


def test_importance_by_head_that_nobody_needs() -> None:
    assert attention((4, 5), by_head=True, need_importance=False)(*random_heads(9, 2, 16))[1] is None


@pytest.mark.parametrize("heads", [1, 3, 12])
def test_mean_over_heads_of_any_strides(heads: int, with_threads: Callable) -> None:
    mean = torch.ops.mp_kernels.mean_over_heads
    straight, apart = torch.rand(heads, 30_000), torch.rand(30_000, 2 * heads).t()[::2]
    for x in (straight, apart):
        torch.testing.assert_close(mean(x).double(), x.double().mean(0), atol=1e-6, rtol=0)
        for threads in (1, 2, 4):
            assert_same_bits([with_threads(threads, lambda x=x: mean(x))], [mean(x.contiguous())])


def test_every_head_gets_its_share_of_the_gradient() -> None:
    by_head = torch.rand(4, 3, requires_grad=True)
    torch.ops.mp_kernels.mean_over_heads(by_head).backward(torch.tensor([1.0, -2.0, 0.0]))
    assert by_head.grad.tolist() == [[0.25, -0.5, 0.0]] * 4


@pytest.mark.parametrize("shape", [(5,), (0, 5), (1, 1, 5)])
def test_mean_over_heads_needs_heads(shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match=r"importance must be \[heads, total\]; got \["):
        torch.ops.mp_kernels.mean_over_heads(torch.zeros(shape))


# ---- samples that leave ----


def zero_where_left(
    results: Sequence[torch.Tensor], lengths: Sequence[int], query_lengths: Sequence[int], stays: torch.Tensor
) -> list[torch.Tensor]:
    """out, importance and the gradients in q, k and v, with zeros for the samples that leave."""
    leaving = (~stays).nonzero().squeeze(1).tolist()
    queries, keys = (rows_of_samples(cu_seqlens_of(n), leaving) for n in (query_lengths, lengths))
    out, importance, q_grad, k_grad, v_grad = results
    by_queries = (x.index_fill(0, queries, 0) for x in (out, q_grad))
    by_keys = (x.index_fill(0, keys, 0) for x in (k_grad, v_grad))
    return [next(by_queries), importance.index_fill(-1, keys, 0), next(by_queries), *by_keys]


@st.composite
def leaving_samples(draw: st.DrawFn) -> tuple[list[int], list[int], torch.Tensor]:
    """Lengths, numbers of queries and stays of a batch."""
    lengths = draw(st.lists(st.integers(0, 40), max_size=5))
    query_lengths = [draw(st.sampled_from([n, min(n, 1), n // 2, 0])) for n in lengths]
    return lengths, query_lengths, stays_of(draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))


@given(leaving_samples(), st.integers(1, 3), st.booleans(), st.sampled_from([torch.float32, torch.float64, *HALF]))
def test_samples_that_leave_get_zeros_and_change_nothing(
    batch: tuple, heads: int, by_head: bool, dtype: torch.dtype
) -> None:
    lengths, query_lengths, stays = batch
    (q,), (k, v) = (
        random_heads(sum(query_lengths), heads, 16, 1, dtype),
        random_heads(sum(lengths), heads, 16, 2, dtype),
    )
    got = with_gradients(attention(lengths, query_lengths, by_head=by_head, stays=stays), (q, k, v))
    all_stay = with_gradients(attention(lengths, query_lengths, by_head=by_head), (q, k, v))
    assert_same_bits(got, zero_where_left(all_stay, lengths, query_lengths, stays))


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("query_lengths", [None, ONE_QUERY], ids=["all queries", "one query"])
@pytest.mark.parametrize(
    "stays", [FEW_STAY, ~FEW_STAY, FEW_STAY | True, FEW_STAY & False], ids=["some", "others", "all", "none"]
)
def test_samples_that_leave_against_the_definition(
    stays: torch.Tensor, query_lengths: Sequence[int] | None, by_head: bool
) -> None:
    (q,), (k, v) = random_heads(sum(query_lengths or FEW_LENGTHS), 3, 20, 1), random_heads(sum(FEW_LENGTHS), 3, 20, 2)
    assert_matches_definition((q, k, v), FEW_LENGTHS, query_lengths, stays=stays, by_head=by_head)


@pytest.mark.parametrize("query_lengths", [FEW_LENGTHS, ONE_QUERY], ids=["all queries", "one query"])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_a_leaving_sample_holds_reaches_nothing(
    dtype: torch.dtype, broken: float, query_lengths: Sequence[int]
) -> None:
    """Neither its rows nor the gradients that come back for them, as from the logarithm of its importance."""
    (q,), (k, v) = random_heads(sum(query_lengths), 2, 20, 1, dtype), random_heads(sum(FEW_LENGTHS), 2, 20, 2, dtype)
    leaving = (~FEW_STAY).nonzero().squeeze(1).tolist()
    queries, keys = (rows_of_samples(cu_seqlens_of(n), leaving) for n in (query_lengths, FEW_LENGTHS))

    def run(fill: float) -> list[torch.Tensor]:
        leaves = [x.index_fill(0, rows, fill).requires_grad_() for x, rows in ((q, queries), (k, keys), (v, keys))]
        out, importance = attention(FEW_LENGTHS, query_lengths, stays=FEW_STAY)(*leaves)
        weights = [torch.ones_like(x).index_fill(0, rows, fill) for x, rows in ((out, queries), (importance, keys))]
        return [out, importance, *torch.autograd.grad([out, importance], leaves, weights)]

    assert_same_bits(run(broken), run(1.0))


@pytest.mark.parametrize("stays", [FEW_STAY, ~FEW_STAY])
def test_samples_that_leave_without_importance(stays: torch.Tensor) -> None:
    inputs = random_heads(sum(FEW_LENGTHS), 2, 20)
    got = with_gradients(lambda *x: attention(FEW_LENGTHS, stays=stays, need_importance=False)(*x)[0], inputs)
    assert_same_bits(got, with_gradients(lambda *x: attention(FEW_LENGTHS, stays=stays)(*x)[0], inputs))


def test_strided_stays() -> None:
    inputs, spread = random_heads(sum(FEW_LENGTHS), 2, 20), torch.stack([FEW_STAY, ~FEW_STAY], dim=1)[:, 0]
    assert not spread.is_contiguous()
    assert_same_bits(
        with_gradients(attention(FEW_LENGTHS, stays=spread), inputs),
        with_gradients(attention(FEW_LENGTHS, stays=FEW_STAY), inputs),
    )


# ---- gradients ----


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("result", [0, 1], ids=["out", "importance"])
@pytest.mark.parametrize("query_lengths", [None, ONE_QUERY], ids=["all queries", "one query"])
def test_gradient_through_one_result_alone(result: int, query_lengths: Sequence[int] | None, by_head: bool) -> None:
    (q,), (k, v) = random_heads(sum(query_lengths or FEW_LENGTHS), 2, 20, 1), random_heads(sum(FEW_LENGTHS), 2, 20, 2)
    assert_accurate(
        lambda *x: attention(FEW_LENGTHS, query_lengths, by_head=by_head)(*x)[result],
        lambda *x: attention(FEW_LENGTHS, query_lengths, by_head=by_head, definition=True)(*x)[result],
        None,
        (q, k, v),
    )


@pytest.mark.parametrize("by_head", [False, True])
def test_constant_importance_gradient_vanishes(by_head: bool) -> None:
    """As what each head gives sums to 1 over a sample, its gradient may be another constant in every head."""
    leaves = [x.requires_grad_() for x in random_heads(sum(FEW_LENGTHS), 3, 64)]
    _, importance = attention(FEW_LENGTHS, by_head=by_head)(*leaves)
    constants = torch.tensor([[7.0], [-3.0], [0.5]]) if by_head else torch.tensor(7.0)
    for grad in torch.autograd.grad(importance, leaves, constants.expand_as(importance)):
        torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-6, rtol=0)


@pytest.mark.parametrize("by_head", [False, True])
def test_gradient_of_a_sum_has_no_strides(by_head: bool) -> None:
    """``sum().backward()`` hands over gradients expanded from one element."""
    q, k, v = (x.requires_grad_() for x in random_heads(9, 2, 16))
    out, importance = attention((4, 5), by_head=by_head)(q, k, v)
    ones = torch.autograd.grad([out, importance], [q, k, v], [torch.ones_like(out), torch.ones_like(importance)])
    out, importance = attention((4, 5), by_head=by_head)(q, k, v)
    (out.sum() + importance.sum()).backward()
    assert_same_bits([q.grad, k.grad, v.grad], ones)


@pytest.mark.parametrize("wanted", [0, 1, 2], ids=["q", "k", "v"])
def test_gradient_in_one_input_alone(wanted: int) -> None:
    inputs = random_heads(9, 2, 16)
    every = with_gradients(attention((4, 5)), inputs)[2 + wanted]
    before, after = inputs[:wanted], inputs[wanted + 1 :]
    alone = with_gradients(lambda x: attention((4, 5))(*before, x, *after), [inputs[wanted]])
    assert_same_bits(alone[2:], [every])


def test_second_derivative_is_refused() -> None:
    """Without a refusal it would be silently wrong: the backward operator's own gradient would be left out."""
    q, k, v = (x.requires_grad_() for x in random_heads(9, 2, 16))
    out, _ = attention((4, 5))(q, k, v)
    with pytest.raises(NotImplementedError, match="ragged_attention has no second derivative"):
        torch.autograd.grad(out.sum(), q, create_graph=True)


@pytest.mark.parametrize("options", [{}, {"by_head": True, "stays": stays_of([0, 1, 1])}], ids=["plain", "options"])
@pytest.mark.parametrize("query_lengths", [None, (1, 0, 2)])
def test_gradcheck(query_lengths: Sequence[int] | None, options: dict) -> None:
    lengths = (2, 0, 3)
    shapes = (sum(query_lengths or lengths), sum(lengths), sum(lengths))
    inputs = [torch.randn(n, 2, 2, dtype=torch.float64, requires_grad=True) for n in shapes]
    assert torch.autograd.gradcheck(attention(lengths, query_lengths, **options), inputs)


# ---- memory layouts: the same bits from any strides ----


def _slices_of_packed(q, k, v):
    return torch.stack([q, k, v], dim=1).unbind(1)


def _slices_of_last_dimension(q, k, v):
    return torch.cat([q, k, v], dim=-1).chunk(3, dim=-1)


def _heads_first(q, k, v):
    return [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)]


def _last_dimension_apart(q, k, v):
    return [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]


def _every_other_element(q, k, v):
    return [torch.stack([x, x.new_full(x.shape, math.nan)], dim=-1)[..., 0] for x in (q, k, v)]


LAYOUTS = (_slices_of_packed, _slices_of_last_dimension, _heads_first, _last_dimension_apart, _every_other_element)


@pytest.mark.parametrize("laid_out", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [20, 64])
def test_strided_inputs(laid_out: Callable, dtype: torch.dtype, head_dim: int) -> None:
    inputs = random_heads(sum(FEW_LENGTHS), 3, head_dim, dtype=dtype)
    strided = laid_out(*inputs)
    assert not any(x.is_contiguous() for x in strided)
    assert_same_bits(with_gradients(attention(FEW_LENGTHS), strided), with_gradients(attention(FEW_LENGTHS), inputs))


def test_gradient_in_one_packed_tensor() -> None:
    packed = torch.randn(sum(FEW_LENGTHS), 3, 2, 32)
    (grad,) = with_gradients(lambda qkv: attention(FEW_LENGTHS)(*qkv.unbind(1)), [packed])[2:]
    separate = with_gradients(attention(FEW_LENGTHS), packed.unbind(1))[2:]
    assert_same_bits([grad], [torch.stack(separate, dim=1)])


def test_one_key_for_all() -> None:
    """An expanded tensor has stride 0."""
    q, k, v = random_heads(9, 2, 16)
    shared = k[:1].expand(9, -1, -1)
    assert_same_bits(attention((4, 5))(q, shared, v), attention((4, 5))(q, shared.contiguous(), v))


# ---- the same bits however the work is spread ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_permuting_samples_permutes_results(dtype: torch.dtype) -> None:
    inputs, cu_seqlens = random_heads(sum(EDGE_LENGTHS), 2, 20, dtype=dtype), cu_seqlens_of(EDGE_LENGTHS)
    order = torch.randperm(len(EDGE_LENGTHS)).tolist()
    rows = rows_of_samples(cu_seqlens, order)
    weights = [torch.randn(sum(EDGE_LENGTHS), 2, 20).to(dtype), torch.randn(sum(EDGE_LENGTHS))]

    def run(lengths, inputs, weights):
        leaves = [x.detach().requires_grad_() for x in inputs]
        results = attention(lengths)(*leaves)
        return [*results, *torch.autograd.grad(results, leaves, weights)]

    straight = run(EDGE_LENGTHS, inputs, weights)
    permuted = run([EDGE_LENGTHS[b] for b in order], [x[rows] for x in inputs], [x[rows] for x in weights])
    assert_same_bits(permuted, [x[rows] for x in straight])


def test_a_sample_does_not_depend_on_its_batch() -> None:
    inputs, cu_seqlens = random_heads(sum(EDGE_LENGTHS), 2, 16), cu_seqlens_of(EDGE_LENGTHS)
    together = attention(EDGE_LENGTHS)(*inputs)
    for sample, length in enumerate(EDGE_LENGTHS):
        rows = rows_of_samples(cu_seqlens, [sample])
        assert_same_bits(attention((length,))(*(x[rows] for x in inputs)), [x[rows] for x in together])


@pytest.mark.parametrize("options", [{}, {"by_head": True, "stays": stays_of(n % 2 for n in EDGE_LENGTHS)}])
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_and_repeats_change_nothing(with_threads: Callable, threads: int, options: dict) -> None:
    inputs, run = random_heads(sum(EDGE_LENGTHS), 3, 32), attention(EDGE_LENGTHS, **options)
    single = with_gradients(run, inputs)
    assert_same_bits(with_threads(threads, lambda: with_gradients(run, inputs)), single)


def test_nan_stays_in_its_sample() -> None:
    """Scratch memory is used again: what one sample left there must not reach the next."""
    lengths = (40, 17, 1, 24, 65)  # the last is computed first, being the longest
    inputs, rows = random_heads(sum(lengths), 2, 20), slice(0, sum(lengths[:-1]))
    poisoned = [torch.cat([x[rows], x[rows.stop :] * math.nan]) for x in inputs]
    clean = with_gradients(attention(lengths), inputs)
    spoilt = with_gradients(attention(lengths), poisoned)
    assert_same_bits([x[rows] for x in spoilt], [x[rows] for x in clean])
    assert all(x[rows.stop :].isnan().all() for x in spoilt)


# ---- refusals ----

Q = torch.zeros(10, 2, 16)
CU_SEQLENS = cu_seqlens_of((4, 6))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"q": [1.0]}, TypeError, r"q must be a tensor; got list \[1.0\]"),
        ({"q": Q.int()}, TypeError, r"q must be float32 or float16 or bfloat16 or float64; got int32 \[10, 2, 16\]"),
        ({"q": Q[:, 0]}, ValueError, r"q must have 3 dimensions; got float32 \[10, 16\]"),
        ({"q": Q[:9]}, ValueError, r"q and k must have the same rows unless cu_seqlens_q is given; got 9 and 10"),
        ({"q": Q[:, :0]}, ValueError, r"q must have at least one head .* got float32 \[10, 0, 16\]"),
        ({"q": Q[..., :0]}, ValueError, r"q must have .* a head_dim of at least 1; got float32 \[10, 2, 0\]"),
        ({"k": Q.half()}, TypeError, r"k must be float32; got float16 \[10, 2, 16\]"),
        ({"k": Q.to("meta")}, ValueError, r"k must be on cpu like the other arguments; got .* on meta"),
        ({"k": Q[:, :1]}, ValueError, r"k must have q's heads and head_dim .* k float32 \[10, 1, 16\]"),
        ({"v": Q[..., :8]}, ValueError, r"v must have q's heads and head_dim .* v float32 \[10, 2, 8\]"),
        ({"v": Q[:9]}, ValueError, r"v must have .* k's rows; .* v float32 \[9, 2, 16\]"),
        ({"cu_seqlens": CU_SEQLENS.long()}, TypeError, r"cu_seqlens must be int32; got int64 \[3\]"),
        ({"cu_seqlens": CU_SEQLENS[None]}, ValueError, r"cu_seqlens must have 1 dimension; got int32 \[1, 3\]"),
        ({"cu_seqlens": CU_SEQLENS[:0]}, ValueError, r"cu_seqlens must have batch \+ 1 entries, 0 first; got none"),
        ({"cu_seqlens": CU_SEQLENS.to("meta")}, ValueError, r"cu_seqlens must be on cpu .* on meta"),
        ({"cu_seqlens_q": CU_SEQLENS[:2]}, ValueError, r"cu_seqlens_q must have as many .* cu_seqlens, 3; got 2"),
        ({"cu_seqlens_q": CU_SEQLENS.long()}, TypeError, r"cu_seqlens_q must be int32; got int64 \[3\]"),
        ({"cu_seqlens_q": CU_SEQLENS - 1}, RuntimeError, r"cu_seqlens_q must start with 0; got -1"),
        ({"cu_seqlens_q": CU_SEQLENS.flip(0)}, RuntimeError, r"cu_seqlens_q must start with 0; got 10"),
        ({"stays": [True, False]}, TypeError, r"stays must be a tensor; got list \[True, False\]"),
        ({"stays": torch.tensor([1, 0])}, TypeError, r"stays must be bool; got int64 \[2\]"),
        ({"stays": stays_of([1])}, ValueError, r"stays must have one entry a sample, 2; got bool \[1\]"),
        ({"stays": stays_of([1, 0])[None]}, ValueError, r"stays must have 1 dimension; got bool \[1, 2\]"),
        ({"stays": stays_of([1, 0]).to("meta")}, ValueError, r"stays must be on cpu .* on meta"),
        ({"max_seqlen": 5}, RuntimeError, r"max_seqlen must be at least the longest sample, 6; got 5"),
    ],
)
def test_refused_arguments(changed: dict, error: type[Exception], message: str) -> None:
    arguments = {"q": Q, "k": Q, "v": Q, "cu_seqlens": CU_SEQLENS, "max_seqlen": 6} | changed
    with pytest.raises(error, match=message):
        mp_kernels.ragged_attention(**arguments)


def test_queries_need_keys() -> None:
    with pytest.raises(RuntimeError, match="sample 0 has queries but no keys"):
        mp_kernels.ragged_attention(Q[:2], Q, Q, cu_seqlens_of((0, 10)), 10, cu_seqlens_q=cu_seqlens_of((1, 1)))

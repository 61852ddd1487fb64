"""ragged_attention of batches that some samples leave."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.accuracy import assert_same_bits, with_gradients
from support.attention import FEW_LENGTHS, FEW_STAY, ONE_QUERY, assert_matches_definition, attention
from support.ragged_batches import cu_seqlens_of, random_heads, rows_of_samples, stays_of

HALF = (torch.float16, torch.bfloat16)


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
    """A batch: lengths of its samples, their numbers of queries, and stays."""
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
    """NaN or infinity in its rows, or in the gradients of its results (the logarithm of importance 0), goes nowhere."""
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

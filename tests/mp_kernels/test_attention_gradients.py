"""Gradients of ragged_attention."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from support.accuracy import assert_accurate, assert_same_bits, with_gradients
from support.attention import FEW_LENGTHS, ONE_QUERY, attention
from support.ragged_batches import cu_seqlens_of, random_heads, stays_of


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
    """The importance of each head sums to 1 over a sample, so the constant may differ between heads."""
    leaves = [x.requires_grad_() for x in random_heads(sum(FEW_LENGTHS), 3, 64)]
    _, importance = attention(FEW_LENGTHS, by_head=by_head)(*leaves)
    constants = torch.tensor([[7.0], [-3.0], [0.5]]) if by_head else torch.tensor(7.0)
    for grad in torch.autograd.grad(importance, leaves, constants.expand_as(importance)):
        torch.testing.assert_close(grad, torch.zeros_like(grad), atol=1e-6, rtol=0)


@pytest.mark.parametrize("by_head", [False, True])
def test_gradient_of_a_sum_has_no_strides(by_head: bool) -> None:
    """``sum().backward()`` passes gradients that are expanded from one element, with strides of 0."""
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
    """A second derivative would be silently wrong, as the backward operator has no gradient of its own."""
    q, k, v = (x.requires_grad_() for x in random_heads(9, 2, 16))
    out, _ = attention((4, 5))(q, k, v)
    with pytest.raises(NotImplementedError, match="ragged_attention has no second derivative"):
        torch.autograd.grad(out.sum(), q, create_graph=True)


def test_gradient_through_the_log_sum_exp_is_refused() -> None:
    """It would be missing from the result, and nobody would notice."""
    q, k, v = (x.requires_grad_() for x in random_heads(9, 2, 16))
    starts = cu_seqlens_of((4, 5))
    out, _, logsumexp = torch.ops.mp_kernels.ragged_attention(q, k, v, starts, starts, None, 5, 0.25, True)
    with pytest.raises(NotImplementedError, match="no gradient through its log-sum-exp"):
        torch.autograd.grad(out.sum() + logsumexp.sum(), q)


@pytest.mark.parametrize("options", [{}, {"by_head": True, "stays": stays_of([0, 1, 1])}], ids=["plain", "options"])
@pytest.mark.parametrize("query_lengths", [None, (1, 0, 2)])
def test_gradcheck(query_lengths: Sequence[int] | None, options: dict) -> None:
    lengths = (2, 0, 3)
    shapes = (sum(query_lengths or lengths), sum(lengths), sum(lengths))
    inputs = [torch.randn(n, 2, 2, dtype=torch.float64, requires_grad=True) for n in shapes]
    assert torch.autograd.gradcheck(attention(lengths, query_lengths, **options), inputs)

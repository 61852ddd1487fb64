"""ragged_attention gives the same bits for any memory layout, order of samples and number of threads."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from support.accuracy import assert_same_bits, with_gradients
from support.attention import FEW_LENGTHS, attention
from support.ragged_batches import EDGE_LENGTHS, cu_seqlens_of, random_heads, rows_of_samples, stays_of

# ---- memory layouts ----


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


# ---- batches and threads ----


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
    """Scratch memory is reused, so values of one sample must not reach the next."""
    lengths = (40, 17, 1, 24, 65)  # the last is the longest, so it is computed first
    inputs, rows = random_heads(sum(lengths), 2, 20), slice(0, sum(lengths[:-1]))
    poisoned = [torch.cat([x[rows], x[rows.stop :] * math.nan]) for x in inputs]
    clean = with_gradients(attention(lengths), inputs)
    spoilt = with_gradients(attention(lengths), poisoned)
    assert_same_bits([x[rows] for x in spoilt], [x[rows] for x in clean])
    assert all(x[rows.stop :].isnan().all() for x in spoilt)

"""ragged_attention: attention and importance of packed ragged batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

import mp_kernels
from support.accuracy import assert_accurate, assert_same_bits, with_gradients
from support.attention import FEW_LENGTHS, ONE_QUERY, assert_matches_definition, attention, plain_attention
from support.ragged_batches import EDGE_LENGTHS, cu_seqlens_of, random_heads, stays_of

HALF = (torch.float16, torch.bfloat16)


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
    """Scores all lie near -256, so the padding of the last vector of keys must not count as a score of 0."""
    lengths = (17, 1, 5)
    q, k, v = random_heads(sum(lengths), 2, 16)
    q, k = 4 + q / 4, sign * (4 + k / 4)
    got = with_gradients(attention(lengths, scale=1.0), (q, k, v))
    exact = with_gradients(attention(lengths, scale=1.0, definition=True), [x.double() for x in (q, k, v)])
    for x, y in zip(got, exact, strict=True):
        # float32 resolves such a score to 1.5e-5 only, and a gradient sums dozens of terms of that precision.
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
    # The same float32 sums in another order, so results differ by one rounding to the half type.
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
        ({"stays": stays_of([1])}, ValueError, r"stays must have one entry per sample, 2; got bool \[1\]"),
        ({"stays": stays_of([1, 0])[None]}, ValueError, r"stays must have 1 dimension; got bool \[1, 2\]"),
        ({"stays": stays_of([1, 0]).to("meta")}, ValueError, r"stays must be on cpu .* on meta"),
        ({"max_seqlen": 5}, RuntimeError, r"max_seqlen must be at least the longest sample, 6; got 5"),
    ],
)
def test_refused_arguments(changed: dict, error: type[Exception], message: str) -> None:
    arguments = {"q": Q, "k": Q, "v": Q, "cu_seqlens": CU_SEQLENS, "max_seqlen": 6} | changed
    with pytest.raises(error, match=message):
        mp_kernels.ragged_attention(**arguments)


def test_queries_without_keys_get_zeros() -> None:
    lengths, lengths_q = (0, 9, 0, 4), (1, 2, 3, 40)
    q, (k, v) = random_heads(sum(lengths_q), 2, 16, 1)[0], random_heads(sum(lengths), 2, 16, 2)
    assert_matches_definition((q, k, v), lengths, lengths_q)
    out, _ = attention(lengths, lengths_q)(q, k, v)
    assert not out[[0, 3, 4, 5]].any()

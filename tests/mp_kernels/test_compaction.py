"""prune_tokens, top_k_tokens and select_samples: compactions of packed ragged batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mp_kernels
from mp_kernels import Kept, functional, reference, schemas
from support.accuracy import assert_kept, assert_same_bits
from support.ragged_batches import cu_seqlens_of, random_heads, stays_of

LENGTHS = st.lists(st.integers(0, 12), max_size=6)
# Few different values, so that ties are common.
SCORES = st.sampled_from([0.0, -0.0, 0.1, 0.25, 0.5, 0.7, 1.0, 3.4e38, math.inf, -math.inf])
# Means of these over 1, 2 or 4 heads are exact in any order of summation.
SCORES_BY_HEAD = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, math.inf])


@st.composite
def scored_batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A batch: importance, float32 ``[total]`` or ``[heads, total]``, cu_seqlens, and stays or None."""
    lengths, heads = draw(LENGTHS), draw(st.sampled_from([None, 1, 2, 4]))
    size = sum(lengths) * (heads or 1)
    scores = draw(st.lists(SCORES_BY_HEAD if heads else SCORES, min_size=size, max_size=size))
    importance = torch.tensor(scores, dtype=torch.float32)
    stays = draw(st.none() | st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)).map(stays_of))
    return importance.reshape(heads, sum(lengths)) if heads else importance, cu_seqlens_of(lengths), stays


def kept_of(rows: Sequence[int], lengths: Sequence[int], samples: Sequence[int] | None = None) -> Kept:
    whole = None if samples is None else torch.tensor(samples, dtype=torch.int64)
    return Kept(torch.tensor(rows, dtype=torch.int64), cu_seqlens_of(lengths), max(lengths, default=0), whole)


# ---- against the definition ----


@given(scored_batches(), st.one_of(SCORES, st.floats(-1, 2)))
def test_prune_tokens(batch: tuple, threshold: float) -> None:
    *scores, stays = batch
    assert_kept(mp_kernels.prune_tokens(*scores, threshold, stays), reference.prune_tokens(*scores, threshold, stays))


@pytest.mark.parametrize("fused", [False, True])
@given(scored_batches(), st.one_of(SCORES, st.floats(-1, 2)), st.integers(0, 2))
def test_prune_rows(fused: bool, batch: tuple, threshold: float, count: int) -> None:
    importance, cu_seqlens, _ = batch
    xs = [torch.randn(importance.shape[-1], 3) for _ in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "MOVE_WHILE_PRUNING", {"cpu"} if fused else set())
        rows, kept = mp_kernels.prune_rows(xs, importance, cu_seqlens, threshold)
    expected, expected_kept = reference.prune_rows(xs, importance, cu_seqlens, threshold)
    assert_kept(kept, expected_kept)
    assert_same_bits(rows, expected)


@pytest.mark.parametrize("fused", [False, True])
def test_prune_rows_has_gradients(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "MOVE_WHILE_PRUNING", {"cpu"} if fused else set())
    x = torch.randn(4, 2, requires_grad=True)
    (rows,), _ = mp_kernels.prune_rows([x], torch.tensor([0.0, 0.9, 0.1, 0.5]), cu_seqlens_of((4,)), 0.5)
    (gradient,) = torch.autograd.grad(rows.sum(), x)
    assert gradient.tolist() == [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]


@pytest.mark.parametrize("fused", [False, True])
def test_prune_rows_refuses_what_does_not_fit(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "MOVE_WHILE_PRUNING", {"cpu"} if fused else set())
    importance, starts = torch.rand(2, 4), cu_seqlens_of((3, 1))
    with pytest.raises(ValueError, match=r"xs must have a row for each of the 4 tokens, on cpu; got float32 \[3, 2\]"):
        mp_kernels.prune_rows([torch.rand(3, 2)], importance, starts, 0.5)
    with pytest.raises(ValueError, match="threshold must be a number; got NaN"):
        mp_kernels.prune_rows([torch.rand(4, 2)], importance, starts, math.nan)
    with pytest.raises(ValueError, match="importance is NaN at row 2"):
        mp_kernels.prune_rows([torch.rand(4, 2)], torch.tensor([1.0, 1.0, math.nan, 1.0]), starts, 0.5)


@given(scored_batches(), st.integers(1, 15))
def test_top_k_tokens(batch: tuple, k: int) -> None:
    *scores, stays = batch
    assert_kept(mp_kernels.top_k_tokens(*scores, k, stays), reference.top_k_tokens(*scores, k, stays))


@given(scored_batches(), st.data(), st.sampled_from([torch.int32, torch.int64]))
def test_top_k_tokens_of_each_sample(batch: tuple, data: st.DataObject, dtype: torch.dtype) -> None:
    *scores, stays = batch
    samples = batch[1].shape[0] - 1
    k = torch.tensor(data.draw(st.lists(st.integers(1, 15), min_size=samples, max_size=samples)), dtype=dtype)
    assert_kept(mp_kernels.top_k_tokens(*scores, k, stays), reference.top_k_tokens(*scores, k, stays))


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=8), st.booleans())
def test_select_samples(samples: list[tuple[int, bool]], total_is_given: bool) -> None:
    cu_seqlens = cu_seqlens_of([length for length, _ in samples])
    stays = stays_of(stay for _, stay in samples)
    total = int(cu_seqlens[-1]) if total_is_given else None
    assert_kept(mp_kernels.select_samples(cu_seqlens, stays, total), reference.select_samples(cu_seqlens, stays))


@given(scored_batches(), st.integers(1, 15))
def test_whole_buffers_of_the_operators(batch: tuple, k: int) -> None:
    """Buffers are defined beyond what is kept too, so that a compiled graph never sees uninitialised memory."""
    importance, cu_seqlens, stays = batch
    samples = cu_seqlens.shape[0] - 1
    for name, arguments in {
        "prune_tokens": (importance, cu_seqlens, stays, 0.25),
        "top_k_tokens": (importance, cu_seqlens, stays, torch.full((samples,), k)),
        "select_samples": (cu_seqlens, stays_of([1] * samples) if stays is None else stays, importance.shape[-1]),
    }.items():
        got = getattr(torch.ops.mp_kernels, name)(*arguments)
        expected = getattr(schemas, name)(*arguments)
        assert [(x.dtype, x.tolist()) for x in got] == [(x.dtype, x.tolist()) for x in expected], name


@given(scored_batches(), st.integers(1, 15))
def test_leaving_and_pruning_at_once_is_one_after_the_other(batch: tuple, k: int) -> None:
    importance, cu_seqlens, stays = batch
    if stays is None:
        stays = stays_of([1, 0] * len(cu_seqlens))[: len(cu_seqlens) - 1]
    left = mp_kernels.select_samples(cu_seqlens, stays)
    for compaction, bound in ((mp_kernels.prune_tokens, 0.25), (mp_kernels.top_k_tokens, k)):
        then = compaction(importance[..., left.index], left.cu_seqlens, bound)
        then.index, then.samples = left.index[then.index], left.samples
        assert_kept(compaction(importance, cu_seqlens, bound, stays), then)


@pytest.mark.parametrize("heads", [2, 3, 5, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_importance_by_head_stands_for_its_mean_to_the_last_bit(heads: int, dtype: torch.dtype) -> None:
    """A token whose importance is the threshold survives, whether importance is given by head or as the mean over heads."""
    qkv, cu_seqlens = random_heads(60, heads, 16, dtype=dtype), cu_seqlens_of((40, 20))
    _, importance = mp_kernels.ragged_attention(*qkv, cu_seqlens, 40)
    _, by_head = mp_kernels.ragged_attention(*qkv, cu_seqlens, 40, by_head=True)
    for row in range(60):
        kept = mp_kernels.prune_tokens(by_head, cu_seqlens, importance[row].item())
        assert row in kept.index
        assert_kept(kept, mp_kernels.prune_tokens(importance, cu_seqlens, importance[row].item()))
    for k in (2, 7, 19):
        assert_kept(mp_kernels.top_k_tokens(by_head, cu_seqlens, k), mp_kernels.top_k_tokens(importance, cu_seqlens, k))


@pytest.mark.parametrize("length", [15, 16, 17, 63, 64, 65, 255, 256, 257, 511, 512, 513])
def test_long_samples(length: int) -> None:
    importance, cu_seqlens = torch.rand(length + 3), cu_seqlens_of((1, length, 2))
    for threshold in (0.1, 0.5, 0.9):
        kept = mp_kernels.prune_tokens(importance, cu_seqlens, threshold)
        assert_kept(kept, reference.prune_tokens(importance, cu_seqlens, threshold))
    for k in (1, 2, length // 2, length - 1, length, length + 1):
        kept = mp_kernels.top_k_tokens(importance, cu_seqlens, k)
        assert_kept(kept, reference.top_k_tokens(importance, cu_seqlens, k))


# ---- chosen cases ----


def test_all_tokens_pruned_but_the_first() -> None:
    batch = torch.rand(9), cu_seqlens_of((4, 0, 1, 4))
    expected = kept_of([0, 4, 5], [1, 0, 1, 1])
    assert_kept(mp_kernels.prune_tokens(*batch, math.inf), expected)
    assert_kept(mp_kernels.top_k_tokens(*batch, 1), expected)


def test_nothing_pruned() -> None:
    batch = torch.rand(9), cu_seqlens_of((4, 0, 1, 4))
    expected = kept_of(range(9), [4, 0, 1, 4])
    assert_kept(mp_kernels.prune_tokens(*batch, -math.inf), expected)
    assert_kept(mp_kernels.top_k_tokens(*batch, 4), expected)


def every_compaction(lengths: Sequence[int], stays: torch.Tensor) -> list[Kept]:
    """Results of all three compactions for the same ``stays``, none of which prunes a token."""
    batch = torch.rand(sum(lengths)), cu_seqlens_of(lengths)
    return [
        mp_kernels.select_samples(batch[1], stays),
        mp_kernels.prune_tokens(*batch, -math.inf, stays),
        mp_kernels.top_k_tokens(*batch, 9, stays),
    ]


def test_all_samples_exit() -> None:
    """The first token of a sample is protected from pruning, but leaves with its sample."""
    for kept in every_compaction((4, 0, 5), stays_of([0, 0, 0])):
        assert_kept(kept, kept_of([], [], []))


def test_all_samples_stay() -> None:
    for kept in every_compaction((2, 0, 1), stays_of([1, 1, 1])):
        assert_kept(kept, kept_of([0, 1, 2], [2, 0, 1], [0, 1, 2]))


def test_a_sample_without_rows_may_stay() -> None:
    for kept in every_compaction((4, 0, 2), stays_of([0, 1, 1])):
        assert_kept(kept, kept_of([4, 5], [0, 2], [1, 2]))


def test_empty_batch() -> None:
    nothing, no_samples = torch.zeros(0), cu_seqlens_of(())
    assert_kept(mp_kernels.prune_tokens(nothing, no_samples, 0.5), kept_of([], []))
    assert_kept(mp_kernels.top_k_tokens(nothing, no_samples, 3), kept_of([], []))
    assert_kept(mp_kernels.prune_tokens(torch.zeros(3, 0), no_samples, 0.5), kept_of([], []))
    assert_kept(mp_kernels.prune_tokens(nothing, no_samples, 0.5, stays_of([])), kept_of([], [], []))
    assert_kept(mp_kernels.top_k_tokens(nothing, no_samples, 3, stays_of([])), kept_of([], [], []))
    assert_kept(mp_kernels.select_samples(no_samples, stays_of([])), kept_of([], [], []))


def test_threshold_is_compared_in_float32() -> None:
    """0.7 is smaller in float32 than in float64; a token exactly at the threshold survives."""
    importance = torch.tensor([1.0, 0.7, math.nextafter(0.7, 0) - 1e-7])
    assert mp_kernels.prune_tokens(importance, cu_seqlens_of((3,)), 0.7).index.tolist() == [0, 1]


def test_threshold_may_be_a_tensor() -> None:
    batch = torch.tensor([0.1, 0.2, 0.3]), cu_seqlens_of((3,))
    assert_kept(mp_kernels.prune_tokens(*batch, torch.tensor(0.25)), kept_of([0, 2], [2]))


def test_ties_go_to_the_lower_position() -> None:
    importance = torch.tensor([0.0, 0.5, 0.5, 0.5, 0.9, 0.5])
    assert mp_kernels.top_k_tokens(importance, cu_seqlens_of((6,)), 4).index.tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize(
    "strided",
    [
        pytest.param(lambda: torch.rand(12, 2)[:, 1], id="by token"),
        pytest.param(lambda: torch.rand(2, 24)[:, ::2], id="every other token"),
        pytest.param(lambda: torch.rand(12, 2).t(), id="heads last"),
        pytest.param(lambda: torch.rand(12).expand(4, 12), id="one head for all"),
    ],
)
def test_strided_importance(strided: Callable) -> None:
    importance, cu_seqlens = strided(), cu_seqlens_of((5, 7))
    assert not importance.is_contiguous()
    assert_kept(
        mp_kernels.prune_tokens(importance, cu_seqlens, 0.5), reference.prune_tokens(importance, cu_seqlens, 0.5)
    )
    assert_kept(mp_kernels.top_k_tokens(importance, cu_seqlens, 3), reference.top_k_tokens(importance, cu_seqlens, 3))


@pytest.mark.parametrize("shape", [(12,), (2, 12)])
@pytest.mark.parametrize("stays", [None, stays_of([0, 1])])
def test_float64_importance(shape: tuple[int, ...], stays: torch.Tensor | None) -> None:
    importance, cu_seqlens = torch.rand(shape), cu_seqlens_of((5, 7))
    for compaction, bound in ((mp_kernels.prune_tokens, 0.5), (mp_kernels.top_k_tokens, 3)):
        assert_kept(
            compaction(importance.double(), cu_seqlens, bound, stays), compaction(importance, cu_seqlens, bound, stays)
        )


def test_compactions_chain() -> None:
    """The survivors of one layer are the batch of the next."""
    importance, cu_seqlens = torch.rand(30), cu_seqlens_of((10, 1, 19))
    first = mp_kernels.prune_tokens(importance, cu_seqlens, 0.3)
    left = mp_kernels.select_samples(first.cu_seqlens, torch.tensor([True, False, True]), len(first.index))
    second = mp_kernels.top_k_tokens(importance[first.index][left.index], left.cu_seqlens, 2)
    tops = [0, 1 + int(importance[1:10].argmax()), 11, 12 + int(importance[12:30].argmax())]
    assert first.index[left.index][second.index].tolist() == tops


# ---- refusals ----

IMPORTANCE = torch.full((10,), 0.1)
CU_SEQLENS = cu_seqlens_of((4, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [[0], [7, 9], [4]])
def test_nan_importance_is_an_error_that_names_its_row(rows: list[int], dtype: torch.dtype) -> None:
    importance = IMPORTANCE.index_fill(0, torch.tensor(rows), math.nan).to(dtype)
    message = f"importance is NaN at row {rows[0]}: .* not finite"
    with pytest.raises(ValueError, match=message):
        mp_kernels.prune_tokens(importance, CU_SEQLENS, 0.05)
    with pytest.raises(ValueError, match=message):
        mp_kernels.top_k_tokens(importance, CU_SEQLENS, 2)


PRUNINGS = [
    pytest.param(lambda importance, stays: mp_kernels.prune_tokens(importance, CU_SEQLENS, 0.05, stays), id="prune"),
    pytest.param(lambda importance, stays: mp_kernels.top_k_tokens(importance, CU_SEQLENS, 2, stays), id="top k"),
    pytest.param(lambda importance, stays: reference.prune_tokens(importance, CU_SEQLENS, 0.05, stays), id="defined"),
    pytest.param(lambda importance, stays: reference.top_k_tokens(importance, CU_SEQLENS, 2, stays), id="k defined"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("heads", [None, 1, 3])
@pytest.mark.parametrize("pruning", PRUNINGS)
def test_nan_importance_matters_where_a_sample_stays(pruning: Callable, heads: int | None, dtype: torch.dtype) -> None:
    """Rows 0 to 3 belong to sample 0. A NaN of one head makes the token's importance NaN."""
    importance = (IMPORTANCE if heads is None else IMPORTANCE.repeat(heads, 1)).to(dtype)
    stays, other_stays = stays_of([0, 1]), stays_of([1, 0])
    broken = importance.clone()
    broken.view(-1, 10)[-1, [0, 3, 8]] = math.nan
    assert_kept(pruning(broken.index_fill(-1, torch.tensor(8), 0.1), stays), pruning(importance, stays))
    for staying, row in ((stays, 8), (other_stays, 0), (stays | other_stays, 0), (None, 0)):
        with pytest.raises(ValueError, match=f"importance is NaN at row {row}: .* not finite"):
            pruning(broken, staying)
    assert pruning(broken, stays_of([0, 0])).index.tolist() == []


def test_nan_queries_are_found_by_the_pruning_after_them() -> None:
    q = torch.randn(10, 2, 16)
    q[6] = math.nan
    _, importance = mp_kernels.ragged_attention(q, q, q, CU_SEQLENS, 6)
    with pytest.raises(ValueError, match="importance is NaN at row 4"):
        mp_kernels.prune_tokens(importance, CU_SEQLENS, 0.05)
    assert mp_kernels.prune_tokens(importance, CU_SEQLENS, 0.05, stays_of([1, 0])).index.tolist() == [0, 1, 2, 3]


BAD_STAYS = [
    (torch.tensor([1, 0]), TypeError, r"stays must be bool; got int64 \[2\]"),
    ([True, False], TypeError, r"stays must be a tensor; got list \[True, False\]"),
    (stays_of([1]), ValueError, r"stays must have one entry per sample, 2; got bool \[1\]"),
    (stays_of([1, 1])[None], ValueError, r"stays must have 1 dimension; got bool \[1, 2\]"),
    (stays_of([1, 1]).to("meta"), ValueError, r"stays must be on cpu .* on meta"),
]
BAD_BATCHES = [
    (([0.1], CU_SEQLENS), TypeError, r"importance must be a tensor; got list \[0.1\]"),
    ((IMPORTANCE.half(), CU_SEQLENS), TypeError, r"importance must be float32 or float64; got float16 \[10\] on cpu"),
    ((IMPORTANCE[None, None], CU_SEQLENS), ValueError, r"importance must .* got float32 \[1, 1, 10\]"),
    ((IMPORTANCE[0], CU_SEQLENS), ValueError, r"importance must .* got float32 \[\]"),
    (
        (IMPORTANCE.expand(0, 10), CU_SEQLENS),
        ValueError,
        r"importance must be \[total\] or \[heads, total\] with a head or more; got float32 \[0, 10\]",
    ),
    ((torch.rand(3, 9), CU_SEQLENS), RuntimeError, r"cu_seqlens must be the number of rows, 9; got 10"),
    ((IMPORTANCE, CU_SEQLENS.long()), TypeError, r"cu_seqlens must be int32; got int64 \[3\]"),
    ((IMPORTANCE, CU_SEQLENS.to("meta")), ValueError, r"cu_seqlens must be on cpu .* on meta"),
    ((IMPORTANCE, CU_SEQLENS[:0]), ValueError, r"cu_seqlens must have batch \+ 1 entries, 0 first; got none"),
]


@pytest.mark.parametrize(("batch", "error", "message"), BAD_BATCHES)
@pytest.mark.parametrize("compaction", [mp_kernels.prune_tokens, mp_kernels.top_k_tokens])
def test_refused_batches(compaction, batch: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compaction(*batch, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("stays", "error", "message"), BAD_STAYS)
@pytest.mark.parametrize("compaction", [mp_kernels.prune_tokens, mp_kernels.top_k_tokens])
def test_refused_stays(compaction, stays, error: type[Exception], message: str, dtype: torch.dtype) -> None:
    with pytest.raises(error, match=message):
        compaction(IMPORTANCE.to(dtype), CU_SEQLENS, 1, stays)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_refused_threshold(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="threshold must be a number; got NaN"):
        mp_kernels.prune_tokens(IMPORTANCE.to(dtype), CU_SEQLENS, math.nan)


@pytest.mark.parametrize(
    ("k", "error", "message"),
    [
        (0, ValueError, r"k must be at least 1 \(the first token always stays\); got 0"),
        (-3, ValueError, r"k must be at least 1 .* got -3"),
        (2.0, TypeError, r"k must be an int or an int tensor \[batch\]; got float 2.0"),
        (torch.tensor([1.0, 2.0]), TypeError, r"k must be int64 or int32; got float32 \[2\]"),
        (torch.tensor([[1, 2]]), ValueError, r"k must have 1 dimension; got int64 \[1, 2\]"),
        (torch.tensor([1]), ValueError, r"k must have one entry per sample, 2; got int64 \[1\]"),
        (torch.tensor([1, 2]).to("meta"), ValueError, r"k must be on cpu .* on meta"),
        (torch.tensor([1, 0]), RuntimeError, r"k must be at least 1 .* got 0 for sample 1"),
    ],
)
def test_refused_k(k, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mp_kernels.top_k_tokens(IMPORTANCE, CU_SEQLENS, k)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        *(((CU_SEQLENS, stays), error, message) for stays, error, message in BAD_STAYS),
        ((CU_SEQLENS.long(), stays_of([1, 1])), TypeError, r"cu_seqlens must be int32; got int64 \[3\]"),
        ((CU_SEQLENS, stays_of([1, 1]), 11), RuntimeError, r"cu_seqlens must be the number of rows, 11; got 10"),
    ],
)
def test_refused_selections(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mp_kernels.select_samples(*arguments)

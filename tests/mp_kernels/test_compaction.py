"""prune_tokens, top_k_tokens and select_samples: what is left of a packed ragged batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged_batches import cu_seqlens_of

import mp_kernels
from mp_kernels import Kept, reference, schemas

LENGTHS = st.lists(st.integers(0, 12), max_size=6)
# Few different values, so that ties are the rule.
SCORES = st.sampled_from([0.0, -0.0, 0.1, 0.25, 0.5, 0.7, 1.0, 3.4e38, math.inf, -math.inf])


@st.composite
def scored_batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """importance float32 ``[total]`` and cu_seqlens."""
    lengths = draw(LENGTHS)
    scores = draw(st.lists(SCORES, min_size=sum(lengths), max_size=sum(lengths)))
    return torch.tensor(scores, dtype=torch.float32), cu_seqlens_of(lengths)


def assert_kept(got: Kept, expected: Kept) -> None:
    assert (got.index.dtype, got.cu_seqlens.dtype, type(got.max_seqlen)) == (torch.int64, torch.int32, int)
    assert got.index.tolist() == expected.index.tolist()
    assert got.cu_seqlens.tolist() == expected.cu_seqlens.tolist()
    assert got.max_seqlen == expected.max_seqlen
    assert (got.samples is None) == (expected.samples is None)
    if got.samples is not None:
        assert got.samples.dtype == torch.int64
        assert got.samples.tolist() == expected.samples.tolist()


def kept_of(rows: Sequence[int], lengths: Sequence[int], samples: Sequence[int] | None = None) -> Kept:
    whole = None if samples is None else torch.tensor(samples, dtype=torch.int64)
    return Kept(torch.tensor(rows, dtype=torch.int64), cu_seqlens_of(lengths), max(lengths, default=0), whole)


# ---- against the definition ----


@given(scored_batches(), st.one_of(SCORES, st.floats(-1, 2)))
def test_prune_tokens(batch: tuple, threshold: float) -> None:
    assert_kept(mp_kernels.prune_tokens(*batch, threshold), reference.prune_tokens(*batch, threshold))


@given(scored_batches(), st.integers(1, 15))
def test_top_k_tokens(batch: tuple, k: int) -> None:
    assert_kept(mp_kernels.top_k_tokens(*batch, k), reference.top_k_tokens(*batch, k))


@given(scored_batches(), st.data(), st.sampled_from([torch.int32, torch.int64]))
def test_top_k_tokens_of_each_sample(batch: tuple, data: st.DataObject, dtype: torch.dtype) -> None:
    samples = batch[1].shape[0] - 1
    k = torch.tensor(data.draw(st.lists(st.integers(1, 15), min_size=samples, max_size=samples)), dtype=dtype)
    assert_kept(mp_kernels.top_k_tokens(*batch, k), reference.top_k_tokens(*batch, k))


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=8), st.booleans())
def test_select_samples(samples: list[tuple[int, bool]], total_is_given: bool) -> None:
    cu_seqlens = cu_seqlens_of([length for length, _ in samples])
    stays = torch.tensor([stay for _, stay in samples], dtype=torch.bool)
    total = int(cu_seqlens[-1]) if total_is_given else None
    assert_kept(mp_kernels.select_samples(cu_seqlens, stays, total), reference.select_samples(cu_seqlens, stays))


@given(scored_batches(), st.integers(1, 15), st.randoms())
def test_whole_buffers_of_the_operators(batch: tuple, k: int, random) -> None:
    """Beyond what is kept the operators' buffers are defined too, or a compiled graph would see chance."""
    importance, cu_seqlens = batch
    samples = cu_seqlens.shape[0] - 1
    counts = torch.full((samples,), k)
    stays = torch.tensor([random.random() < 0.5 for _ in range(samples)], dtype=torch.bool)
    for name, arguments in {
        "prune_tokens": (importance, cu_seqlens, 0.25),
        "top_k_tokens": (importance, cu_seqlens, counts),
        "select_samples": (cu_seqlens, stays, importance.shape[0]),
    }.items():
        got = getattr(torch.ops.mp_kernels, name)(*arguments)
        expected = getattr(schemas, name)(*arguments)
        assert [(x.dtype, x.tolist()) for x in got] == [(x.dtype, x.tolist()) for x in expected], name


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


def test_all_samples_exit() -> None:
    assert_kept(
        mp_kernels.select_samples(cu_seqlens_of((4, 0, 5)), torch.zeros(3, dtype=torch.bool)), kept_of([], [], [])
    )


def test_a_sample_without_rows_may_stay() -> None:
    stays = torch.tensor([False, True, True])
    assert_kept(mp_kernels.select_samples(cu_seqlens_of((4, 0, 2)), stays), kept_of([4, 5], [0, 2], [1, 2]))


def test_empty_batch() -> None:
    nothing, no_samples = torch.zeros(0), cu_seqlens_of(())
    assert_kept(mp_kernels.prune_tokens(nothing, no_samples, 0.5), kept_of([], []))
    assert_kept(mp_kernels.top_k_tokens(nothing, no_samples, 3), kept_of([], []))
    assert_kept(mp_kernels.select_samples(no_samples, torch.zeros(0, dtype=torch.bool)), kept_of([], [], []))


def test_threshold_is_compared_in_float32() -> None:
    """float32's 0.7 is below float64's; a token exactly at the threshold survives."""
    importance = torch.tensor([1.0, 0.7, math.nextafter(0.7, 0) - 1e-7])
    assert mp_kernels.prune_tokens(importance, cu_seqlens_of((3,)), 0.7).index.tolist() == [0, 1]


def test_threshold_may_be_a_tensor() -> None:
    batch = torch.tensor([0.1, 0.2, 0.3]), cu_seqlens_of((3,))
    assert_kept(mp_kernels.prune_tokens(*batch, torch.tensor(0.25)), kept_of([0, 2], [2]))


def test_ties_go_to_the_lower_position() -> None:
    importance = torch.tensor([0.0, 0.5, 0.5, 0.5, 0.9, 0.5])
    assert mp_kernels.top_k_tokens(importance, cu_seqlens_of((6,)), 4).index.tolist() == [0, 1, 2, 4]


def test_strided_importance() -> None:
    importance, cu_seqlens = torch.rand(12, 2)[:, 1], cu_seqlens_of((5, 7))
    assert_kept(
        mp_kernels.prune_tokens(importance, cu_seqlens, 0.5), reference.prune_tokens(importance, cu_seqlens, 0.5)
    )
    assert_kept(mp_kernels.top_k_tokens(importance, cu_seqlens, 3), reference.top_k_tokens(importance, cu_seqlens, 3))


def test_float64_importance() -> None:
    importance, cu_seqlens = torch.rand(12).double(), cu_seqlens_of((5, 7))
    assert_kept(
        mp_kernels.prune_tokens(importance, cu_seqlens, 0.5),
        mp_kernels.prune_tokens(importance.float(), cu_seqlens, 0.5),
    )
    assert_kept(
        mp_kernels.top_k_tokens(importance, cu_seqlens, 3), mp_kernels.top_k_tokens(importance.float(), cu_seqlens, 3)
    )


def test_compactions_chain() -> None:
    """Survivors of one layer are the next one's batch."""
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


def test_nan_queries_are_found_by_the_pruning_after_them() -> None:
    q = torch.randn(10, 2, 16)
    q[6] = math.nan
    _, importance = mp_kernels.ragged_attention(q, q, q, CU_SEQLENS, 6)
    with pytest.raises(ValueError, match="importance is NaN at row 4"):
        mp_kernels.prune_tokens(importance, CU_SEQLENS, 0.05)


BAD_BATCHES = [
    (([0.1], CU_SEQLENS), TypeError, r"importance must be a tensor; got list \[0.1\]"),
    ((IMPORTANCE.half(), CU_SEQLENS), TypeError, r"importance must be float32 or float64; got float16 \[10\] on cpu"),
    ((IMPORTANCE[None], CU_SEQLENS), ValueError, r"importance must have 1 dimension; got float32 \[1, 10\]"),
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
        (torch.tensor([1]), ValueError, r"k must have one entry a sample, 2; got int64 \[1\]"),
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
        ((CU_SEQLENS, torch.tensor([1, 0])), TypeError, r"stays must be bool; got int64 \[2\]"),
        ((CU_SEQLENS, torch.tensor([True])), ValueError, r"stays must have one entry a sample, 2; got bool \[1\]"),
        ((CU_SEQLENS, torch.tensor([[True, True]])), ValueError, r"stays must have 1 dimension; got bool \[1, 2\]"),
        ((CU_SEQLENS, torch.tensor([True, True]).to("meta")), ValueError, r"stays must be on cpu .* on meta"),
        ((CU_SEQLENS.long(), torch.tensor([True, True])), TypeError, r"cu_seqlens must be int32; got int64 \[3\]"),
        (
            (CU_SEQLENS, torch.tensor([True, True]), 11),
            RuntimeError,
            r"cu_seqlens must be the number of rows, 11; got 10",
        ),
    ],
)
def test_refused_selections(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mp_kernels.select_samples(*arguments)

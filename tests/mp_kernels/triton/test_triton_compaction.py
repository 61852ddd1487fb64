"""Compaction by the Triton kernels, by samples and by blocks of rows, gives the definition's rows and whole buffers."""

from __future__ import annotations

import math
from collections.abc import Callable

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from triton.runtime.errors import InterpreterError

import mp_kernels
from mp_kernels import functional, reference, schemas
from mp_kernels.triton import configurations
from mp_kernels.triton.configurations import Tile
from support.accuracy import assert_kept, assert_same_bits
from support.ragged_batches import cu_seqlens_of, stays_of

# The fixture that runs the operators through Triton may serve all examples of a property.
hypothesis.settings.register_profile(
    "interpreter",
    deadline=None,
    max_examples=25,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
interpreted = hypothesis.settings.get_profile("interpreter")
WAYS = ("by_sample", "by_block")


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU whose kernels are Triton's counts as a device that moves rows while it prunes."""
    monkeypatch.setattr(functional, "MOVE_WHILE_PRUNING", {"cpu"})


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Compaction by samples or by blocks of rows, with blocks of 16 rows, so that short batches have several."""
    monkeypatch.setattr(configurations, "COMPACTION", Tile(1, 16, 1))
    monkeypatch.setattr(configurations, "RANKING", Tile(1, 16, 1))
    monkeypatch.setattr(configurations, "samples", lambda rows: Tile(1, 16, 1))
    monkeypatch.setattr(configurations, "MOST_SAMPLES_AT_ONCE", 10**6 if request.param == "by_sample" else 0)
    return request.param


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """A batch: importance, ``[total]`` or ``[heads, total]``, with many ties, cu_seqlens, and stays or None."""
    lengths = draw(st.lists(st.sampled_from([0, 1, 2, 5, 15, 16, 17, 33]), max_size=7))
    heads, total = draw(st.integers(0, 3)), sum(lengths)
    levels = st.sampled_from([0.0, 0.25, 0.5, 1.0, math.inf])
    values = draw(st.lists(levels, min_size=max(heads, 1) * total, max_size=max(heads, 1) * total))
    importance = torch.tensor(values).reshape((heads, total) if heads else (total,))
    flags = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths))))
    return importance, cu_seqlens_of(lengths), None if flags is None else stays_of(flags)


def assert_same_buffers(name: str, *arguments: object) -> None:
    got = getattr(torch.ops.mp_kernels, name)(*arguments)
    expected = getattr(schemas, name)(*arguments)
    assert [(x.dtype, x.tolist()) for x in got] == [(x.dtype, x.tolist()) for x in expected]


@interpreted
@given(batches(), st.sampled_from([-1.0, 0.25, 0.3, 2.0, math.inf]))
def test_prune_tokens(way: str, batch: tuple, threshold: float) -> None:
    importance, cu_seqlens, stays = batch
    assert_kept(
        mp_kernels.prune_tokens(importance, cu_seqlens, threshold, stays),
        reference.prune_tokens(importance, cu_seqlens, threshold, stays),
    )
    assert_same_buffers("prune_tokens", importance, cu_seqlens, stays, threshold)


@interpreted
@given(batches(), st.sampled_from([-1.0, 0.25, 2.0]), st.sampled_from([1, 3, 130]))
def test_prune_rows(way: str, batch: tuple, threshold: float, width: int) -> None:
    importance, cu_seqlens, _ = batch
    x = torch.randn(importance.shape[-1], width)
    (rows,), kept = mp_kernels.prune_rows([x], importance, cu_seqlens, threshold)
    (expected,), expected_kept = reference.prune_rows([x], importance, cu_seqlens, threshold)
    assert_kept(kept, expected_kept)
    assert_same_bits([rows], [expected])
    assert_same_buffers("prune_rows", x, importance, cu_seqlens, threshold)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.bool])
def test_rows_of_any_dtype_are_moved_as_they_are(way: str, dtype: torch.dtype) -> None:
    """NaN too, and from rows that do not follow each other in memory; a sample has several blocks of rows."""
    x = torch.randn(40, 2, 9).mul(3).to(dtype)[:, 1]
    if dtype.is_floating_point:
        x[3, 4] = math.nan
    importance, cu_seqlens = torch.rand(40), cu_seqlens_of((37, 0, 3))
    got = torch.ops.mp_kernels.prune_rows(x, importance, cu_seqlens, 0.5)[0]
    expected = schemas.prune_rows(x, importance, cu_seqlens, 0.5)[0]
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected, atol=0, rtol=0, equal_nan=True)


@interpreted
@given(batches(), st.integers(1, 40))
def test_top_k_tokens(way: str, batch: tuple, k: int) -> None:
    importance, cu_seqlens, stays = batch
    counts = torch.full((cu_seqlens.shape[0] - 1,), k)
    assert_kept(
        mp_kernels.top_k_tokens(importance, cu_seqlens, counts, stays),
        reference.top_k_tokens(importance, cu_seqlens, counts, stays),
    )
    assert_same_buffers("top_k_tokens", importance, cu_seqlens, stays, counts)


@interpreted
@given(batches())
def test_select_samples(way: str, batch: tuple) -> None:
    _, cu_seqlens, stays = batch
    stays = torch.ones(cu_seqlens.shape[0] - 1, dtype=torch.bool) if stays is None else stays
    assert_kept(mp_kernels.select_samples(cu_seqlens, stays), reference.select_samples(cu_seqlens, stays))
    assert_same_buffers("select_samples", cu_seqlens, stays, int(cu_seqlens[-1]))


@pytest.mark.parametrize("samples", [1, 2, 15, 16, 17, 300])
def test_many_samples(way: str, samples: int) -> None:
    """There are more samples than a block holds, and a third of them are empty."""
    lengths = [b % 3 for b in range(samples)]
    importance, cu_seqlens = torch.rand(2, sum(lengths)), cu_seqlens_of(lengths)
    stays = torch.rand(samples) < 0.7
    assert_kept(
        mp_kernels.prune_tokens(importance, cu_seqlens, 0.5, stays),
        reference.prune_tokens(importance, cu_seqlens, 0.5, stays),
    )


@pytest.mark.parametrize("starts", [[0, 17, 41], [0, 41, 40], [-1, 17, 40]], ids=str)
@pytest.mark.usefixtures("interpreted")
def test_samples_outside_the_rows(way: str, starts: list[int]) -> None:
    """The kernels stop rather than reach outside their tensors."""
    importance, cu_seqlens = torch.rand(40), torch.tensor(starts, dtype=torch.int32)
    for call in (
        lambda: mp_kernels.prune_tokens(importance, cu_seqlens, 0.5),
        lambda: mp_kernels.top_k_tokens(importance, cu_seqlens, 3),
        lambda: mp_kernels.select_samples(cu_seqlens, stays_of([1, 1]), 40),
        lambda: mp_kernels.ragged_mean(importance[:, None], cu_seqlens),
        lambda: mp_kernels.pair_features(importance[:2, None], importance[:, None], cu_seqlens, cu_seqlens[:-1].long()),
    ):
        with pytest.raises(InterpreterError, match="cu_seqlens must ascend from 0 to the number of rows"):
            call()


@pytest.mark.usefixtures("interpreted")
def test_fewer_than_the_first_token() -> None:
    with pytest.raises(InterpreterError, match="k must be at least 1"):
        mp_kernels.top_k_tokens(torch.rand(40), cu_seqlens_of((17, 23)), torch.tensor([1, 0]))


def test_everybody_leaves_and_all_but_the_first_go(way: str) -> None:
    importance, cu_seqlens = torch.rand(40), cu_seqlens_of((17, 0, 23))
    gone = mp_kernels.prune_tokens(importance, cu_seqlens, 0.0, stays_of([False] * 3))
    assert (gone.index.tolist(), gone.cu_seqlens.tolist(), gone.max_seqlen) == ([], [0], 0)
    assert mp_kernels.prune_tokens(importance, cu_seqlens, 2.0).index.tolist() == [0, 17]
    empty = mp_kernels.prune_tokens(torch.rand(0), cu_seqlens_of(()), 0.5)
    assert (empty.index.tolist(), empty.cu_seqlens.tolist()) == ([], [0])


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("operator", ["prune", "top_k"])
def test_nan_is_an_error_but_not_in_a_sample_that_leaves(way: str, operator: str, by_head: bool) -> None:
    importance, cu_seqlens = torch.rand(40), cu_seqlens_of((17, 23))
    importance[[20, 33]] = math.nan
    importance = torch.stack([torch.rand(40), importance]) if by_head else importance

    def compact(stays: torch.Tensor | None) -> object:
        if operator == "prune":
            return mp_kernels.prune_tokens(importance, cu_seqlens, 0.5, stays)
        return mp_kernels.top_k_tokens(importance, cu_seqlens, 3, stays)

    with pytest.raises(ValueError, match="importance is NaN at row 20"):
        compact(None)
    compact(stays_of([True, False]))


def test_heads_are_averaged_as_in_the_public_importance(way: str) -> None:
    """They are equal to the last bit, so a token whose importance is the threshold survives either way."""
    by_head, cu_seqlens = torch.rand(12, 50), cu_seqlens_of((20, 30))
    public = torch.ops.mp_kernels.mean_over_heads(by_head)
    torch.testing.assert_close(public, by_head.mean(0), atol=1e-6, rtol=0)
    for threshold in public[::7].tolist():
        expected = mp_kernels.prune_tokens(public, cu_seqlens, threshold)
        assert_kept(mp_kernels.prune_tokens(by_head, cu_seqlens, threshold), expected)


def test_usual_batches_take_few_launches(launches: Callable[[], list[str]]) -> None:
    importance, cu_seqlens = torch.rand(12, 64), cu_seqlens_of((30, 34))
    mp_kernels.prune_tokens(importance, cu_seqlens, 0.5, stays_of([True, False]))
    mp_kernels.select_samples(cu_seqlens, stays_of([True, False]), 64)
    assert launches() == ["keep_in_samples", "place_in_batch", "place_in_batch"]


def test_pruning_moves_rows_in_no_further_launch(launches: Callable[[], list[str]]) -> None:
    importance, cu_seqlens = torch.rand(12, 64), cu_seqlens_of((30, 34))
    mp_kernels.prune_rows([torch.rand(64, 5)], importance, cu_seqlens, 0.5)
    assert launches() == ["keep_in_samples", "place_in_batch"]

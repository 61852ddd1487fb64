"""The attention kernels in Triton's interpreter, forward and backward, against the definition in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from triton.runtime.errors import InterpreterError

import mp_kernels
from mp_kernels.triton import configurations
from support.accuracy import assert_accurate, assert_no_worse_than_plain, assert_same_bits, with_gradients
from support.attention import attention, plain_attention
from support.ragged_batches import cu_seqlens_of, random_heads, rows_of_samples, stays_of

LENGTHS = (17, 0, 1, 2, 15, 16, 33, 31, 32)
EDGES = (65, 63, 64, 1, 129, 127, 128)


def both(lengths: Sequence[int], query_lengths: Sequence[int] | None = None, **options: object) -> list[Callable]:
    """The operator and its definition."""
    return [attention(lengths, query_lengths, definition, **options) for definition in (False, True)]


@pytest.mark.parametrize("head_dim", [16, 20, 32, 64, 128])
def test_one_pass(head_dim: int, one_pass_in_float32: None) -> None:
    assert_accurate(*both(LENGTHS), None, random_heads(sum(LENGTHS), 2, head_dim))


@pytest.fixture(params=["sm_80", "sm_90"])
def architecture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, interpreted: None) -> None:
    """The tiles of an architecture that keeps one for samples of at most 64 keys, and of one that keeps another for 32."""
    monkeypatch.setattr(configurations, "architecture_of", lambda _: request.param)


@pytest.mark.usefixtures("architecture")
@pytest.mark.parametrize("lengths", [EDGES, EDGES[1:4], (128, 2, 127)])
def test_one_pass_at_the_edges_of_tiles(lengths: tuple[int, ...], one_pass_in_float32: None) -> None:
    assert_accurate(*both(lengths), None, random_heads(sum(lengths), 1, 32))


@pytest.mark.parametrize("masks_apart", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS, (31, 32, 33, 0, 64, 65)])
def test_blocks_of_keys_that_are_whole(
    lengths: tuple[int, ...], masks_apart: bool, small_tiles: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a loop of their own and without; also for queries of other numbers than the keys'."""
    monkeypatch.setattr(configurations, "masks_apart", lambda *_: masks_apart)
    queries = [length // 2 + (length > 0) for length in lengths]
    for query_lengths in (None, queries):
        total_q, total = sum(query_lengths or lengths), sum(lengths)
        q, (_, k, v) = random_heads(total_q, 2, 20)[0], random_heads(total, 2, 20)
        assert_accurate(*both(lengths, query_lengths), None, [q, k, v])


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("scale", [-0.5, 0.0, 0.5])
def test_scales_of_any_sign(scale: float) -> None:
    assert_accurate(*both(LENGTHS, scale=scale), None, random_heads(sum(LENGTHS), 2, 16))


@pytest.mark.parametrize("length", [127, 128, 129])
def test_the_longest_tile_and_beyond(length: int, one_pass_in_float32: None) -> None:
    lengths = (length, 3)
    ours, definition = both(lengths)
    qkv = random_heads(sum(lengths), 1, 20)
    for got, exact in zip(ours(*qkv), definition(*(x.double() for x in qkv)), strict=True):
        torch.testing.assert_close(got, exact.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("head_dim", [20, 64])
def test_two_passes(head_dim: int, small_tiles: None) -> None:
    assert_accurate(*both(LENGTHS), None, random_heads(sum(LENGTHS), 2, head_dim))


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype: torch.dtype, honest_bfloat16: None) -> None:
    ours, definition = both(LENGTHS)
    qkv = random_heads(sum(LENGTHS), 2, 32, dtype=dtype)
    exact = with_gradients(definition, [x.double() for x in qkv])
    plain = with_gradients(plain_attention(LENGTHS), qkv)
    for got, near, true in zip(with_gradients(ours, qkv), plain, exact, strict=True):
        assert_no_worse_than_plain(got.to(near.dtype), near, true)


@pytest.mark.usefixtures("interpreted")
def test_bfloat16_of_the_interpreter_still_needs_its_repair() -> None:
    """If this fails, the interpreter has learned bfloat16: drop the fixture honest_bfloat16."""
    ours, definition = both((16,), need_importance=False)
    qkv = random_heads(16, 1, 16, dtype=torch.bfloat16)
    error = (ours(*qkv)[0].double() - definition(*(x.double() for x in qkv))[0]).abs().nan_to_num(nan=math.inf).max()
    assert error > 0.1


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("lengths_q", [(1, 1, 1, 1), (0, 5, 40, 2), (3, 0, 0, 0)], ids=str)
def test_queries_of_their_own(lengths_q: tuple[int, ...]) -> None:
    """One query per sample (an exit decision), none, or more than there are keys."""
    lengths = (9, 33, 17, 1)
    q, (k, v) = random_heads(sum(lengths_q), 2, 16, 1)[0], random_heads(sum(lengths), 2, 16, 2)
    assert_accurate(*both(lengths, lengths_q), None, (q, k, v))


@pytest.mark.usefixtures("passes")
def test_queries_without_keys_get_zeros() -> None:
    lengths, lengths_q = (9, 0, 0, 4), (2, 3, 1, 40)
    q, (k, v) = random_heads(sum(lengths_q), 2, 16, 1)[0], random_heads(sum(lengths), 2, 16, 2)
    assert_accurate(*both(lengths, lengths_q), None, (q, k, v))
    assert not attention(lengths, lengths_q)(q, k, v)[0][2:6].any()


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("stays", ["10110", "00000", "11111"])
def test_samples_that_leave(stays: str) -> None:
    lengths = (17, 5, 1, 0, 33)
    flags = stays_of(map(int, stays))
    qkv = random_heads(sum(lengths), 2, 16)
    assert_accurate(*both(lengths, stays=flags), None, qkv)
    poisoned = [x.clone() for x in qkv]
    gone = rows_of_samples(cu_seqlens_of(lengths), [b for b in range(5) if stays[b] == "0"])
    for x in poisoned:
        x[gone] = math.nan
    for got, clean in zip(
        attention(lengths, stays=flags)(*poisoned),
        attention(lengths, stays=flags)(*qkv),
        strict=True,
    ):
        assert_same_bits([got], [clean])


def test_slices_of_one_projection() -> None:
    packed = torch.randn(sum(LENGTHS), 3, 2, 16)
    ours, definition = both(LENGTHS)

    def of_packed(call: Callable) -> Callable:
        return lambda x: call(*x.unbind(1))

    assert_accurate(of_packed(ours), of_packed(definition), None, [packed])


def test_by_head_and_without_importance() -> None:
    qkv = random_heads(sum(LENGTHS), 3, 16)
    assert_accurate(*both(LENGTHS, by_head=True), None, qkv)
    out, none = attention(LENGTHS, need_importance=False)(*qkv)
    assert none is None
    assert_same_bits([out], attention(LENGTHS)(*qkv)[:1])


@pytest.mark.parametrize("scale", [-0.3, 0.0, 1.0])
def test_any_scale(scale: float) -> None:
    assert_accurate(*both((17, 5), scale=scale), None, random_heads(22, 2, 16))


@pytest.mark.usefixtures("passes")
def test_saturated_scores() -> None:
    """Scores reach about a thousand, so most probabilities are zero."""
    q, k, v = random_heads(22, 2, 16)
    ours, definition = both((17, 5), scale=100.0)
    for got, exact in zip(ours(q, k, v), definition(q.double(), k.double(), v.double()), strict=True):
        torch.testing.assert_close(got.double(), exact.double(), atol=1e-3, rtol=0)


@pytest.mark.usefixtures("passes")
def test_constant_importance_gradient_moves_nothing() -> None:
    """The importance of a sample sums to 1 for any scores."""
    q, k, v = (x.requires_grad_() for x in random_heads(sum(LENGTHS), 2, 32))
    _, importance = attention(LENGTHS)(q, k, v)
    for begin, end in itertools.pairwise(cu_seqlens_of(LENGTHS).tolist()):
        assert end == begin or abs(importance[begin:end].sum().item() - 1) < 1e-6
    (3 * importance).sum().backward()
    for x in (q, k, v):
        torch.testing.assert_close(x.grad, torch.zeros_like(x), atol=1e-6, rtol=0)


@pytest.mark.usefixtures("passes")
def test_same_bits_again_and_elsewhere_in_the_batch() -> None:
    qkv = random_heads(sum(LENGTHS), 2, 16)
    first = with_gradients(attention(LENGTHS), qkv)
    assert_same_bits(with_gradients(attention(LENGTHS), qkv), first)
    order = torch.randperm(len(LENGTHS)).tolist()
    rows = rows_of_samples(cu_seqlens_of(LENGTHS), order)
    permuted = attention(tuple(LENGTHS[b] for b in order))(*(x[rows] for x in qkv))
    assert_same_bits(permuted, [x[rows] for x in first[:2]])


def test_few_programs_are_split_over_blocks_of_queries(
    monkeypatch: pytest.MonkeyPatch, one_pass_in_float32: None, launches: Callable[[], list[str]]
) -> None:
    qkv = random_heads(70, 1, 16)
    whole = attention((70,))(*qkv)
    monkeypatch.setattr(configurations, "processors_of", lambda device: 132)
    for got, expected in zip(attention((70,))(*qkv), whole, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    kernels = ["attention_one_pass", "mean_heads", "attention_streaming", "attention_column_means", "mean_heads"]
    assert launches() == kernels


def test_nothing_to_do(launches: Callable[[], list[str]]) -> None:
    for lengths in ((), (0, 0)):
        out, importance = attention(lengths)(*random_heads(0, 2, 16))
        assert out.shape == (0, 2, 16)
        assert importance.shape == (0,)
    assert "attention_streaming" not in launches()


def test_longest_sample_overstated() -> None:
    qkv = random_heads(22, 2, 16)
    cu_seqlens = cu_seqlens_of((17, 5))
    expected = mp_kernels.ragged_attention(*qkv, cu_seqlens, 17)
    for overstated in (64, 600):
        got = mp_kernels.ragged_attention(*qkv, cu_seqlens, overstated)
        for x, y in zip(got, expected, strict=True):
            torch.testing.assert_close(x, y, atol=1e-6, rtol=0)


@pytest.mark.usefixtures("passes")
@pytest.mark.usefixtures("interpreted")
def test_longest_sample_understated() -> None:
    """The kernels stop rather than leave out keys."""
    qkv = random_heads(70, 1, 16)
    with pytest.raises(InterpreterError, match="max_seqlen must be at least the longest sample"):
        mp_kernels.ragged_attention(*qkv, cu_seqlens_of((65, 5)), 16)
    with pytest.raises(InterpreterError, match="max_seqlen must be at least the longest sample"):
        mp_kernels.ragged_attention(*qkv, cu_seqlens_of((65, 5)), 16, need_importance=False)


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("starts", [[0, 17, 23], [0, 23, 22], [-1, 17, 22]], ids=str)
@pytest.mark.usefixtures("interpreted")
def test_samples_outside_the_rows(starts: list[int]) -> None:
    wrong, right = torch.tensor(starts, dtype=torch.int32), cu_seqlens_of((17, 5))
    qkv = random_heads(22, 1, 16)
    for arguments in ({"cu_seqlens": wrong}, {"cu_seqlens": right, "cu_seqlens_q": wrong}):
        with pytest.raises(InterpreterError, match="cu_seqlens must ascend from 0 to the number of rows"):
            mp_kernels.ragged_attention(*qkv, max_seqlen=24, **arguments)


COMPANIONS = ((), (20,), (65,), (513,), (3,) * 12)


def beside(companions: tuple[int, ...], own: list[torch.Tensor]) -> list[torch.Tensor]:
    """Attention's results for a sample of 17 tokens in a batch with samples of these lengths."""
    others = random_heads(sum(companions), 1, 16, dtype=own[0].dtype)
    qkv = [torch.cat([x, other]) for x, other in zip(own, others, strict=True)]
    return [x[:17] for x in attention((17, *companions))(*qkv)]


def test_companions_change_nothing_in_float32() -> None:
    own = list(random_heads(17, 1, 16))
    alone = beside((), own)
    for companions in COMPANIONS:
        assert_same_bits(beside(companions, own), alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_companions_change_half_types_by_a_rounding(
    dtype: torch.dtype, honest_bfloat16: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest sample chooses the tile, and a batch too small for the device takes two passes."""
    own = list(random_heads(17, 1, 16, dtype=dtype))
    alone = beside((), own)
    for processors in (1, 132):
        monkeypatch.setattr(configurations, "processors_of", lambda device, number=processors: number)
        for companions in COMPANIONS:
            out, importance = beside(companions, own)
            rounding = torch.finfo(dtype).eps * alone[0].abs().max().item()
            torch.testing.assert_close(out, alone[0], atol=2 * rounding, rtol=0)
            torch.testing.assert_close(importance, alone[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", configurations.SHARED_MEMORY)
def test_tiles_fit_their_architecture(architecture: str) -> None:
    room = configurations.SHARED_MEMORY[architecture] * 1024
    for width in (16, 32, 64, 128, 256):
        for keys in (16, 32, 64, 128, 256, 512, 1024):
            tile = configurations.one_pass(architecture, keys, width, 2)
            if tile is not None:
                assert (2 * keys * width + tile.rows * keys) * 2 <= room
                assert tile.columns == keys
    assert configurations.one_pass(architecture, 128, 64, 2) is not None
    assert configurations.one_pass(architecture, 16, 16, 4) is None  # these would spill
    assert configurations.one_pass(architecture, 256, 64, 2) is None


def test_every_length_with_every_other_sample_leaving() -> None:
    lengths = tuple(range(12))
    stays = stays_of(b % 2 for b in lengths)
    assert_accurate(*both(lengths, stays=stays), None, random_heads(sum(lengths), 1, 16))


def test_more_samples_than_a_device_takes() -> None:
    cu_seqlens = torch.zeros(65_537, dtype=torch.int32)
    cu_seqlens[-1] = 1
    with pytest.raises(ValueError, match=r"at most 65,535 samples at once; got 65,536, split the batch"):
        mp_kernels.ragged_attention(*torch.randn(3, 1, 1, 16), cu_seqlens, 1)

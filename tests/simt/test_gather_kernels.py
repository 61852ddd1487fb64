"""The kernels of ``csrc/cuda/gather.cuh`` in the emulator, against numpy."""

from __future__ import annotations

import mmap
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

POISON = 0xA5
GUARD = 64  # bytes before and after a result
ROW_BYTES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 20, 48, 1536, 3072)
GRAD_TYPES = ("float32", "float16", "bfloat16", "float64")

# The compiled module may serve all examples of a property.
shared_module = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


class Guarded:
    """Poisoned memory for a result, ``offset`` bytes after a 64-byte boundary, with poisoned bytes around it."""

    def __init__(self, rows: int, width: int, dtype: str, offset: int = 0) -> None:
        size = rows * width * np.dtype(dtype).itemsize
        memory = np.full(size + 2 * GUARD + 64, POISON, np.uint8)
        begin = -memory.ctypes.data % 64 + GUARD + offset
        self._around = (memory[:begin], memory[begin + size :])
        self.array = memory[begin : begin + size].view(dtype).reshape(rows, width)

    def checked(self) -> np.ndarray:
        for part in self._around:
            assert (part == POISON).all(), "written outside of the result"
        return self.array


def at_offset(x: np.ndarray, offset: int) -> np.ndarray:
    """A copy of ``x`` that begins ``offset`` bytes after a 64-byte boundary."""
    copy = Guarded(*x.shape, x.dtype.str, offset).array
    copy[...] = x
    return copy


def random_rows(rng: np.random.Generator, rows: int, width: int, dtype: str = "uint8") -> np.ndarray:
    return rng.integers(0, 256, (rows, width * np.dtype(dtype).itemsize), np.uint8).view(dtype)


def gather(
    kernels: ModuleType,
    xs: list[np.ndarray],
    index: np.ndarray,
    out_offset: int = 0,
    max_blocks: int | None = None,
    schedule: int = 0,
) -> list[np.ndarray]:
    outs = [Guarded(len(index), x.shape[1], x.dtype.str, out_offset) for x in xs]
    arrays = [out.array for out in outs]
    kernels.gather(xs, index, arrays, max_blocks or kernels.MAX_BLOCKS, schedule)
    return [out.checked() for out in outs]


def assert_same_bytes(got: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert (one.shape, one.dtype, one.tobytes()) == (other.shape, other.dtype, other.tobytes())


def assert_gathers(kernels: ModuleType, xs: list[np.ndarray], index: np.ndarray, **how: int) -> None:
    assert_same_bytes(gather(kernels, xs, index, **how), [x[index] for x in xs])


# ---- forward ----


@pytest.mark.parametrize("row_bytes", ROW_BYTES)
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (5, 7), (40, 300)])
def test_every_row_width(kernels: ModuleType, rows: int, count: int, row_bytes: int) -> None:
    rng = np.random.default_rng(row_bytes)
    assert_gathers(kernels, [random_rows(rng, rows, row_bytes)], rng.integers(0, rows, count))


def test_many_rows(kernels: ModuleType) -> None:
    rng = np.random.default_rng(0)
    assert_gathers(kernels, [random_rows(rng, 3000, 48)], rng.integers(0, 3000, 5000))


@pytest.mark.parametrize("row_bytes", [8191, 8192, 8208, 40_000])
def test_rows_shared_by_more_than_a_warp(kernels: ModuleType, row_bytes: int) -> None:
    rng = np.random.default_rng(0)
    assert_gathers(kernels, [random_rows(rng, 3, row_bytes)], np.array([2, 0, 2, 1, 1]))


@pytest.mark.parametrize("width", [3, 16, 96])
@pytest.mark.parametrize("out_offset", [0, 1, 2, 4, 6, 8, 12])
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 8, 12])
def test_misaligned_bases(kernels: ModuleType, offset: int, out_offset: int, width: int) -> None:
    rng = np.random.default_rng(0)
    x = at_offset(random_rows(rng, 6, width), offset)
    assert_gathers(kernels, [x], rng.integers(0, 6, 11), out_offset=out_offset)


@pytest.mark.parametrize(
    ("bits", "bytes_at_once"), [(0, 16), (16, 16), (48, 16), (8, 8), (24, 8), (4, 4), (2, 2), (3, 1), (2**63 | 6, 2)]
)
def test_widest_access(kernels: ModuleType, bits: int, bytes_at_once: int) -> None:
    assert kernels.widest_access(bits) == bytes_at_once


def test_strided_rows(kernels: ModuleType) -> None:
    rng = np.random.default_rng(0)
    index = rng.integers(0, 8, 13)
    wide = random_rows(rng, 16, 240)
    sources = [wide[:8, 80:160], wide[:8, 81:160], wide[::2, 16:32], wide[::2, :3], np.broadcast_to(wide[:1], (8, 240))]
    assert not any(x.flags.c_contiguous for x in sources)
    assert_gathers(kernels, sources, index)


def test_rows_beyond_four_gibibytes(kernels: ModuleType) -> None:
    distance, width = 2**31 + 16, 32
    memory = np.frombuffer(mmap.mmap(-1, 3 * distance), np.uint8)  # pages that are never written take no memory
    x = np.lib.stride_tricks.as_strided(memory, (3, width), (distance, 1), writeable=True)
    x[:] = np.arange(3 * width).reshape(3, width)
    assert_gathers(kernels, [x], np.array([2, 0, 1, 2]))


@pytest.mark.parametrize("tensors", [1, 2, 8, 9, 17])
def test_several_tensors(kernels: ModuleType, tensors: int) -> None:
    rng = np.random.default_rng(tensors)
    dtypes = ("float32", "float16", "int64", "bool", "complex128", "uint8")
    xs = [
        rng.integers(0, 2, (10 + t, (t * 7) % 40)).astype(dtypes[t % len(dtypes)])  # width 0 among them
        for t in range(tensors)
    ]
    assert_gathers(kernels, xs, rng.integers(0, 10, 37))


@pytest.mark.parametrize("max_blocks", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 96, 512])
def test_more_rows_than_blocks(kernels: ModuleType, width: int, max_blocks: int) -> None:
    rng = np.random.default_rng(0)
    assert_gathers(kernels, [random_rows(rng, 20, width)], rng.integers(0, 20, 700), max_blocks=max_blocks)


def test_nothing_to_gather(kernels: ModuleType) -> None:
    empty = np.zeros(0, np.int64)
    assert gather(kernels, [], np.array([3])) == []
    for x in (np.zeros((5, 4), np.uint8), np.zeros((0, 4), np.uint8), np.zeros((0, 0), np.uint8)):
        assert_gathers(kernels, [x, x], empty)


@pytest.mark.parametrize("row_bytes", [0, 3, 64])
@pytest.mark.parametrize("row", [-1, 6, 2**40, -(2**63)])
def test_index_out_of_range_is_detected(kernels: ModuleType, row: int, row_bytes: int) -> None:
    x = np.zeros((6, row_bytes), np.uint8)
    with pytest.raises(RuntimeError, match=r"device assert failed: .*ragged_gather: index out of range"):
        gather(kernels, [np.zeros((9, 4), np.uint8), x], np.array([0, 5, row, 1]))


def test_index_is_checked_against_every_tensor(kernels: ModuleType) -> None:
    xs = [np.zeros((9, 4), np.uint8), np.zeros((8, 4), np.uint8)]
    assert_gathers(kernels, xs, np.array([7]))
    with pytest.raises(RuntimeError, match="device assert failed"):
        gather(kernels, xs, np.array([8]))


@pytest.mark.parametrize("schedule", [1, 2])
def test_forward_in_other_orders_of_threads(kernels: ModuleType, schedule: int) -> None:
    rng = np.random.default_rng(0)
    xs = [random_rows(rng, 20, 20), random_rows(rng, 20, 1536)]
    assert_gathers(kernels, xs, rng.integers(0, 20, 50), schedule=schedule)


@st.composite
def gathers(draw: st.DrawFn) -> dict:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    xs = []
    rows = draw(st.integers(1, 12))
    for _ in range(draw(st.integers(1, 4))):
        width, before, after = draw(st.integers(0, 70)), draw(st.integers(0, 17)), draw(st.integers(0, 17))
        step = draw(st.integers(1, 3))
        wide = at_offset(random_rows(rng, rows * step, before + width + after), draw(st.integers(0, 17)))
        xs.append(wide[::step, before : before + width])
    index = np.array(draw(st.lists(st.integers(0, rows - 1), max_size=40)), np.int64)
    how = {
        "out_offset": draw(st.integers(0, 17)),
        "max_blocks": draw(st.integers(1, 4)),
        "schedule": draw(st.integers(0, 9)),
    }
    return {"xs": xs, "index": index, **how}


@shared_module
@given(case=gathers())
def test_any_gather(kernels: ModuleType, case: dict) -> None:
    assert_gathers(kernels, **case)


# ---- backward ----


def stored_as(type_name: str) -> str:
    """numpy's name of the dtype; as it has no bfloat16, that is stored as the bits in an integer."""
    return "uint16" if type_name == "bfloat16" else type_name


def widened(x: np.ndarray, type_name: str) -> np.ndarray:
    if type_name == "bfloat16":
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16).float().numpy()
    return x if type_name == "float64" else x.astype(np.float32)


def narrowed(x: np.ndarray, type_name: str) -> np.ndarray:
    if type_name == "bfloat16":
        return torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    return x.astype(type_name)


def random_grads(rng: np.random.Generator, count: int, width: int, type_name: str) -> np.ndarray:
    wide = rng.standard_normal((count, width))
    return narrowed(wide if type_name == "float64" else wide.astype(np.float32), type_name)


def summed(grad: np.ndarray, type_name: str, index: np.ndarray, rows: int) -> np.ndarray:
    """The definition: gradients are added one after the other, in the wider type."""
    wide = widened(grad, type_name)
    total = np.zeros((rows, grad.shape[1]), wide.dtype)
    for i, row in enumerate(index):
        total[row] += wide[i]
    return narrowed(total, type_name)


def gather_backward(
    kernels: ModuleType,
    types: list[str],
    grads: list[np.ndarray],
    index: np.ndarray,
    rows: list[int],
    with_order: bool = True,
    out_offset: int = 0,
    max_blocks: int | None = None,
    schedule: int = 0,
) -> list[np.ndarray]:
    order = np.argsort(index, kind="stable") if with_order else None
    ordered = index if order is None else index[order]
    sums = [
        Guarded(n, grad.shape[1], grad.dtype.str, out_offset * grad.itemsize)
        for grad, n in zip(grads, rows, strict=True)
    ]
    arrays = [out.array for out in sums]
    kernels.gather_backward(types, grads, ordered, order, arrays, max_blocks or kernels.MAX_BLOCKS, schedule)
    return [out.checked() for out in sums]


def assert_sums(
    kernels: ModuleType, types: list[str], grads: list[np.ndarray], index: np.ndarray, rows: list[int], **how: int
) -> None:
    wanted = [summed(grad, name, index, n) for grad, name, n in zip(grads, types, rows, strict=True)]
    assert_same_bytes(gather_backward(kernels, types, grads, index, rows, **how), wanted)


@pytest.mark.parametrize("type_name", GRAD_TYPES)
@pytest.mark.parametrize("width", [0, 1, 2, 3, 4, 7, 8, 12, 16, 31, 129, 768, 1100])
def test_every_width_of_gradients(kernels: ModuleType, width: int, type_name: str) -> None:
    rng = np.random.default_rng(width)
    assert_sums(kernels, [type_name], [random_grads(rng, 30, width, type_name)], rng.integers(0, 11, 30), [13])


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(np.zeros(0, np.int64), id="nothing was gathered"),
        pytest.param(np.zeros(33, np.int64), id="the first row only"),
        pytest.param(np.full(70, 99), id="the last row only"),
        pytest.param(np.arange(100)[::-1].copy(), id="every row once"),
        pytest.param(np.arange(0, 100, 3), id="every third row"),
        pytest.param(np.repeat(np.arange(50), 40), id="each of many rows often"),
        pytest.param(np.array([99, 0, 99, 0]), id="only the ends"),
    ],
)
def test_every_kind_of_index(kernels: ModuleType, index: np.ndarray) -> None:
    grads = random_grads(np.random.default_rng(0), len(index), 5, "float32")
    assert_sums(kernels, ["float32"], [grads], index, [100])


@pytest.mark.parametrize("count", [1, 31, 32, 33, 1023, 1024, 1025, 4000])
def test_first_entry_of_every_row_is_found(kernels: ModuleType, count: int) -> None:
    index = np.sort(np.random.default_rng(count).integers(0, 300, count))
    assert_sums(kernels, ["float64"], [np.arange(count, dtype=np.float64)[:, None]], index, [300])


def test_rising_index_needs_no_order(kernels: ModuleType) -> None:
    index = np.array([0, 2, 2, 2, 5])
    grads = random_grads(np.random.default_rng(0), 5, 24, "float16")
    assert_sums(kernels, ["float16"], [grads], index, [7], with_order=False)


def test_what_lies_behind_the_index_is_left_alone(kernels: ModuleType) -> None:
    index = np.array([0, 2, 2, 2, 2])[:3]
    grads = random_grads(np.random.default_rng(0), 3, 8, "float32")
    assert_sums(kernels, ["float32"], [grads], index, [3], with_order=False)


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(kernels: ModuleType, rows: int) -> None:
    grads = random_grads(np.random.default_rng(0), 3 * rows, 8, "float32")
    assert_sums(kernels, ["float32"], [grads], np.zeros(3 * rows, np.int64), [rows])


@pytest.mark.parametrize("type_name", GRAD_TYPES)
@pytest.mark.parametrize(("offset", "out_offset"), [(0, 1), (1, 0), (1, 1), (2, 0), (4, 4)])
def test_misaligned_gradients(kernels: ModuleType, offset: int, out_offset: int, type_name: str) -> None:
    rng = np.random.default_rng(0)
    grads = random_grads(rng, 9, 16, type_name)
    grads = at_offset(grads, offset * grads.itemsize)
    assert_sums(kernels, [type_name], [grads], rng.integers(0, 4, 9), [5], out_offset=out_offset)


@pytest.mark.parametrize("type_name", GRAD_TYPES)
def test_strided_gradients(kernels: ModuleType, type_name: str) -> None:
    rng = np.random.default_rng(0)
    wide = random_grads(rng, 20, 48, type_name)
    grads = [wide[:10, 16:32], wide[:10, 17:33], wide[::2, :16], np.broadcast_to(wide[:1], (10, 48))]
    assert_sums(kernels, [type_name] * 4, grads, rng.integers(0, 6, 10), [6] * 4)


@pytest.mark.parametrize("tensors", [0, 1, 8, 9, 17])
def test_gradients_of_several_tensors(kernels: ModuleType, tensors: int) -> None:
    rng = np.random.default_rng(tensors)
    types = [GRAD_TYPES[t % 4] for t in range(tensors)]
    grads = [random_grads(rng, 25, (t * 8) % 40, types[t]) for t in range(tensors)]  # width 0 among them
    assert_sums(kernels, types, grads, rng.integers(0, 7, 25), [7 + 20 * (t % 3) for t in range(tensors)])


@pytest.mark.parametrize("max_blocks", [1, 2, 3])
def test_more_sums_than_blocks(kernels: ModuleType, max_blocks: int) -> None:
    rng = np.random.default_rng(0)
    grads = [random_grads(rng, 200, 9, "bfloat16")]
    assert_sums(kernels, ["bfloat16"], grads, rng.integers(0, 150, 200), [150], max_blocks=max_blocks)


def test_halves_are_summed_in_float32(kernels: ModuleType) -> None:
    """4096 + 1 is 4096 in float16, so a sum in that type would not grow."""
    grads = np.array([[4096]] + [[1]] * 64, np.float16)
    (total,) = gather_backward(kernels, ["float16"], [grads], np.zeros(65, np.int64), [1])
    assert total.tolist() == [[4160]]


def test_infinity_and_nan_stay_in_their_rows(kernels: ModuleType) -> None:
    grads = np.array([[np.inf], [np.nan], [-0.0], [2], [-np.inf], [np.inf]], np.float32)
    (total,) = gather_backward(kernels, ["float32"], [grads], np.array([0, 3, 1, 1, 4, 4]), [6])
    np.testing.assert_array_equal(total, np.array([[np.inf], [2], [0], [np.nan], [np.nan], [0]], np.float32))


@pytest.mark.parametrize("schedule", [0, 1, 2])
def test_sums_are_the_same_bits_on_every_run(kernels: ModuleType, schedule: int) -> None:
    rng = np.random.default_rng(0)
    grads = [random_grads(rng, 120, 20, "float32"), random_grads(rng, 120, 768, "float16")]
    index = rng.integers(0, 5, 120)
    assert_sums(kernels, ["float32", "float16"], grads, index, [5, 5], schedule=schedule)
    assert_sums(kernels, ["float32", "float16"], grads, index, [5, 5], schedule=schedule, max_blocks=1)


@pytest.mark.parametrize("place", [-1, 4, 2**40])
def test_order_out_of_range_is_detected(kernels: ModuleType, place: int) -> None:
    grads, sums = np.zeros((4, 2), np.float32), np.zeros((3, 2), np.float32)
    order = np.array([0, 1, place, 3])
    with pytest.raises(RuntimeError, match=r"device assert failed: .*ragged_gather_backward: order out of range"):
        kernels.gather_backward(["float32"], [grads], np.array([0, 1, 1, 2]), order, [sums], 9, 0)


@pytest.mark.parametrize("row", [-1, 3, 2**40])
def test_rows_that_are_not_there_get_nothing(kernels: ModuleType, row: int) -> None:
    """The forward pass refuses such an index; the backward pass must only write nothing outside the sums."""
    index = np.array([0, row, 2])
    (total,) = gather_backward(kernels, ["float32"], [np.ones((3, 4), np.float32)], index, [3])
    assert total[:, 0].tolist() == [1, 0, 1]


@st.composite
def backwards(draw: st.DrawFn) -> dict:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    fewest = draw(st.integers(1, 12))
    index = np.array(draw(st.lists(st.integers(0, fewest - 1), max_size=40)), np.int64)
    types, grads, rows = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        types.append(draw(st.sampled_from(GRAD_TYPES)))
        width, before, step = draw(st.integers(0, 40)), draw(st.integers(0, 9)), draw(st.integers(1, 2))
        wide = random_grads(rng, len(index) * step, before + width, types[-1])
        grads.append(at_offset(wide, draw(st.integers(0, 9)) * wide.itemsize)[::step, before:])
        rows.append(fewest + draw(st.integers(0, 20)))
    how = {
        "out_offset": draw(st.integers(0, 9)),
        "max_blocks": draw(st.integers(1, 4)),
        "schedule": draw(st.integers(0, 9)),
    }
    return {"types": types, "grads": grads, "index": index, "rows": rows, **how}


@shared_module
@given(case=backwards())
def test_any_backward(kernels: ModuleType, case: dict) -> None:
    assert_sums(kernels, **case)

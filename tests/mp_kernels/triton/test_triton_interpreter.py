"""The foundations of the other tests here: repaired bfloat16 in Triton's interpreter, and memory rules that catch bugs."""

from __future__ import annotations

import math

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

pytestmark = pytest.mark.usefixtures("interpreted")

# ---- bfloat16 ----


@triton.jit
def matrix_product(p_a, p_b, p_out):
    """Product of two matrices ``[16, 16]``."""
    places = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(p_out + places, tl.dot(tl.load(p_a + places), tl.load(p_b + places)))


@triton.jit
def copied(p_x, p_out):
    """Copy of 1024 elements per program, cast to the dtype of ``p_out``."""
    places = tl.program_id(0) * 1024 + tl.arange(0, 1024)
    tl.store(p_out + places, tl.load(p_x + places).to(p_out.dtype.element_ty))


def product_error() -> float:
    a, b, got = torch.randn(16, 16).bfloat16(), torch.randn(16, 16).bfloat16(), torch.empty(16, 16)
    matrix_product[(1,)](a, b, got)
    return (got - a.float() @ b.float()).abs().max().item()


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    got = torch.empty(x.shape, dtype=dtype)
    copied[(x.numel() // 1024,)](x, got)
    return got


# float32 values halfway between bfloat16 values, random ones of any exponent, and special ones.
FLOATS = torch.cat(
    [
        (torch.arange(0, 1 << 16) << 16 | 0x8000).to(torch.int32).view(torch.float32),
        torch.randint(-(1 << 31), 1 << 31, (1024 - 64,), generator=torch.Generator().manual_seed(0), dtype=torch.int64)
        .to(torch.int32)
        .view(torch.float32),
        torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, 3.4e38, -3.4e38, 1e-45] * 8),
    ]
)
EVERY_BFLOAT16 = torch.arange(1 << 16).to(torch.int16).view(torch.bfloat16)


def same_values(got: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(got.nan_to_num(nan=0.5), expected.nan_to_num(nan=0.5)) and torch.equal(
        got.isnan(), expected.isnan()
    )


def test_bfloat16_is_honest(honest_bfloat16: None) -> None:
    assert product_error() < 1e-5
    assert same_values(cast(FLOATS, torch.bfloat16), FLOATS.bfloat16())
    assert same_values(cast(EVERY_BFLOAT16, torch.float32), EVERY_BFLOAT16.float())


def test_bfloat16_still_needs_mending() -> None:
    """If this fails, the interpreter has learned bfloat16: drop the fixture honest_bfloat16."""
    assert not product_error() < 1
    assert not same_values(cast(FLOATS, torch.bfloat16), FLOATS.bfloat16())


# ---- memory rules: each kernel but the last breaks one ----


@triton.jit
def beyond(p_x, p_out):
    tl.store(p_out + tl.arange(0, 16), tl.load(p_x + 1 + tl.arange(0, 16)))


@triton.jit
def before(p_x, p_out):
    tl.store(p_out - 1 + tl.arange(0, 16), tl.load(p_x + tl.arange(0, 16)))


@triton.jit
def all_to_one(p_x, p_out):
    tl.store(p_out, tl.load(p_x + tl.program_id(0)))


@triton.jit
def lanes_to_one(p_x, p_out):
    tl.store(p_out + tl.arange(0, 16) // 2, tl.load(p_x + tl.arange(0, 16)))


@triton.jit
def from_the_neighbour(p_x, p_out):
    program = tl.program_id(0)
    before = tl.load(p_out + program - 1, mask=program > 0, other=0.0)
    tl.store(p_out + program, tl.load(p_x + program) + before)


@triton.jit
def into_the_neighbour(p_x, p_out):
    program = tl.program_id(0)
    mine = tl.load(p_x + 1, mask=program == 0, other=0.0)
    tl.store(p_x + 1, mine, mask=program == 1)


@triton.jit
def read_back(p_x, p_out):
    places = tl.arange(0, 16)
    tl.store(p_out + places, tl.load(p_x + places))
    tl.store(p_x + places, tl.load(p_out + 15 - places))


@triton.jit
def read_back_behind_a_barrier(p_x, p_out):
    places = tl.arange(0, 8)
    tl.store(p_out + places, tl.load(p_x + places))
    tl.debug_barrier()
    tl.store(p_out + 8 + places, tl.load(p_out + 7 - places))


@pytest.mark.parametrize(
    ("kernel", "programs", "rule"),
    [
        (beyond, 1, "reads outside every tensor"),
        (before, 1, "writes outside every tensor"),
        (all_to_one, 2, "writes an element twice"),
        (lanes_to_one, 1, "writes an element from two lanes"),
        (from_the_neighbour, 2, "reads what another program writes"),
        (into_the_neighbour, 2, "writes an element after it was read"),
        (read_back, 1, "reads what it wrote without a barrier"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_a_broken_rule_is_noticed(kernel: triton.JITFunction, programs: int, rule: str) -> None:
    x, beside = torch.arange(64.0)[16:32], torch.arange(64.0)[16:32]
    with pytest.raises(InterpreterError, match=rule):
        kernel[(programs,)](x, beside)


def test_kept_rules_are_not_complained_about() -> None:
    x, out = torch.arange(16.0), torch.empty(16)
    read_back_behind_a_barrier[(1,)](x, out)
    assert out.tolist() == [*range(8), *reversed(range(8))]
    copied[(2,)](torch.arange(2048.0), torch.empty(2048))

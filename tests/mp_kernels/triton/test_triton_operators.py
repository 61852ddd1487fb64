"""Every operator through its Triton kernel: results of the fallback, torch's own checker, poisoned memory."""

from __future__ import annotations

import math

import pytest
import torch

from mp_kernels import schemas
from mp_kernels.triton import IMPLEMENTATIONS
from support.operator_samples import SAMPLES


def test_every_operator_has_a_kernel() -> None:
    assert set(IMPLEMENTATIONS) == set(schemas.SCHEMAS)


def test_fresh_memory_is_poisoned_here_too() -> None:
    assert math.isnan(torch.ones(3).new_empty(2)[0])


@pytest.mark.parametrize("name", SAMPLES)
def test_results_are_the_fallback_s(name: str) -> None:
    for sample in SAMPLES[name]():
        with torch.no_grad():
            got = getattr(torch.ops.mp_kernels, name)(*sample)
        expected = getattr(schemas, name)(*sample)
        if isinstance(got, torch.Tensor):
            got, expected = [got], [expected]
        for x, y in zip(got, expected, strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name: str) -> None:
    for sample in SAMPLES[name]():
        torch.library.opcheck(getattr(torch.ops.mp_kernels, name).default, sample)

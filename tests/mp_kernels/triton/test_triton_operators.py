"""Every operator through its Triton kernel: results of the fallback, torch's own checker, poisoned memory."""

from __future__ import annotations

import math

import pytest
import torch

from mp_kernels import backends, schemas
from mp_kernels.triton import IMPLEMENTATIONS
from support.accuracy import assert_same_bits
from support.operator_samples import SAMPLES, assert_same_results, opcheck, results_of, spread


def test_every_operator_has_a_kernel() -> None:
    assert set(IMPLEMENTATIONS) == set(backends.IN_TRITON)


def test_fresh_memory_is_poisoned_here_too() -> None:
    assert math.isnan(torch.ones(3).new_empty(2)[0])


@pytest.mark.parametrize("name", SAMPLES)
def test_results_are_the_fallback_s(name: str) -> None:
    for sample in SAMPLES[name]():
        got = results_of(getattr(torch.ops.mp_kernels, name), sample)
        assert_same_results(name, got, results_of(getattr(schemas, name), sample))


@pytest.mark.parametrize("name", SAMPLES)
def test_strides_and_autocast_change_nothing(name: str) -> None:
    operator = getattr(torch.ops.mp_kernels, name)
    for sample in SAMPLES[name]():
        expected = results_of(operator, sample)
        with torch.autocast("cpu", torch.bfloat16):
            got = results_of(operator, spread(sample, name))
        assert_same_bits(got, expected)


@pytest.mark.parametrize("name", SAMPLES)
def test_opcheck(name: str) -> None:
    for sample in SAMPLES[name]():
        opcheck(name, sample)

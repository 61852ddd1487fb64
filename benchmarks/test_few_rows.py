"""Products of few rows, in which a library's time is the packing of the weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mp_kernels
from mp_kernels.int8 import pack_int8_weight_

LAYERS = 6  # weights in turns, as a model has them, since one alone would stay in the cache
OUTPUTS, FEATURES = 3072, 768


@pytest.mark.parametrize("rows", [4, 8, 16, 32, 55, 128, 256])
def test_float32(compare: Any, rows: int) -> None:
    """BERT-base's feed-forward, its first half."""
    x, bias = torch.randn(rows, FEATURES), torch.randn(OUTPUTS)
    weights = [torch.randn(OUTPUTS, FEATURES) for _ in range(LAYERS)]

    def all_by(linear: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], list[Tensor]]:
        return lambda: [linear(x, weight, bias) for weight in weights]

    compare(
        f"torch's linear layer over ours, {rows} rows of float32",
        {"torch": all_by(F.linear), "ours": all_by(mp_kernels.linear)},
        gigaflops=2e-9 * rows * OUTPUTS * FEATURES * LAYERS,
    )


@pytest.mark.parametrize("rows", [1, 8, 35, 128])
def test_int8(compare: Any, rows: int) -> None:
    """The same in int8, by weights that were packed before and by others."""
    factors = torch.randint(-127, 128, (rows, FEATURES), dtype=torch.int8), torch.rand(rows) / 127
    scales = torch.rand(OUTPUTS) / 127
    plain = [torch.randint(-127, 128, (OUTPUTS, FEATURES), dtype=torch.int8) for _ in range(LAYERS)]
    packed = [pack_int8_weight_(weight.clone()) for weight in plain]

    def all_by(weights: list[Tensor]) -> Callable[[], list[Tensor]]:
        return lambda: [mp_kernels.int8_linear(*factors, weight, scales) for weight in weights]

    compare(
        f"weights of int8 packed at each call over packed before, {rows} rows",
        {"at each call": all_by(plain), "before": all_by(packed)},
    )

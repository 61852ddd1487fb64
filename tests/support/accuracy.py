"""Bounds on the distance of an operator from its definition, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # importing it here would be too early for support.parity, which records the warnings
    from mp_kernels import Kept

Function = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]


def with_gradients(function: Function, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Results of ``function(*inputs)``, and the gradient of a weighted sum of their elements in every input.

    The weights are random multiples of 1/8, which every floating dtype holds exactly, so that runs in different dtypes
    differentiate the same sum.
    """
    leaves = [x.detach().requires_grad_() for x in inputs]
    results = function(*leaves)
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    generator = torch.Generator().manual_seed(1)
    weights = [(torch.randint(-16, 17, x.shape, generator=generator) / 8).to(x) for x in results]
    grads = torch.autograd.grad(results, leaves, weights, materialize_grads=True)
    return [x.detach() for x in results] + list(grads)


def assert_no_worse_than_plain(got: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> None:
    """Fails if the error exceeds twice that of the same maths in plain PyTorch plus one rounding of the largest value."""

    def error(x: torch.Tensor) -> float:
        return (x.double() - exact).abs().max().item() if exact.numel() else 0.0

    assert got.shape == exact.shape
    rounding = torch.finfo(got.dtype).eps * (exact.abs().max().item() if exact.numel() else 0.0)
    assert error(got) <= 2 * error(plain) + rounding


def assert_accurate(
    function: Function, definition: Function, plain: Function | None, inputs: Sequence[torch.Tensor]
) -> None:
    """Fails unless results and gradients of ``function`` are close to those of ``definition`` in float64.

    In float32 they must be within 1e-5. In half types they must be no worse than ``plain``, the same maths in the dtype of
    the inputs; it may be None for float32.
    """
    exact = with_gradients(definition, [x.double() for x in inputs])
    assert_near_exact(with_gradients(function, inputs), plain and with_gradients(plain, inputs), exact, inputs[0].dtype)


def assert_near_exact(
    got: Sequence[torch.Tensor],
    plain: Sequence[torch.Tensor] | None,
    exact: Sequence[torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Applies the bounds of :func:`assert_accurate` to results that are already there, for inputs of ``dtype``."""
    if dtype == torch.float32:
        for x, y in zip(got, exact, strict=True):
            torch.testing.assert_close(x, y.float(), atol=1e-5, rtol=0)
        return
    for x, y, z in zip(got, plain, exact, strict=True):
        assert_no_worse_than_plain(x, y, z)


def assert_same_bits(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, atol=0, rtol=0)


def plain_entropy(logits: torch.Tensor) -> torch.Tensor:
    """normalized_entropy in plain PyTorch, computed in the dtype of the logits."""
    log_p = torch.log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1])


def assert_kept(got: Kept, expected: Kept) -> None:
    """Fails unless two compactions are equal, in values and types."""
    assert (got.index.dtype, got.cu_seqlens.dtype, type(got.max_seqlen)) == (torch.int64, torch.int32, int)
    assert got.index.tolist() == expected.index.tolist()
    assert got.cu_seqlens.tolist() == expected.cu_seqlens.tolist()
    assert got.max_seqlen == expected.max_seqlen
    assert (got.samples is None) == (expected.samples is None)
    if got.samples is not None:
        assert got.samples.dtype == torch.int64
        assert got.samples.tolist() == expected.samples.tolist()

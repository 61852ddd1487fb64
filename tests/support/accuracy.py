"""How close an operator must come to its definition, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # support.parity loads the package later than this module
    from mp_kernels import Kept

Function = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]


def with_gradients(function: Function, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Results of ``function(*inputs)``, then the gradients of a random sum of their elements in every input.

    The weights of that sum are multiples of 1/8, which every floating dtype holds exactly: runs at different dtypes
    then differentiate the same sum.
    """
    leaves = [x.detach().requires_grad_() for x in inputs]
    results = function(*leaves)
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    generator = torch.Generator().manual_seed(1)
    weights = [(torch.randint(-16, 17, x.shape, generator=generator) / 8).to(x.dtype) for x in results]
    grads = torch.autograd.grad(results, leaves, weights, materialize_grads=True)
    return [x.detach() for x in results] + list(grads)


def assert_no_worse_than_plain(got: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> None:
    """At most twice the error of the same maths in plain PyTorch, and one rounding of the largest value."""

    def error(x: torch.Tensor) -> float:
        return (x.double() - exact).abs().max().item() if exact.numel() else 0.0

    assert got.shape == exact.shape
    rounding = torch.finfo(got.dtype).eps * (exact.abs().max().item() if exact.numel() else 0.0)
    assert error(got) <= 2 * error(plain) + rounding


def assert_accurate(
    function: Function, definition: Function, plain: Function | None, inputs: Sequence[torch.Tensor]
) -> None:
    """``function`` against ``definition`` in float64, results and gradients.

    float32: within 1e-5. Half types: no worse than ``plain``, the maths at the inputs' own dtype (None: only float32 is
    asked for).
    """
    exact = with_gradients(definition, [x.double() for x in inputs])
    assert_near_exact(with_gradients(function, inputs), plain and with_gradients(plain, inputs), exact, inputs[0].dtype)


def assert_near_exact(
    got: Sequence[torch.Tensor],
    plain: Sequence[torch.Tensor] | None,
    exact: Sequence[torch.Tensor],
    dtype: torch.dtype,
) -> None:
    """Results that came from inputs of ``dtype``, judged as :func:`assert_accurate` does."""
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
    """The maths of normalized_entropy at the logits' own dtype."""
    log_p = torch.log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum(-1) / math.log(logits.shape[-1])


def assert_kept(got: Kept, expected: Kept) -> None:
    """The same compaction, of the same types."""
    assert (got.index.dtype, got.cu_seqlens.dtype, type(got.max_seqlen)) == (torch.int64, torch.int32, int)
    assert got.index.tolist() == expected.index.tolist()
    assert got.cu_seqlens.tolist() == expected.cu_seqlens.tolist()
    assert got.max_seqlen == expected.max_seqlen
    assert (got.samples is None) == (expected.samples is None)
    if got.samples is not None:
        assert got.samples.dtype == torch.int64
        assert got.samples.tolist() == expected.samples.tolist()

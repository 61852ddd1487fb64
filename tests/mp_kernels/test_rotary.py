"""rotary_embedding: positions as rotations of pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import mp_kernels
from mp_kernels import reference
from support.accuracy import assert_accurate, assert_same_bits, with_gradients

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PLACES = 40


def tables(head_dim: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of the angles that models use, for ``PLACES`` places."""
    frequencies = 10000.0 ** (-torch.arange(head_dim // 2, dtype=torch.float64) * 2 / head_dim)
    angles = torch.arange(PLACES)[:, None] * frequencies
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rows_in(places: int, rows: int) -> torch.Tensor:
    """Random positions, int32."""
    return torch.randint(0, places, (rows,)).int()


def plain_rotation(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The same as the models write it, in x's dtype."""
    cos, sin = (torch.cat([t, t], 1)[positions.long()].unsqueeze(1).to(x.dtype) for t in tables(x.shape[2]))
    first, second = x.chunk(2, dim=2)
    return x * cos + torch.cat([-second, first], dim=2) * sin


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [2, 14, 16, 32, 48, 64, 128])
def test_against_the_definition(head_dim: int, dtype: torch.dtype) -> None:
    positions = rows_in(PLACES, 30)
    assert_accurate(
        lambda x: mp_kernels.rotary_embedding(x, positions, *tables(head_dim)),
        lambda x: reference.rotary_embedding(x, positions, *tables(head_dim)),
        lambda x: plain_rotation(x, positions),
        [torch.randn(30, 3, head_dim).to(dtype)],
    )


def test_by_hand() -> None:
    """A quarter turn of (1, 10) and half a turn of (2, 20), at place 1; nothing turns at place 0."""
    x = torch.tensor([1.0, 2.0, 10.0, 20.0]).expand(2, 1, 4)
    cos, sin = torch.tensor([[1.0, 1.0], [0.0, -1.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    turned = mp_kernels.rotary_embedding(x, torch.tensor([1, 0], dtype=torch.int32), cos, sin)
    assert turned.tolist() == [[[-10, -2, 1, -20]], [[1, 2, 10, 20]]]


def test_products_depend_on_distances_alone() -> None:
    q, k = torch.randn(1, 1, 64).expand(PLACES, 1, 64), torch.randn(1, 1, 64).expand(PLACES, 1, 64)
    places = torch.arange(PLACES).int()
    turned_q, turned_k = (mp_kernels.rotary_embedding(x, places, *tables(64))[:, 0] for x in (q, k))
    products = turned_q @ turned_k.t()
    for distance in (-7, 0, 20):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strided_views(dtype: torch.dtype) -> None:
    packed, positions, (cos, sin) = torch.randn(30, 3, 2, 20).to(dtype), rows_in(PLACES, 60), tables(20)
    wide = torch.stack([cos, sin], dim=-1)
    for x in (packed[:, 1], packed[:, 0].transpose(0, 1).contiguous().transpose(0, 1), packed[..., 0, :]):
        assert not x.is_contiguous()
        plain = with_gradients(lambda x: mp_kernels.rotary_embedding(x, positions[::2], cos, sin), [x.contiguous()])
        views = with_gradients(lambda x: mp_kernels.rotary_embedding(x, positions[::2], *wide.unbind(-1)), [x])
        assert_same_bits(views, plain)
        assert views[0].is_contiguous()


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_threads_change_nothing(with_threads: Callable, threads: int) -> None:
    x, positions = torch.randn(3000, 3, 64), rows_in(PLACES, 3000)
    single = mp_kernels.rotary_embedding(x, positions, *tables(64))
    many = with_threads(threads, lambda: mp_kernels.rotary_embedding(x, positions, *tables(64)))
    assert_same_bits([many], [single])
    assert_same_bits([mp_kernels.rotary_embedding(x[7:8], positions[7:8], *tables(64))], [single[7:8]])


def test_nothing_to_turn() -> None:
    rows = rows_in(PLACES, 0)
    results = with_gradients(lambda x: mp_kernels.rotary_embedding(x, rows, *tables(16)), [torch.randn(0, 2, 16)])
    assert [tuple(x.shape) for x in results] == [(0, 2, 16)] * 2


def test_gradcheck() -> None:
    x, positions = torch.randn(5, 2, 4, dtype=torch.float64, requires_grad=True), rows_in(PLACES, 5)
    turn = [positions, *tables(4, torch.float64)]
    assert torch.autograd.gradcheck(lambda x: mp_kernels.rotary_embedding(x, *turn), [x])


def test_turning_back() -> None:
    """The gradient of a rotation is the rotation back, and it has a gradient of its own."""
    x, positions, (cos, sin) = torch.randn(5, 2, 16, requires_grad=True), rows_in(PLACES, 5), tables(16)
    turned = mp_kernels.rotary_embedding(x, positions, cos, sin)
    torch.testing.assert_close(mp_kernels.rotary_embedding(turned, positions, cos, -sin), x, atol=1e-6, rtol=0)
    weight = torch.randn(5, 2, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(turned, x, weight, create_graph=True)
    (grad_of_weight,) = torch.autograd.grad(grad, weight, x.detach())
    torch.testing.assert_close(grad_of_weight, turned.detach(), atol=1e-6, rtol=0)


# ---- refusals ----

X = torch.zeros(3, 2, 4)
POSITIONS = torch.tensor([0, 1, 4], dtype=torch.int32)
TABLE = torch.zeros(5, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": X[:, 0]}, ValueError, r"x must have 3 dimensions; got float\d+ \[3, 4\]"),
        (
            {"x": X[..., :3]},
            ValueError,
            r"x must have .* an even head_dim, as pairs are turned; got float\d+ \[3, 2, 3\]",
        ),
        ({"x": X[:, :0]}, ValueError, r"x must have at least one head .* got float\d+ \[3, 0, 4\]"),
        ({"x": X[..., :0]}, ValueError, r"x must have .* an even head_dim, .* got float\d+ \[3, 2, 0\]"),
        ({"positions": POSITIONS.long()}, TypeError, r"positions must be int32; got int64 \[3\]"),
        ({"positions": POSITIONS[:2]}, ValueError, r"positions must have one entry per row, 3; got int32 \[2\]"),
        ({"positions": POSITIONS.to("meta")}, ValueError, r"positions must be on cpu .* on meta"),
        ({"positions": POSITIONS + 1}, RuntimeError, r"positions must lie in 0\.\.4; got 5"),
        ({"positions": POSITIONS - 1}, RuntimeError, r"positions must lie in 0\.\.4; got -1"),
        ({"cos": TABLE.half()}, TypeError, r"cos must be float\d+; got float16 \[5, 2\]"),
        ({"sin": TABLE.half()}, TypeError, r"sin must be float\d+; got float16 \[5, 2\]"),
        ({"cos": TABLE[:, :1]}, ValueError, r"cos must be \[places, head_dim / 2\], \[5, 2\]; got float\d+ \[5, 1\]"),
        ({"sin": TABLE[:4]}, ValueError, r"sin must be \[places, head_dim / 2\], \[5, 2\]; got float\d+ \[4, 2\]"),
    ],
)
def test_refused_arguments(changed: dict, error: type[Exception], message: str, dtype: torch.dtype) -> None:
    arguments = {"x": X, "positions": POSITIONS, "cos": TABLE, "sin": TABLE} | changed
    arguments = {name: x.to(dtype) if x.dtype == torch.float32 else x for name, x in arguments.items()}
    with pytest.raises(error, match=message):
        mp_kernels.rotary_embedding(**arguments)


def test_a_position_that_is_no_number_of_a_place() -> None:
    """As wide as int32 goes, on both sides."""
    for place in (-(2**31), 2**31 - 1):
        with pytest.raises(RuntimeError, match=rf"positions must lie in 0\.\.4; got {place}"):
            mp_kernels.rotary_embedding(X, torch.full((3,), place, dtype=torch.int32), TABLE, TABLE)


def test_nan_turns_to_nan_in_its_pair() -> None:
    x = X.clone()
    x[1, 1, 0] = math.nan
    turned = mp_kernels.rotary_embedding(x, POSITIONS, *(torch.ones(5, 2),) * 2)
    assert turned.isnan().nonzero().tolist() == [[1, 1, 0], [1, 1, 2]]

"""Products of int8 matrices and the steps around them, against their definitions and against exact arithmetic in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st

import mp_kernels
from mp_kernels import extension, reference
from mp_kernels import int8 as int8_functions
from mp_kernels.int8 import pack_int8_weight_, unpack_int8_weight
from support.accuracy import assert_same_bits
from support.operator_samples import factors, floats, for_first_rows, int8, int8_layer, int8_layers
from support.ragged_batches import cu_seqlens_of

# Around the widths of vectors, and of the buffer in which a row is kept between two passes.
WIDTHS = (1, 3, 4, 7, 8, 9, 15, 16, 17, 63, 64, 65, 768, 4079, 4080, 4081, 4096, 5000)


def assert_quantised(rows: torch.Tensor, scales: torch.Tensor, x: torch.Tensor) -> None:
    """Each row's scale is its largest magnitude over 127, and each value is off by half a scale at most."""
    assert rows.dtype == torch.int8
    assert scales.dtype == torch.float32
    exact = x.double()
    torch.testing.assert_close(scales.double(), exact.abs().amax(1) / 127, rtol=1e-6, atol=0)
    off = (rows.double() * scales.double()[:, None] - exact).abs()
    assert (off <= scales.double()[:, None] * (0.5 + 1e-4)).all()
    assert rows.abs().amax(1)[scales > 0].eq(127).all(), "the largest value of a row is 127, and -128 never occurs"


@pytest.mark.parametrize("width", WIDTHS)
def test_rows_of_every_width(width: int) -> None:
    x = torch.randn(5, width) * torch.tensor([1e-3, 1, 1e3, 1e6, 1e-6])[:, None]
    assert_quantised(*mp_kernels.quantize_rows(x), x)


def test_quantised_rows_are_those_of_the_definition() -> None:
    x = torch.randn(50, 100)
    for got, wanted in zip(mp_kernels.quantize_rows(x), reference.quantize_rows(x), strict=True):
        assert_same_bits(got, wanted)


def test_ties_go_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]])
    assert mp_kernels.quantize_rows(x)[0].tolist() == [[127, 0, 2, 2, 0, -2, -126]]


def test_rows_of_zeros_and_of_no_width() -> None:
    rows, scales = mp_kernels.quantize_rows(torch.zeros(2, 20))
    assert not rows.any()
    assert not scales.any()
    assert not mp_kernels.dequantize_rows(rows, scales).any()
    assert mp_kernels.quantize_rows(torch.zeros(3, 0))[1].tolist() == [0, 0, 0]
    assert mp_kernels.quantize_rows(torch.zeros(0, 8))[0].shape == (0, 8)


def test_tiny_rows_become_no_nonsense() -> None:
    """Below about 1e-37 a scale's inverse leaves float32; the values then are rounded towards 0."""
    x = torch.full((1, 20), 1e-42)
    rows, scales = mp_kernels.quantize_rows(x)
    assert (mp_kernels.dequantize_rows(rows, scales).abs() <= 1e-42).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 7, 18, 19])
def test_values_that_are_not_finite_are_not_lost(bad: float, place: int) -> None:
    x = torch.randn(3, 20)
    x[1, place] = bad
    scales = mp_kernels.quantize_rows(x)[1]
    assert scales.isnan().tolist() == [False, True, False]
    assert reference.quantize_rows(x)[1].isnan().tolist() == [False, True, False]


# Around tiles of 16 rows by 64 features, blocks of two by two of them, and the rows that a thread takes at a time.
SHAPES = (
    *((5, width, 7) for width in WIDTHS),
    *((rows, 48, 128) for rows in (0, 1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 128, 129, 300)),
    *((40, outputs, 64) for outputs in (16, 32, 48, 64, 15, 17, 33)),
    *((40, 32, features) for features in (64, 192, 63, 65, 100)),
    *((rows, 1536, 768) for rows in (33, 200)),  # a weight that is larger than the cache
)


@pytest.mark.parametrize(("rows", "outputs", "features"), SHAPES)
def test_linear_layers_of_every_shape(rows: int, outputs: int, features: int) -> None:
    left, row_scales, weight, column_scales = factors(rows, outputs, features)
    bias, norm_weight, offset = (torch.randn(outputs) for _ in range(3))
    residual, index = torch.randn(9, outputs), torch.randint(0, 9, (rows,))
    inputs = (left, row_scales, weight, column_scales, bias)
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    exact = reference.int8_linear(*wide)
    torch.testing.assert_close(mp_kernels.int8_linear(*inputs).double(), exact, rtol=1e-5, atol=1e-5)
    if rows:
        assert_quantised(*mp_kernels.int8_linear_gelu(*inputs), torch.nn.functional.gelu(exact))
    normed = mp_kernels.int8_linear_add_layer_norm(*inputs, residual, norm_weight, offset, 1e-2, index)
    wanted = reference.int8_linear_add_layer_norm(
        *wide, residual.double(), norm_weight.double(), offset.double(), 1e-2, index
    )
    torch.testing.assert_close(normed.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "outputs", "features"), SHAPES)
def test_products_are_exact(rows: int, outputs: int, features: int) -> None:
    """Integers below 2^24 have no error, and so neither have products with scales of 1; a row of a slice is where it is."""
    left, _, weight, _ = factors(rows, outputs + 16, features)
    found = mp_kernels.int8_linear(left, torch.ones(rows), weight[16:], torch.ones(outputs))
    assert torch.equal(found, (left.double() @ weight[16:].double().t()).float())


@pytest.mark.parametrize(("rows", "outputs", "features"), [shape for shape in SHAPES if shape[1] % 16 == 0])
def test_packed_weights_give_the_same_bits(rows: int, outputs: int, features: int) -> None:
    """Packed for this processor's products, for another's, or in a way that none has."""
    left, row_scales, weight, column_scales = factors(rows, outputs, features)
    norm = torch.randn(rows, outputs), torch.randn(outputs), torch.randn(outputs), 1e-2
    mine = pack_int8_weight_(weight.clone())
    groups = [group for group in (1, 2, 4, 8) if features % group == 0]
    others = [reference.pack_int8_weight(weight, group) for group in groups]
    assert mine.dim() == 2 or any(torch.equal(mine, other) for other in others)
    for packed in (mine, *others):
        assert torch.equal(unpack_int8_weight(packed), weight)
        for function, more in (
            (mp_kernels.int8_linear, ()),
            (mp_kernels.int8_linear_gelu, ()),
            (mp_kernels.int8_linear_add_layer_norm, (None, *norm)),
        ):
            found = function(left, row_scales, packed, column_scales, *more)
            wanted = function(left, row_scales, weight, column_scales, *more)
            found, wanted = ([x] if isinstance(x, torch.Tensor) else x for x in (found, wanted))
            for got, expected in zip(found, wanted, strict=True):
                assert_same_bits(got, expected)


@pytest.mark.parametrize(("outputs", "features"), [(16, 64), (48, 128), (768, 3072)])
def test_weights_are_packed_in_their_own_memory(outputs: int, features: int) -> None:
    weight = int8(outputs, features)
    before, group = weight.clone(), extension.int8_group(outputs, features)
    packed = pack_int8_weight_(weight)
    assert packed.data_ptr() == weight.data_ptr()
    assert packed.shape == ((outputs // 16, features // group, 16, group) if group else before.shape)
    assert torch.equal(packed, reference.pack_int8_weight(before, group) if group else before)
    assert pack_int8_weight_(packed) is packed, "what is packed stays as it is"


def test_weights_of_shapes_that_torch_multiplies_stay_as_they_are() -> None:
    for shape in ((15, 64), (16, 7)):
        weight = int8(*shape)
        assert pack_int8_weight_(weight) is weight
        assert unpack_int8_weight(weight) is weight


def test_linear_layers_without_a_bias() -> None:
    for depth in (7, 64):
        left, row_scales, weight, column_scales = factors(4, 32, depth)
        exact = left.int() @ weight.int().t()
        found = mp_kernels.int8_linear(left, row_scales, weight, column_scales)
        torch.testing.assert_close(found, exact * row_scales[:, None] * column_scales)


def test_pairs_of_extremes_are_exact() -> None:
    """Every pair of neighbours from the ends of int8's range, times every such pair, in each of a word's two places."""
    ends = torch.tensor([-128, -127, -65, -64, -1, 0, 1, 63, 64, 65, 126, 127], dtype=torch.int8)
    pairs = torch.cartesian_prod(ends, ends)
    for place in (0, 2, 30, 62):
        left, weight = torch.zeros(144, 64, dtype=torch.int8), torch.zeros(144, 64, dtype=torch.int8)
        left[:, place : place + 2] = weight[:, place : place + 2] = pairs
        exact = pairs.double() @ pairs.double().t()
        found = mp_kernels.int8_linear(left, torch.ones(144), weight, torch.ones(144))
        assert torch.equal(found.double(), exact)
        alike = pairs.repeat(1, 32)
        found = mp_kernels.int8_linear(alike, torch.ones(144), alike.contiguous(), torch.ones(144))
        assert torch.equal(found.double(), 32 * exact)


def test_large_products_are_exact() -> None:
    """The largest sum that 3,072 products can have is no integer of float32; its error is float32's."""
    left, weight = torch.full((1, 3072), -127, dtype=torch.int8), torch.full((16, 3072), 127, dtype=torch.int8)
    weight[3, 5], weight[4, 5] = -126, 126
    found = mp_kernels.int8_linear(left, torch.ones(1), weight, torch.ones(16))
    whole = -127 * 127 * 3072
    wanted = torch.full((16,), whole, dtype=torch.int64)
    wanted[3], wanted[4] = whole + 127 * 253, whole + 127
    assert torch.equal(found[0], wanted.float())


@pytest.mark.parametrize("width", WIDTHS)
def test_columns_are_kept(width: int) -> None:
    """The rest of a row is rounded as if they were 0, and they come back as they are, in the order asked for."""
    x, columns = torch.randn(5, width), torch.tensor([width - 1, 0, width // 2])
    x[:, 0] *= 1000
    rows, scales, kept = mp_kernels.quantize_rows(x, torch.tensor([4, 0]), columns=columns)
    x = x[[4, 0]]
    assert_same_bits(kept, x[:, columns])
    for got, wanted in zip((rows, scales), mp_kernels.quantize_rows(x.index_fill(1, columns, 0)), strict=True):
        assert_same_bits(got, wanted)


@pytest.mark.parametrize("columns", [0, 1, 4, 5, 9])
@pytest.mark.parametrize(("rows", "outputs", "features"), [(5, 7, 7), (40, 48, 128), (33, 50, 65)])
def test_kept_columns_are_multiplied(rows: int, outputs: int, features: int, columns: int) -> None:
    inputs = (*factors(rows, outputs, features), torch.randn(outputs))
    kept, kept_weight = torch.randn(rows, columns), torch.randn(outputs, columns)
    wide = [x.double() if x.is_floating_point() else x for x in (*inputs, kept, kept_weight)]
    exact = reference.int8_linear(*wide)
    torch.testing.assert_close(mp_kernels.int8_linear(*inputs, kept, kept_weight).double(), exact, rtol=1e-5, atol=1e-5)
    ends = torch.tensor([outputs - 1, 0])
    found, scales, ends_kept = mp_kernels.int8_linear_gelu(*inputs, kept, kept_weight, columns=ends)
    grown = torch.nn.functional.gelu(exact)
    assert_quantised(found, scales, grown.index_fill(1, ends, 0))
    torch.testing.assert_close(ends_kept.double(), grown[:, ends], rtol=1e-5, atol=1e-5)
    residual, norm = torch.randn(rows, outputs), (torch.randn(outputs), torch.randn(outputs))
    normed = mp_kernels.int8_linear_add_layer_norm(*inputs, residual, *norm, 1e-2, None, kept, kept_weight)
    wanted = reference.add_layer_norm(exact, residual.double(), *(x.double() for x in norm), 1e-2)
    torch.testing.assert_close(normed.double(), wanted, rtol=1e-4, atol=1e-4)


def test_rows_come_back() -> None:
    x = torch.randn(6, 33)
    rows, scales = mp_kernels.quantize_rows(x)
    again = mp_kernels.dequantize_rows(rows, scales, torch.tensor([5, 0, 0]))
    assert_same_bits(again, (rows.float() * scales[:, None])[[5, 0, 0]])


def chain(x: torch.Tensor, weight: torch.Tensor, column_scales: torch.Tensor) -> torch.Tensor:
    """A feed-forward, from rows to rows."""
    rows, scales = mp_kernels.quantize_rows(x)
    rows, scales = mp_kernels.int8_linear_gelu(rows, scales, weight, column_scales)
    ones = torch.ones(x.shape[1])
    return mp_kernels.int8_linear_add_layer_norm(
        rows, scales, weight.t().contiguous(), ones, None, x, ones, torch.zeros(x.shape[1]), 1e-12
    )


@given(seed=st.integers(0, 1000), count=st.integers(1, 70), features=st.sampled_from([48, 64]))
def test_a_row_does_not_depend_on_its_companions(seed: int, count: int, features: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, features, generator=generator)
    weight, scales = mp_kernels.quantize_rows(torch.randn(128, features))
    order = torch.randperm(count, generator=generator)
    whole = chain(x, weight, scales)
    assert_same_bits(chain(x[order], weight, scales), whole[order])
    assert_same_bits(torch.cat([chain(row[None], weight, scales) for row in x]), whole)


def test_threads_change_nothing() -> None:
    x, (weight, scales) = torch.randn(300, 768), mp_kernels.quantize_rows(torch.randn(1024, 768))
    alone = chain(x, weight, scales)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_same_bits(chain(x, weight, scales), alone)
    finally:
        torch.set_num_threads(threads)


# Around the rows that a thread takes at a time, and those that share a layer's outputs among the threads.
COUNTS = (0, 1, 2, 4, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 193, 300)


def post_norm(rows: int, inner: int, kept: int, packed: bool = False) -> dict:
    """Random arguments of a layer's rest, with a residual of other rows; packed: its weights, as they are loaded."""
    layers = {"dense": int8_layer(32, 64, kept), "grow": int8_layer(inner, 32, kept), "shrink": int8_layer(32, inner)}
    if packed:
        layers = {name: [pack_int8_weight_(weight), *others] for name, (weight, *others) in layers.items()}
    norms = {"dense_norm": floats(32), "dense_eps": 1e-2, "norm": floats(32), "eps": 1e-2}
    index = torch.randint(0, 9, (rows,))
    return {"x": torch.randn(rows, 64), "residual": torch.randn(9, 32), "index": index, **layers, **norms}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kept", [0, 2])
@pytest.mark.parametrize("rows", COUNTS)
def test_layers_have_the_bits_of_their_steps(
    rows: int, kept: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = post_norm(rows, 64, kept, packed=True)
    x, dense = arguments["x"], arguments["dense"]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = mp_kernels.int8_post_norm_rest(**arguments), mp_kernels.int8_dynamic_linear(x, dense)
        alone = [mp_kernels.int8_dynamic_linear(row[None], dense) for row in x]
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(int8_functions, "_in_kernels", lambda *_: False)
    wanted = mp_kernels.int8_post_norm_rest(**arguments), mp_kernels.int8_dynamic_linear(x, dense)
    for got, expected in zip(found, wanted, strict=True):
        assert_same_bits(got, expected)
    assert_same_bits(torch.cat([*alone, wanted[1][:0]]), wanted[1])


LENGTHS = (
    *([], [0], [1], [2, 1, 1], [17], [32, 0, 1], [64], [65, 3], [128, 1], [40, 100, 3, 60], [1, 300]),
    2
    * [40, 0, 100, 3, 60, 61, 64, 1, 64, 0, 30, 128, 5, 90],  # in groups, each of which a thread takes through a layer
)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kept", [0, 2])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_whole_layers_have_the_bits_of_their_steps(
    lengths: list[int], kept: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the number of threads, and whatever a sample's companions."""
    cu_seqlens, x = cu_seqlens_of(lengths), torch.randn(sum(lengths), 32)
    heads, projections, *rest = int8_layers(32, 2, 64, kept)

    of_all = x, cu_seqlens, max([0, *lengths]), heads, projections, *rest

    def layer_of(x: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
        return mp_kernels.int8_post_norm_layer(x, cu_seqlens, max([0, *lengths]), heads, projections, *rest)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = layer_of(x, cu_seqlens)
        alone = [layer_of(own, cu_seqlens_of([len(own)])) for own in x.split(lengths)]
    finally:
        torch.set_num_threads(before)
    assert_same_bits(torch.cat([*alone, found[:0]]), found)
    q, k, v = mp_kernels.int8_dynamic_linear(x, projections).view(-1, 3, heads, 16).unbind(1)
    context, _ = mp_kernels.ragged_attention(q, k, v, cu_seqlens, max([0, *lengths]))
    assert_same_bits(found, mp_kernels.int8_post_norm_rest(context.flatten(1), x, *rest))
    x, cu_seqlens, longest, *layers = for_first_rows(x, cu_seqlens, max([0, *lengths]), heads, projections, *rest)
    whole = found[cu_seqlens[:-1].long()]
    for of_thread in {1, threads}:
        try:
            torch.set_num_threads(of_thread)
            assert_same_bits(whole, mp_kernels.int8_post_norm_first(x, cu_seqlens, longest, *layers))
        finally:
            torch.set_num_threads(before)
    monkeypatch.setattr(int8_functions, "_in_kernels", lambda *_: False)
    assert_same_bits(found, mp_kernels.int8_post_norm_layer(*of_all))
    assert_same_bits(whole, mp_kernels.int8_post_norm_first(x, cu_seqlens, longest, *layers))


@pytest.mark.parametrize("inner", [64, 48, 5])
@pytest.mark.parametrize("kept", [0, 1, 4])
def test_whole_layers_are_near_their_definition(inner: int, kept: int) -> None:
    """By the operator itself, whatever the shape, and by what is chosen for it; an integer may be rounded away."""
    x, cu_seqlens = torch.randn(40, 32), cu_seqlens_of([17, 0, 1, 22])
    layers = int8_layers(32, 2, inner, kept)
    wide = pytree.tree_map_only(
        torch.Tensor, lambda y: y.double() if y.is_floating_point() else y, (x, cu_seqlens, 22, *layers)
    )
    exact = reference.int8_post_norm_layer(*wide)
    for function in (mp_kernels.int8_post_norm_layer, torch.ops.mp_kernels.int8_post_norm_layer):
        found = function(x, cu_seqlens, 22, *layers)
        assert (found - exact).abs().max() < 0.1
        assert (found - exact).abs().mean() < 2e-3


@pytest.mark.parametrize("inner", [64, 48, 5])
@pytest.mark.parametrize("kept", [0, 1, 4])
def test_layers_are_near_their_definition(inner: int, kept: int) -> None:
    """By the operators themselves, whatever the shape, and by what is chosen for it; an integer may be rounded away."""
    arguments = post_norm(40, inner, kept)
    wide = {
        name: [y.double() if y.is_floating_point() else y for y in x] if isinstance(x, list) else x
        for name, x in arguments.items()
    } | {"x": arguments["x"].double(), "residual": arguments["residual"].double()}
    exact = reference.int8_post_norm_rest(**wide)
    schema = torch.ops.mp_kernels.int8_post_norm_rest.default._schema
    direct = torch.ops.mp_kernels.int8_post_norm_rest(*(arguments[x.name] for x in schema.arguments))
    for found in (mp_kernels.int8_post_norm_rest(**arguments), direct):
        assert (found - exact).abs().max() < 0.05
        assert (found - exact).abs().mean() < 1e-3
    linear, rows = arguments["dense"], wide["x"]
    exact = reference.int8_dynamic_linear(rows, wide["dense"])
    for found in (
        mp_kernels.int8_dynamic_linear(arguments["x"], linear),
        torch.ops.mp_kernels.int8_dynamic_linear(arguments["x"], linear),
    ):
        torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


def test_layers_keep_what_is_not_finite_in_its_row() -> None:
    arguments = post_norm(40, 64, 0)
    clean = mp_kernels.int8_post_norm_rest(**arguments)
    arguments["x"][7, 3], arguments["x"][39, 40] = torch.nan, torch.inf
    spoilt = mp_kernels.int8_post_norm_rest(**arguments)
    assert not spoilt[[7, 39]].isfinite().any()
    others = [row for row in range(40) if row not in (7, 39)]
    assert_same_bits(spoilt[others], clean[others])


BAD_LAYERS = {
    "x": (torch.ones(3, 63), "x must be .*64"),
    "residual": (torch.ones(9, 33), "residual"),
    "index": (torch.tensor([0, 9, 1]), r"index must lie in 0\.\.8; got 9"),
    "dense": (int8_layer(32, 64)[:2], "dense must be .* got 2 tensors"),
    "grow": (int8_layer(64, 48), "the layers must fit each other"),
    "shrink": ([*int8_layer(32, 64)[:2], torch.ones(31)], r"bias must be \[32\]"),
    "norm": ([torch.ones(32)], r"a LayerNorm must be \[weight, bias\]; got 1"),
    "dense_norm": ([torch.ones(32), torch.ones(31)], r"a LayerNorm's bias must be \[32\]"),
}


@pytest.mark.parametrize("name", BAD_LAYERS)
def test_bad_layers_are_refused(name: str) -> None:
    value, message = BAD_LAYERS[name]
    arguments = post_norm(3, 64, 0) | {name: value}
    schema = torch.ops.mp_kernels.int8_post_norm_rest.default._schema
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mp_kernels.int8_post_norm_rest(*(arguments[x.name] for x in schema.arguments))


BAD_WHOLES = {
    "x": (torch.ones(4, 31), "x must be .* of layers that fit each other"),
    "cu_seqlens": (torch.tensor([0, 2, 5], dtype=torch.int32), r"the last entry of cu_seqlens must be .* 4; got 5"),
    "max_seqlen": (2, "max_seqlen must be at least the longest sample, 3; got 2"),
    "heads": (5, "projections must be of 5 heads; got 32 outputs for the queries"),
    "projections": (int8_layer(96, 64), "x must be .* of layers that fit each other"),
    "dense": (int8_layer(32, 64), "x must be .* of layers that fit each other"),
    "grow": (int8_layer(64, 48), "the layers must fit each other"),
    "norm": ([torch.ones(32)], r"a LayerNorm must be \[weight, bias\]; got 1"),
}


@pytest.mark.parametrize("name", BAD_WHOLES)
def test_bad_whole_layers_are_refused(name: str) -> None:
    value, message = BAD_WHOLES[name]
    names = [x.name for x in torch.ops.mp_kernels.int8_post_norm_layer.default._schema.arguments]
    good = torch.randn(4, 32), cu_seqlens_of([3, 1]), 3, *int8_layers(32, 2, 64)
    arguments = dict(zip(names, good, strict=True)) | {name: value}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mp_kernels.int8_post_norm_layer(*arguments.values())


@pytest.mark.parametrize("features", [1, 7, 16, 33, 768])
@pytest.mark.parametrize(("rows", "outputs"), [(0, 3), (1, 1), (5, 4), (18, 9), (37, 20)])
def test_ordered_linear(rows: int, outputs: int, features: int) -> None:
    """Near the exact result, and every row the same alone as among others."""
    x, weight, bias = torch.randn(rows, features), torch.randn(outputs, features) / features**0.5, torch.randn(outputs)
    got = mp_kernels.ordered_linear(x, weight, bias)
    exact = reference.ordered_linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(got.double(), exact, atol=1e-5, rtol=0)
    for row, alone in zip(got, x, strict=True):
        assert_same_bits(mp_kernels.ordered_linear(alone[None], weight, bias)[0], row)


VECTOR = torch.ones(5)
BAD: list[tuple[Callable, tuple, type[Exception], str]] = [
    (mp_kernels.quantize_rows, (torch.ones(3, 5).double(),), TypeError, "x must be float32"),
    (mp_kernels.quantize_rows, (torch.ones(5),), ValueError, "x must have 2 dimensions"),
    (mp_kernels.quantize_rows, (torch.ones(3, 5), torch.tensor([3])), RuntimeError, "index must lie in 0..2; got 3"),
    (
        lambda x: mp_kernels.quantize_rows(x, columns=torch.tensor([5])),
        (torch.ones(3, 5),),
        RuntimeError,
        r"columns must lie in 0\.\.4; got 5",
    ),
    (mp_kernels.dequantize_rows, (torch.ones(3, 5), torch.ones(3)), TypeError, "rows must be int8"),
    (mp_kernels.dequantize_rows, (int8(3, 5), torch.ones(2)), ValueError, r"scales must be \[3\]"),
    (mp_kernels.int8_linear, (torch.ones(3, 7), *factors(3, 5)[1:]), TypeError, "rows must be int8"),
    (mp_kernels.int8_linear, (int8(3, 8), *factors(3, 5)[1:]), ValueError, "the same features"),
    (mp_kernels.int8_linear, (*factors(3, 5), torch.ones(4)), ValueError, r"bias must be \[5\]"),
    (
        mp_kernels.int8_linear,
        (int8(3, 8), torch.ones(3), int8(1, 4, 8, 2), torch.ones(8)),
        ValueError,
        r"weight must be packed as \[outputs / 16, features / group, 16, group\]; got int8 \[1, 4, 8, 2\]",
    ),
    (mp_kernels.int8_linear, (int8(3, 8), torch.ones(3), int8(1, 4, 16), torch.ones(16)), ValueError, "2 dimensions"),
    (pack_int8_weight_, (torch.ones(16, 64),), TypeError, "weight must be int8"),
    (pack_int8_weight_, (int8(64, 16).t(),), ValueError, r"weight must be contiguous; got strides \[1, 16\]"),
    (unpack_int8_weight, (int8(16),), ValueError, "weight must have 2 dimensions"),
    (mp_kernels.int8_linear, (*factors(3, 5), None, torch.ones(3, 2)), ValueError, "given together"),
    (
        mp_kernels.int8_linear,
        (*factors(3, 5), None, torch.ones(3, 2), torch.ones(5, 3)),
        ValueError,
        r"kept_weight \[5, columns\]",
    ),
    (mp_kernels.int8_linear_gelu, (int8(3, 7), VECTOR, *factors(3, 5)[2:]), ValueError, r"row_scales must be \[3\]"),
    (
        mp_kernels.int8_linear_add_layer_norm,
        (*factors(3, 5), None, torch.ones(2, 5), VECTOR, VECTOR, 1e-5),
        ValueError,
        "the same rows",
    ),
    (
        mp_kernels.int8_linear_add_layer_norm,
        (*factors(3, 5), None, torch.ones(3, 4), VECTOR, VECTOR, 1e-5),
        ValueError,
        "the width 5",
    ),
]


@pytest.mark.parametrize(("function", "arguments", "error", "message"), BAD)
def test_bad_arguments(function: Callable, arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(*arguments)


def test_gradients_are_refused() -> None:
    with pytest.raises(RuntimeError, match="have no gradient"):
        mp_kernels.quantize_rows(torch.ones(3, 5, requires_grad=True))
    with torch.inference_mode():
        mp_kernels.quantize_rows(torch.ones(3, 5, requires_grad=True))

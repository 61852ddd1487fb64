"""Linear layers and the steps around them: by our own kernels where the processor has them, else by torch's products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from hypothesis import given
from hypothesis import strategies as st

import mp_kernels
from mp_kernels import extension, products, reference
from mp_kernels.products import row_blocks
from support.accuracy import assert_accurate, assert_no_worse_than_plain, assert_same_bits
from support.operator_samples import apart, float_layers, for_first_rows, int8_layers
from support.ragged_batches import cu_seqlens_of

COUNTS = (0, 1, 15, 16, 17, 48, 49, 63, 64, 65, 80, 81, 127, 1023, 1024, 1025, 1088, 2047, 5000)
HALVES = pytest.mark.skipif(not extension.multiplies_bfloat16(64, 64), reason="this processor multiplies no bfloat16")


def test_blocks_cover_all_rows_and_their_sizes_recur() -> None:
    sizes = set()
    for count in range(20_001):
        blocks = row_blocks(count)
        places = [place for block in blocks for place in (block.begin, block.end)]
        assert places[1:-1:2] == places[2::2], count
        assert not places or (places[0], places[-1]) == (0, count), count
        assert all(0 <= block.rows - (block.end - block.begin) < 16 for block in blocks), count
        assert len(blocks) <= 3
        sizes |= {block.rows for block in blocks}
    assert len(sizes) == 3 + 15 + 19  # 16 to 48; 64 to 960; 1,024 to 19 x 1,024


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("count", COUNTS)
def test_product_is_exact_to_its_type(count: int, with_bias: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(count)
    x, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in ((count, 40), (24, 40), (24,)))
    with torch.inference_mode():
        found = mp_kernels.linear(x, weight, bias if with_bias else None)
    wanted = x.double() @ weight.double().t() + (bias.double() if with_bias else 0)
    assert found.dtype == dtype
    assert found.shape == (count, 24)
    summands = x.double().abs() @ weight.double().abs().t() + bias.double().abs()
    assert ((found.double() - wanted).abs() <= 2 * torch.finfo(dtype).eps * summands).all()


def test_rows_of_a_wider_matrix_are_read_where_they_lie() -> None:
    rows = torch.randn(70, 96).bfloat16()
    with torch.inference_mode():
        found = mp_kernels.linear(rows[:, 32:64], torch.eye(32).bfloat16())
    assert torch.equal(found, rows[:, 32:64])


def test_gradients_go_through_one_product() -> None:
    x, weight = torch.randn(70, 8).bfloat16(), torch.randn(4, 8).bfloat16().requires_grad_()
    mp_kernels.linear(x, weight).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(4, 8), rtol=0.02, atol=0.1)


# Around tiles of 16 rows by 32 features, blocks of two by two of them, and the rows of a task; for few rows the rows are
# packed, for many the weight.
SHAPES = (
    *((rows, 48, 64) for rows in (0, 1, 4, 5, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257)),
    *((rows, 256, 96) for rows in (40, 41, 300)),
    *((40, outputs, 64) for outputs in (16, 32, 15, 17, 33)),
    *((40, 32, features) for features in (32, 96, 63, 65, 100)),
    *((rows, 768, 1600) for rows in (33, 700)),  # a feed-forward's inner layer is not kept whole
    (1760, 256, 64),
)
WIDE = 1e-2  # added to the variance


def layer(rows: int, outputs: int, features: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    """Rows, weight and bias."""
    x, weight, bias = torch.randn(rows, features), torch.randn(outputs, features) / features**0.5, torch.randn(outputs)
    return [t.to(dtype) for t in (x, weight, bias)]


def norm(width: int, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    """Weight and bias of a LayerNorm."""
    return [torch.randn(width).to(dtype), torch.randn(width).to(dtype)]


def plain_norm(x, weight, bias, residual, norm_weight, norm_bias, index=None):
    added = F.linear(x, weight, bias) + (residual if index is None else residual[index])
    return F.layer_norm(added, weight.shape[:1], norm_weight, norm_bias, WIDE)


def plain_feed_forward(x, grow_weight, grow_bias, *rest):
    return plain_norm(F.gelu(F.linear(x, grow_weight, grow_bias)), *rest[:2], x, *rest[2:])


# Around rows of half a vector, a vector, panels and blocks of rows, and the fewest and most that are few; around strips of
# outputs, and depths of a sum.
FEW_SHAPES = (
    *((rows, 64, 48) for rows in (0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 127, 128, 129, 143, 255, 256, 257, 700)),
    *((rows, 56, 48) for rows in (23, 24, 25, 31, 32, 33, 40, 41, 56, 57)),
    *((20, outputs, 64) for outputs in (1, 8, 15, 16, 24, 32, 40, 47, 48, 72)),
    *((20, 32, features) for features in (1, 8, 12, 16, 63, 64, 760, 768, 776, 1536, 1600)),
    (55, 384, 1536),
)


@pytest.mark.parametrize(("rows", "outputs", "features"), FEW_SHAPES)
def test_few_rows_of_every_shape(rows: int, outputs: int, features: int) -> None:
    inputs, index = layer(rows, outputs, features, torch.float32), torch.randint(0, 9, (rows,))
    exact = [x.double() for x in inputs]
    residual, after = torch.randn(9, outputs), norm(outputs, torch.float32)
    back = [*layer(0, features, outputs, torch.float32)[1:], *norm(features, torch.float32)]
    with torch.inference_mode():
        for got, wanted in (
            (mp_kernels.linear(*inputs), reference.linear(*exact)),
            (mp_kernels.linear(*inputs[:2]), reference.linear(*exact[:2])),
            (
                mp_kernels.linear_add_layer_norm(*inputs, residual, *after, WIDE, index),
                reference.linear_add_layer_norm(*exact, residual.double(), *(x.double() for x in after), WIDE, index),
            ),
            (
                mp_kernels.feed_forward(*inputs, *back, WIDE),
                reference.feed_forward(*exact, *(x.double() for x in back), WIDE),
            ),
        ):
            torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=2e-5)


def post_norm(rows: int, width: int, inner: int, features: int, dtype: torch.dtype = torch.float32) -> list:
    """Random arguments of a layer's rest, with a residual of other rows."""
    x, *dense = layer(rows, width, features, dtype)
    grow, (shrink, _) = layer(0, inner, width, dtype)[1:], layer(0, width, inner, dtype)[1:]
    residual, index = torch.randn(9, width).to(dtype), torch.randint(0, 9, (rows,))
    return [x, residual, dense, norm(width, dtype), WIDE, grow, [shrink], norm(width, dtype), WIDE, index]


def in_steps(x, residual, dense, dense_norm, dense_eps, grow, shrink, last_norm, eps, index):
    """A layer's rest, by the functions that it is made of."""
    attended = mp_kernels.linear_add_layer_norm(x, *dense, residual, *dense_norm, dense_eps, index)
    return mp_kernels.feed_forward(attended, *grow, *shrink, None, *last_norm, eps)


def in_float64(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


REST_SHAPES = (
    *((rows, 48, 64, 32) for rows in (0, 1, 3, 4, 5, 15, 16, 17, 55, 128, 129, 255, 256, 257)),
    *((20, *shape) for shape in ((384, 1536, 384), (47, 64, 32), (48, 63, 32), (48, 64, 31))),
)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", REST_SHAPES)
def test_the_rest_of_a_layer_has_the_bits_of_its_steps(shape: tuple[int, ...], threads: int) -> None:
    """In float32 and in bfloat16; by the operator itself also where there are no kernels for the shape."""
    before = torch.get_num_threads()
    for dtype in (torch.float32, torch.bfloat16):
        x, residual, *layers, index = arguments = post_norm(*shape, dtype)
        with torch.inference_mode():
            alone = in_steps(*arguments)
            try:
                torch.set_num_threads(threads)
                found, wanted = mp_kernels.post_norm_rest(*arguments), in_steps(*arguments)
                direct = torch.ops.mp_kernels.post_norm_rest(x, residual, index, *layers)
                ours = products.in_kernels(x, *(weight for weight, *_ in (layers[0], *layers[3:5])))
            finally:
                torch.set_num_threads(before)
        assert_same_bits(found, wanted)
        if ours:
            assert_same_bits(found, alone)
        exact = reference.post_norm_rest(*pytree.tree_map_only(torch.Tensor, in_float64, arguments))
        apart = {torch.float32: 2e-5, torch.bfloat16: 0.1}[dtype]
        torch.testing.assert_close(direct.double(), exact, rtol=apart, atol=apart)


LENGTHS = ([], [0], [1], [3], [4], [2, 1, 1], [17], [16, 0, 1, 15], [55], [128, 5], [256], [1, 255, 3])


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_layer_has_the_bits_of_its_steps(lengths: list[int], threads: int) -> None:
    """Where our kernels compute it, whatever the number of threads; near its definition everywhere."""
    cu_seqlens, total, longest = cu_seqlens_of(lengths), sum(lengths), max([0, *lengths])
    before = torch.get_num_threads()
    for dtype, width in ((torch.float32, 32), (torch.bfloat16, 64), (torch.float32, 30)):
        x = torch.randn(total, width).to(dtype)
        heads, projections, *rest = float_layers(width, 2, 48, dtype)
        with torch.inference_mode():
            ours = products.in_kernels(x, projections[0], *(weight for weight, *_ in (rest[0], *rest[3:5])))
            alone = mp_kernels.post_norm_layer(x, cu_seqlens, longest, heads, projections, *rest)
            try:
                torch.set_num_threads(threads)
                found = mp_kernels.post_norm_layer(x, cu_seqlens, longest + 3, heads, projections, *rest)
                direct = torch.ops.mp_kernels.post_norm_layer(x, cu_seqlens, longest, heads, projections, *rest)
                q, k, v = mp_kernels.linear(x, *projections).view(total, 3, heads, width // heads).unbind(1)
                context, _ = mp_kernels.ragged_attention(q, k, v, cu_seqlens, longest)
                wanted = mp_kernels.post_norm_rest(context.flatten(1), x, *rest)
            finally:
                torch.set_num_threads(before)
        assert_same_bits(found, wanted)
        if ours:
            assert_same_bits(found, alone)
        of_first = for_first_rows(x, cu_seqlens, longest, heads, projections, *rest)
        with torch.inference_mode():
            first = mp_kernels.post_norm_first(*of_first)
            direct_first = torch.ops.mp_kernels.post_norm_first(*of_first)
        wide = pytree.tree_map_only(torch.Tensor, in_float64, (x, cu_seqlens, longest, heads, projections, *rest))
        apart = {torch.float32: 5e-5, torch.bfloat16: 0.2}[dtype]
        exact = reference.post_norm_layer(*wide)
        torch.testing.assert_close(direct.double(), exact, rtol=apart, atol=apart)
        for some in (first, direct_first):
            torch.testing.assert_close(some.double(), exact[of_first[1][:-1].long()], rtol=apart, atol=apart)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("lengths", [lengths for lengths in LENGTHS if 0 not in lengths])
def test_first_rows_have_the_bits_of_their_steps(lengths: list[int], threads: int) -> None:
    """Where our kernels compute them, whatever the number of threads."""
    cu_seqlens, total, longest = cu_seqlens_of(lengths), sum(lengths), max([0, *lengths])
    before = torch.get_num_threads()
    for dtype, width in ((torch.float32, 32), (torch.bfloat16, 64), (torch.float32, 30)):
        x, (heads, projections, *rest) = torch.randn(total, width).to(dtype), float_layers(width, 2, 48, dtype)
        queries, keys_values = apart(projections)
        with torch.inference_mode():
            ours = products.in_kernels(x, projections[0], *(weight for weight, *_ in (rest[0], *rest[3:5])))
            alone = mp_kernels.post_norm_first(x, cu_seqlens, longest, heads, queries, keys_values, *rest)
            try:
                torch.set_num_threads(threads)
                found = mp_kernels.post_norm_first(x, cu_seqlens, longest, heads, queries, keys_values, *rest)
                first = x[cu_seqlens[:-1].long()]
                asking, answering = mp_kernels.linear(first, *queries), mp_kernels.linear(x, *keys_values)
                q, k, v = (part.unflatten(1, (heads, -1)) for part in (asking, *answering.chunk(2, dim=1)))
                starts = torch.arange(len(lengths) + 1, dtype=torch.int32)
                context, _ = mp_kernels.ragged_attention(q, k, v, cu_seqlens, longest, cu_seqlens_q=starts)
                wanted = mp_kernels.post_norm_rest(context.flatten(1), first, *rest)
            finally:
                torch.set_num_threads(before)
        assert_same_bits(found, wanted)
        if ours:
            assert_same_bits(found, alone)


@pytest.mark.parametrize(("name", "lengths"), [("post_norm_layer", [3, 0, 1, 5]), ("post_norm_first", [3, 1, 5])])
def test_gradients_of_a_layer(name: str, lengths: list[int]) -> None:
    cu_seqlens, x = cu_seqlens_of(lengths), torch.randn(9, 6)
    heads, projections, dense, first, _, grow, shrink, last, _ = float_layers(6, 2, 5)

    def layer_of(module, x, *tensors):
        projections, dense, first, grow, last = (tensors[i : i + 2] for i in (0, 2, 4, 6, 9))
        asking = apart(projections) if name == "post_norm_first" else [projections]
        rest = dense, first, WIDE, grow, tensors[8:9], last, WIDE
        return getattr(module, name)(x, cu_seqlens, 5, heads, *asking, *rest)

    assert_accurate(
        lambda *xs: layer_of(mp_kernels, *xs),
        lambda *xs: layer_of(reference, *xs),
        None,
        [x, *projections, *dense, *first, *grow, *shrink, *last],
    )


BAD_WHOLES = {
    "x": (torch.ones(4, 31), "a weight must be"),
    "cu_seqlens": (torch.tensor([0, 2, 5], dtype=torch.int32), r"the last entry of cu_seqlens must be .* 4; got 5"),
    "max_seqlen": (2, "max_seqlen must be at least the longest sample, 3; got 2"),
    "heads": (5, "projections must be of 5 heads; got 32 outputs for the queries"),
    "projections": ([torch.ones(95, 32)], "queries, keys and values; got 95 outputs"),
    "dense": ([torch.ones(32, 31)], "a weight must be"),
    "norm": ([torch.ones(32)], r"a LayerNorm must be \[weight, bias\]"),
}


@pytest.mark.parametrize("name", BAD_WHOLES)
def test_bad_layers_are_refused(name: str) -> None:
    """By the compiled operator, whatever its caller looked at."""
    value, message = BAD_WHOLES[name]
    names = [x.name for x in torch.ops.mp_kernels.post_norm_layer.default._schema.arguments]
    good = torch.randn(4, 32), cu_seqlens_of([3, 1]), 3, *float_layers(32, 2, 48)
    arguments = dict(zip(names, good, strict=True)) | {name: value}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mp_kernels.post_norm_layer(*arguments.values())


def test_first_rows_must_be_there() -> None:
    for layers, operator in (
        (float_layers(32, 2, 48), torch.ops.mp_kernels.post_norm_first),
        (int8_layers(32, 2, 48), torch.ops.mp_kernels.int8_post_norm_first),
    ):
        heads, projections, *rest = layers
        queries, keys_values = apart(projections)
        starts = cu_seqlens_of([3, 0, 1])
        with pytest.raises(RuntimeError, match="each sample must have a row; got none for sample 1"):
            operator(torch.randn(4, 32), starts, 3, heads, queries, keys_values, *rest)
        with pytest.raises(RuntimeError, match="keys_values"):
            operator(torch.randn(4, 32), cu_seqlens_of([3, 1]), 3, heads, queries, queries, *rest)


def test_few_rows_are_read_where_they_lie() -> None:
    apart, weights = torch.randn(2, 64, 128), layer(0, 48, 64, torch.float32)[1:]
    with torch.inference_mode():
        for x in (apart[0, :, 32:96], apart[0].t()[:64].t(), apart[1, :, ::2], apart[0, :1, :64].expand(50, 64)):
            assert_same_bits(mp_kernels.linear(x, *weights), mp_kernels.linear(x.contiguous(), *weights))


@torch.no_grad()
def test_few_rows_have_the_dtype_of_many_under_autocast() -> None:
    weights = layer(0, 48, 64, torch.float32)[1:]
    with torch.autocast("cpu", torch.bfloat16):
        few, many = (mp_kernels.linear(torch.randn(rows, 64), *weights) for rows in (5, 500))
    assert few.dtype == many.dtype == torch.bfloat16


def test_values_that_are_not_finite_stay_in_their_few_rows() -> None:
    x, weights = torch.randn(40, 64), layer(0, 48, 64, torch.float32)[1:]
    with torch.inference_mode():
        clean = mp_kernels.linear(x, *weights)
        x[7, 3], x[39, 40] = torch.nan, torch.inf
        spoilt = mp_kernels.linear(x, *weights)
    assert not spoilt[[7, 39]].isfinite().any()
    others = [row for row in range(40) if row not in (7, 39)]
    assert_same_bits(spoilt[others], clean[others])


def test_threads_change_nothing_of_few_rows() -> None:
    inputs = layer(55, 768, 384, torch.float32)
    threads = torch.get_num_threads()
    with torch.inference_mode():
        alone = torch.ops.mp_kernels.linear(*inputs)
        try:
            torch.set_num_threads(3)
            assert_same_bits(torch.ops.mp_kernels.linear(*inputs), alone)
        finally:
            torch.set_num_threads(threads)


def assert_near(function: Callable, plain: Callable, definition: Callable, inputs: list[torch.Tensor]) -> None:
    """Without gradients, as :func:`support.accuracy.assert_accurate` is with them."""
    with torch.inference_mode():
        exact = definition(*(x.double() for x in inputs))
        assert_no_worse_than_plain(function(*inputs), plain(*inputs), exact)


@pytest.mark.parametrize(("rows", "outputs", "features"), SHAPES)
def test_layers_of_every_shape(rows: int, outputs: int, features: int) -> None:
    inputs, index = layer(rows, outputs, features), torch.randint(0, 9, (rows,))
    assert_near(mp_kernels.linear, F.linear, reference.linear, inputs)
    assert_near(mp_kernels.linear, F.linear, reference.linear, inputs[:2])
    assert_near(
        lambda *xs: mp_kernels.linear_add_layer_norm(*xs, WIDE, index),
        lambda *xs: plain_norm(*xs, index),
        lambda *xs: reference.linear_add_layer_norm(*xs, WIDE, index),
        [*inputs, torch.randn(9, outputs).bfloat16(), *norm(outputs)],
    )
    assert_near(
        lambda *xs: mp_kernels.feed_forward(*xs, WIDE),
        plain_feed_forward,
        lambda *xs: reference.feed_forward(*xs, WIDE),
        [*inputs, *layer(0, features, outputs)[1:], *norm(features)],
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gradients(dtype: torch.dtype) -> None:
    index = torch.tensor([1, 0, 0, 2, 1])
    inputs = layer(5, 48, 32, dtype)
    assert_accurate(mp_kernels.linear, reference.linear, F.linear, inputs)
    assert_accurate(
        lambda *xs: mp_kernels.linear_add_layer_norm(*xs, WIDE, index),
        lambda *xs: reference.linear_add_layer_norm(*xs, WIDE, index),
        lambda *xs: plain_norm(*xs, index),
        [*inputs, torch.randn(3, 48).to(dtype), *norm(48, dtype)],
    )


def test_gradients_of_a_feed_forward() -> None:
    """In float32; in half types the definition rounds the inner layer, whose gradient is another one."""
    inputs = [*layer(5, 48, 32, torch.float32), *layer(0, 32, 48, torch.float32)[1:], *norm(32, torch.float32)]
    assert_accurate(
        lambda *xs: mp_kernels.feed_forward(*xs, WIDE), lambda *xs: reference.feed_forward(*xs, WIDE), None, inputs
    )


@pytest.mark.parametrize("count", [1, 200])
def test_layers_without_biases(count: int) -> None:
    (x, weight, _), (_, shrink, _) = layer(count, 64, 96), layer(0, 96, 64)
    no = torch.zeros(64).bfloat16(), torch.zeros(96).bfloat16()
    with torch.inference_mode():
        assert_same_bits([mp_kernels.linear(x, weight)], [mp_kernels.linear(x, weight, no[0])])
        residual, own, inner = torch.randn(count, 64).bfloat16(), norm(64), norm(96)
        assert_same_bits(
            [mp_kernels.linear_add_layer_norm(x, weight, None, residual, *own, WIDE)],
            [mp_kernels.linear_add_layer_norm(x, weight, no[0], residual, *own, WIDE)],
        )
        assert_same_bits(
            [mp_kernels.feed_forward(x, weight, None, shrink, None, *inner, WIDE)],
            [mp_kernels.feed_forward(x, weight, no[0], shrink, no[1], *inner, WIDE)],
        )


def steps(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """All three operators, one after the other, on rows of 64."""
    middle = mp_kernels.linear(x, *weights[:2])
    normed = mp_kernels.linear_add_layer_norm(middle, *weights[2:4], x, *weights[4:6], WIDE)
    return mp_kernels.feed_forward(normed, *weights[6:10], *weights[4:6], WIDE)


def weights_of_steps() -> list[torch.Tensor]:
    pairs = (layer(0, outputs, features)[1:] for outputs, features in ((96, 64), (64, 96), (160, 64), (64, 160)))
    (first, second, *others) = pairs
    return [*first, *second, *norm(64), *others[0], *others[1]]


@HALVES
@given(seed=st.integers(0, 1000), count=st.integers(1, 70))
def test_a_row_does_not_depend_on_its_companions(seed: int, count: int) -> None:
    """Few rows are packed and many are not, and a row's place in its block differs: all give the same bits."""
    generator, weights = torch.Generator().manual_seed(seed), weights_of_steps()
    x = torch.randn(count, 64, generator=generator).bfloat16()
    order = torch.randperm(count, generator=generator)
    with torch.inference_mode():
        whole = steps(x, weights)
        assert_same_bits([steps(x[order], weights)], [whole[order]])
        assert_same_bits([torch.cat([steps(row[None], weights) for row in x])], [whole])


@HALVES
@pytest.mark.parametrize("count", [33, 1760])
def test_threads_and_companions_change_nothing(count: int, with_threads: Callable) -> None:
    x, weights = torch.randn(count, 64).bfloat16(), weights_of_steps()
    with torch.inference_mode():
        alone = steps(x, weights)
        assert_same_bits([with_threads(3, lambda: steps(x, weights))], [alone])
        assert_same_bits([steps(x[7:8], weights)], [alone[7:8]])


@HALVES
def test_strided_rows() -> None:
    """Rows within wider ones are read where they lie, and others are copied."""
    weights, apart = weights_of_steps(), torch.randn(2, 50, 128).bfloat16()
    with torch.inference_mode():
        for x in (apart[0, :, 32:96], apart[0].t()[:64].t(), apart[1, :, ::2], apart[0, :, :64].expand(50, 64)):
            assert_same_bits([steps(x, weights)], [steps(x.contiguous(), weights)])


@HALVES
@pytest.mark.parametrize("count", [40, 400])
def test_sums_are_rounded_once(count: int) -> None:
    """Sums that bfloat16 would lose survive until the bias, or the residual, has cancelled what hides them."""
    x, weight = torch.zeros(count, 64), torch.zeros(32, 64)
    x[:, 0], x[:, 33], weight[:, 0], weight[:, 33] = 1024, 1, 1, 1
    halves = [t.bfloat16() for t in (x, weight, torch.full((32,), -1024.0))]
    with torch.inference_mode():
        assert (mp_kernels.linear(*halves) == 1).all()
        ones, zeros = torch.ones(32).bfloat16(), torch.zeros(32).bfloat16()
        residual = torch.arange(32).bfloat16().expand(count, 32) - 1024
        normed = mp_kernels.linear_add_layer_norm(*halves[:2], None, residual.bfloat16(), ones, zeros, 1e-5)
        wanted = F.layer_norm(residual.bfloat16().float() + 1025, (32,))
        torch.testing.assert_close(normed.float(), wanted, rtol=2**-8, atol=1e-6)


@HALVES
def test_values_that_are_not_finite_stay_in_their_row() -> None:
    x, weights = torch.randn(40, 64).bfloat16(), weights_of_steps()
    with torch.inference_mode():
        clean = steps(x, weights)
        x[7, 3], x[21, 40] = torch.nan, torch.inf
        spoilt = steps(x, weights)
    assert spoilt[[7, 21]].isnan().all()
    others = [row for row in range(40) if row not in (7, 21)]
    assert_same_bits([spoilt[others]], [clean[others]])


@HALVES
def test_no_tiles_where_gradients_are_recorded() -> None:
    x, weight, bias = (t.requires_grad_() for t in layer(5, 48, 64))
    with torch.no_grad():
        assert products.in_kernels(x, weight)
    assert not products.in_kernels(x, weight)
    assert mp_kernels.linear(x, weight, bias).requires_grad


def test_gradients_of_the_rest_of_a_layer() -> None:
    x, residual, dense, first, _, grow, shrink, last, _, index = post_norm(5, 48, 32, 64)

    def rest(module, x, residual, *tensors):
        dense, first, grow, shrink, last = (tensors[i : i + 2] for i in (0, 2, 4, 6, 7))
        return module.post_norm_rest(x, residual, dense, first, WIDE, grow, shrink[:1], last, WIDE, index)

    assert_accurate(
        lambda *xs: rest(mp_kernels, *xs),
        lambda *xs: rest(reference, *xs),
        None,
        [x, residual, *dense, *first, *grow, *shrink, *last],
    )


BAD_RESTS = {
    "residual": (torch.ones(9, 47), "residual must be"),
    "index": (torch.tensor([0, 9, 1, 2]), r"index must lie in 0\.\.8; got 9"),
    "dense": ([torch.ones(48, 31)], "a weight must be"),
    "grow": ([], r"grow must be \[weight, bias\] or \[weight\]; got 0 tensors"),
    "shrink": ([torch.ones(48, 64), torch.ones(47)], r"bias must be \[48\]"),
    "norm": ([torch.ones(48)], r"a LayerNorm must be \[weight, bias\]"),
}


@pytest.mark.parametrize("name", BAD_RESTS)
def test_bad_rests_are_refused(name: str) -> None:
    """By the compiled operator, whatever its caller looked at."""
    names = ("x", "residual", "dense", "dense_norm", "dense_eps", "grow", "shrink", "norm", "eps", "index")
    value, message = BAD_RESTS[name]
    arguments = dict(zip(names, post_norm(4, 48, 64, 32), strict=True)) | {name: value}
    schema = torch.ops.mp_kernels.post_norm_rest.default._schema
    with pytest.raises(RuntimeError, match=message):
        torch.ops.mp_kernels.post_norm_rest(*(arguments[x.name] for x in schema.arguments))


X, SQUARE, VECTOR = torch.zeros(3, 4), torch.zeros(4, 4), torch.zeros(4)
GOOD = {"x": X, "weight": SQUARE, "bias": VECTOR, "norm_weight": VECTOR, "norm_bias": VECTOR, "eps": 1e-5}
BAD: list[tuple[Callable, dict, type[Exception], str]] = [
    (mp_kernels.linear, {"x": VECTOR}, ValueError, r"x must have 2 dimensions; got float32 \[4\]"),
    (mp_kernels.linear, {"x": X.int()}, TypeError, r"x must be float32 or .* got int32 \[3, 4\]"),
    (mp_kernels.linear, {"weight": SQUARE.half()}, TypeError, r"weight must be float32; got float16 \[4, 4\]"),
    (mp_kernels.linear, {"weight": X.t()}, ValueError, r"weight must be \[outputs, 4\]; got float32 \[4, 3\]"),
    (mp_kernels.linear, {"bias": VECTOR[:3]}, ValueError, r"bias must be \[4\]; got float32 \[3\]"),
    (mp_kernels.linear, {"bias": VECTOR.to("meta")}, ValueError, "bias must be on cpu .* on meta"),
    (mp_kernels.linear_add_layer_norm, {"residual": X.half()}, TypeError, "residual must be float32; got float16"),
    (mp_kernels.linear_add_layer_norm, {"residual": X[:2]}, ValueError, "the same rows as x, .* got .*, and 2 rows of"),
    (mp_kernels.linear_add_layer_norm, {"residual": X[:, :3]}, ValueError, r"the width 4; got .*\[3, 3\]"),
    (mp_kernels.linear_add_layer_norm, {"norm_bias": VECTOR[:3]}, ValueError, r"norm_bias must be \[4\]"),
    (mp_kernels.linear_add_layer_norm, {"index": torch.tensor([0, 1])}, ValueError, "and 2 rows of"),
    (
        mp_kernels.linear_add_layer_norm,
        {"index": torch.tensor([0, 1, 3])},
        RuntimeError,
        "index must lie in 0..2; got 3",
    ),
    (mp_kernels.feed_forward, {"grow_weight": X.t()}, ValueError, r"grow_weight must be \[outputs, 4\]"),
    (mp_kernels.feed_forward, {"grow_bias": VECTOR[:3]}, ValueError, r"grow_bias must be \[4\]"),
    (mp_kernels.feed_forward, {"weight": X}, ValueError, "as many rows as x has columns, 4; got"),
    (mp_kernels.feed_forward, {"norm_weight": X}, ValueError, "norm_weight must have 1 dimension"),
]


@pytest.mark.parametrize(("function", "changed", "error", "message"), BAD)
def test_bad_arguments(function: Callable, changed: dict, error: type[Exception], message: str) -> None:
    own: dict = {"linear_add_layer_norm": {"residual": X}, "feed_forward": {"grow_weight": SQUARE, "grow_bias": VECTOR}}
    arguments = GOOD | own.get(function.__name__, {}) | changed
    if function is mp_kernels.linear:
        arguments = {name: arguments[name] for name in ("x", "weight", "bias")}
    with pytest.raises(error, match=message):
        function(**arguments)


HALVES = {
    name: x.bfloat16()
    for name, x in {"x": torch.zeros(3, 64), "weight": torch.zeros(64, 64), "bias": torch.zeros(64)}.items()
}


def test_bad_rows_are_refused_before_tiles_read_them() -> None:
    ones, index = torch.ones(64).bfloat16(), torch.tensor([0, 1, 3])
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"index must lie in 0\.\.2; got 3"):
        mp_kernels.linear_add_layer_norm(
            **HALVES, residual=HALVES["x"], norm_weight=ones, norm_bias=ones, eps=1e-5, index=index
        )

"""Sample arguments for every registered operator, with which each of its implementations is checked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree

from mp_kernels import reference
from support.ragged_batches import cu_seqlens_of, random_heads, stays_of

LENGTHS = (3, 0, 17, 1)
TOTAL = sum(LENGTHS)
CU_SEQLENS = cu_seqlens_of(LENGTHS)
STAYS = stays_of([1, 0, 0, 1])
PLACES = torch.cat([torch.tensor([0, 4, 5]), torch.arange(17) ** 2 // 4 + torch.arange(17), torch.tensor([3])]).int()
MASK = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 1]])
BUCKETS = torch.tensor([0, 2, 1, 2, 2], dtype=torch.int32)


def grown(*shape: int) -> torch.Tensor:
    """Random tensor that requires a gradient."""
    return torch.randn(*shape, requires_grad=True)


def int8(*shape: int) -> torch.Tensor:
    """Random integers from -127 to 127."""
    return torch.randint(-127, 128, shape, dtype=torch.int8)


def factors(rows: int, outputs: int, features: int = 7) -> tuple[torch.Tensor, ...]:
    """Random int8 rows ``[rows, features]`` with their scales, and such a weight ``[outputs, features]``."""
    return int8(rows, features), torch.rand(rows) / 127, int8(outputs, features), torch.rand(outputs) / 127


def packed_factors(rows: int, outputs: int, features: int) -> tuple[torch.Tensor, ...]:
    """The same with a weight that is packed, in groups of four."""
    left, row_scales, weight, column_scales = factors(rows, outputs, features)
    return left, row_scales, reference.pack_int8_weight(weight, 4), column_scales


def int8_layer(outputs: int, features: int, kept: int = 0) -> list[torch.Tensor]:
    """A random int8 linear layer, ``kept`` columns of whose rows are kept as floats."""
    layer = [int8(outputs, features), torch.rand(outputs) / 127 / features**0.5, torch.randn(outputs)]
    columns = torch.randperm(features)[:kept]
    return [*layer, columns, torch.randn(outputs, kept)] if kept else layer


def floats(width: int) -> list[torch.Tensor]:
    """Weight and bias of a LayerNorm."""
    return [torch.randn(width), torch.randn(width)]


def halves(*shape: int) -> torch.Tensor:
    """Random bfloat16 numbers."""
    return torch.randn(shape).bfloat16()


def layer(rows: int, outputs: int, features: int = 7, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    """Random rows ``[rows, features]`` and weight ``[outputs, features]`` of a linear layer."""
    return torch.randn(rows, features).to(dtype), (torch.randn(outputs, features) / features**0.5).to(dtype)


def packed_batch(rows: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Random rows ``[rows, width]``, their samples' first rows, one sample being empty, and a bound on lengths."""
    starts = torch.tensor([0, min(rows, 1), min(rows, 1), rows], dtype=torch.int32)
    return torch.randn(rows, width).to(dtype), starts, rows


def apart(projections: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The linear layer of queries, keys and values as two; a fourth tensor is of its inputs."""
    width = projections[0].shape[0] // 3
    asking = [x if place == 3 else x[:width] for place, x in enumerate(projections)]
    return asking, [x if place == 3 else x[width:] for place, x in enumerate(projections)]


def for_first_rows(x: torch.Tensor, starts: torch.Tensor, longest: int, heads: int, projections: list, *rest) -> tuple:
    """A sample of a layer as the operators take it that compute each sample's first row: those without any are left out."""
    return x, starts.unique(), longest, heads, *apart(projections), *rest


def float_layers(width: int, heads: int, inner: int, dtype: torch.dtype = torch.float32) -> tuple:
    """Heads and random weights of a layer that normalises after each residual."""
    projections, dense, grow, shrink = (
        [layer(0, outputs, features, dtype)[1], torch.randn(outputs).to(dtype)]
        for outputs, features in ((3 * width, width), (width, width), (inner, width), (width, inner))
    )
    norms = [[x.to(dtype) for x in floats(width)] for _ in range(2)]
    return heads, projections, dense, norms[0], 1e-2, grow, shrink[:1], norms[1], 1e-2


def int8_layers(width: int, heads: int, inner: int, kept: int = 0) -> tuple:
    """The same with int8 weights; kept: columns that are kept as floats."""
    projections, dense, grow, shrink = (
        int8_layer(outputs, features, kept)
        for outputs, features in ((3 * width, width), (width, width), (inner, width), (width, inner))
    )
    return heads, projections, dense, floats(width), 1e-2, grow, shrink, floats(width), 1e-2


def turns(places: int, pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of random angles, ``[places, pairs]`` each."""
    angles = torch.randn(places, pairs)
    return angles.cos(), angles.sin()


def spread(sample: tuple, name: str = "") -> tuple:
    """The same values with other values between them in memory, for kernels that take no strides to trip over.

    name: the operator's; memory that it writes into stays as it is.
    """

    def apart(x: torch.Tensor) -> torch.Tensor:
        other = ~x if x.dtype == torch.bool else x + 1
        return torch.stack([x, other], dim=-1).detach()[..., 0]

    written = written_places(getattr(torch.ops.mp_kernels, name)) if name else ()
    return tuple(
        x if place in written else pytree.tree_map_only(torch.Tensor, apart, x) for place, x in enumerate(sample)
    )


def written_places(operator: Any) -> list[int]:
    """Places of the arguments that an operator writes into."""
    if not isinstance(operator, torch._ops.OpOverloadPacket):
        operator = getattr(torch.ops.mp_kernels, operator.__name__)
    arguments = operator.default._schema.arguments
    return [place for place, x in enumerate(arguments) if x.alias_info is not None and x.alias_info.is_write]


def on_cuda(sample: tuple) -> tuple:
    """The same with its tensors on the device, gradients wanted as before."""
    return pytree.tree_map_only(torch.Tensor, lambda x: x.detach().cuda().requires_grad_(x.requires_grad), sample)


def results_of(operator: Callable, sample: tuple) -> list[torch.Tensor]:
    """Results of a call without gradients, as a list; where there are none, copies of what the operator wrote into."""
    written = written_places(operator)
    sample = tuple(x.clone() if place in written and x is not None else x for place, x in enumerate(sample))
    with torch.no_grad():
        results = operator(*sample)
    if results is None:
        return [sample[place] for place in written if sample[place] is not None]
    return [results] if isinstance(results, torch.Tensor) else list(results)


# They round sums of bfloat16, whose order differs between implementations, and go on with what was rounded.
ROUNDING = ("linear", "linear_add_layer_norm", "feed_forward", "post_norm_rest", "post_norm_layer", "post_norm_first")


def assert_same_results(name: str, got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Results of two implementations of an operator: equal but for the order of sums."""
    for x, y in zip(got, expected, strict=True):
        apart = 2**-7 if x.dtype == torch.bfloat16 and name in ROUNDING else 0
        torch.testing.assert_close(x, y, atol=apart or 1e-5, rtol=apart)


def opcheck(name: str, sample: tuple) -> None:
    """torch's own checker tests the schema, autograd registration, fake implementation and AOT dispatch.

    It differentiates the sum of all results, but attention refuses a gradient into its log-sum-exp, so that AOT dispatch of
    attention is checked without gradients here.
    """
    operator: Any = getattr(torch.ops.mp_kernels, name).default
    with warnings.catch_warnings():
        # From torch 2.14 on, its checks read .grad of samples that are no leaves.
        warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf", UserWarning)
        if name != "ragged_attention":
            torch.library.opcheck(operator, sample)
            return
        torch.library.opcheck(
            operator, sample, test_utils=("test_schema", "test_autograd_registration", "test_faketensor")
        )
        torch.library.opcheck(operator, pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, sample))


def attention_samples() -> list[tuple]:
    (q,), (k, v) = random_heads(4, 2, 20, 1), random_heads(TOTAL, 2, 20, 2)
    packed = [x.detach().requires_grad_() for x in torch.randn(TOTAL, 3, 2, 20).unbind(1)]
    few = q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), cu_seqlens_of((1, 0, 3, 0)), CU_SEQLENS
    places_q = torch.tensor([0, 2, 3, 60], dtype=torch.int32)
    return [
        (*packed, CU_SEQLENS, CU_SEQLENS, None, 17, 0.2, True),
        (*packed, CU_SEQLENS, CU_SEQLENS, STAYS, 17, 0.2, True),
        (*few, None, 17, 0.2, True),
        (*few, STAYS, 17, 0.2, False),
        (*packed, CU_SEQLENS, CU_SEQLENS, None, 17, 0.2, True, None, None, grown(2, 3), BUCKETS, 2),
        (*packed, CU_SEQLENS, CU_SEQLENS, STAYS, 17, 0.2, True, PLACES, PLACES, grown(2, 3), BUCKETS),
        (*few, None, 17, 0.2, True, places_q, PLACES, None, None, 5),
    ]


def attention_backward_samples() -> list[tuple]:
    out_grad, q, k, v = random_heads(TOTAL, 2, 20, 4)
    starts, sizes = (CU_SEQLENS, CU_SEQLENS), (17, 0.2)
    logsumexp = torch.ops.mp_kernels.ragged_attention(q, k, v, *starts, None, *sizes, False)[2]
    plain = [(out_grad, grad, q, k, v, logsumexp, *starts, *sizes) for grad in (None, torch.randn(2, TOTAL))]
    places = (PLACES, PLACES, torch.randn(2, 3), BUCKETS, 5)
    logsumexp = torch.ops.mp_kernels.ragged_attention(q, k, v, *starts, None, *sizes, False, *places)[2]
    return [*plain, (out_grad, torch.randn(2, TOTAL), q, k, v, logsumexp, *starts, *sizes, *places)]


def record_sample(answered: bool) -> tuple:
    """Three of four samples are there, in another order than they came in; their answers are known, or nothing is."""
    count, extents = torch.tensor([3]), torch.tensor([9, 4, 8, 5])
    survived = cu_seqlens_of((1, 0, 8, 0))
    answers = (torch.randn(4, 3), torch.rand(4), torch.tensor([True, False, True, True])) if answered else (None,) * 3
    board = (torch.zeros(4, 3), torch.zeros(4), torch.zeros(4, dtype=torch.int64))
    tokens, nan_rows = torch.zeros(3, 2, 4, dtype=torch.int32), torch.full((3,), -1)
    samples = torch.tensor([2, 0, 3, 2])
    return (count, extents, samples, CU_SEQLENS, survived, *answers, 1, *board, tokens, nan_rows)


SAMPLES: dict[str, Callable[[], list[tuple]]] = {
    "ragged_attention": attention_samples,
    "ragged_attention_backward": attention_backward_samples,
    "mean_over_heads": lambda: [(grown(3, TOTAL),), (grown(1, 0),)],
    "prune_tokens": lambda: [
        (torch.rand(TOTAL), CU_SEQLENS, None, 0.5),
        (torch.rand(3, TOTAL), CU_SEQLENS, STAYS, 0.5),
    ],
    "prune_rows": lambda: [
        (torch.randn(TOTAL, 37), torch.rand(3, TOTAL), CU_SEQLENS, 0.5),
        (torch.randn(TOTAL, 5).bfloat16(), torch.rand(TOTAL), CU_SEQLENS, 0.5),
        (torch.randn(0, 5), torch.rand(0), CU_SEQLENS[:1], 0.5),
    ],
    "top_k_tokens": lambda: [
        (torch.rand(TOTAL), CU_SEQLENS, None, torch.tensor([1, 2, 3, 4])),
        (torch.rand(3, TOTAL), CU_SEQLENS, STAYS, torch.tensor([1, 2, 3, 4])),
    ],
    "select_samples": lambda: [(CU_SEQLENS, STAYS, TOTAL)],
    "measure_padded": lambda: [
        (MASK, [MASK.long() * 7 - 3, MASK.int(), torch.arange(15).reshape(3, 5)]),
        (MASK.bool(), []),
        (torch.zeros(0, 4), [torch.zeros(0, 4, dtype=torch.int64)]),
    ],
    "pack_padded": lambda: [
        (MASK, cu_seqlens_of((2, 5, 3)), 10, [MASK.long() * 7 - 3, torch.arange(5).expand(3, 5)]),
        (MASK.bool(), cu_seqlens_of((2, 5, 3)), 10, []),
    ],
    "ragged_gather": lambda: [
        ([grown(TOTAL, 4), torch.arange(TOTAL)], torch.tensor([3, 1, 1])),
        ([grown(TOTAL, 2, 3)], torch.tensor([], dtype=torch.int64)),
    ],
    "ragged_gather_backward": lambda: [
        ([torch.randn(3, 4), torch.randn(3, 2, 2)], torch.tensor([1, 1, 3]), torch.tensor([1, 2, 0]), [5, 4]),
        ([torch.randn(3, 4)], torch.tensor([0, 2, 3]), None, [5]),
    ],
    "ragged_mean": lambda: [(grown(TOTAL, 5), CU_SEQLENS)],
    "pair_features": lambda: [(grown(4, 5), grown(TOTAL, 5), CU_SEQLENS, torch.tensor([1, 3, 20, 20]))],
    "add_layer_norm": lambda: [
        (grown(4, 5), None, grown(4, 5), None, grown(5), grown(5), 1e-5),
        (grown(4, 5), None, grown(9, 5), torch.tensor([0, 3, 3, 8]), grown(5), grown(5), 1e-5),
        (grown(3, 5), torch.tensor([2, 2]), grown(9, 5), torch.tensor([0, 8]), grown(5), grown(5), 1e-5),
    ],
    "bias_gelu": lambda: [(grown(4, 5), grown(5)), (grown(4, 5), None)],
    "gelu_gate": lambda: [(grown(4, 10),)],
    "rotary_embedding": lambda: [(grown(4, 2, 6), torch.tensor([0, 4, 1, 1], dtype=torch.int32), *turns(5, 3))],
    "ordered_linear": lambda: [(torch.randn(4, 7), torch.randn(5, 7), torch.randn(5))],
    "linear": lambda: [(*layer(4, 5), torch.randn(5)), (*layer(33, 48, 64, torch.bfloat16), None)],
    "linear_add_layer_norm": lambda: [
        (*layer(4, 5), torch.randn(5), torch.randn(4, 5), None, torch.randn(5), torch.randn(5), 1e-5),
        (*layer(2, 16, 64, torch.bfloat16), None, halves(4, 16), torch.tensor([3, 1]), halves(16), halves(16), 1e-5),
    ],
    "feed_forward": lambda: [
        (*layer(4, 5), None, torch.randn(7, 5), torch.randn(7), torch.randn(7), torch.randn(7), 1e-5),
        (*layer(4, 96, 64, torch.bfloat16), halves(96), halves(64, 96), None, halves(64), halves(64), 1e-5),
    ],
    "post_norm_rest": lambda: [
        (
            *(torch.randn(4, 5), torch.randn(4, 7), None, [torch.randn(7, 5)], [torch.randn(7), torch.randn(7)], 1e-5),
            *([torch.randn(9, 7), torch.randn(9)], [torch.randn(7, 9), torch.randn(7)], [torch.randn(7)] * 2, 1e-5),
        ),
        (  # few rows, for which there are kernels
            *(torch.randn(20, 16), torch.randn(3, 8), torch.arange(20) % 3, [torch.randn(8, 16), torch.randn(8)]),
            *([torch.randn(8), torch.randn(8)], 1e-5, [torch.randn(24, 8)], [torch.randn(8, 24)]),
            *([torch.randn(8), torch.randn(8)], 1e-5),
        ),
        (
            *(halves(4, 64), halves(2, 32), torch.tensor([0, 1, 1, 0]), [halves(32, 64) / 8], [halves(32)] * 2, 1e-5),
            *([halves(96, 32) / 8, halves(96)], [halves(32, 96) / 8], [halves(32)] * 2, 1e-5),
        ),
    ],
    "post_norm_layer": lambda: [
        (*packed_batch(rows, width, dtype), *float_layers(width, heads, inner, dtype))
        for rows, width, heads, inner, dtype in (
            (0, 6, 2, 5, torch.float32),
            (9, 6, 2, 5, torch.float32),
            (20, 16, 2, 24, torch.float32),  # few rows, for which there are kernels
            (9, 64, 2, 96, torch.bfloat16),
        )
    ],
    "post_norm_first": lambda: [for_first_rows(*sample) for sample in SAMPLES["post_norm_layer"]()],
    "quantize_rows": lambda: [
        (torch.randn(4, 5), None),
        (torch.randn(4, 5), torch.tensor([3, 1])),
        (torch.randn(4, 5), None, torch.tensor([3, 0])),
    ],
    "dequantize_rows": lambda: [
        (int8(4, 5), torch.rand(4), None),
        (int8(4, 5), torch.rand(4), torch.tensor([3, 1])),
    ],
    "int8_linear": lambda: [
        (*factors(4, 5), torch.randn(5)),
        (*factors(4, 16, 64), None, torch.randn(4, 2), torch.randn(16, 2)),
        (*packed_factors(4, 32, 64), torch.randn(32)),
    ],
    "int8_linear_gelu": lambda: [
        (*factors(4, 5), torch.randn(5)),
        (*factors(4, 16, 64), None, torch.randn(4, 2), torch.randn(16, 2), torch.tensor([3, 0, 15])),
        (*packed_factors(4, 32, 64), torch.randn(32)),
    ],
    "int8_linear_add_layer_norm": lambda: [
        (*factors(4, 5), torch.randn(5), torch.randn(4, 5), None, torch.randn(5), torch.randn(5), 1e-5),
        (*factors(2, 16, 64), None, torch.randn(4, 16), torch.tensor([3, 1]), torch.randn(16), torch.randn(16), 1e-5),
        (*packed_factors(4, 32, 64), None, torch.randn(4, 32), None, torch.randn(32), torch.randn(32), 1e-5),
    ],
    "int8_dynamic_linear": lambda: [
        (torch.randn(4, 7), int8_layer(5, 7)),
        (torch.randn(4, 64), int8_layer(16, 64, kept=2)),
        (torch.randn(4, 64), [packed_factors(4, 32, 64)[2], *int8_layer(32, 64)[1:]]),
    ],
    "int8_post_norm_rest": lambda: [
        (
            *(
                torch.randn(rows, 64),
                torch.randn(rows if index is None else 3, 32),
                index,
                int8_layer(32, 64, kept=kept),
            ),
            *(floats(32), 1e-5, int8_layer(inner, 32, kept=kept), int8_layer(32, inner), floats(32), 1e-5),
        )
        for rows, inner, kept, index in (
            (3, 5, 0, None),
            (5, 64, 2, torch.tensor([2, 0, 1, 1, 0])),
            (0, 48, 1, None),
        )
    ],
    "int8_post_norm_layer": lambda: [
        (*packed_batch(rows, 32), *int8_layers(32, 2, inner, kept))
        for rows, inner, kept in ((0, 48, 1), (9, 5, 0), (20, 64, 2))
    ],
    "int8_post_norm_first": lambda: [for_first_rows(*sample) for sample in SAMPLES["int8_post_norm_layer"]()],
    "normalized_entropy": lambda: [(grown(4, 5),)],
    "label_entropy": lambda: [(grown(4, 5),), (grown(4, 1),)],
    "exit_head": lambda: [
        (*(torch.randn(*shape) for shape in ((4, 6), (5, 6), (5,), (3, 5), (3,))), None, 0.8),
        (
            *(torch.randn(*shape) for shape in ((4, 6), (5, 6), (5,), (3, 5), (3,))),
            torch.tensor([0.0, 1, 0.9, 0.8]),
            0.0,
        ),
        (*(torch.randn(*shape) for shape in ((4, 6), (5, 6), (5,), (3, 5), (3,))), None, 0.8, True),
        *(  # few rows, and more of them
            (*(0.2 * torch.randn(*x) for x in ((rows, 9), (21, 9), (21,), (5, 21), (5,))), torch.rand(rows), 0.0)
            for rows in (0, 1, 2, 3, 40)
        ),
    ],
    "record_answers": lambda: [record_sample(True), record_sample(False)],
}

"""Comparison of every public operator with its definition.

:func:`main` prints the outcome as JSON. It is for a fresh interpreter, where a test chooses how mp_kernels is loaded.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable

import torch

from support.accuracy import with_gradients
from support.ragged_batches import cu_seqlens_of, random_heads

LENGTHS = (5, 65, 0, 1, 130, 24)


def _distance(got: object, expected: object) -> float:
    """The largest difference, over the largest magnitude where that is above 1: sums of hundreds of terms round so."""
    if isinstance(got, torch.Tensor):
        if got.shape != expected.shape:
            return math.inf
        apart = (got.double() - expected.double()).abs().nan_to_num(nan=math.inf)
        return (apart.max() / expected.double().abs().max().clamp(min=1.0)).item() if apart.numel() else 0.0
    if isinstance(got, list | tuple):
        return max((_distance(x, y) for x, y in zip(got, expected, strict=True)), default=0.0)
    return 0.0 if got == expected else math.inf


def _cases() -> dict[str, tuple[Callable, list[torch.Tensor]]]:
    """By operator: a function of a module (mp_kernels or its reference) and inputs, and inputs to differentiate in."""
    cu_seqlens, total = cu_seqlens_of(LENGTHS), sum(LENGTHS)
    importance, by_head, mask = torch.rand(total), torch.rand(2, total), torch.rand(4, 9) < 0.6
    stays, (some, others) = torch.arange(len(LENGTHS)) % 2 == 1, torch.randint(0, total, (2, 40))
    middles = cu_seqlens[:-1] + torch.tensor([0, 30, 0, 1, 64, 24])
    buckets = torch.tensor([0, 1, 2, 3, 1], dtype=torch.int32)
    head = [torch.randn(shape) for shape in ((9, 37), (20, 37), (20,), (3, 20), (3,))]

    x = torch.randn(9, 37)
    rows, nine = torch.randint(-127, 128, (9, 37), dtype=torch.int8), torch.tensor([8, 0, 3, 3, 1, 2, 4, 5, 6])
    weight = torch.randint(-127, 128, (37, 37), dtype=torch.int8)
    linear = (rows, torch.rand(9) / 100, weight, torch.rand(37) / 100, torch.randn(37))
    angles = (torch.randn(9, 19).cos(), torch.randn(9, 19).sin())
    wide = torch.randn(9, 20)
    norm = (torch.randn(9, 37), torch.randn(37), torch.randn(37), 1e-2, nine)

    starts, full = cu_seqlens_of([1, 0, 4, 4]), cu_seqlens_of([1, 4, 4])

    def rows_of(outputs: int, features: int) -> torch.Tensor:
        """A part of an int8 weight."""
        return weight.repeat(2, 1)[:outputs, :features]

    def of_outputs(outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and bias of a layer."""
        return linear[3].repeat(2)[:outputs], linear[4].repeat(2)[:outputs]

    whole, halves = torch.randint(-3, 4, (40, 64)).float(), torch.randint(-1, 2, (48, 64)).float()

    def in_halves(m) -> torch.Tensor:
        """Small integers, whose products bfloat16 holds exactly; its tiles take these shapes."""
        with torch.no_grad():
            return m.linear(whole.bfloat16(), halves.bfloat16())

    def fields(kept) -> list:
        return [kept.index, kept.cu_seqlens, kept.max_seqlen, kept.samples]

    return {
        "ragged_attention": (
            lambda m, *qkv_bias: (
                *m.ragged_attention(*qkv_bias[:3], cu_seqlens, max(LENGTHS)),
                *m.ragged_attention(*qkv_bias[:3], cu_seqlens, max(LENGTHS), by_head=True, stays=stays),
                *m.ragged_attention(
                    *qkv_bias[:3], cu_seqlens, max(LENGTHS), bias=qkv_bias[3], buckets=buckets, window=5
                ),
            ),
            [*random_heads(total, 3, 20), torch.randn(3, 4)],
        ),
        "prune_tokens": (
            lambda m: [
                *fields(m.prune_tokens(importance, cu_seqlens, 0.5)),
                *fields(m.prune_tokens(by_head, cu_seqlens, 0.5, stays)),
            ],
            [],
        ),
        "prune_rows": (
            lambda m, *xs: m.prune_rows(xs, by_head, cu_seqlens, 0.5)[0],
            [torch.randn(total, 7), torch.randn(total, 2, 3)],
        ),
        "top_k_tokens": (
            lambda m: [
                *fields(m.top_k_tokens(importance, cu_seqlens, 7)),
                *fields(m.top_k_tokens(by_head, cu_seqlens, 7, stays)),
            ],
            [],
        ),
        "select_samples": (lambda m: fields(m.select_samples(cu_seqlens, stays)), []),
        "ragged_gather": (lambda m, *xs: m.ragged_gather(xs, some), [torch.randn(total, 7), torch.randn(total, 2, 3)]),
        "ragged_mean": (lambda m, x: m.ragged_mean(x, cu_seqlens), [torch.randn(total, 37)]),
        "pair_features": (
            lambda m, *xs: m.pair_features(*xs, cu_seqlens, middles),
            [torch.randn(len(LENGTHS), 37), torch.randn(total, 37)],
        ),
        "add_layer_norm": (
            lambda m, *xs: (m.add_layer_norm(*xs, 1e-5, some, others), m.add_layer_norm(*xs, 1e-5)),
            [torch.randn(total, 37), torch.randn(total, 37), torch.randn(37), torch.randn(37)],
        ),
        "bias_gelu": (lambda m, *xs: m.bias_gelu(*xs), [torch.randn(9, 37), torch.randn(37)]),
        "gelu_gate": (lambda m, x: m.gelu_gate(x), [torch.randn(9, 74)]),
        "rotary_embedding": (lambda m, x: m.rotary_embedding(x, nine.int(), *angles), [torch.randn(9, 3, 38)]),
        "ordered_linear": (lambda m: m.ordered_linear(*head[:3]), []),
        "linear": (lambda m: (m.linear(*head[:3]), in_halves(m)), []),
        "linear_add_layer_norm": (
            lambda m, *xs: m.linear_add_layer_norm(*xs, wide, head[2], head[2], 1e-2, nine),
            head[:3],
        ),
        "feed_forward": (lambda m, *xs: m.feed_forward(*xs, head[1].t(), *norm[1:3], norm[1], 1e-2), head[:3]),
        "post_norm_rest": (
            lambda m, x, residual, *xs: m.post_norm_rest(
                x, residual, xs[:2], (wide[0], wide[1]), 1e-2, xs[2:4], xs[4:], (wide[2], wide[3]), 1e-2, nine
            ),
            [torch.randn(shape) for shape in ((9, 37), (9, 20), (20, 37), (20,), (11, 20), (11,), (20, 11))],
        ),
        "post_norm_layer": (
            lambda m, x, *xs: m.post_norm_layer(
                x, starts, 4, 3, xs[:2], xs[2:4], wide[:2], 1e-2, xs[4:5], xs[5:], wide[2:4], 1e-2
            ),
            [
                torch.randn(shape) / 4
                for shape in ((9, 20), (45, 20), (45,), (20, 15), (20,), (11, 20), (20, 11), (20,))
            ],
        ),
        "post_norm_first": (
            lambda m, x, *xs: m.post_norm_first(
                x, full, 4, 3, xs[:2], xs[2:4], xs[4:6], wide[:2], 1e-2, xs[6:7], xs[7:], wide[2:4], 1e-2
            ),
            [
                torch.randn(shape) / 4
                for shape in ((9, 20), (15, 20), (15,), (30, 20), (30,), (20, 15), (20,), (11, 20), (20, 11), (20,))
            ],
        ),
        "quantize_rows": (lambda m: m.quantize_rows(x, nine), []),
        "dequantize_rows": (lambda m: m.dequantize_rows(rows, linear[1], nine), []),
        "int8_linear": (lambda m: m.int8_linear(*linear), []),
        "int8_linear_gelu": (lambda m: m.int8_linear_gelu(*linear), []),
        "int8_linear_add_layer_norm": (lambda m: m.int8_linear_add_layer_norm(*linear, *norm), []),
        "int8_dynamic_linear": (lambda m: m.int8_dynamic_linear(x, linear[2:]), []),
        "int8_post_norm_rest": (
            lambda m: m.int8_post_norm_rest(
                *(x, norm[0], linear[2:], norm[1:3], 1e-2),
                *((weight, linear[3], norm[1], nine[:3], norm[0][:3].t()), linear[2:], norm[1:3], 1e-2, nine),
            ),
            [],
        ),
        "int8_post_norm_layer": (
            lambda m: m.int8_post_norm_layer(
                *(x[:, :20], starts, 4, 3, (rows_of(45, 20), *of_outputs(45)), (rows_of(20, 15), *of_outputs(20))),
                *(
                    wide[:2],
                    1e-2,
                    (rows_of(11, 20), *of_outputs(11)),
                    (rows_of(20, 11), *of_outputs(20)),
                    wide[2:4],
                    1e-2,
                ),
            ),
            [],
        ),
        "int8_post_norm_first": (
            lambda m: m.int8_post_norm_first(
                *(x[:, :20], full, 4, 3, (rows_of(15, 20), *of_outputs(15)), (rows_of(30, 20), *of_outputs(30))),
                *((rows_of(20, 15), *of_outputs(20)), wide[:2], 1e-2, (rows_of(11, 20), *of_outputs(11))),
                *((rows_of(20, 11), *of_outputs(20)), wide[2:4], 1e-2),
            ),
            [],
        ),
        "normalized_entropy": (lambda m, x: m.normalized_entropy(x), [torch.randn(9, 5)]),
        "label_entropy": (lambda m, x: m.label_entropy(x), [torch.randn(9, 5)]),
        "exit_head": (lambda m: (*m.exit_head(*head, 0.8), *m.exit_head(*head, 0.8, True)), []),
        "measure_padded": (lambda m: m.measure_padded(mask, [mask.long() - 5]), []),
        "pack_padded": (lambda m: m.pack_padded(mask, m.measure_padded(mask)[0], int(mask.sum()), [mask.int()]), []),
        "pack": (lambda m, x: m.pack(x, mask).values, [torch.randn(4, 9, 3)]),
        "unpack": (lambda m, x: m.unpack(m.pack(x, mask), -1.0), [torch.randn(4, 9, 3)]),
    }


def worst_errors() -> dict[str, float]:
    """Largest distance of each public operator from its definition at the same dtype, gradients included."""
    import mp_kernels

    torch.manual_seed(0)
    errors = {}
    for name, (run, inputs) in _cases().items():

        def outcome(module, run=run, inputs=inputs):
            return with_gradients(lambda *xs: run(module, *xs), inputs) if inputs else run(module)

        errors[name] = _distance(outcome(mp_kernels), outcome(mp_kernels.reference))
    return errors


def main() -> None:
    """Loads mp_kernels, and prints which build was loaded, which warnings that gave, and the errors."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import mp_kernels
        from mp_kernels import extension

        errors = worst_errors()
    outcome = {
        "file": mp_kernels.__file__,
        "built": extension.is_built(),
        "instruction_sets": extension.instruction_sets(),
        "instruction_set": extension.chosen_instruction_set(),
        "warnings": [str(w.message) for w in caught],
        "errors": errors,
    }
    print(json.dumps(outcome))

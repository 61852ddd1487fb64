"""Half precision and int8 against float32: the same models and texts, nothing pruned, and the cost of a decision."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import workload
from mp_kernels import Ragged
from mp_model import PyramidBertConfig, PyramidBertForSequenceClassification
from mp_model.backbones import block_of
from mp_model.backbones.int8 import to_int8
from mp_model.checkpoints.precisions import why_unfit
from test_schedule import SHAPES

# Float32's time over that of the precision, at least.
TARGETS = {("BERT-base", "int8"): 3.6, ("MiniLM", "int8"): 3.0}


@functools.cache
def model(shape: str, precision: str) -> PyramidBertForSequenceClassification:
    """Random weights of a shape, the same in every precision."""
    if precision == "float32":
        torch.manual_seed(0)
        return PyramidBertForSequenceClassification(PyramidBertConfig(num_labels=4, **SHAPES[shape])).eval()
    why = why_unfit(precision, str(workload.DEVICE))
    if why is not None:
        pytest.skip(f"{precision}: {why}")
    other = copy.deepcopy(model(shape, "float32"))
    if precision == "int8":
        to_int8(other)
        return other
    return other.to(torch.bfloat16)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_dense(compare: Any, shape: str, precision: str) -> None:
    """Batches of 32 texts of similar length."""
    batches = workload.batches(length_sorted=True)

    def run(name: str) -> Callable[[], list[Any]]:
        one = model(shape, name)
        return lambda: [one(**batch, exit_threshold="never") for batch in batches]

    compare(
        f"{shape}, float32's time over {precision}'s, nothing pruned and nobody leaving",
        {"float32": run("float32"), precision: run(precision)},
        target=TARGETS.get((shape, precision)),
        rounds=9,
    )


@pytest.mark.parametrize("batch_size", [8, 32])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_decision(compare: Any, precision: str, batch_size: int) -> None:
    """Keys and values of all tokens and the rest for [CLS] alone, against the whole layer; 55 tokens a text."""
    layer = model("BERT-base", precision).bert.stack[0]
    states = torch.randn(batch_size * 55, 768).to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    batch = Ragged(states, workload.cu_seqlens_of([55] * batch_size), 55)
    compare(
        f"decision step over a whole layer in {precision}, batch of {batch_size}",
        {
            "decision": lambda: block_of(layer, states.device).first(batch),
            "whole layer": lambda: block_of(layer, states.device).whole(batch),
        },
        target=0.25,
        at_most=True,
        rounds=31,
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_memory(record: Any, benchmark: Any, shape: str) -> None:
    """Bytes of a model's weights in int8 over those in float32."""

    def megabytes(precision: str) -> float:
        return sum(x.nbytes for x in model(shape, precision).parameters()) / 1e6

    sizes = {precision: megabytes(precision) for precision in ("int8", "float32")}
    benchmark.pedantic(lambda: megabytes("int8"), rounds=1)
    ratio = sizes["int8"] / sizes["float32"]
    record(
        claim=f"{shape}, weights in int8 over float32",
        ratio=ratio,
        lowest=ratio,
        highest=ratio,
        target=0.4,
        at_most=True,
        milliseconds={},
        facts={f"megabytes {precision}": size for precision, size in sizes.items()},
    )

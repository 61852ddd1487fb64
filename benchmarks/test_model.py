"""Whole models: against transformers, and what pruning and exits save of our own time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import workload
from mp_model import PyramidBertForSequenceClassification
from mp_model.modelling import PyramidOutput


def _run(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> Callable[[], list[Any]]:
    return lambda: [model(**batch) for batch in batches]


@pytest.mark.parametrize(("length_sorted", "target"), [(False, 1.6), (True, 1.4)], ids=["unsorted", "sorted"])
def test_dense(compare: Any, length_sorted: bool, target: float) -> None:
    """Ours, with nothing pruned and nobody leaving, against transformers."""
    batches = workload.batches(length_sorted)
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    compare(
        f"transformers' time over ours, {'length-sorted' if length_sorted else 'unsorted'} batches",
        {"transformers": _run(workload.stock(), batches), "ours": _run(workload.ours(), batches)},
        target=target,
        rounds=7,
        padded_over_real_tokens=sum(batch["input_ids"].numel() for batch in batches) / real,
    )


def _work(outputs: list[PyramidOutput]) -> float:
    return float(sum(out.executed_flops.sum() for out in outputs))


def _compare_with_dense(compare: Any, claim: str, **settings: Any) -> None:
    """The share of the work saved that becomes time saved: 1 where time falls exactly as executed FLOPs do."""
    batches = workload.batches(length_sorted=False)
    dense, reduced = _run(workload.ours(), batches), _run(workload.ours_with(**settings), batches)
    with torch.inference_mode():
        work_ratio = _work(dense()) / _work(reduced())
    compare(
        claim,
        {"nothing pruned": dense, "pyramid": reduced},
        target=0.95,
        scale=1 / work_ratio,
        rounds=7,
        executed_flops_ratio=work_ratio,
    )


@pytest.mark.parametrize("share", [0.95, 0.9, 0.85, 0.8])
def test_pruned(compare: Any, share: float) -> None:
    """Every layer keeps a share of the tokens that enter it."""
    claim = f"time ratio over FLOPs ratio, {share:.0%} kept at each layer"
    _compare_with_dense(compare, claim, top_k=[share] * workload.ours().config.num_hidden_layers)


def _spread_thresholds(model: PyramidBertForSequenceClassification) -> list[float]:
    """Thresholds by which an equal number of texts leaves at every layer."""
    batches = workload.batches(length_sorted=False)
    layers = model.config.resolved_exit_layers()
    uncertainty = []
    with torch.inference_mode():
        for open_layer in layers:
            only = [1.0 if layer == open_layer else 0.0 for layer in layers]
            outputs = [model(**batch, exit_threshold=only) for batch in batches]
            assert all((out.exit_layer == open_layer).all() for out in outputs)
            uncertainty.append(torch.cat([out.uncertainty for out in outputs]))
    alive = torch.ones(workload.TEXTS, dtype=torch.bool, device=workload.DEVICE)
    thresholds = []
    for column in uncertainty:
        leaving = workload.TEXTS // model.config.num_hidden_layers
        thresholds.append(float(column[alive].kthvalue(leaving).values))
        alive &= column > thresholds[-1]
    return thresholds


def test_exits(compare: Any) -> None:
    """A twelfth of the texts leaves at every layer."""
    claim = "time ratio over FLOPs ratio, exits spread over the layers"
    _compare_with_dense(compare, claim, exit_threshold=_spread_thresholds(workload.ours()))


def test_pruned_with_exits(compare: Any) -> None:
    """Every layer keeps nine tenths of the tokens, and texts leave at every layer."""
    claim = "time ratio over FLOPs ratio, 90% kept at each layer and exits spread"
    shares = [0.9] * workload.ours().config.num_hidden_layers
    _compare_with_dense(compare, claim, top_k=shares, exit_threshold=_spread_thresholds(workload.ours()))


PEAK_PROGRAM = """
import ctypes, pathlib, re, sys, torch, workload
torch.set_num_threads(2)
model = workload.stock() if sys.argv[1] == "stock" else workload.ours()
batches = workload.batches(False)
def kilobytes(field):
    return int(re.search(field + r":\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
with torch.inference_mode():
    model(**{name: x[:1, :8] for name, x in batches[0].items()})  # the prepared form moves weights once
ctypes.CDLL(None).malloc_trim(0)
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
before = kilobytes("VmRSS")
with torch.inference_mode():
    for batch in batches:
        model(**batch)
print((kilobytes("VmHWM") - before) / 1024)
"""


def _peak_megabytes(which: str) -> float:
    """Growth of a fresh process's resident set, in megabytes, while it runs the batches through one model."""
    command = [sys.executable, "-W", "ignore", "-c", PEAK_PROGRAM, which]
    folder = Path(__file__).parent
    return float(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the resident set of a process is not a device's memory")
def test_memory(benchmark: Any, record: Callable[..., None]) -> None:
    """Growth of the resident set while the batches run, each model in a process of its own."""
    theirs = _peak_megabytes("stock")
    ours = benchmark.pedantic(_peak_megabytes, args=("ours",), rounds=1)
    record(
        claim="peak activation memory over transformers', unsorted batches of 32",
        ratio=ours / theirs,
        lowest=ours / theirs,
        highest=ours / theirs,
        target=1.0,
        at_most=True,
        milliseconds={},
        facts={"megabytes_ours": ours, "megabytes_transformers": theirs},
    )

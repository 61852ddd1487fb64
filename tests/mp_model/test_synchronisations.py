"""The host's waits for the device, and its launches there, layer by layer.

Counted without a device: what the engine does in Python is the same everywhere. An operator of mp_kernels counts as the
launches that its Triton implementation makes for these shapes, any other operator of torch that computes something as one.
The figures are held to those of ``tests/ahead_of_time/budget.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import mp_kernels.functional
import mp_model.inputs
from ahead_of_time import compiling
from mp_kernels import products
from mp_kernels.triton import IMPLEMENTATIONS
from mp_model import engine, schedule
from support import tiny
from support.pyramids import BATCH, calibrated

BUDGET = json.loads((Path(compiling.__file__).with_name("budget.json")).read_text())["engine"]
READING = {
    getattr(torch.Tensor, name)
    for name in (
        *("tolist", "item", "cpu", "numpy", "nonzero", "unique", "masked_select", "equal", "is_nonzero"),
        *("__bool__", "__int__", "__float__", "__index__", "__contains__"),
    )
} | {torch.nonzero, torch.unique, torch.masked_select, torch.equal, torch.is_nonzero}


def reads(function: Callable, arguments: tuple, options: dict) -> bool:
    """Whether a call would have the host read from the device."""
    if function in READING:
        return True
    if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
        places = arguments[1] if isinstance(arguments[1], tuple) else (arguments[1],)
        return any(isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in places)
    if function in (torch.repeat_interleave, torch.Tensor.repeat_interleave):
        return isinstance(arguments[-1], torch.Tensor) and options.get("output_size") is None
    return False


class HiddenReads(TorchFunctionMode):
    """Refuses what would make the host wait."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        options = kwargs or {}
        if reads(function, args, options):
            raise AssertionError(f"{function.__name__} makes the host wait for the device")
        return function(*args, **options)


# They allocate memory, or look where it lies.
NO_LAUNCH = {"aten::is_set_to", *(f"aten::{name}" for name in ("empty.memory_format", "empty_like", "new_empty"))}


class Launches(TorchDispatchMode):
    """Counts what would be launched, into the last entry of ``counts``."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = [0]

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator.namespace == "mp_kernels":
            name = operator.name().removeprefix("mp_kernels::")
            on_meta = torch.utils._pytree.tree_map_only(torch.Tensor, lambda x: x.to("meta"), args)
            self.counts[-1] += len(compiling.launches_of(lambda: IMPLEMENTATIONS[name](*on_meta), "sm_90"))
        elif not operator.is_view and operator.namespace == "aten" and operator.name() not in NO_LAUNCH:
            self.counts[-1] += 1
        return operator(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[int]]]:
    """Reads and launches: before layer 1 at first, then one entry a layer, then after layer L."""
    launches, waits = Launches(), [0]

    def counted_read(x: torch.Tensor) -> list[int]:
        waits[-1] += 1
        with torch._C.DisableTorchFunction():
            return x.tolist()

    monkeypatch.setattr(mp_kernels.functional, "MOVE_WHILE_PRUNING", {"cpu"})
    for name in ("in_blocks", "in_kernels"):  # nor are products so on a GPU
        monkeypatch.setattr(products, name, lambda *_: False)
    for module in (mp_kernels.functional, mp_model.inputs):
        monkeypatch.setattr(module, "read_by_host", counted_read)

    def next_entry() -> None:
        launches.counts.append(0)
        waits.append(0)

    def run_layer(pyramid: engine.Pyramid, number: int, alive: engine.Alive) -> engine.Stepped:
        next_entry()
        result = engine.run_layer(pyramid, number, alive)
        if number == len(pyramid.layers):
            next_entry()
        return result

    monkeypatch.setattr(schedule, "run_layer", run_layer)
    with HiddenReads(), launches:
        yield {"launches": launches.counts, "synchronisations": waits}


SITUATIONS = {
    "dense": ("nothing", "cls", False),
    "pruning": ("alive", "cls", False),
    "exits": ("nothing", "pooled_from_0", True),
    "exits and pruning": ("alive", "pooled_from_0", True),
    "exits, late": ("nothing", "pooled_from_0", True),
    "exits and pruning, late": ("alive", "pooled_from_0", True),
}


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_synchronisations_and_launches_of_each_layer(
    situation: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a model that has run before: its first run packs the weights."""
    pruning, head, exits = SITUATIONS[situation]
    if "late" in situation:
        monkeypatch.setattr(engine, "decides_first", lambda *_: False)
    template, thresholds, _ = calibrated(pruning, head)
    model = tiny.classifier()
    model = type(template)(template.config).eval()
    model.load_state_dict(template.state_dict())
    model.to(getattr(torch, dtype))
    inputs = BATCH.padded()
    model(**inputs, exit_threshold="never")
    with counted(monkeypatch) as counts:
        output = model(**inputs, exit_threshold=list(thresholds.values()) if exits else None)

    last = model.config.num_hidden_layers
    assert len(counts["launches"]) == 2 + last, "every layer must run for its steps to be counted"
    if exits:
        assert len(output.exit_layer.unique()) > 2
    prunes = [1, 2, 3] if "pruning" in situation else []
    leaves = model.config.resolved_exit_layers() if exits else []
    # Before layer 1 the host reads the batch's sizes; after it, once for each compaction. Layer L compacts nothing.
    expected = [int(layer in prunes) + int(layer in leaves) + (layer == 0) for layer in range(2 + last)]
    assert counts["synchronisations"] == expected
    assert max(counts["synchronisations"][1:]) <= BUDGET[situation]["synchronisations a layer"]
    assert counts["launches"][0] == BUDGET[situation]["launches before layer 1"]
    assert counts["launches"][-1] == BUDGET[situation]["launches after layer L"]
    assert max(counts["launches"][1:last]) == BUDGET[situation][f"launches a layer, {dtype}"]


@torch.no_grad()
def test_a_head_that_reads_survivors_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastBERT's, unlike ours, is decided after the layer: once its tokens are pruned, and again for who leaves."""
    template, thresholds, _ = calibrated("alive", "fastbert")
    model = type(template)(template.config).eval()
    model.load_state_dict(template.state_dict())
    with counted(monkeypatch) as counts:
        model(**BATCH.padded(), exit_threshold=list(thresholds.values()))
    assert counts["synchronisations"] == [1, 2, 2, 2, 0, 0]


@torch.no_grad()
@pytest.mark.parametrize("pruning", ["nothing", "alive"])
@pytest.mark.parametrize("late", [False, True])
def test_telling_two_texts_apart_costs_nearly_nothing(
    pruning: str, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host waits no more than for "pooled" heads; a compaction looks for the second texts, and a layer asks once."""
    if late:
        monkeypatch.setattr(engine, "decides_first", lambda *_: False)
    found = []
    for head in ("pooled_from_0", "pair_from_0"):
        template, thresholds, _ = calibrated(pruning, head)
        model = type(template)(template.config).eval()
        model.load_state_dict(template.state_dict())
        model(**BATCH.padded(), exit_threshold="never")
        with monkeypatch.context() as patched, counted(patched) as counts:
            model(**BATCH.padded(), exit_threshold=list(thresholds.values()))
        found.append(counts)
    pooled, pair = found
    assert pair["synchronisations"] == pooled["synchronisations"]
    compactions = pooled["synchronisations"]
    for layer, (more, before) in enumerate(zip(pair["launches"][1:], pooled["launches"][1:], strict=True), 1):
        assert more <= before + 2 * compactions[layer], layer


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.tolist(),
        lambda x: x[0].item(),
        lambda x: bool(x[0]),
        lambda x: int(x[0]),
        lambda x: float(x[0]),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.repeat_interleave(x),
        lambda x: torch.repeat_interleave(x, x),
        lambda x: list(range(x[0])),
    ],
)
def test_hidden_reads_are_found(read: Callable) -> None:
    x = torch.tensor([1, 2])
    with HiddenReads(), pytest.raises(AssertionError, match="makes the host wait"):
        read(x)

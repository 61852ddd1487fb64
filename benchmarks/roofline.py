"""The steps of a layer on a GPU at the rates of its datasheet: arithmetic from shapes, not a measurement, and not a floor.

One encoder layer in BERT-base's shapes and bfloat16 runs here on the CPU; every operator it calls is written down with the
bytes that it reads and writes and the operations that it does, for the shapes that really occurred. The time of a step on a
device is the longer of its bytes over the memory's rate and its operations over the processors' rate: the step's time if
all its inputs came from the device's memory and all its results went there.

A real kernel is slower, for launches, tails and imperfect overlap are not counted. It may also be faster: what one step
writes and the next one reads need not pass through memory while it fits the L2 cache, as a batch's activations usually do.
Such steps are marked; for them the time says nothing but the order in which steps cost. Weights come from memory in each
layer, since all layers' together fit no cache.

    python benchmarks/roofline.py                       lengths like AG News', 32 texts
    python benchmarks/roofline.py --length 512 --batch 16 --keep 0.5
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from mp_kernels import Ragged
from mp_model import PyramidBertConfig, PyramidBertForSequenceClassification, engine
from mp_model.backbones import block_of
from mp_model.pruning import Pruning
from workload import ag_news_lengths


@dataclass(frozen=True)
class Device:
    """Datasheet rates: dense bfloat16 tensor cores and float32 units in operations a second, memory in bytes a second.

    cache: bytes of the L2.
    """

    name: str
    tensor: float
    vector: float
    memory: float
    cache: float


DEVICES = (
    Device("A100 80GB SXM", 312e12, 19.5e12, 2.039e12, 40e6),
    Device("H100 80GB SXM", 989.4e12, 66.9e12, 3.35e12, 50e6),
    Device("H200 141GB SXM", 989.4e12, 66.9e12, 4.8e12, 50e6),
)

# Float32 operations of attention for every pair of a query and a key, as the one-pass kernel does them: scaling, mask of the
# columns, maximum, subtraction, power of two (a special-function unit at a quarter of the rate, so 4), sum, normalising,
# narrowing. The score adds the mask of the rows and the column sum. A multiply-add counts as two in the datasheets.
VECTOR_OPERATIONS_OF_ATTENTION = 1 + 1 + 1 + 1 + 4 + 1 + 1 + 1
VECTOR_OPERATIONS_OF_SCORE = 2


@dataclass
class Step:
    """An operator's call: bytes moved, operations on tensor cores (``products``) and elsewhere (``vector``)."""

    name: str
    bytes: float
    products: float = 0.0
    vector: float = 0.0
    calls: int = 1

    def through_memory(self, device: Device) -> tuple[float, str]:
        """Seconds of the step if all its bytes pass through memory, and what bounds it.

        Memory is no bound where the bytes of a call fit the cache; the name says so.
        """
        times = {
            "memory": self.bytes / device.memory,
            "tensor cores": self.products / device.tensor,
            "float32 units": self.vector / device.vector,
        }
        bound = max(times, key=times.get)
        fits = bound == "memory" and self.bytes / self.calls <= device.cache
        return times[bound], "memory, or the cache" if fits else bound


def size(x: Any) -> float:
    """Bytes of the tensors in a structure."""
    if isinstance(x, torch.Tensor):
        return x.numel() * x.element_size()
    return sum(map(size, x)) if isinstance(x, list | tuple) else 0


def pairs_of(arguments: tuple) -> int:
    """Number of pairs of a query and a key, over all heads, that a call of the attention operator computes."""
    queries, keys, stays = (arguments[3].diff().long(), arguments[4].diff(), arguments[5])
    return int((queries * keys * (1 if stays is None else stays)).sum()) * arguments[0].shape[1]


class Recorder(TorchDispatchMode):
    """Writes down every operator that moves data, as a :class:`Step`."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        moves_data = size(out) > 0 and not operator.is_view and "empty" not in operator.name()
        if moves_data:
            self.steps.append(self._step(operator.name().split("::")[1].split(".")[0], args, out))
        return out

    @staticmethod
    def _step(name: str, args: tuple, out: Any) -> Step:
        if name in ("mm", "addmm"):
            left, right = args[-2:]
            label = f"product {left.shape[1]} x {right.shape[1]}"
            return Step(label, size(list(args)) + size(out), products=2.0 * left.numel() * right.shape[1])
        if name == "ragged_attention":
            q, pairs = args[0], pairs_of(args)
            with_score = args[-1]
            vector = VECTOR_OPERATIONS_OF_ATTENTION + (VECTOR_OPERATIONS_OF_SCORE if with_score else 0)
            label = (
                "attention with importance" if with_score else "attention of [CLS]" if _one_each(args) else "attention"
            )
            return Step(label, size(list(args[:3])) + size(out), 4.0 * pairs * q.shape[2], float(vector * pairs))
        if name == "ragged_gather":  # only the rows that are taken are read
            return Step("gather", 2 * size(out) + size(args[1]))
        if name == "add_layer_norm":
            return Step("add and norm", 3 * size(out) + size([args[1], args[3]]), vector=8.0 * out.numel())
        if name == "exit_head":
            features, dense, _, classifier = args[:4]
            products = 2.0 * features.shape[0] * (dense.numel() + classifier.numel())
            return Step("exit head", size(list(args)) + size(out), products)
        per_element = {"bias_gelu": 20.0}.get(name, 1.0)  # the error function takes about so many
        return Step(name.replace("_", " "), size(list(args)) + size(out), vector=per_element * _elements(out))


def _elements(x: Any) -> int:
    if isinstance(x, torch.Tensor):
        return x.numel()
    return sum(map(_elements, x)) if isinstance(x, list | tuple) else 0


def _one_each(args: tuple) -> bool:
    """Whether an attention has one query a sample."""
    return args[0].shape[0] == args[3].shape[0] - 1


def layer_steps(lengths: list[int], keep: float | None, decide: bool) -> list[Step]:
    """The steps of layer 1 of BERT-base over texts of these lengths; steps of one kind are added up.

    Args:
        lengths: tokens of each text.
        keep: share of the tokens that survives; None: no pruning.
        decide: whether the layer's exit is open; nobody leaves.
    """
    torch.manual_seed(0)
    config = PyramidBertConfig(num_hidden_layers=2, num_labels=4, exit_layers=[1])
    model = PyramidBertForSequenceClassification(config).eval().bfloat16()
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    batch = Ragged(torch.randn(sum(lengths), config.hidden_size).bfloat16(), starts, max(lengths))
    pyramid = model.pyramid(exit_threshold=0.0 if decide else "never")
    if keep is not None:
        pyramid.pruning = Pruning([threshold_for(model, batch, keep), 0.0], None, "alive")
    recorder = Recorder()
    with torch.no_grad():
        block_of(pyramid.layers[0], batch.values.device)  # packs the weights, once for all batches
        alive = engine.Alive.of(batch)
        with recorder:
            engine.run_layer(pyramid, 1, alive)
    return added_up(recorder.steps)


def threshold_for(model: PyramidBertForSequenceClassification, batch: Ragged, keep: float) -> float:
    """The pruning threshold by which about this share of the tokens survives layer 1."""
    found: list[torch.Tensor] = []

    def all_survive(importance: torch.Tensor, rows: Sequence[torch.Tensor]) -> tuple[Sequence[torch.Tensor], None]:
        found.append(importance.mean(0))
        return rows, None

    with torch.no_grad():
        block_of(model.bert.encoder.layer[0], batch.values.device).whole(batch, all_survive)
    return float(found[0].quantile(1 - keep))


def added_up(steps: list[Step]) -> list[Step]:
    """The steps with those of one name as one, in the order in which the names came first."""
    sums: dict[str, Step] = {}
    for step in steps:
        known = sums.setdefault(step.name, Step(step.name, 0.0, calls=0))
        for field in ("bytes", "products", "vector", "calls"):
            setattr(known, field, getattr(known, field) + getattr(step, field))
    return list(sums.values())


def score_share(steps: list[Step], head_dim: int) -> dict[str, float]:
    """The share of the column-mean score in attention: of all operations, and of the float32 units' alone."""
    pairs = next(step.products for step in steps if step.name == "attention with importance") / (4 * head_dim)
    vector = VECTOR_OPERATIONS_OF_ATTENTION + VECTOR_OPERATIONS_OF_SCORE
    score = VECTOR_OPERATIONS_OF_SCORE * pairs
    return {
        "of all operations": score / ((4 * head_dim + vector) * pairs),
        "of the float32 units'": score / (vector * pairs),
    }


def report(title: str, steps: list[Step], console: Console) -> None:
    """A table of the steps and their times through memory."""
    table = Table(title=title)
    table.add_column("step")
    for heading in ("calls", "MB", "GFLOP", *(f"{device.name}, us" for device in DEVICES)):
        table.add_column(heading, justify="right")
    table.add_column("bound on H100 by")
    for step in steps:
        times = [step.through_memory(device) for device in DEVICES]
        if max(seconds for seconds, _ in times) < 5e-8:
            continue  # bookkeeping of a few bytes
        cells = (f"{step.calls}", f"{step.bytes / 1e6:.2f}", f"{(step.products + step.vector) / 1e9:.3f}")
        table.add_row(step.name, *cells, *(f"{seconds * 1e6:.1f}" for seconds, _ in times), times[1][1])
    totals = [sum(step.through_memory(device)[0] for step in steps) for device in DEVICES]
    moved, done = sum(s.bytes for s in steps), sum(s.products + s.vector for s in steps)
    calls = sum(step.calls for step in steps)
    cells = (f"{calls}", f"{moved / 1e6:.2f}", f"{done / 1e9:.3f}", *(f"{t * 1e6:.1f}" for t in totals))
    table.add_row("the layer", *cells, "", style="bold")
    console.print(table)


def main(
    length: Annotated[int | None, typer.Option(help="Tokens of every text. Default: lengths like AG News'.")] = None,
    batch: Annotated[int, typer.Option(help="Number of texts.")] = 32,
    keep: Annotated[float, typer.Option(help="Share of the tokens that survives where the layer prunes.")] = 0.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print a BERT-base layer's time on GPUs if everything passed through memory: arithmetic, not a measurement."""
    lengths = ag_news_lengths(batch) if length is None else [length] * batch
    decided = f"exit decided {'first' if engine.decides_first(sum(lengths), batch, 'cuda') else 'late'}"
    situations: dict[str, Callable[[], list[Step]]] = {
        "dense": lambda: layer_steps(lengths, None, False),
        f"pruning to {keep:.0%}": lambda: layer_steps(lengths, keep, False),
        decided: lambda: layer_steps(lengths, None, True),
        f"{decided} and pruning to {keep:.0%}": lambda: layer_steps(lengths, keep, True),
    }
    found = {name: make() for name, make in situations.items()}
    share = score_share(found[f"pruning to {keep:.0%}"], 64)
    if as_json:
        print(json.dumps({"score": share} | {name: list(map(asdict, steps)) for name, steps in found.items()}))
        return
    console = Console(width=140)
    texts = f"{batch} texts, {sum(lengths)} tokens, longest {max(lengths)}"
    console.print(f"Arithmetic, not measurement: one layer in BERT-base's shapes, bfloat16, {texts}.")
    console.print(
        "Times if all inputs and results of a step passed through the device's memory. They are no floor: what fits the L2 "
        "cache need not ('memory, or the cache'), and no launch is counted."
    )
    for name, steps in found.items():
        report(name, steps, console)
    shares = ", ".join(f"{value:.1%} {name}" for name, value in share.items())
    console.print(f"The importance score adds to one-pass attention: {shares} operations.")


if __name__ == "__main__":
    typer.run(main)

"""The time that classifiers take on the same batches, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..configuration import NEVER
from ..data.batches import TextBatch
from ..engine import StepResult
from ..flops import dense_flops
from ..modelling import PyramidForSequenceClassification
from ..schedule import run_batches
from .record import Threshold

GROUP = 16  # batches that a way takes in one turn

# A way to classify padded batches, called with the inputs of some of them.
Way = Callable[[Sequence[dict[str, Tensor]]], Any]


def one_by_one(classify: Callable[[dict[str, Tensor]], Any]) -> Way:
    """A way that takes one batch after the other; classify: called with a batch's inputs."""
    return lambda group: [classify(inputs) for inputs in group]


def way_at(
    model: PyramidForSequenceClassification,
    exit_threshold: Threshold,
    prune_thresholds: Sequence[float] | None = None,
) -> Way:
    """A pyramid at one setting, whatever its configuration says of exits; batches share a schedule.

    Args:
        model: the pyramid.
        exit_threshold: one threshold, one for each exit layer, or None: nobody leaves early.
        prune_thresholds: L floats; None: the model's own pruning.
    """
    pyramid = model.pyramid(prune_thresholds, NEVER if exit_threshold is None else exit_threshold)

    def classify(group: Sequence[dict[str, Tensor]]) -> list[StepResult]:
        return list(run_batches(pyramid, (model.base_model.pack(**inputs) for inputs in group)))

    return classify


def padded_twin(model: PyramidForSequenceClassification) -> PreTrainedModel:
    """The stock transformers classifier with the pyramid's weights: padded, nothing pruned, nobody leaves, in float32."""
    backbone = model.backbone
    names = [name for name in backbone.config().to_dict() if name not in ("model_type", "transformers_version")]
    shared = {name: getattr(model.config, name) for name in names if hasattr(model.config, name)}
    make: Any = backbone.classifier
    twin = make(backbone.config(**{**shared, "num_labels": model.config.num_labels})).eval()
    weights = {name: x for name, x in model.state_dict().items() if not name.startswith("exits.")}
    for part in [name.removesuffix(".scale") for name in weights if name.endswith(".scale")]:  # int8
        weights[f"{part}.weight"] = weights[f"{part}.weight"] * weights.pop(f"{part}.scale").unsqueeze(1)
        if f"{part}.kept_weight" in weights:
            weights[f"{part}.weight"][:, weights.pop(f"{part}.columns")] = weights.pop(f"{part}.kept_weight")
    biases = {name for name in weights.keys() - twin.state_dict().keys() if name.endswith(".bias")}
    twin.load_state_dict({name: x for name, x in weights.items() if name not in biases})  # int8 adds some, all 0
    return twin.to(model.device)


def padded_gflops(model: PyramidForSequenceClassification, batches: Sequence[TextBatch]) -> float:
    """Mean work for a text, by the paper's count, of a padded stock model like the pyramid, padding included."""
    widths = torch.tensor([batch.inputs["input_ids"].shape[1] for batch in batches for _ in batch.places])
    return dense_flops(model.config, widths).double().mean().item() / 1e9


@torch.inference_mode()
def time_ways(ways: dict[str, Way], batches: Sequence[TextBatch], rounds: int = 3) -> dict[str, float]:
    """Seconds that each way to classify the batches takes for a text, tokenisation apart.

    The ways take turns, some batches at a time, so that whatever else the machine does hits them alike; the result is the
    median of the rounds over all batches.

    Args:
        ways: functions of the inputs of some batches, by name.
        batches: padded batches, on the device that the ways run on.
        rounds: number of passes over the batches.
    """
    texts = sum(len(batch.places) for batch in batches)
    groups = [[batch.inputs for batch in batches[begin : begin + GROUP]] for begin in range(0, len(batches), GROUP)]
    on_cuda = batches[0].inputs["input_ids"].is_cuda
    for way in ways.values():
        way([batches[len(batches) // 2].inputs])  # the first call sets up threads and memory
    totals: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        seconds = dict.fromkeys(ways, 0.0)
        for group in groups:
            for name, way in ways.items():
                begin = time.perf_counter()
                way(group)
                if on_cuda:
                    torch.cuda.synchronize()
                seconds[name] += time.perf_counter() - begin
        for name, value in seconds.items():
            totals[name].append(value)
    return {name: statistics.median(values) / texts for name, values in totals.items()}

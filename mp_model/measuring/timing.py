"""The time that classifiers take on the same batches, side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from ..configuration import NEVER
from ..data.batches import TextBatch
from ..flops import dense_flops
from ..modelling import PyramidBertForSequenceClassification
from .record import Threshold

# A way to classify a padded batch, called with its inputs.
Way = Callable[[dict[str, Tensor]], Any]


def way_at(
    model: PyramidBertForSequenceClassification,
    exit_threshold: Threshold,
    prune_thresholds: Sequence[float] | None = None,
) -> Way:
    """A pyramid at one setting, whatever its configuration says of exits.

    Args:
        model: the pyramid.
        exit_threshold: one threshold, one for each exit layer, or None: nobody leaves early.
        prune_thresholds: L floats; None: the model's own pruning.
    """
    setting = NEVER if exit_threshold is None else exit_threshold
    return lambda inputs: model(**inputs, exit_threshold=setting, prune_thresholds=prune_thresholds)


def padded_twin(model: PyramidBertForSequenceClassification) -> BertForSequenceClassification:
    """The stock transformers classifier with the pyramid's weights: padded, nothing pruned, nobody leaves."""
    shared = {name: getattr(model.config, name) for name in BertConfig().to_dict() if hasattr(model.config, name)}
    config = BertConfig(**{**shared, "model_type": "bert", "num_labels": model.config.num_labels})
    twin = BertForSequenceClassification(config).eval()
    twin.load_state_dict({name: x for name, x in model.state_dict().items() if not name.startswith("exits.")})
    return twin.to(model.device)


def padded_gflops(model: PyramidBertForSequenceClassification, batches: Sequence[TextBatch]) -> float:
    """Mean work for a text, by the paper's count, of a padded BERT like the pyramid, padding included."""
    widths = torch.tensor([batch.inputs["input_ids"].shape[1] for batch in batches for _ in batch.places])
    return dense_flops(model.config, widths).double().mean().item() / 1e9


@torch.inference_mode()
def time_ways(ways: dict[str, Way], batches: Sequence[TextBatch], rounds: int = 3) -> dict[str, float]:
    """Seconds that each way to classify the batches takes for a text, tokenisation apart.

    The ways take turns batch by batch, so that whatever else the machine does hits them alike; the result is the median of
    the rounds over all batches.

    Args:
        ways: functions of a batch's inputs, by name.
        batches: padded batches, on the device that the ways run on.
        rounds: number of passes over the batches.
    """
    texts = sum(len(batch.places) for batch in batches)
    on_cuda = next(iter(batches)).inputs["input_ids"].is_cuda
    for way in ways.values():
        way(batches[len(batches) // 2].inputs)  # the first call sets up threads and memory
    totals: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        seconds = dict.fromkeys(ways, 0.0)
        for batch in batches:
            for name, way in ways.items():
                begin = time.perf_counter()
                way(batch.inputs)
                if on_cuda:
                    torch.cuda.synchronize()
                seconds[name] += time.perf_counter() - begin
        for name, value in seconds.items():
            totals[name].append(value)
    return {name: statistics.median(values) / texts for name, values in totals.items()}

"""Tiny pyramids of every kind of pruning and of head, with thresholds at which something happens everywhere."""

from __future__ import annotations

import functools

from mp_model import PyramidBertForSequenceClassification

from . import tiny

LAYERS = 4
BATCH = tiny.samples()

PRUNINGS = {
    "nothing": {},
    "alive": {"importance_normalizer": "alive"},
    "input": {"importance_normalizer": "input"},
    "number": {"importance_normalizer": 24},
    "top_k": {"top_k": [30, 14, 9, 4]},
    "shares": {"top_k": [0.9, 0.55, 20, 0.5]},
}
HEADS = {
    "cls": {"exit_head": "cls"},
    "cls_at_2": {"exit_head": "cls", "exit_layers": [2]},
    "pooled": {"exit_head": "pooled"},
    "pooled_from_0": {"exit_head": "pooled", "exit_layers": [0, 1, 3]},
    "pair_from_0": {"exit_head": "pair", "exit_layers": [0, 1, 3]},
    "fastbert": {"exit_head": "fastbert"},
    "several_labels": {
        "exit_head": "pooled",
        "exit_layers": [0, 1, 3],
        "problem_type": "multi_label_classification",
    },
    "disagreement": {
        "exit_head": "pooled",
        "exit_layers": [0, 1, 3],
        "confidence_heads": True,
        "exit_uncertainty": "disagreement",
    },
    "fastbert_disagreement": {
        "exit_head": "fastbert",
        "confidence_heads": True,
        "exit_uncertainty": "disagreement",
        "problem_type": "multi_label_classification",
    },
}


@functools.cache
def calibrated(
    pruning: str, head: str
) -> tuple[PyramidBertForSequenceClassification, dict[int, float], list[dict[int, float]]]:
    """A model, an exit threshold for each exit layer, and the samples' uncertainties at all exits if nobody leaves."""
    model = tiny.classifier(**PRUNINGS[pruning], **HEADS[head])
    if "importance_normalizer" in PRUNINGS[pruning]:
        tiny.calibrate_pruning(model, BATCH)
    layers = model.config.resolved_exit_layers()
    thresholds = dict(zip(layers, tiny.calibrate_exits(model, BATCH), strict=True))
    answers = tiny.define(model, BATCH, dict.fromkeys(layers, 0.0))
    return model, thresholds, [{layer: answer.uncertainties[layer] for layer in layers} for answer in answers]

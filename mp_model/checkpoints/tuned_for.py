"""The record of what a model's exit thresholds were tuned for, and the reasons for which they no longer hold.

Thresholds are chosen for certain weights, pruning, precision and length of texts. The record is saved with the model, as
``tuned_for`` in its configuration; thresholds that somebody set by hand are nobody's concern.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import torch

from ..configuration import PyramidConfig
from ..exits import ENTROPY
from ..modelling import PyramidForSequenceClassification
from .precisions import precision_of

SAMPLED = 64  # values of each tensor that the fingerprint reads
PRUNING = ("prune_thresholds", "top_k", "importance_normalizer")


class TunedForOtherWarning(UserWarning):
    """A model whose exit thresholds were tuned for something else."""


@torch.no_grad()
def fingerprint(model: PyramidForSequenceClassification) -> str:
    """A hash of up to 64 values of each tensor of the weights, evenly spaced, as float32.

    Training moves every weight, so a sample tells models apart; a change of single values may stay unseen, and so does one
    in layers that no text reaches.
    """
    digest = hashlib.sha256()
    unreached = model.base_model.stack[model.config.reached_layers :]
    beginnings = tuple(f"{name}." for name, module in model.named_modules() if module in unreached)
    for name, weight in sorted(model.state_dict().items()):
        if name.startswith(beginnings):
            continue
        values = weight.flatten()
        places = torch.linspace(0, max(0, len(values) - 1), SAMPLED, dtype=torch.float64, device=values.device).long()
        sample = values[places].float().cpu() if len(values) else values
        digest.update(f"{name} {list(weight.shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def pruning_of(config: PyramidConfig) -> dict[str, Any]:
    """The settings by which a model prunes tokens, by their names."""
    return {name: getattr(config, name) for name in PRUNING}


def record_of(
    model: PyramidForSequenceClassification, max_length: int, texts: int, goal: dict[str, Any]
) -> dict[str, Any]:
    """The record of thresholds that were just tuned, and are set in the model's configuration.

    Args:
        model: the model, with the pruning that goes with them.
        max_length: tokens that texts were cut to.
        texts: number of validation texts.
        goal: what was asked of the thresholds, for people.
    """
    return {
        "exit_threshold": model.config.exit_threshold,
        "exit_uncertainty": model.config.exit_uncertainty,
        "depth": model.config.depth,
        "weights": fingerprint(model),
        "pruning": pruning_of(model.config),
        "precision": precision_of(model),
        "max_length": max_length,
        "texts": texts,
        "goal": goal,
    }


def differences(model: PyramidForSequenceClassification, max_length: int) -> list[str]:
    """The circumstances of the tuning of a model's exit thresholds that are no longer so; empty where they hold.

    Empty too where nobody exits, where there is no record, and where the thresholds are others than the recorded ones, set
    by hand. Weights are compared in the precision of the record alone.

    max_length: tokens that texts are cut to.
    """
    config = model.config
    record = config.tuned_for
    if record is None or config.exit_threshold is None or config.exit_threshold != record.get("exit_threshold"):
        return []
    found = []
    if (precision := precision_of(model)) != record.get("precision"):
        found.append(f"precision {record.get('precision')} (here {precision})")
    elif fingerprint(model) != record.get("weights"):
        found.append("other weights")
    if config.exit_uncertainty != record.get("exit_uncertainty", ENTROPY):
        found.append("another kind of uncertainty")
    if config.depth != record.get("depth"):
        found.append("another depth")
    if pruning_of(config) != record.get("pruning"):
        found.append("other pruning")
    if max_length != record.get("max_length"):
        found.append(f"texts of up to {record.get('max_length')} tokens (here {max_length})")
    return found


def warn_where_it_no_longer_holds(model: PyramidForSequenceClassification, max_length: int) -> None:
    """Warns in one line where exit thresholds were tuned for something else (:func:`differences`)."""
    found = differences(model, max_length)
    if found:
        warnings.warn(
            f"the exit threshold of this model was tuned for {', '.join(found)}; choose it anew with "
            "`magic-pyramid tune`",
            TunedForOtherWarning,
            stacklevel=3,
        )

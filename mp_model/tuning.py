"""Choosing the exit threshold on labelled validation texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import mp_kernels


@dataclass
class Outcome:
    """What one exit threshold does to the validation texts.

    Attributes:
        exit_threshold: the threshold.
        accuracy: share of right answers.
        harm: share of texts answered wrongly that the whole model answers rightly; accuracy cannot fall by more.
        mean_exit_layer: mean layer of the exit.
    """

    exit_threshold: float
    accuracy: float
    harm: float
    mean_exit_layer: float


def outcome_of(logits: dict[int, Tensor], labels: Tensor, right_before: Tensor, exit_threshold: float) -> Outcome:
    """Applies one threshold to the predictions of all exits.

    Args:
        logits: ``{layer: [texts, labels]}`` of every exit layer and of layer L.
        labels: int64 ``[texts]``.
        right_before: bool ``[texts]``, which texts the whole model answers rightly.
        exit_threshold: in [0, 1].
    """
    last = max(logits)
    answer = logits[last].argmax(-1)
    exit_layer = torch.full_like(labels, last)
    for layer in sorted(logits, reverse=True):
        if layer != last:
            leaves = mp_kernels.normalized_entropy(logits[layer]) <= exit_threshold
            answer = torch.where(leaves, logits[layer].argmax(-1), answer)
            exit_layer = torch.where(leaves, layer, exit_layer)
    wrong = answer != labels
    return Outcome(
        exit_threshold,
        accuracy=1 - wrong.double().mean().item(),
        harm=(wrong & right_before).double().mean().item(),
        mean_exit_layer=exit_layer.double().mean().item(),
    )


def choose_exit_threshold(
    logits: dict[int, Tensor], labels: Tensor, right_before: Tensor, max_harm: float, steps: int = 200
) -> Outcome:
    """The largest threshold (fastest) with at most ``max_harm`` of the texts harmed, among ``steps`` in (0, 1].

    Harm counts answers made wrong and does not set them off against answers made right, so it is stricter than a fall of
    the accuracy, which on few texts is mostly luck. Threshold 0, at which almost nobody leaves, if none qualifies.
    Arguments as for :func:`outcome_of`.
    """
    candidates = (outcome_of(logits, labels, right_before, step / steps) for step in range(steps, 0, -1))
    chosen = next((outcome for outcome in candidates if outcome.harm <= max_harm), None)
    return chosen or outcome_of(logits, labels, right_before, 0.0)

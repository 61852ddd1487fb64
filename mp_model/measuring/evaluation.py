"""The evaluation of a pyramid on labelled texts: its record at an exit threshold, F1, exits by layer, and by length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .record import Predictions, Record, Threshold

BUCKETS = (35, 70)  # tokens; the bounds of the paper's Figure 1


@dataclass(frozen=True, kw_only=True)
class Bucket(Record):
    """The record of texts of a range of lengths.

    Attributes:
        shortest: tokens of the shortest texts, at least.
        longest: tokens of the longest texts, at most; None: no bound.
    """

    shortest: int
    longest: int | None

    @property
    def name(self) -> str:
        """The range, for people."""
        return f"{self.shortest}-{self.longest}" if self.longest is not None else f"{self.shortest} or more"


@dataclass(frozen=True, kw_only=True)
class Evaluation(Record):
    """The record of a model at one setting of its exits.

    Attributes:
        exit_threshold: one threshold, one for each exit layer, or None: nobody leaves early.
        f1: F1 of the second label where there are two, as GLUE has it; else the mean over the labels.
        exits: number of texts that left at each layer, 0 to L.
        buckets: records by length; ranges without texts are left out.
        seconds: time for a text, where it was measured.
    """

    exit_threshold: Threshold
    f1: float
    exits: list[int]
    buckets: list[Bucket] = field(default_factory=list)
    seconds: float | None = None


def f1_score(predictions: Tensor, labels: Tensor, count: int) -> float:
    """F1 of label 1 where there are two labels, else the mean of all labels' F1.

    Args:
        predictions: int64 ``[texts]``, the label numbers that were answered.
        labels: int64 ``[texts]``, the right ones.
        count: number of labels.
    """
    scores = []
    for label in [1] if count == 2 else range(count):
        chosen, right = predictions == label, labels == label
        total = int(chosen.sum() + right.sum())
        scores.append(2 * int((chosen & right).sum()) / total if total else 0.0)
    return sum(scores) / len(scores)


def evaluate(exits: Predictions, exit_threshold: Threshold, bounds: Sequence[int] = BUCKETS) -> Evaluation:
    """The evaluation of a model at one setting of its exits.

    Args:
        exits: predictions of all its exits.
        exit_threshold: one threshold, one for each exit layer, or None: nobody leaves early.
        bounds: tokens of the longest texts of each range of lengths but the last; rising.

    Raises:
        ValueError: bounds that do not rise or are not positive.
    """
    if list(bounds) != sorted(set(bounds)) or any(bound < 1 for bound in bounds):
        raise ValueError(f"length buckets must be given by rising positive bounds; got {list(bounds)}")
    answers = exits.answers(exit_threshold)
    buckets = []
    for shortest, longest in zip([1, *(bound + 1 for bound in bounds)], [*bounds, None], strict=True):
        inside = exits.lengths >= shortest
        if longest is not None:
            inside &= exits.lengths <= longest
        if inside.any():
            buckets.append(Bucket.of(exits, answers, inside, shortest=shortest, longest=longest))
    return Evaluation.of(
        exits,
        answers,
        exit_threshold=exit_threshold,
        f1=f1_score(answers.predictions, exits.labels, len(exits.config.label_names)),
        exits=torch.bincount(answers.exit_layer, minlength=exits.config.num_hidden_layers + 1).tolist(),
        buckets=buckets,
    )

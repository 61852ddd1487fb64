"""The evaluation of a pyramid on labelled texts: its record at an exit threshold, F1, exits by layer, and by length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..problems import ONE, Choice
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
        f1: F1 of the second label where one of two is chosen, as GLUE has it; else the mean over the labels.
        several: figures of several labels a text; None: one is chosen.
        exits: number of texts that left at each layer, 0 to L.
        buckets: records by length; ranges without texts are left out.
        seconds: time for a text, where it was measured.
    """

    exit_threshold: Threshold
    f1: float
    exits: list[int]
    several: SeveralFigures | None = None
    buckets: list[Bucket] = field(default_factory=list)
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class SeveralFigures:
    """Figures of answers that give a text any number of labels.

    Attributes:
        exact_match: share of texts of which all labels are right; the accuracy.
        label_accuracy: share of right decisions, one for each label of each text.
        micro_f1: F1 over the decisions of all labels together.
        macro_f1: mean of the labels' F1.
    """

    exact_match: float
    label_accuracy: float
    micro_f1: float
    macro_f1: float

    @classmethod
    def of(cls, predictions: Tensor, labels: Tensor) -> SeveralFigures:
        """The figures of answers, bool ``[texts, labels]``, and the right ones."""
        same = predictions == labels
        return cls(
            exact_match=same.all(-1).double().mean().item(),
            label_accuracy=same.double().mean().item(),
            micro_f1=_mean_f1(predictions.flatten().unsqueeze(1), labels.flatten().unsqueeze(1)),
            macro_f1=_mean_f1(predictions, labels),
        )


def f1_score(predictions: Tensor, labels: Tensor, count: int, problem: Choice = ONE) -> float:
    """F1 of label 1 where one of two labels is chosen, else the mean of all labels' F1.

    Args:
        predictions: the answers, int64 ``[texts]``, or bool ``[texts, labels]`` where a text may have several labels.
        labels: the right ones.
        count: number of labels.
        problem: the kind of problem.
    """
    only = slice(1, 2) if count == 2 and not problem.several else slice(None)
    return _mean_f1(problem.has(predictions, count)[:, only], problem.has(labels, count)[:, only])


def _mean_f1(chosen: Tensor, right: Tensor) -> float:
    """The mean F1 of columns, bool ``[decisions, columns]``; 0 for one in which nothing was chosen, nor right."""
    total, both = (chosen.sum(0) + right.sum(0)).double(), (chosen & right).sum(0).double()
    return torch.where(total > 0, 2 * both / total.clamp(min=1), 0.0).mean().item()


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
    problem = exits.config.choice
    return Evaluation.of(
        exits,
        answers,
        exit_threshold=exit_threshold,
        f1=f1_score(answers.predictions, exits.labels, len(exits.config.label_names), problem),
        several=SeveralFigures.of(answers.predictions, exits.labels) if problem.several else None,
        exits=torch.bincount(answers.exit_layer, minlength=exits.config.num_hidden_layers + 1).tolist(),
        buckets=buckets,
    )

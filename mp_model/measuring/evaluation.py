"""Measuring a pyramid on labelled texts: answers, work, exits and tokens, by exit threshold and by length."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .all_exits import AllExits, Answers
from .tuning import Threshold

BUCKETS = (35, 70)  # tokens; the bounds of the paper's Figure 1


@dataclass
class Bucket:
    """Texts of a range of lengths.

    Attributes:
        shortest, longest: tokens, both included; longest None: no bound.
        texts: how many.
        accuracy, mean_exit_layer: of them.
        gflops, executed_gflops, dense_gflops: mean work for a text: the paper's count, as executed, and the paper's count of
            a BERT without padding that prunes nothing and lets nobody leave.
    """

    shortest: int
    longest: int | None
    texts: int
    accuracy: float
    mean_exit_layer: float
    gflops: float
    executed_gflops: float
    dense_gflops: float

    @property
    def name(self) -> str:
        return f"{self.shortest}-{self.longest}" if self.longest is not None else f"{self.shortest} or more"


@dataclass
class Evaluation:
    """What a model does at one setting of its exits.

    Attributes:
        exit_threshold: the setting; None: nobody leaves early.
        texts: how many.
        accuracy: share of right answers.
        f1: of the second label where there are two, as GLUE has it; else the mean over the labels.
        mean_exit_layer, gflops, executed_gflops, dense_gflops: as in :class:`Bucket`.
        exits: texts that left at each layer, 0 to L.
        tokens_kept: for each layer, the tokens that it leaves alive as a share of the input, over the texts that it reached
            and that stayed.
        buckets: the same by length; those without texts are left out.
        seconds: time for a text, where it was measured.
    """

    exit_threshold: Threshold
    texts: int
    accuracy: float
    f1: float
    mean_exit_layer: float
    gflops: float
    executed_gflops: float
    dense_gflops: float
    exits: list[int]
    tokens_kept: list[float | None]
    buckets: list[Bucket] = field(default_factory=list)
    seconds: float | None = None

    @property
    def speed_up(self) -> float:
        """Dense work over executed work."""
        return self.dense_gflops / self.executed_gflops


def f1_score(predictions: Tensor, labels: Tensor, count: int) -> float:
    """F1 of label 1 where there are two labels, else the mean of all labels' F1; int64 ``[texts]`` each."""
    scores = []
    for label in [1] if count == 2 else range(count):
        chosen, right = predictions == label, labels == label
        total = int(chosen.sum() + right.sum())
        scores.append(2 * int((chosen & right).sum()) / total if total else 0.0)
    return sum(scores) / len(scores)


def evaluate(exits: AllExits, exit_threshold: Threshold, bounds: Sequence[int] = BUCKETS) -> Evaluation:
    """A model's answers and work at one setting of its exits.

    Args:
        exits: its predictions.
        exit_threshold: one, one for each exit layer, or None.
        bounds: the longest texts, in tokens, of all buckets but the last; rising.
    """
    if list(bounds) != sorted(set(bounds)) or any(bound < 1 for bound in bounds):
        raise ValueError(f"length buckets must be given by rising positive bounds; got {list(bounds)}")
    answers = exits.answers(exit_threshold)
    whole = _bucket(exits, answers, torch.ones_like(exits.labels, dtype=torch.bool), 1, None)
    buckets = []
    for shortest, longest in itertools.pairwise([1, *(bound + 1 for bound in bounds), None]):
        inside = exits.lengths >= shortest
        if longest is not None:
            inside &= exits.lengths < longest
        if inside.any():
            buckets.append(_bucket(exits, answers, inside, shortest, None if longest is None else longest - 1))
    layers = exits.config.num_hidden_layers
    return Evaluation(
        exit_threshold,
        len(exits),
        whole.accuracy,
        f1_score(answers.predictions, exits.labels, exits.config.num_labels),
        whole.mean_exit_layer,
        whole.gflops,
        whole.executed_gflops,
        whole.dense_gflops,
        torch.bincount(answers.exit_layer, minlength=layers + 1).tolist(),
        _tokens_kept(exits, answers),
        buckets,
    )


def _bucket(exits: AllExits, answers: Answers, inside: Tensor, shortest: int, longest: int | None) -> Bucket:
    def mean(values: Tensor) -> float:
        return values[inside].double().mean().item()

    return Bucket(
        shortest,
        longest,
        int(inside.sum()),
        mean(answers.predictions == exits.labels),
        mean(answers.exit_layer),
        mean(answers.flops) / 1e9,
        mean(answers.executed_flops) / 1e9,
        mean(exits.dense_flops) / 1e9,
    )


def _tokens_kept(exits: AllExits, answers: Answers) -> list[float | None]:
    kept = []
    for layer in range(1, exits.config.num_hidden_layers + 1):
        stayed = answers.exit_layer >= layer if layer == exits.config.num_hidden_layers else answers.exit_layer > layer
        tokens, entered = answers.tokens_per_layer[stayed, layer - 1].sum(), exits.lengths[stayed].sum()
        kept.append((tokens / entered).item() if stayed.any() else None)
    return kept

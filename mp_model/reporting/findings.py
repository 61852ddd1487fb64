"""Findings about a model's answers to labelled texts: how far its scores hold, which labels it confuses, where it errs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..measuring.record import Predictions, Threshold
from ..problems import ONE, Choice
from .charts import Bin

BINS = 10  # of equal width, over scores from 0 to 1


@dataclass(frozen=True)
class Findings:
    """A model's answers, a row a text.

    Attributes:
        labels: the right labels, int64 ``[texts]``; or bool ``[texts, labels]`` where a text may have several.
        predictions: the labels that were answered, likewise.
        scores: the probabilities that were said of them, of several labels together, ``[texts]``.
        uncertainty: of the answers, ``[texts]``.
        exit_layer: int64 ``[texts]``.
        count: number of labels.
        problem: the kind of problem.
    """

    labels: Tensor
    predictions: Tensor
    scores: Tensor
    uncertainty: Tensor
    exit_layer: Tensor
    count: int
    problem: Choice = ONE

    @classmethod
    def of(cls, exits: Predictions, exit_threshold: Threshold) -> Findings:
        """The findings about a model at a setting of its exits."""
        answers = exits.answers(exit_threshold)
        logits, problem = exits.answered(answers).float(), exits.config.choice
        return cls(
            labels=exits.labels,
            predictions=answers.predictions,
            scores=problem.log_probability(logits, answers.predictions).exp(),
            uncertainty=problem.uncertainty(logits),
            exit_layer=answers.exit_layer,
            count=logits.shape[1],
            problem=problem,
        )

    @property
    def right(self) -> Tensor:
        """bool ``[texts]``: whether an answer is right."""
        return self.problem.same(self.predictions, self.labels)

    def bins(self) -> list[Bin]:
        """The answers by their scores, where there are any."""
        numbers = (self.scores * BINS).long().clamp(max=BINS - 1)
        return [self._bin(numbers == number) for number in range(BINS) if (numbers == number).any()]

    def by_layer(self) -> dict[int, Bin]:
        """The answers by the layer that gave them, where there are any."""
        return {layer: self._bin(self.exit_layer == layer) for layer in self.exit_layer.unique().tolist()}

    def calibration_error(self) -> float:
        """The mean distance of what was said from what was, over the texts of all bins (expected calibration error)."""
        return sum(x.texts * abs(x.said - x.was) for x in self.bins()) / len(self.labels)

    def _bin(self, rows: Tensor) -> Bin:
        said, was = (values[rows].double().mean().item() for values in (self.scores, self.right))
        return Bin(int(rows.sum()), said, was)

    def confusion(self) -> Tensor:
        """int64 ``[labels, labels]``: texts by their one right label (row) and the one that was answered (column)."""
        return torch.bincount(self.labels * self.count + self.predictions, minlength=self.count**2).view(
            self.count, self.count
        )

    def labels_of(self, answers: Tensor) -> list[tuple[int, ...]]:
        """The labels that answers give to each text, by their numbers."""
        return [tuple(row.nonzero().flatten().tolist()) for row in self.problem.has(answers, self.count)]

    def confusions(self, at_most: int) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
        """The most frequent errors: a text's right labels, those that were answered, and the number of such texts."""
        wrong = ~self.right
        pairs = zip(self.labels_of(self.labels[wrong]), self.labels_of(self.predictions[wrong]), strict=True)
        counted = sorted(Counter(pairs).items(), key=lambda error: (-error[1], error[0]))
        return [(right, answered, texts) for (right, answered), texts in counted[:at_most]]

    def most_uncertain(self, at_most: int) -> list[int]:
        """Places of the texts whose answers are the least certain, whether right or wrong."""
        return self.uncertainty.argsort(descending=True, stable=True)[:at_most].tolist()

    def surest_errors(self, at_most: int) -> list[int]:
        """Places of the texts that were answered wrongly, those first whose wrong answers have the highest scores."""
        scores = self.scores.masked_fill(self.right, -1.0)
        return scores.argsort(descending=True, stable=True)[: min(at_most, int((~self.right).sum()))].tolist()


@dataclass(frozen=True)
class OfLabel:
    """Answers as to one label.

    Attributes:
        name: its name.
        texts: texts that have it.
        answered: texts that were given it.
        right: texts that have it and were given it.
    """

    name: str
    texts: int
    answered: int
    right: int

    @property
    def precision(self) -> float | None:
        """Share of the texts that were given it which have it; None: none was."""
        return self.right / self.answered if self.answered else None

    @property
    def recall(self) -> float | None:
        """Share of the texts that have it which were given it; None: none has."""
        return self.right / self.texts if self.texts else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of both; None: no text has it, and none was given it."""
        return 2 * self.right / (self.texts + self.answered) if self.texts + self.answered else None


def by_label(findings: Findings, names: Sequence[str]) -> list[OfLabel]:
    """The answers as to each label, in the labels' order."""
    has, given = (findings.problem.has(x, findings.count) for x in (findings.labels, findings.predictions))
    columns = (x.sum(0).tolist() for x in (has, given, has & given))
    return [OfLabel(name, *row) for name, *row in zip(names, *columns, strict=True)]

"""Kinds of problem, by a configuration's ``problem_type``: what logits say, how uncertain that is, and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor

import mp_kernels

ONE_LABEL: Final = "single_label_classification"
SEVERAL_LABELS: Final = "multi_label_classification"
VALUES: Final = "regression"


class Problem:
    """A kind of problem.

    Attributes:
        several: whether a text may have any number of labels.
        fewest: labels that a model must have for its answers to have an uncertainty; None: they never have one.
    """

    several: ClassVar[bool] = False
    fewest: ClassVar[int | None] = None

    def has_uncertainty(self, labels: int) -> bool:
        """Whether the answers of a model with that many labels have an uncertainty, so that it may have exits."""
        return self.fewest is not None and labels >= self.fewest

    def uncertainty(self, logits: Tensor, operators: Any = mp_kernels) -> Tensor:
        """float32 ``[batch]`` (float64 for float64 logits), 0 to 1; NaN where answers have none.

        operators: the module to take operators from; ``mp_kernels.reference`` keeps graphs free of operators of ours.
        """
        return torch.full_like(logits[:, 0], torch.nan, dtype=torch.promote_types(logits.dtype, torch.float32))

    def scores(self, logits: Tensor) -> Tensor:
        """The scores ``[batch, labels]`` that logits stand for."""
        return logits

    def in_words(self, scores: Sequence[float], names: Sequence[str]) -> str:
        """The answer that scores of labels, by their names, stand for: the name of the highest."""
        return max(zip(scores, names, strict=True), key=lambda pair: pair[0])[1]


class Choice(Problem, ABC):
    """A kind of problem in which labels are chosen for a text.

    Answers, and targets, are tensors of one form: int64 ``[texts]``, the number of the one label of each text, or bool
    ``[texts, labels]``, all of its labels. More dimensions may stand before these.
    """

    @abstractmethod
    def answers(self, logits: Tensor) -> Tensor:
        """The answers to logits ``[..., labels]``."""

    @abstractmethod
    def same(self, answers: Tensor, others: Tensor) -> Tensor:
        """bool ``[..., texts]``: whether answers are the same, in all labels."""

    @abstractmethod
    def has(self, answers: Tensor, labels: int) -> Tensor:
        """bool ``[..., texts, labels]``: the labels that answers give to each text, out of that many."""

    @abstractmethod
    def log_probability(self, logits: Tensor, answers: Tensor) -> Tensor:
        """``[...]``, the log-probability that logits ``[..., labels]`` give to answers."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Minus the log-probability of the targets, a mean over the batch; logits: ``[batch, labels]``."""

    @abstractmethod
    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        """KL(teacher || student) of the predictions that logits ``[batch, labels]`` stand for, a mean over the batch."""


class OneLabel(Choice):
    """One label is chosen for a text, by a softmax."""

    fewest = 2

    def uncertainty(self, logits: Tensor, operators: Any = mp_kernels) -> Tensor:
        if not self.has_uncertainty(logits.shape[1]):
            return super().uncertainty(logits)
        return operators.normalized_entropy(logits)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def answers(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    def same(self, answers: Tensor, others: Tensor) -> Tensor:
        return answers == others

    def has(self, answers: Tensor, labels: int) -> Tensor:
        return answers.unsqueeze(-1) == torch.arange(labels, device=answers.device)

    def log_probability(self, logits: Tensor, answers: Tensor) -> Tensor:
        return torch.log_softmax(logits, -1).gather(-1, answers.unsqueeze(-1)).squeeze(-1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets)

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        teacher, student = torch.log_softmax(teacher, -1), torch.log_softmax(student, -1)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class SeveralLabels(Choice):
    """A text has any number of labels, each of which is decided by itself, by a sigmoid."""

    several = True
    fewest = 1

    def uncertainty(self, logits: Tensor, operators: Any = mp_kernels) -> Tensor:
        return operators.label_entropy(logits)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def in_words(self, scores: Sequence[float], names: Sequence[str]) -> str:
        return ",".join(name for score, name in zip(scores, names, strict=True) if score > 0.5)

    def answers(self, logits: Tensor) -> Tensor:
        return logits > 0

    def same(self, answers: Tensor, others: Tensor) -> Tensor:
        return (answers == others).all(-1)

    def has(self, answers: Tensor, labels: int) -> Tensor:
        return answers

    def log_probability(self, logits: Tensor, answers: Tensor) -> Tensor:
        return F.logsigmoid(torch.where(answers, logits, -logits)).sum(-1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum") / len(logits)

    def divergence(self, teacher: Tensor, student: Tensor) -> Tensor:
        of_labels = [
            torch.sigmoid(sign * teacher) * (F.logsigmoid(sign * teacher) - F.logsigmoid(sign * student))
            for sign in (1, -1)  # that a text has the label, and that it has not
        ]
        return (of_labels[0] + of_labels[1]).sum() / len(teacher)


class Values(Problem):
    """A text has a value for each label."""


ONE, SEVERAL = OneLabel(), SeveralLabels()
PROBLEMS: Final[Mapping[str, Problem]] = {ONE_LABEL: ONE, SEVERAL_LABELS: SEVERAL, VALUES: Values()}

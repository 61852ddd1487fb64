"""Kinds of problem, by a configuration's ``problem_type``: what logits say, how uncertain that is, and its loss."""

from __future__ import annotations

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


class OneLabel(Problem):
    """One label is chosen for a text; answers and targets are int64 ``[...]``, the label's number."""

    fewest = 2

    def uncertainty(self, logits: Tensor, operators: Any = mp_kernels) -> Tensor:
        if not self.has_uncertainty(logits.shape[1]):
            return super().uncertainty(logits)
        return operators.normalized_entropy(logits)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    @staticmethod
    def answers(logits: Tensor) -> Tensor:
        """The answers to logits ``[..., labels]``."""
        return logits.argmax(-1)

    @staticmethod
    def same(answers: Tensor, others: Tensor) -> Tensor:
        """bool ``[...]``: whether answers are the same."""
        return answers == others

    @staticmethod
    def log_probability(logits: Tensor, answers: Tensor) -> Tensor:
        """``[...]``, the log-probability that logits ``[..., labels]`` give to answers."""
        return torch.log_softmax(logits, -1).gather(-1, answers.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy, a mean over the batch: minus the log-probability of the targets."""
        return F.cross_entropy(logits, targets)

    @staticmethod
    def divergence(teacher: Tensor, student: Tensor) -> Tensor:
        """KL(teacher || student) of the predictions that logits ``[batch, labels]`` stand for, a mean over the batch."""
        teacher, student = torch.log_softmax(teacher, -1), torch.log_softmax(student, -1)
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


class SeveralLabels(Problem):
    """A text has any number of labels, each decided by itself; answers and targets are bool ``[..., labels]``."""

    several = True
    fewest = 1

    def uncertainty(self, logits: Tensor, operators: Any = mp_kernels) -> Tensor:
        return operators.label_entropy(logits)

    def scores(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def in_words(self, scores: Sequence[float], names: Sequence[str]) -> str:
        """The names of the labels whose scores are above one half, by commas."""
        return ",".join(name for score, name in zip(scores, names, strict=True) if score > 0.5)

    @staticmethod
    def answers(logits: Tensor) -> Tensor:
        """The answers to logits ``[..., labels]``: the labels whose probability is above one half."""
        return logits > 0

    @staticmethod
    def same(answers: Tensor, others: Tensor) -> Tensor:
        """bool ``[...]``: whether all labels are the same."""
        return (answers == others).all(-1)

    @staticmethod
    def log_probability(logits: Tensor, answers: Tensor) -> Tensor:
        """``[...]``, the log-probability that logits ``[..., labels]`` give to answers, labels being independent."""
        return F.logsigmoid(torch.where(answers, logits, -logits)).sum(-1)

    @staticmethod
    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy, a sum over the labels and a mean over the batch: minus the targets' log-probability."""
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum") / len(logits)

    @staticmethod
    def divergence(teacher: Tensor, student: Tensor) -> Tensor:
        """KL(teacher || student) of the predictions that logits ``[batch, labels]`` stand for, a mean over the batch."""
        has, has_not = torch.sigmoid(teacher), torch.sigmoid(-teacher)
        of_label = has * (F.logsigmoid(teacher) - F.logsigmoid(student))
        of_label = of_label + has_not * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
        return of_label.sum() / len(teacher)


class Values(Problem):
    """A text has a value for each label."""


ONE, SEVERAL = OneLabel(), SeveralLabels()
PROBLEMS: Final[Mapping[str, Problem]] = {ONE_LABEL: ONE, SEVERAL_LABELS: SEVERAL, VALUES: Values()}

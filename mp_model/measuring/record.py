"""The record of a classifier's answers to labelled texts: accuracy, work, exits and tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ..configuration import PyramidConfig
from .all_exits import Answers

# One exit threshold, one for each exit layer, or None: nobody leaves early.
Threshold = float | list[float] | None


class Predictions(Protocol):
    """Predictions of all exits for labelled texts: :class:`mp_model.measuring.all_exits.AllExits`, or of texts in windows.

    Attributes:
        config: configuration of the model.
        labels: int64 ``[texts]``, the number of each text's label; or bool ``[texts, labels]``, all of its labels.
        lengths: int64 ``[texts]``, the tokens of each text.
        dense_flops: int64 ``[texts]``, work of a model without padding that prunes nothing and lets nobody leave.
    """

    @property
    def config(self) -> PyramidConfig: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def lengths(self) -> Tensor: ...
    @property
    def dense_flops(self) -> Tensor: ...

    def answers(self, exit_threshold: Threshold) -> Answers:
        """The model's answers under exit thresholds."""

    def answered(self, answers: Answers) -> Tensor:
        """The logits ``[texts, labels]`` that answers were read from."""

    def tokens_kept(self, answers: Answers, rows: Tensor) -> list[float | None]:
        """For each layer, the share of the input's tokens that it leaves alive; rows: bool ``[texts]``, those that count."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """Accuracy, work, exits and tokens of answers, as means over their texts.

    Attributes:
        texts: number of texts.
        accuracy: share of right answers; of several labels all must be right.
        mean_exit_layer: mean number of the layer that a text left at.
        gflops: mean work for a text, by the paper's count (:func:`mp_model.flops.paper_flops`).
        executed_gflops: mean work for a text, as executed (:func:`mp_model.flops.executed_flops`).
        dense_gflops: mean work for a text, by the paper's count, of a model without padding that prunes nothing and lets
            nobody leave.
        tokens_kept: for each layer, the tokens that it leaves alive as a share of the input, over the texts that it reached
            and that stayed; None where there is no such text.
    """

    texts: int
    accuracy: float
    mean_exit_layer: float
    gflops: float
    executed_gflops: float
    dense_gflops: float
    tokens_kept: list[float | None]

    @property
    def speed_up(self) -> float:
        """Dense work over executed work."""
        return self.dense_gflops / self.executed_gflops

    def as_json(self) -> dict[str, Any]:
        """All attributes and the speed-up, as JSON has them."""
        return {**asdict(self), "speed_up": self.speed_up}

    @classmethod
    def of(cls, exits: Predictions, answers: Answers, rows: Tensor | None = None, /, **more: Any) -> Self:
        """The record of a model's answers.

        Args:
            exits: the model's predictions and the texts' labels.
            answers: its answers under certain exit thresholds.
            rows: bool ``[texts]``, the texts that count; None: all.
            more: attributes that a subclass adds.
        """
        rows = torch.ones_like(exits.lengths, dtype=torch.bool) if rows is None else rows

        def mean(values: Tensor) -> float:
            return values[rows].double().mean().item()

        return cls(
            texts=int(rows.sum()),
            accuracy=mean(exits.config.choice.same(answers.predictions, exits.labels)),
            mean_exit_layer=mean(answers.exit_layer),
            gflops=mean(answers.flops) / 1e9,
            executed_gflops=mean(answers.executed_flops) / 1e9,
            dense_gflops=mean(exits.dense_flops) / 1e9,
            tokens_kept=exits.tokens_kept(answers, rows),
            **more,
        )

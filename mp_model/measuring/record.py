"""The record of a classifier's answers to labelled texts: accuracy, work, exits and tokens."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from .all_exits import AllExits, Answers

# One exit threshold, one for each exit layer, or None: nobody leaves early.
Threshold = float | list[float] | None


@dataclass(frozen=True, kw_only=True)
class Record:
    """Accuracy, work, exits and tokens of answers, as means over their texts.

    Attributes:
        texts: number of texts.
        accuracy: share of right answers.
        mean_exit_layer: mean number of the layer that a text left at.
        gflops: mean work for a text, by the paper's count (:func:`mp_model.flops.paper_flops`).
        executed_gflops: mean work for a text, as executed (:func:`mp_model.flops.executed_flops`).
        dense_gflops: mean work for a text, by the paper's count, of a BERT without padding that prunes nothing and lets
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
    def of(cls, exits: AllExits, answers: Answers, rows: Tensor | None = None, /, **more: Any) -> Self:
        """The record of a model's answers.

        Args:
            exits: the model's predictions and the texts' labels.
            answers: its answers under certain exit thresholds.
            rows: bool ``[texts]``, the texts that count; None: all.
            more: attributes that a subclass adds.
        """
        rows = torch.ones_like(exits.labels, dtype=torch.bool) if rows is None else rows

        def mean(values: Tensor) -> float:
            return values[rows].double().mean().item()

        return cls(
            texts=int(rows.sum()),
            accuracy=mean(answers.predictions == exits.labels),
            mean_exit_layer=mean(answers.exit_layer),
            gflops=mean(answers.flops) / 1e9,
            executed_gflops=mean(answers.executed_flops) / 1e9,
            dense_gflops=mean(exits.dense_flops) / 1e9,
            tokens_kept=_tokens_kept(answers, exits.lengths, rows),
            **more,
        )


def _tokens_kept(answers: Answers, lengths: Tensor, rows: Tensor) -> list[float | None]:
    last = answers.tokens_per_layer.shape[1]
    layers, exit_layer = torch.arange(1, last + 1), answers.exit_layer.unsqueeze(1)
    stayed = ((exit_layer > layers) | ((layers == last) & (exit_layer == last))) & rows.unsqueeze(1)  # [texts, L]
    alive = (answers.tokens_per_layer * stayed).sum(0).tolist()
    input_tokens = (lengths.unsqueeze(1) * stayed).sum(0).tolist()
    return [kept / there if there else None for kept, there in zip(alive, input_tokens, strict=True)]

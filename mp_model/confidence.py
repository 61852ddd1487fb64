"""Confidence heads: one number beside an exit's answer, the probability that layer L would have answered otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .problems import Problem

DOUBTS = 3
SUREST = 1e-7  # of the answer's probability, the least distance to 0 and 1


def doubts_of(logits: Tensor, problem: Any) -> Tensor:
    """Three numbers on an answer by itself: entropy, probability p, and log p / (1 - p); float64 ``[batch, 3]``.

    Args:
        logits: ``[batch, labels]``.
        problem: the :class:`mp_model.problems.Choice`; of several labels the answer is all of them together.
    """
    logits = logits.double()
    p = problem.log_probability(logits, problem.answers(logits)).exp()
    return torch.stack([problem.uncertainty(logits), p, torch.logit(p, SUREST)], dim=1)


class Confidence(nn.Module):
    """A linear map of the numbers that an exit's classifier reads and of :func:`doubts_of` its answer, then a sigmoid.

    Args:
        width: numbers that the classifier reads.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 1)
        self.doubts = nn.Linear(DOUBTS, 1, bias=False)

    def forward(self, from_hidden: Tensor, logits: Tensor, problem: Problem) -> Tensor:
        """Probability that layer L would answer otherwise, float32 ``[batch]`` (float64 for float64 logits).

        The few numbers are computed in float64, so that a sample's does not depend on its batch in the last digit.

        Args:
            from_hidden: ``[batch]``, the part of the map that reads what the classifier reads, :attr:`hidden`.
            logits: ``[batch, labels]``, the answers.
            problem: the kind of problem.
        """
        from_doubts = (doubts_of(logits, problem) * self.doubts.weight.double()).sum(1)
        return torch.sigmoid(from_hidden.double() + from_doubts).to(torch.promote_types(logits.dtype, torch.float32))

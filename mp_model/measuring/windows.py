"""The answers of all exits for texts that are read in windows, from one run in which nobody leaves and all are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..configuration import PyramidConfig
from .all_exits import AllExits, Answers


@dataclass
class AnswersInWindows(Answers):
    """Answers to texts; what they cost is that of all windows that were read.

    Attributes:
        logits: mean of the logits of these windows, ``[texts, labels]``.
        of_windows: answers to all windows.
        read: bool ``[windows]``, those that were read.
    """

    logits: Tensor
    of_windows: Answers
    read: Tensor


@dataclass
class ExitsOfWindows:
    """The predictions of all exits for the windows of texts, which answer a text as :class:`mp_model.Classifier` does.

    Attributes:
        windows: the predictions, one row a window, with the label of its text; the windows of a text follow one another.
        text_of: int64 ``[windows]``, the number of each window's text, rising from 0 without gaps.
    """

    windows: AllExits
    text_of: Tensor

    @property
    def config(self) -> PyramidConfig:
        """The model's configuration."""
        return self.windows.config

    @cached_property
    def labels(self) -> Tensor:
        """int64 ``[texts]``: the number of each text's label; or bool ``[texts, labels]``."""
        return self.windows.labels[self._first]

    @cached_property
    def lengths(self) -> Tensor:
        """int64 ``[texts]``: tokens of all windows of a text."""
        return self._summed(self.windows.lengths)

    @cached_property
    def dense_flops(self) -> Tensor:
        """int64 ``[texts]``: work of a model that reads all windows, prunes nothing and lets nobody leave."""
        return self._summed(self.windows.dense_flops)

    def answers(self, exit_threshold: float | Sequence[float] | None) -> AnswersInWindows:
        """The model's answers under exit thresholds: a text's windows are read until their mean is certain."""
        each = self.windows.answers(exit_threshold)
        place = torch.arange(len(self.text_of)) - self._first[self.text_of]  # of a window in its text
        sums = self.windows.answered(each).double().cumsum(0)
        before = (sums - self.windows.answered(each))[self._first[self.text_of]]
        means = ((sums - before) / (place + 1).unsqueeze(1)).float()
        last = torch.cat([self._first[1:], torch.tensor([len(self.text_of)])]) - 1
        stops = torch.zeros(len(self.text_of), dtype=torch.bool)
        stops[last] = True
        if exit_threshold is not None and len(self.windows.layers) > 1:
            thresholds = self.config.resolved_exit_threshold(exit_threshold)
            assert thresholds is not None
            thresholds = thresholds[: len(self.windows.layers) - 1]
            by_exit = torch.tensor([*thresholds, thresholds[-1]])  # where everybody leaves, the last exit's holds
            exits = torch.searchsorted(torch.tensor(self.windows.layers), each.exit_layer)
            stops |= self.windows.choice.uncertainty(means) <= by_exit[exits]
        stop = torch.zeros_like(last).scatter_reduce(
            0, self.text_of, torch.where(stops, place, len(place)), "amin", include_self=False
        )
        read = place <= stop[self.text_of]
        end = self._first + stop
        return AnswersInWindows(
            self.windows.choice.answers(means[end]),
            each.exit_layer[end],
            self._summed(each.flops * read),
            self._summed(each.executed_flops * read),
            self._summed(each.tokens_per_layer * read.unsqueeze(1)),
            means[end],
            each,
            read,
        )

    def answered(self, answers: Answers) -> Tensor:
        """The logits ``[texts, labels]`` that answers were read from."""
        assert isinstance(answers, AnswersInWindows)
        return answers.logits

    def tokens_kept(self, answers: Answers, rows: Tensor) -> list[float | None]:
        """As :meth:`mp_model.measuring.all_exits.AllExits.tokens_kept`, over the windows that were read."""
        assert isinstance(answers, AnswersInWindows)
        return self.windows.tokens_kept(answers.of_windows, answers.read & rows[self.text_of])

    @cached_property
    def _first(self) -> Tensor:
        """int64 ``[texts]``: the row of each text's first window."""
        return torch.searchsorted(self.text_of, torch.arange(int(self.text_of[-1]) + 1))

    def _summed(self, values: Tensor) -> Tensor:
        """Values of windows, summed for each text."""
        sums = values.new_zeros(len(self._first), *values.shape[1:])
        return sums.index_add_(0, self.text_of, values)

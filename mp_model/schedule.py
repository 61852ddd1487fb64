"""Depth-wise batching: samples of many batches share each layer's run.

Rows of different batches can be concatenated freely, so a layer waits until its queue holds a budget of tokens. Pruned
tokens and samples that have left then leave no half-empty batches behind. A single batch is the case of one arrival.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mp_kernels import Ragged

from .engine import Alive, Pyramid, StepResult, concatenate, run_embedded, run_layer
from .flops import Step

BUDGET = 2048  # tokens at which a layer's products run at their full rate
PATIENCE = 64  # arrivals that a queue below the budget may wait for company


@dataclass
class Queue:
    """Samples that wait for a layer.

    Attributes:
        parts: the samples, as they came.
        tokens: number of their alive tokens.
        since: number of arrivals when the first of them came.
    """

    parts: list[Alive] = field(default_factory=list)
    tokens: int = 0
    since: int = 0

    def add(self, alive: Alive, arrivals: int) -> None:
        if not self.parts:
            self.since = arrivals
        self.parts.append(alive)
        self.tokens += alive.tokens

    def take(self, budget: int) -> Alive:
        """The first of them, up to ``budget`` tokens and the batch that exceeds it, as one batch."""
        count = taken = 0
        while count < len(self.parts) and taken < budget:
            taken += self.parts[count].tokens
            count += 1
        parts, self.parts = self.parts[:count], self.parts[count:]
        self.tokens -= taken
        return concatenate(parts)


class Schedule:
    """A queue a layer, and the choice of the layer that runs next.

    Where batches keep coming: the deepest layer whose queue holds the budget; or else the deepest whose queue has waited
    for ``patience`` arrivals; or else none, and the next batch is due. So no more than a budget of tokens waits for any
    layer when a batch is let in, and nobody waits for ever. Where nothing more is coming: the shallowest layer with
    samples, so that these catch up with those above.

    Args:
        pyramid: the classifier.
        budget: tokens at which a layer runs.
        patience: arrivals after which it runs with fewer.
    """

    def __init__(self, pyramid: Pyramid, budget: int = BUDGET, patience: int = PATIENCE) -> None:
        if budget < 1 or patience < 1:
            raise ValueError(f"budget and patience must be at least 1; got {budget} and {patience}")
        self.pyramid, self.budget, self.patience = pyramid, budget, patience
        self.arrivals = 0
        self.queues = {number: Queue() for number in range(1, len(pyramid.layers) + 1)}

    @property
    def tokens(self) -> int:
        """Alive tokens in all queues; below ``layers * budget`` whenever :meth:`next_layer` asks for more."""
        return sum(queue.tokens for queue in self.queues.values())

    def admit(self, alive: Alive) -> StepResult:
        """Lets a batch in, from the embeddings: an exit at layer 0 looks at it, and the rest waits for layer 1."""
        self.arrivals += 1
        return self._went(0, run_embedded(self.pyramid, alive))

    def next_layer(self, more_is_coming: bool) -> int | None:
        """The layer that is due; None: the next batch is, or all samples have left."""
        waiting = [number for number, queue in self.queues.items() if queue.parts]
        due = [number for number in waiting if self.queues[number].tokens >= self.budget]
        if not due and more_is_coming:
            due = [number for number in waiting if self.arrivals - self.queues[number].since >= self.patience]
        if due:
            return due[-1]
        return waiting[0] if waiting and not more_is_coming else None

    def run(self, number: int) -> StepResult:
        """Runs a layer for a budget of the samples that wait for it, those that came first."""
        return self._went(number, run_layer(self.pyramid, number, self.queues[number].take(self.budget)))

    def due(self, more_is_coming: bool) -> Iterator[StepResult]:
        """Runs layers as long as one is due."""
        while (number := self.next_layer(more_is_coming)) is not None:
            yield self.run(number)

    def _went(self, number: int, result: StepResult) -> StepResult:
        if result.alive is not None:
            self.queues[number + 1].add(result.alive, self.arrivals)
        return result


def run_batches(pyramid: Pyramid, batches: Iterable[Ragged], budget: int = BUDGET) -> Iterator[StepResult]:
    """Every step of one schedule for several batches, whose samples are numbered as they come.

    Args:
        pyramid: the classifier.
        batches: the embeddings' output, packed.
        budget: tokens at which a layer runs.
    """
    schedule, samples = Schedule(pyramid, budget), 0
    for batch in batches:
        yield schedule.admit(Alive.of(batch, samples))
        yield from schedule.due(more_is_coming=True)
        samples += batch.batch_size
    yield from schedule.due(more_is_coming=False)


@dataclass
class BatchRun:
    """Answers for one batch, one row a sample.

    Attributes:
        logits: ``[batch, labels]``.
        uncertainty: float32 ``[batch]``; NaN for a single label.
        exit_layer: int64 ``[batch]``, 0 to L.
        steps: everything that was run, for counting the work.
        pruned_by: int64 ``[total]``, the layer that pruned each token, 0 for those that none did (in the layer where a
            sample leaves none is pruned); None unless tokens were followed.
    """

    logits: Tensor
    uncertainty: Tensor
    exit_layer: Tensor
    steps: list[Step]
    pruned_by: Tensor | None = None

    def take(self, result: StepResult) -> None:
        """Writes a step down; an answer of a sample that stays is overwritten later."""
        self.steps.append(result.step)
        if result.pruned is not None and self.pruned_by is not None:
            pruned, rows = result.pruned
            self.pruned_by.index_copy_(0, rows, pruned * result.step.layer)
        if result.decided is not None:
            samples, logits = result.decided.samples, result.decided.logits
            self.logits = self.logits.index_copy(0, samples, logits.to(self.logits.dtype))
            self.uncertainty = self.uncertainty.index_copy(0, samples, result.decided.uncertainty)
            self.exit_layer.index_fill_(0, samples, result.decided.layer)


def run_batch(
    pyramid: Pyramid, batch: Ragged, labels: int, thresholds: Tensor | None = None, follow: bool = False
) -> BatchRun:
    """Classifies one batch.

    Args:
        pyramid: the classifier.
        batch: the embeddings' output, packed.
        labels: number of labels.
        thresholds: ``[batch, exit layers]``, exit thresholds of the samples' own; None: the pyramid's.
        follow: whether to write down which layer pruned each token.
    """
    values, size = batch.values, batch.batch_size
    run = BatchRun(
        logits=values.new_zeros(size, labels),
        uncertainty=values.new_zeros(size, dtype=torch.promote_types(values.dtype, torch.float32)),
        exit_layer=torch.zeros(size, dtype=torch.int64, device=values.device),
        steps=[],
        pruned_by=torch.zeros(values.shape[0], dtype=torch.int64, device=values.device) if follow else None,
    )
    if size:
        schedule = Schedule(pyramid)
        run.take(schedule.admit(Alive.of(batch, thresholds=thresholds, follow=follow)))
        for result in schedule.due(more_is_coming=False):
            run.take(result)
    return run

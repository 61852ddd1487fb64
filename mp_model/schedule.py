"""Depth-wise batching: samples of many batches share each layer's run.

Rows of different batches can be concatenated freely, so a layer waits until its queue holds a budget of tokens. Pruned
tokens and samples that have left then leave no half-empty batches behind. A single batch is the case of one arrival.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from .backbones import PackedInputs
from .engine import Alive, Arrived, Decided, Pyramid, StepResult, run_embeddings, run_layer
from .flops import Step

BUDGET = 2048  # tokens at which a layer's products run at their full rate
EMBEDDED_BUDGETS = 4  # budgets of tokens that the embeddings take at once
PATIENCE = 64  # arrivals that a queue below the budget may wait for company
CLOSED = -math.inf  # a sample's own threshold at an exit that need not be asked


class Part(Protocol):
    """Samples of one or more batches."""

    @property
    def tokens(self) -> int:
        """Number of their tokens."""
        ...


AnyPart = TypeVar("AnyPart", bound=Part)


class Queue(Generic[AnyPart]):
    """Samples that wait for a layer.

    Args:
        join: makes one batch of several.
        budget: tokens at which the layer runs.

    Attributes:
        tokens: number of tokens that wait.
        since: number of arrivals when the first of the samples came.
    """

    def __init__(self, join: Callable[[Sequence[AnyPart]], AnyPart], budget: int) -> None:
        self.join, self.budget = join, budget
        self.parts: list[AnyPart] = []
        self.tokens = self.since = 0

    def add(self, part: AnyPart, arrivals: int) -> None:
        if not self.parts:
            self.since = arrivals
        self.parts.append(part)
        self.tokens += part.tokens

    def take(self) -> AnyPart:
        """The first samples, up to the budget and the batch that exceeds it, as one batch."""
        count = taken = 0
        while count < len(self.parts) and taken < self.budget:
            taken += self.parts[count].tokens
            count += 1
        parts, self.parts = self.parts[:count], self.parts[count:]
        self.tokens -= taken
        return self.join(parts)

    @property
    def is_full(self) -> bool:
        """Whether the layer runs at its full rate for the samples that wait."""
        return bool(self.parts) and self.tokens >= self.budget


class Schedule:
    """A queue a layer, and the choice of the layer that runs next.

    Where batches keep coming: the deepest layer whose queue holds the budget; or else the deepest whose queue has waited
    for ``patience`` arrivals; or else none, and the next batch is due. So no more than a budget of tokens waits for any
    layer when a batch is let in, and nobody waits for ever. Where nothing more is coming: the shallowest layer with
    samples, so that these catch up with those above. The embeddings and their exit are layer 0; they take a few times the
    budget at once, for they are cheap and have small products.

    Args:
        pyramid: the classifier.
        budget: tokens at which a layer runs.
        patience: arrivals after which it runs with fewer.

    Attributes:
        arrivals: batches that were let in.
        steps: runs of layers.
    """

    def __init__(self, pyramid: Pyramid, budget: int = BUDGET, patience: int = PATIENCE) -> None:
        if budget < 1 or patience < 1:
            raise ValueError(f"budget and patience must be at least 1; got {budget} and {patience}")
        self.pyramid, self.budget, self.patience = pyramid, budget, patience
        self.closed = replace(pyramid, exits=None)
        self.arrivals = self.steps = 0
        self.front: Queue[Arrived] = Queue(Arrived.joined, EMBEDDED_BUDGETS * budget)
        self.layers: list[Queue[Alive]] = [Queue(Alive.joined, budget) for _ in pyramid.layers]

    @property
    def queues(self) -> list[Queue[Any]]:
        """The queues of layers 0 to L."""
        return [self.front, *self.layers]

    @property
    def tokens(self) -> int:
        """Tokens in all queues; fewer than all budgets together whenever :meth:`next_layer` asks for more."""
        return sum(queue.tokens for queue in self.queues)

    def admit(self, arrived: Arrived) -> None:
        """Lets a batch in, to wait for the embeddings."""
        self.arrivals += 1
        self.front.add(arrived, self.arrivals)

    def next_layer(self, more_is_coming: bool) -> int | None:
        """The layer that is due, 0 to L; None: the next batch is, or all samples have left."""
        queues = self.queues
        waiting = [number for number, queue in enumerate(queues) if queue.parts]
        due = [number for number in waiting if queues[number].is_full]
        if not due and more_is_coming:
            due = [number for number in waiting if self.arrivals - queues[number].since >= self.patience]
        if due:
            return due[-1]
        return waiting[0] if waiting and not more_is_coming else None

    def run(self, number: int) -> StepResult:
        """Runs a layer for a budget of the samples that wait for it, those that came first."""
        return self.run_taken(number, self.queues[number].take())

    def run_taken(self, number: int, part: Arrived | Alive) -> StepResult:
        """Runs a layer for samples that were taken out of its queue, and puts those that stay into the next."""
        self.steps += 1
        pyramid = self.closed if _all_closed(part.thresholds) else self.pyramid
        stepped = run_embeddings(pyramid, part) if isinstance(part, Arrived) else run_layer(pyramid, number, part)
        result, alive = stepped
        if alive is not None:
            self.layers[number].add(alive, self.arrivals)
        return result

    def due(self, more_is_coming: bool) -> Iterator[StepResult]:
        """Runs layers as long as one is due."""
        while (number := self.next_layer(more_is_coming)) is not None:
            yield self.run(number)


def _all_closed(thresholds: Tensor | None) -> bool:
    """Whether the samples' own thresholds are all :data:`CLOSED`; on a device, where the host would wait: False."""
    return thresholds is not None and thresholds.device.type == "cpu" and bool((thresholds == CLOSED).all())


def run_batches(pyramid: Pyramid, batches: Iterable[PackedInputs], budget: int = BUDGET) -> Iterator[StepResult]:
    """Every step of one schedule for several batches, whose samples are numbered as they come.

    Args:
        pyramid: the classifier.
        batches: their tokens.
        budget: tokens at which a layer runs.
    """
    schedule, samples = Schedule(pyramid, budget), 0
    for inputs in batches:
        schedule.admit(Arrived.of(inputs, samples))
        yield from schedule.due(more_is_coming=True)
        samples += inputs.words.batch_size
    yield from schedule.due(more_is_coming=False)


@dataclass
class BatchRun:
    """Answers for one batch, one row a sample.

    Attributes:
        logits: ``[batch, labels]``.
        uncertainty: float32 ``[batch]``; NaN where answers have none.
        exit_layer: int64 ``[batch]``, 0 to L.
        steps: everything that was run, for counting the work.
        pruned_by: int64 ``[total]``, the layer that pruned each token, 0 for those that none did (in the layer where a
            sample leaves none is pruned); None unless tokens were followed.
        lengths: int ``[batch]``, the tokens that each came with, where the run packed the batch itself.
    """

    logits: Tensor
    uncertainty: Tensor
    exit_layer: Tensor
    steps: Sequence[Step]
    pruned_by: Tensor | None = None
    lengths: Tensor | None = None


def run_batch(
    pyramid: Pyramid, inputs: PackedInputs, labels: int, thresholds: Tensor | None = None, follow: bool = False
) -> BatchRun:
    """Classifies one batch.

    Args:
        pyramid: the classifier.
        inputs: the batch's tokens.
        labels: number of labels.
        thresholds: ``[batch, exit layers]``, exit thresholds of the samples' own; None: the pyramid's.
        follow: whether to write down which layer pruned each token.
    """
    size, device = inputs.words.batch_size, inputs.words.values.device
    pruned_by = torch.zeros(inputs.tokens, dtype=torch.int64, device=device) if follow else None
    if size == 0:
        none = pyramid.embed(inputs).values
        exit_layer = none.new_zeros(0, dtype=torch.int64)
        return BatchRun(none.new_zeros(0, labels), none.new_zeros(0).float(), exit_layer, [], pruned_by)
    schedule = Schedule(pyramid)
    schedule.admit(Arrived.of(inputs, thresholds=thresholds, follow=follow))
    results = list(schedule.due(more_is_coming=False))
    if pruned_by is not None:
        for layer, (pruned, rows) in [(x.step.layer, x.pruned) for x in results if x.pruned is not None]:
            pruned_by.index_copy_(0, rows, pruned * layer)
    answers = last_answers([result.decided for result in results if result.decided is not None], size)
    return BatchRun(*answers, [result.step for result in results], pruned_by)


def last_answers(decided: Sequence[Decided], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits ``[size, labels]``, uncertainty ``[size]`` and exit layer, int64 ``[size]``, of samples 0 to size - 1.

    decided: the predictions of a batch, layer by layer. Everybody is looked at by the first, in order; whoever stayed is
    answered anew. All are put in place at once: a layer adds a launch, its number's.
    """
    first = decided[0]
    if len(decided) == 1:
        return first.logits, first.uncertainty, torch.full_like(first.samples, first.layer)
    samples = torch.cat([x.samples for x in decided])
    places = torch.arange(samples.shape[0], device=samples.device)
    last = places.new_zeros(size).scatter_reduce(0, samples, places, "amax")
    logits, uncertainty, exit_layer = (
        x.index_select(0, last)
        for x in (
            torch.cat([x.logits for x in decided]),
            torch.cat([x.uncertainty for x in decided]),
            torch.cat([torch.full_like(x.samples, x.layer) for x in decided]),
        )
    )
    return logits, uncertainty, exit_layer

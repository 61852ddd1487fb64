"""The answers that every exit would give for every text, from one run in which nobody leaves.

Pruning does not depend on exits, so answers, exit layers and work under any exit thresholds follow from this run without
another one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mp_kernels import Ragged

from .. import engine
from ..configuration import PyramidConfig
from ..data.batches import TextBatch, in_input_order
from ..engine import Pyramid
from ..exits import DISAGREEMENT, ExitHead
from ..flops import dense_flops, entering_tokens, executed_flops, paper_flops, reported_tokens
from ..modelling import PyramidForSequenceClassification
from ..problems import ONE, Choice
from ..pruning import Pruning

TEMPERATURES = torch.logspace(-1, 1, 41, dtype=torch.float64).tolist()


def calibrated(logits: Tensor, labels: Tensor, problem: Choice = ONE) -> Tensor:
    """Logits ``[texts, labels]`` over the temperature, out of ``TEMPERATURES``, at which they fit the labels best."""
    return logits / min(TEMPERATURES, key=lambda temperature: problem.loss(logits / temperature, labels).item())


@dataclass
class Answers:
    """Answers under certain exit thresholds, one row a text.

    Attributes:
        predictions: int64 ``[texts]``, the label's number; or bool ``[texts, labels]``, all labels of a text.
        exit_layer: int64 ``[texts]``, 0 to L.
        flops, executed_flops: int64 ``[texts]``, as in :class:`mp_model.PyramidOutput`.
        tokens_per_layer: int64 ``[texts, L]``, likewise.
    """

    predictions: Tensor
    exit_layer: Tensor
    flops: Tensor
    executed_flops: Tensor
    tokens_per_layer: Tensor


@dataclass
class AllExits:
    """The predictions of all exits, one row a text, in the order of the texts.

    Attributes:
        config: configuration of the model as it was run.
        labels: int64 ``[texts]``, or bool ``[texts, labels]`` where a text may have several.
        lengths: int64 ``[texts]``, tokens.
        survivors: int64 ``[texts, L]``, of each layer.
        logits: ``{layer: [texts, labels]}`` of every exit layer, and of the model's own head under the number L; or of the
            exit layers up to ``config.depth``, by which everybody leaves.
        judge: logits ``[texts, labels]`` that answers are held against; None: those of the last of :attr:`layers`.
        disagreement: ``{layer: float32 [texts]}``, the probability by the confidence head of every exit layer that layer L
            answers otherwise; None: there are no such heads.
    """

    config: PyramidConfig
    labels: Tensor
    lengths: Tensor
    survivors: Tensor
    logits: dict[int, Tensor]
    judge: Tensor | None = None
    disagreement: dict[int, Tensor] | None = None

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def choice(self) -> Choice:
        """The kind of problem."""
        return self.config.choice

    def select(self, rows: Tensor) -> AllExits:
        """Some of the texts; rows: their places, or bool ``[texts]``."""
        return replace(
            self,
            labels=self.labels[rows],
            lengths=self.lengths[rows],
            survivors=self.survivors[rows],
            logits={layer: x[rows] for layer, x in self.logits.items()},
            judge=None if self.judge is None else self.judge[rows],
            disagreement=self.disagreement and {layer: x[rows] for layer, x in self.disagreement.items()},
        )

    def by(self, exit_uncertainty: str) -> AllExits:
        """The predictions of a model whose texts leave by another kind of uncertainty."""
        if exit_uncertainty == self.config.exit_uncertainty:
            return self
        config = type(self.config).from_dict({**self.config.to_dict(), "exit_uncertainty": exit_uncertainty})
        return replace(self, config=config)

    def capped(self, depth: int | None) -> AllExits:
        """The predictions of a model whose texts all leave by an exit layer; this one's last layer stays the judge."""
        if depth is None:
            return self
        config = type(self.config).from_dict({**self.config.to_dict(), "depth": depth})
        logits = {layer: x for layer, x in self.logits.items() if layer <= depth}
        return replace(self, config=config, logits=logits, judge=self.judged_by)

    @cached_property
    def layers(self) -> list[int]:
        """Exit layers, and the layer by which everybody leaves, rising."""
        return sorted(self.logits)

    @cached_property
    def predictions(self) -> Tensor:
        """int64 ``[exits, texts]``, or bool ``[exits, texts, labels]``: the answers that :attr:`layers` would give."""
        return torch.stack([self.choice.answers(self.logits[layer]) for layer in self.layers])

    @cached_property
    def right(self) -> Tensor:
        """bool ``[exits, texts]``: whether these answers are right, in all labels."""
        return self.choice.same(self.predictions, self.labels)

    @cached_property
    def uncertainty(self) -> Tensor:
        """Uncertainty of every exit layer's prediction, float32 ``[exits - 1, texts]``, by ``config.exit_uncertainty``."""
        if self.config.exit_uncertainty == DISAGREEMENT:
            assert self.disagreement is not None
            rows = [self.disagreement[layer] for layer in self.layers[:-1]]
        else:
            rows = [self.choice.uncertainty(self.logits[layer]) for layer in self.layers[:-1]]
        return torch.stack(rows) if rows else torch.zeros(0, len(self))

    @property
    def judged_by(self) -> Tensor:
        """Logits ``[texts, labels]`` that answers are held against."""
        return self.logits[self.layers[-1]] if self.judge is None else self.judge

    @cached_property
    def differs(self) -> Tensor:
        """bool ``[exits, texts]``: whether the answers that :attr:`layers` would give are others than the judge's."""
        return ~self.choice.same(self.predictions, self.choice.answers(self.judged_by))

    @cached_property
    def own_judgement(self) -> Tensor:
        """float64 ``[texts, labels]``: the judge's logits, calibrated on these texts.

        They are divided by the temperature at which the texts' labels are the most probable (Guo and others, 2017).
        """
        return calibrated(self.judged_by.double(), self.labels, self.choice)

    def expected_cost(self, predictions: Tensor) -> float:
        """The accuracy, a share, that other answers than the judge's, layer L's, cost by its own calibrated judgement.

        What a changed answer is worth is not left to the labels that its text happens to have, so this varies less from
        sample to sample than a count; but it is only as good as layer L's judgement. Of several labels the answer is all of
        them together, each by itself.

        predictions: answers, as :attr:`Answers.predictions`.
        """
        logits = self.own_judgement
        answers = self.choice.answers(self.judged_by), predictions
        own, other = (self.choice.log_probability(logits, x).exp() for x in answers)
        return (own - other).mean().item()

    @cached_property
    def executed_at(self) -> Tensor:
        """int64 ``[exits, texts]``: the executed work if the text leaves at each of :attr:`layers`, exits being open."""
        return torch.stack([self._work(layer, self.layers[:-1])[1] for layer in self.layers])

    @cached_property
    def dense_flops(self) -> Tensor:
        """int64 ``[texts]``: the paper's count of a model that prunes nothing and lets nobody leave, without padding."""
        return dense_flops(self.config, self.lengths)

    def exit_places(self, exit_threshold: float | Sequence[float]) -> Tensor:
        """int64 ``[texts]``: which of :attr:`layers` each text leaves at."""
        thresholds = self.config.resolved_exit_threshold(exit_threshold)
        assert thresholds is not None
        below = torch.tensor(thresholds[: len(self.layers) - 1]).unsqueeze(1)
        leaves = torch.cat([self.uncertainty <= below, torch.ones(1, len(self), dtype=torch.bool)])
        return leaves.byte().argmax(0)

    def answers(self, exit_threshold: float | Sequence[float] | None) -> Answers:
        """The model's answers under exit thresholds: one, or one for each exit layer; None: nobody leaves early."""
        if exit_threshold is None:
            places, decided = torch.full_like(self.lengths, len(self.layers) - 1), []
        else:
            places, decided = self.exit_places(exit_threshold), self.layers[:-1]
        exit_layer = torch.tensor(self.layers)[places]
        tokens, executed = self._work(exit_layer, decided)
        return Answers(
            self.predictions[places, torch.arange(len(self))],
            exit_layer,
            paper_flops(self.config, tokens, self.lengths, exit_layer),
            executed,
            tokens,
        )

    def answered(self, answers: Answers) -> Tensor:
        """The logits ``[texts, labels]`` that answers were read from."""
        by_exit = torch.stack([self.logits[layer] for layer in self.layers])
        places = torch.searchsorted(torch.tensor(self.layers), answers.exit_layer)
        return by_exit[places, torch.arange(len(self))]

    def tokens_kept(self, answers: Answers, rows: Tensor) -> list[float | None]:
        """For each layer, the tokens that it leaves alive as a share of the input, over texts that it reached and that
        stayed; None where there is no such text.

        rows: bool ``[texts]``, the texts that count.
        """
        last = answers.tokens_per_layer.shape[1]
        layers, exit_layer = torch.arange(1, last + 1), answers.exit_layer.unsqueeze(1)
        stayed = ((exit_layer > layers) | ((layers == last) & (exit_layer == last))) & rows.unsqueeze(1)  # [texts, L]
        alive = (answers.tokens_per_layer * stayed).sum(0).tolist()
        input_tokens = (self.lengths.unsqueeze(1) * stayed).sum(0).tolist()
        return [kept / there if there else None for kept, there in zip(alive, input_tokens, strict=True)]

    def _work(self, exit_layer: int | Tensor, decided: Collection[int]) -> tuple[Tensor, Tensor]:
        """Tokens ``[texts, L]`` and executed work ``[texts]`` of texts that leave there."""
        exit_layer = torch.as_tensor(exit_layer).expand(len(self))
        if self.config.depth is not None:
            decided = {*decided, self.config.depth}
        tokens = reported_tokens(entering_tokens(self.survivors, self.lengths), exit_layer)
        return tokens, executed_flops(self.config, self.survivors, self.lengths, exit_layer, decided)


def features_of_exits(
    model: PyramidForSequenceClassification, pyramid: Pyramid, exit_layers: Iterable[int], outputs: Sequence[Ragged]
) -> Iterator[tuple[int, ExitHead, Any]]:
    """The number, the head and what the head reads, of exit layers.

    Args:
        model: the classifier.
        pyramid: its layers.
        exit_layers: the numbers of the layers.
        outputs: what :func:`mp_model.engine.run_layers` gives.
    """
    for layer in exit_layers:
        head: Any = model.exits[str(layer)]
        output, entering = outputs[layer], outputs[max(layer - 1, 0)]
        yield layer, head, head.features(pyramid.states(engine.first_tokens(output), entering, output))


@torch.inference_mode()
def read_all_exits(
    model: PyramidForSequenceClassification,
    batches: Iterable[TextBatch],
    labels: Sequence[int] | Tensor,
    prune_thresholds: Sequence[float] | None = None,
) -> AllExits:
    """Runs the model once over all texts, with its pruning and without exits.

    Args:
        model: the classifier, in eval mode.
        batches: all texts.
        labels: the number of each text's label, by its place; or bool ``[texts, labels]``. The rows of the result are in
            that order.
        prune_thresholds: L floats, instead of the model's own pruning.

    Raises:
        ValueError: a model whose answers are values.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    if prune_thresholds is not None:
        config.prune_thresholds, config.top_k = list(prune_thresholds), None
    layers = config.num_hidden_layers
    pyramid = model.with_pruning(Pruning.of(config))
    pyramid = replace(pyramid, layers=pyramid.layers[: config.reached_layers])
    exit_layers = [layer for layer in config.resolved_exit_layers() if config.depth is None or layer <= config.depth]
    choice = config.choice
    places: list[int] = []
    rows: list[tuple[Tensor, Tensor, list[Tensor], list[Tensor]]] = []
    for text_batch in batches:
        packed = model.base_model.embed(**text_batch.to(model.device).inputs)
        outputs = engine.run_layers(pyramid, packed)
        predictions, doubts = [], []
        for _, head, features in features_of_exits(model, pyramid, exit_layers, outputs):
            if config.confidence_heads:
                logits, doubt = head.doubt(features, choice)
                doubts.append(doubt.cpu())
            else:
                logits = head(features)
            predictions.append(logits.cpu())
        if config.depth is None:
            predictions.append(model.final_head(pyramid.final_features(outputs[-1])).cpu())
        counts = torch.stack([output.lengths for output in outputs], dim=1).cpu()
        rows.append((counts[:, 0], F.pad(counts[:, 1:], (0, layers - config.reached_layers)), predictions, doubts))
        places += text_batch.places
    lengths_of, survivors_of, predictions_of, doubts_of = zip(*rows, strict=True)

    def by_layer(numbers: Sequence[int], of_batches: Sequence[list[Tensor]]) -> dict[int, Tensor]:
        parts = zip(*of_batches, strict=True)
        return {layer: in_input_order(part, places) for layer, part in zip(numbers, parts, strict=True)}

    return AllExits(
        config,
        torch.as_tensor(labels),
        in_input_order(lengths_of, places),
        in_input_order(survivors_of, places),
        by_layer(exit_layers if config.depth is not None else [*exit_layers, layers], predictions_of),
        disagreement=by_layer(exit_layers, doubts_of) if config.confidence_heads else None,
    )

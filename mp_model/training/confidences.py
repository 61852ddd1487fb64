"""Learning confidence heads: logistic regressions on frozen exits, on texts that these did not learn from.

Whether an exit answers otherwise than layer L is regressed on what its classifier reads and on three numbers of its answer
(:mod:`mp_model.confidence`). How far the first are believed is chosen by cross-validation, and the scores of texts that had
no part in a regression calibrate it (Platt, 1999), so that the heads give probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import engine
from ..confidence import DOUBTS, Confidence, doubts_of
from ..data.batches import TextBatch
from ..exits import add_confidence_heads
from ..measuring.all_exits import features_of_exits
from ..modelling import PyramidForSequenceClassification
from ..pruning import Pruning

FOLDS = 5
# On the weights of standardised hidden numbers; the last leaves nothing but the doubts.
PENALTIES = (10.0, 100.0, 1000.0, math.inf)
PENALTY_OF_DOUBTS = 1.0


@dataclass
class Linear:
    """A linear score of columns.

    Attributes:
        weight: float64 ``[columns]``.
        bias: float64 scalar.
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, columns: Tensor) -> Tensor:
        """Scores ``[texts]``; columns: float64 ``[texts, columns]``."""
        return columns @ self.weight + self.bias


def soft_targets(differs: Tensor) -> Tensor:
    """Platt's targets, float64 ``[texts]``: not quite 0 and 1, so that scores stay finite where texts are few."""
    yes = int(differs.sum())
    no = len(differs) - yes
    return torch.where(differs, (yes + 1) / (yes + 2), 1 / (no + 2)).double()


def regress(columns: Tensor, targets: Tensor, penalties: Tensor) -> Linear:
    """The logistic regression of targets ``[texts]`` in (0, 1) on columns; float64.

    penalties: ``[columns]``, on half the squares of the weights, where the losses of all texts are summed; infinite for
        columns that have no part.
    """
    out = penalties.isinf()
    columns, penalties = columns.masked_fill(out, 0), penalties.masked_fill(out, 1)
    weight = torch.zeros(columns.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.logit(targets.mean()).requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, tolerance_change=1e-8, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        scores = columns @ weight + bias
        losses = F.binary_cross_entropy_with_logits(scores, targets, reduction="sum")
        loss = (losses + (penalties * weight**2).sum() / 2) / len(targets)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return Linear(weight.detach(), bias.detach())


def calibrate(scores: Tensor, differs: Tensor) -> tuple[Tensor, Tensor]:
    """Factor, 0 or more, and shift of scores ``[texts]`` that make them the log-odds of ``differs``, bool ``[texts]``."""
    found = regress(scores.unsqueeze(1), soft_targets(differs), torch.zeros(1, dtype=torch.float64))
    if found.weight < 0:
        return torch.zeros((), dtype=torch.float64), torch.logit(soft_targets(differs).mean())
    return found.weight[0], found.bias


def folds_of(differs: Tensor) -> Tensor:
    """The fold of each text, int64 ``[texts]``: drawn at random, with as many that differ in each."""
    shuffled = torch.randperm(len(differs), generator=torch.Generator().manual_seed(0))
    order = shuffled[differs[shuffled].byte().argsort(stable=True)]
    return torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)) % FOLDS)


def learn(hidden: Tensor, doubts: Tensor, differs: Tensor) -> tuple[Linear, float]:
    """The calibrated log-odds that an exit's answer differs from layer L's, by its numbers.

    Args:
        hidden: ``[texts, width]``, what the classifier reads.
        doubts: ``[texts, 3]``, of its answers.
        differs: bool ``[texts]``, whether they are others than layer L's.

    Returns:
        A score of ``[hidden, doubts]``, and the mean log-loss of texts that had no part in its making.
    """
    columns = torch.cat([hidden, doubts], dim=1).double()
    mean, spread = columns.mean(0), columns.std(0).clamp(min=1e-3)
    columns = (columns - mean) / spread
    folds, targets = folds_of(differs), soft_targets(differs)

    def penalties(on_hidden: float) -> Tensor:
        return torch.tensor([on_hidden] * hidden.shape[1] + [PENALTY_OF_DOUBTS] * DOUBTS, dtype=torch.float64)

    def unseen(on_hidden: float) -> Tensor:
        """Scores of the texts of each fold, by the regression on the others."""
        scores = torch.zeros_like(targets)
        for fold in range(FOLDS):
            here, there = folds == fold, folds != fold
            found = regress(columns[there], soft_targets(differs[there]), penalties(on_hidden))
            scores[here] = found(columns[here])
        return scores

    def loss(scores: Tensor) -> float:
        return F.binary_cross_entropy_with_logits(scores, differs.double()).item()

    by_penalty = {penalty: unseen(penalty) for penalty in PENALTIES}
    best = min(PENALTIES, key=lambda penalty: loss(by_penalty[penalty]))
    factor, shift = calibrate(by_penalty[best], differs)
    found = regress(columns, targets, penalties(best))
    weight = factor * found.weight / spread
    return Linear(weight, factor * found.bias + shift - weight @ mean), loss(factor * by_penalty[best] + shift)


@torch.no_grad()
def learn_confidences(model: PyramidForSequenceClassification, batches: Iterable[TextBatch]) -> float:
    """Gives a model confidence heads that have learned from texts, whose labels are not needed.

    Args:
        model: the classifier, in eval mode, with trained exits; its ``config.confidence_heads`` is set.
        batches: texts that its exits did not learn from.

    Returns:
        The heads' mean log-loss for texts that had no part in their making.
    """
    choice, exit_layers = model.config.choice, model.config.resolved_exit_layers()
    pyramid = model.with_pruning(Pruning.of(model.config))
    hidden: dict[int, list[Tensor]] = {layer: [] for layer in exit_layers}
    answers: list[Tensor] = []
    for text_batch in batches:
        outputs = engine.run_layers(pyramid, model.base_model.embed(**text_batch.to(model.device).inputs))
        for layer, reader, features in features_of_exits(model, pyramid, exit_layers, outputs):
            hidden[layer].append(reader.hidden(features).float())
        answers.append(choice.answers(model.final_head(pyramid.final_features(outputs[-1]))))
    last = torch.cat(answers)
    add_confidence_heads(model.exits)
    model.exits.to(model.device)
    losses = []
    for layer in exit_layers:
        head: Any = model.exits[str(layer)]
        rows = torch.cat(hidden.pop(layer))
        logits = head.classifier(rows)
        differs = ~choice.same(choice.answers(logits), last)
        found, loss = learn(rows.cpu(), doubts_of(logits, choice).cpu(), differs.cpu())
        _write(head.confidence, found)
        losses.append(loss)
    model.config.confidence_heads = True
    return sum(losses) / len(losses)


def _write(confidence: Confidence, found: Linear) -> None:
    """Sets a confidence head's weights."""
    hidden: nn.Linear = confidence.hidden
    width = hidden.in_features
    hidden.weight.copy_(found.weight[:width].unsqueeze(0))
    hidden.bias.copy_(found.bias)
    confidence.doubts.weight.copy_(found.weight[width:].unsqueeze(0))

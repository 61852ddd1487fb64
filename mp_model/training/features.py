"""Training heads on a frozen backbone: what they read is computed once, so an epoch costs next to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import engine
from ..data.batches import TextBatch, in_input_order
from ..exits import EXIT_HEADS
from ..modelling import PyramidBertForSequenceClassification
from ..pruning import Pruning


@dataclass
class Features:
    """What the heads read, one row a text.

    Attributes:
        layers: L + 1 tensors ``[texts, features]``; see :func:`mp_model.engine.run_features`.
        labels: int64 ``[texts]``.
    """

    layers: list[Tensor]
    labels: Tensor


@torch.no_grad()
def collect_features(
    model: PyramidBertForSequenceClassification, batches: Iterable[TextBatch], labels: Sequence[int]
) -> Features:
    """Runs the backbone once over all texts, with the model's pruning and without exits.

    labels: one for each text, by its place; the rows of the result are in that order.
    """
    if EXIT_HEADS[model.config.exit_head].reads_survivors:
        raise ValueError(
            f"a {model.config.exit_head!r} head reads all tokens, not fixed features; it is trained with them"
        )
    pruning = Pruning.of(model.config)
    rows: list[list[Tensor]] = []
    places: list[int] = []
    for text_batch in batches:
        packed = model.bert.embed(**text_batch.to(model.device).inputs)
        rows.append(engine.run_features(model.bert.layers, packed, pruning, model.config.exit_head))
        places += text_batch.places
    layers = [in_input_order(layer, places) for layer in zip(*rows, strict=True)]
    return Features(layers, torch.tensor(labels))


def standardise(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features of mean 0 and spread 1, the mean that they had, and the spread; ``[texts, features]``."""
    mean, scale = features.mean(0), features.std(0) + 1e-3
    return (features - mean) / scale, mean, scale


@torch.no_grad()
def unstandardise(dense: nn.Linear, mean: Tensor, scale: Tensor) -> None:
    """Makes a layer that was trained on standardised features read plain ones."""
    dense.weight.div_(scale)
    dense.bias.sub_(dense.weight @ mean)


def train_head(
    dense: nn.Linear,
    classifier: nn.Linear,
    features: Tensor,
    labels: Tensor,
    *,
    steps: int = 300,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> None:
    """Trains ``classifier(tanh(dense(features)))`` from scratch by cross entropy, in place.

    The features are standardised for training, and the standardisation is then folded into ``dense``.

    features: ``[texts, features]``; labels: int64 ``[texts]``.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (dense, classifier):
            bound = layer.in_features**-0.5
            layer.weight.uniform_(-bound, bound, generator=generator)
            layer.bias.zero_()
    standardised, mean, scale = standardise(features)
    parameters = [dense.weight, dense.bias, classifier.weight, classifier.bias]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    with torch.enable_grad():
        for _ in range(steps):
            rows = torch.randint(features.shape[0], (batch_size,), generator=generator)
            loss = F.cross_entropy(classifier(torch.tanh(dense(standardised[rows]))), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    unstandardise(dense, mean, scale)


def train_all_heads(model: PyramidBertForSequenceClassification, features: Features) -> None:
    """Trains every exit head and the model's own head (pooler and classifier) on features of the frozen backbone."""
    for layer in model.config.resolved_exit_layers():
        head = model.exits[str(layer)]
        train_head(head.dense, head.classifier, features.layers[layer], features.labels)
    train_head(model.bert.pooler.dense, model.classifier, features.layers[-1], features.labels)

"""Features of a frozen backbone: computed once, so that an epoch over exit heads costs next to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import engine
from ..data.batches import TextBatch, in_input_order
from ..exits import EXIT_HEADS
from ..modelling import PyramidForSequenceClassification
from ..pruning import Pruning


@dataclass
class Features:
    """Inputs of the heads, one row for each text.

    Attributes:
        layers: L + 1 tensors ``[texts, features]``; see :func:`mp_model.engine.run_features`.
        labels: int64 ``[texts]``, or bool ``[texts, labels]``.
    """

    layers: list[Tensor]
    labels: Tensor


@torch.no_grad()
def collect_features(
    model: PyramidForSequenceClassification, batches: Iterable[TextBatch], labels: Sequence[int] | Tensor
) -> Features:
    """Runs the backbone once over all texts, with the model's pruning and without exits.

    labels: one for each text, by its place; the rows of the result are in that order.
    """
    if EXIT_HEADS[model.config.exit_head].reads_survivors:
        raise ValueError(
            f"a {model.config.exit_head!r} head reads all tokens, not fixed features; it is trained with them"
        )
    pyramid = model.with_pruning(Pruning.of(model.config))
    rows: list[list[Tensor]] = []
    places: list[int] = []
    for text_batch in batches:
        packed = model.base_model.embed(**text_batch.to(model.device).inputs)
        rows.append(engine.run_features(pyramid, packed, model.config.exit_head))
        places += text_batch.places
    layers = [in_input_order(layer, places) for layer in zip(*rows, strict=True)]
    return Features(layers, torch.as_tensor(labels))


# The rounding of half-precision and int8 states is about as large. A feature that varies less, as [CLS] does in low layers,
# would get weights that turn rounding into answers.
LOWEST_SPREAD = 0.05


def standardise(features: Tensor, centred: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Features of mean 0 and spread 1, the mean that they had, and the spread; ``[texts, features]``.

    A spread below :data:`LOWEST_SPREAD` counts as that. Not centred, for a layer without a bias, they keep their mean, and
    0 is returned for it.
    """
    mean, scale = features.mean(0), features.std(0).clamp(min=LOWEST_SPREAD)
    if not centred:
        mean = torch.zeros_like(mean)
    return (features - mean) / scale, mean, scale


@torch.no_grad()
def read_standardised(dense: nn.Linear, mean: Tensor, scale: Tensor) -> None:
    """Makes a layer that reads plain features read standardised ones, with the same results."""
    if dense.bias is not None:
        dense.bias.add_(dense.weight @ mean)
    dense.weight.mul_(scale)


@torch.no_grad()
def unstandardise(dense: nn.Linear, mean: Tensor, scale: Tensor) -> None:
    """Makes a layer that was trained on standardised features read plain ones, with the same results."""
    dense.weight.div_(scale)
    if dense.bias is not None:
        dense.bias.sub_(dense.weight @ mean)

"""Ways to run the rivals, to be timed beside the systems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from mp_model import PyramidForSequenceClassification
from mp_model.configuration import NEVER
from mp_model.measuring.all_exits import features_of_exits
from mp_model.measuring.timing import Way
from mp_model.problems import Choice

Inputs = dict[str, Tensor]


def first_exit(model: PyramidForSequenceClassification) -> Callable[[Inputs], Tensor]:
    """The logits of a pyramid's head at layer 0, from a batch's inputs."""
    pyramid = model.pyramid(None, NEVER)

    def logits(inputs: Inputs) -> Tensor:
        embedded = model.base_model.embed(**inputs)
        ((_, head, features),) = features_of_exits(model, pyramid, [0], [embedded])
        found: Tensor = head(features)
        return found

    return logits


def cascade_way(first: Callable[[Inputs], Tensor], whole: Way, choice: Choice, threshold: float | None) -> Way:
    """A way to ask something first, and the whole model for the texts that it is less certain of than the threshold.

    Args:
        first: the logits ``[batch, labels]`` of a batch's inputs.
        whole: a way to run the whole model.
        choice: the kind of problem, which says how uncertain logits are.
        threshold: uncertainty up to which the first answer holds; None: nothing is asked first.
    """
    if threshold is None:
        return whole

    def classify(group: Sequence[Inputs]) -> Any:
        staying = []
        for inputs in group:
            stays = choice.uncertainty(first(inputs)) > threshold
            if stays.any():
                width = inputs["attention_mask"][stays].sum(1).max()
                staying.append({name: x[stays, :width] for name, x in inputs.items()})
        return whole(staying) if staying else []

    return classify


def translated(way: Way, others: dict[int, Inputs]) -> Way:
    """A way to run a model that reads a batch's texts in another form; others: its inputs, by the ``id`` of the batch's."""
    return lambda group: way([others[id(inputs)] for inputs in group])

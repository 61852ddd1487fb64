"""The question that an exit asks, would the last layer have answered otherwise, and how well an uncertainty answers it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from .all_exits import AllExits


def auroc(scores: Tensor, positive: Tensor) -> float | None:
    """The share of pairs of a positive and a negative text in which the positive has the higher score; ties count half.

    Args:
        scores: ``[texts]``.
        positive: bool ``[texts]``.

    Returns:
        A number in [0, 1], 0.5 of scores that say nothing; None where all texts are alike.
    """
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return None
    _, places, equals = scores.unique(return_inverse=True, return_counts=True)
    ranks = equals.cumsum(0) - (equals - 1) / 2  # the mean rank, from 1, of texts with equal scores
    above = ranks.double()[places][positive].sum().item() - count * (count + 1) / 2
    return above / (count * others)


@dataclass(frozen=True)
class ToldApart:
    """How well uncertainties tell, at an exit layer, the answers that differ from the last layer's.

    Attributes:
        layer: the exit layer, or None: the mean of layers, where both kinds of answers are.
        differing: share of the answers that differ.
        auroc: by the kind of uncertainty, see :func:`auroc`.
    """

    layer: int | None
    differing: float
    auroc: dict[str, float | None]

    def as_json(self) -> dict[str, Any]:
        """All attributes, as JSON has them."""
        return asdict(self)


def told_apart(exits: AllExits) -> list[ToldApart]:
    """A row for each exit layer, and if there are any their mean."""
    kinds = exits.config.uncertainties
    uncertainty = {kind: exits.by(kind).uncertainty for kind in kinds}
    rows = []
    for place, layer in enumerate(exits.layers[:-1]):
        differs = exits.differs[place]
        by_kind = {kind: auroc(uncertainty[kind][place], differs) for kind in kinds}
        rows.append(ToldApart(layer, differs.double().mean().item(), by_kind))
    if not rows:
        return []
    known = {kind: [x for row in rows if (x := row.auroc[kind]) is not None] for kind in kinds}
    means = {kind: sum(values) / len(values) if values else None for kind, values in known.items()}
    return [*rows, ToldApart(None, sum(row.differing for row in rows) / len(rows), means)]

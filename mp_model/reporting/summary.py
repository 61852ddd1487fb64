"""The outcome of an evaluation in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Protocol

from ..measuring.evaluation import Evaluation
from .findings import Findings
from .words import seconds_text, work_text


class Timed(Protocol):
    """A classifier that time was measured beside."""

    @property
    def name(self) -> str:
        """Its name, for people."""

    @property
    def seconds(self) -> float:
        """Its time for a text."""


def summary_of(evaluations: Sequence[Evaluation], findings: Findings, beside: Timed | None) -> list[str]:
    """Sentences on accuracy, work, time, exits and tokens of a model as it is set, which is the first evaluation.

    beside: what its time was measured beside; None: no time was measured.
    """
    model = evaluations[0]
    all_labels = "" if model.several is None else " in all of their labels"
    said = [
        f"Of {model.texts:,} texts {model.accuracy:.1%} are answered rightly{all_labels}{_give_or_take(model)}.",
        f"A text takes {work_text(model.executed_gflops)}: {_times(model.speed_up)} than a model that prunes nothing, lets "
        "nobody leave and has no padding.",
    ]
    if beside is not None and model.seconds is not None:
        said.append(
            f"That is {seconds_text(model.seconds)}, {_times(beside.seconds / model.seconds, 'time')} than {beside.name}."
        )
    closed = next(x for x in evaluations if x.exit_threshold is None)
    if model.exit_threshold is not None:
        said += [_cost_of_exits(model, closed), _exits(model)]
    if any(share is not None and share < 1 for share in model.tokens_kept):
        said.append(_tokens(model))
    said.append(_word(findings, model))
    return said


def _give_or_take(model: Evaluation) -> str:
    """The 95 % interval of an accuracy, where there is one."""
    half = 1.96 * (model.accuracy * (1 - model.accuracy) / model.texts) ** 0.5
    return f", give or take {100 * half:.1f} points" if half else ""


def _times(ratio: float, what: str = "work") -> str:
    """So many times less of something than a comparison, or more."""
    more_or_less, factor = ("less", ratio) if ratio >= 1 else ("more", 1 / ratio)
    return f"{f'{factor:.3g}' if factor < 1000 else f'{factor:,.0f}'} times {more_or_less} {what}"


def _cost_of_exits(model: Evaluation, closed: Evaluation) -> str:
    points = 100 * (closed.accuracy - model.accuracy)
    if abs(points) < 0.05:
        return "With its exits closed it answers as many rightly."
    effect = f"{'cost' if points > 0 else 'gain'} {abs(points):.1f} points"
    return f"With its exits closed it answers {closed.accuracy:.1%} rightly: the exits {effect}."


def _exits(model: Evaluation) -> str:
    half = next(layer for layer, count in enumerate(accumulate(model.exits)) if 2 * count >= model.texts)
    last = len(model.exits) - 1
    where = "before any layer" if half == 0 else f"by layer {half}"
    share = model.exits[last] / model.texts
    through = "none goes" if share == 0 else "fewer than 1% go" if share < 0.005 else f"{share:.0%} go"
    if half == last:
        return f"Of the texts {through} through all {last} layers; the others leave before."
    left = sum(model.exits[: half + 1]) / model.texts
    return f"{left:.0%} of the texts leave {where}; {through} through all {last} layers."


def _tokens(model: Evaluation) -> str:
    layer, share = next(
        (layer, share) for layer, share in reversed(list(enumerate(model.tokens_kept, 1))) if share is not None
    )
    return f"Of the texts that get as far as layer {layer}, {share:.0%} of the tokens are still alive after it."


def _word(findings: Findings, model: Evaluation) -> str:
    """How far the scores hold, and the layer whose scores hold least, weighted by its texts."""
    bins = findings.by_layer()
    worst = max(bins, key=lambda layer: bins[layer].texts * abs(bins[layer].said - bins[layer].was))
    scores, where = findings.scores.mean().item(), "the embeddings" if worst == 0 else f"layer {worst}"
    furthest = f"; those from {where} are the furthest from the truth" if len(bins) > 1 else ""
    return f"Its answers claim {scores:.1%} on average, and {model.accuracy:.1%} are right{furthest}."

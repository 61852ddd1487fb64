"""The choice of exit thresholds, and of the strength of pruning, on labelled validation texts.

Everything is arithmetic on :class:`mp_model.measuring.all_exits.AllExits`: the model runs once for each strength of pruning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..configuration import PyramidConfig
from ..exits import AUTO, ENTROPY, UNCERTAINTIES
from .all_exits import AllExits
from .record import Record, Threshold


@dataclass(frozen=True, kw_only=True)
class Outcome(Record):
    """The record of validation texts under exit thresholds, and how far it can be trusted.

    Attributes:
        exit_threshold: one threshold, one for each exit layer, or None: nobody leaves early.
        expected_accuracy: share of right answers without exits, less the share that exits are expected to cost by the
            judgement of the model's own head (:meth:`mp_model.measuring.all_exits.AllExits.expected_cost`).
        harm: share of texts answered wrongly that the reference answers rightly; accuracy cannot fall by more.
        disagreement: share of texts with another answer than the reference's.
        exit_uncertainty: kind of uncertainty that the threshold is one of.
        factor: multiple of the model's own pruning thresholds.
        depth: exit layer by which everybody leaves; None: layer L.
    """

    exit_threshold: Threshold
    expected_accuracy: float
    harm: float
    disagreement: float
    exit_uncertainty: str = ENTROPY
    factor: float = 1.0
    depth: int | None = None

    @property
    def smoothed_accuracy(self) -> float:
        """The mean of the counted and the expected accuracy.

        A count is true to the labels but partly luck; an expectation varies less but trusts the model's own head.
        """
        return (self.accuracy + self.expected_accuracy) / 2


def outcome_of(
    exits: AllExits, exit_threshold: Threshold, factor: float = 1.0, before: Tensor | None = None
) -> Outcome:
    """The outcome of exit thresholds, from the predictions of all exits.

    Args:
        exits: the predictions.
        exit_threshold: one threshold in [0, 1], one for each exit layer, or None: nobody leaves early.
        factor: multiple of the model's own pruning thresholds that the predictions were read under.
        before: the answers of the reference, ``[texts]`` or ``[texts, labels]``; None: those of the model without exits.
    """
    same, answers = exits.choice.same, exits.answers(exit_threshold)
    before = said_without_exits(exits) if before is None else before
    harmed = same(before, exits.labels) & ~same(answers.predictions, exits.labels)
    return Outcome.of(
        exits,
        answers,
        exit_threshold=exit_threshold,
        expected_accuracy=right_without_exits(exits).double().mean().item() - exits.expected_cost(answers.predictions),
        harm=harmed.double().mean().item(),
        disagreement=(~same(answers.predictions, before)).double().mean().item(),
        exit_uncertainty=exits.config.exit_uncertainty,
        factor=factor,
        depth=exits.config.depth,
    )


def right_without_exits(exits: AllExits) -> Tensor:
    """bool ``[texts]``: whether the model answers a text rightly if nobody leaves early, nor by a layer below."""
    return exits.choice.same(said_without_exits(exits), exits.labels)


def said_without_exits(exits: AllExits) -> Tensor:
    """The answers ``[texts]`` or ``[texts, labels]`` of a model if nobody leaves early, nor by a layer below."""
    return exits.choice.answers(exits.judged_by)


def outcomes_of_one_threshold(
    exits: AllExits, steps: int = 200, factor: float = 1.0, before: Tensor | None = None
) -> list[Outcome]:
    """The outcomes of closed exits, and of one threshold for all layers in ``steps`` steps from 0 to 1; slowest first."""
    thresholds: list[Threshold] = [None]
    if len(exits.layers) > 1:
        thresholds += exits.config.uncertainty.steps(steps)
    return [outcome_of(exits, threshold, factor, before) for threshold in thresholds]


def one_threshold_a_layer(exits: AllExits, start: Outcome, steps: int = 50, before: Tensor | None = None) -> Outcome:
    """The outcome of thresholds by layer that cost no more than ``start`` and answer at least as many texts rightly.

    The search is coordinate descent on the executed work, a layer's threshold at a time over ``steps`` of its
    uncertainties, with ``start``'s accuracy as the floor; once from ``start``'s own threshold, once from closed exits.
    """
    last = len(exits.layers) - 1
    if last == 0:
        return start
    floor = round(start.accuracy * len(exits))
    own, begins = start.exit_threshold, [[0.0] * last]
    if own is not None:
        begins.append(own[:last] if isinstance(own, list) else [own] * last)
    candidates = [_steps_between(uncertainty, steps) for uncertainty in exits.uncertainty]
    unreached = [0.0] * (len(exits.config.resolved_exit_layers()) - last)
    thresholds = ([*_descend(exits, begin, candidates, floor), *unreached] for begin in begins)
    found = [outcome_of(exits, of_layers, start.factor, before) for of_layers in thresholds]
    good = [start, *(x for x in found if x.accuracy >= start.accuracy)]
    return min(good, key=lambda outcome: outcome.executed_gflops)


def _descend(exits: AllExits, thresholds: list[float], candidates: list[list[float]], floor: int) -> list[float]:
    """Thresholds of less work at which ``floor`` texts or more are answered rightly, or the given ones."""
    right = exits.right.long()
    last = len(thresholds)

    def leaves_at(layer: int, threshold: float) -> Tensor:
        return exits.uncertainty[layer] <= threshold

    def work_and_right(leaves: Sequence[Tensor]) -> tuple[int, int]:
        places = torch.full_like(exits.lengths, last)
        for layer in reversed(range(last)):
            places = torch.where(leaves[layer], layer, places)
        rows = places.unsqueeze(0)
        return int(exits.executed_at.gather(0, rows).sum()), int(right.gather(0, rows).sum())

    thresholds = list(thresholds)
    leaves = [leaves_at(layer, threshold) for layer, threshold in enumerate(thresholds)]
    best, improved = work_and_right(leaves)[0], True
    while improved:
        improved = False
        for layer in range(last):
            for candidate in candidates[layer]:
                tried = [*leaves[:layer], leaves_at(layer, candidate), *leaves[layer + 1 :]]
                work, count = work_and_right(tried)
                if work < best and count >= floor:
                    thresholds[layer], leaves, best, improved = candidate, tried, work, True
    return thresholds


def _steps_between(uncertainty: Tensor, steps: int) -> list[float]:
    """Thresholds from 0 on, each of which lets an equal share more of the texts leave; rounded up, to four digits."""
    shares = torch.quantile(uncertainty.double(), torch.linspace(0, 1, steps, dtype=torch.float64))
    return sorted({0.0, *(min(1.0, math.ceil(share * 1e4) / 1e4) for share in shares.tolist())})


def frontier(
    outcomes: Iterable[Outcome], worth: Callable[[Outcome], float] = lambda outcome: outcome.accuracy
) -> list[Outcome]:
    """The outcomes that no other beats in both worth and executed work; slowest first."""
    best: list[Outcome] = []
    for outcome in sorted(outcomes, key=lambda outcome: (outcome.executed_gflops, -worth(outcome))):
        if not best or worth(outcome) > worth(best[-1]):
            best.append(outcome)
    return best[::-1]


def check_exit_uncertainty(asked: str) -> None:
    """Raises ValueError for anything but a kind of uncertainty, or ``"auto"``."""
    if asked not in (*UNCERTAINTIES, AUTO):
        raise ValueError(f"the uncertainty must be one of {', '.join((*UNCERTAINTIES, AUTO))}; got {asked!r}")


def kinds_of_uncertainty(config: PyramidConfig, asked: str) -> list[str]:
    """The kinds of uncertainty that a model's thresholds are looked for in.

    asked: one of them; or ``"auto"``, all that the model has.

    Raises:
        ValueError: there is no such kind, or the model does not have it.
    """
    check_exit_uncertainty(asked)
    if asked == AUTO:
        return config.uncertainties
    if asked not in config.uncertainties:
        raise ValueError(
            f"{asked} is told by confidence heads, and this model has none; train them: magic-pyramid fit --stages "
            "confidence"
        )
    return [asked]


def least_work(outcomes: Iterable[Outcome]) -> Outcome:
    """The outcome of least executed work; the first one, if several have as little."""
    return min(outcomes, key=lambda outcome: outcome.executed_gflops)


@dataclass
class TradeOff:
    """All settings that a model can be tuned to.

    Attributes:
        reference: outcome of the model's own pruning without exits, which losses are counted from.
        one_threshold: outcomes of one threshold for all layers, and of a depth beside it where these were asked for.
        layered: outcomes of a threshold for each layer, where they were asked for.
    """

    reference: Outcome
    one_threshold: list[Outcome]
    layered: list[Outcome] = field(default_factory=list)

    def outcomes(self) -> list[Outcome]:
        """All outcomes, the reference first."""
        return [self.reference, *self.one_threshold, *self.layered]

    def curve(self, worth: Callable[[Outcome], float] = lambda outcome: outcome.accuracy) -> list[Outcome]:
        """The outcomes that no other beats in worth and work, slowest first."""
        return frontier(self.outcomes(), worth)

    def fastest(self, max_drop: float, *, counted: bool = False) -> Outcome:
        """The outcome of least work whose accuracy (a share) is at most ``max_drop`` below the reference's.

        Both the counted accuracy and the mean of counted and expected (:attr:`Outcome.smoothed_accuracy`) must be high
        enough: the fastest of many settings whose counted loss is small was lucky on these texts, and loses more on others.

        counted: whether the counted accuracy alone decides.
        """
        enough = self.reference.accuracy - max_drop - 1e-9

        def loses_little(outcome: Outcome) -> bool:
            return outcome.accuracy >= enough and (counted or outcome.smoothed_accuracy >= enough)

        return least_work(filter(loses_little, self.outcomes()))

    def agreeing(self, max_disagreement: float) -> Outcome:
        """The outcome of least work with another answer than the reference's for that share of these texts at most."""
        return least_work(x for x in self.outcomes() if x.disagreement <= max_disagreement + 1e-9)

    def most_accurate(self, speed_up: float) -> Outcome:
        """The outcome of highest accuracy at that speed-up or a higher one.

        Raises:
            ValueError: no setting is as fast.
        """
        curve = self.curve()
        fast = [outcome for outcome in curve if outcome.speed_up >= speed_up]
        if not fast:
            raise ValueError(
                f"the highest speed-up that this model reaches is {curve[-1].speed_up:.2f}; got {speed_up}. Prune more "
                "strongly (threshold factors above 1), or fit a recipe with earlier exits"
            )
        return fast[0]

    def within_latency(self, seconds: float, measure: Callable[[Outcome], float]) -> tuple[Outcome, float]:
        """The outcome of highest accuracy for which ``measure`` gives at most so many seconds, and the seconds it gave.

        Work and time rise together along the curve, so a bisection of it measures few outcomes.

        Raises:
            ValueError: no setting is as fast.
        """
        curve = self.curve()
        low, high, found = 0, len(curve) - 1, None
        while low <= high:
            middle = (low + high) // 2
            took = measure(curve[middle])
            if took <= seconds:
                found, high = (curve[middle], took), middle - 1
            else:
                low, fastest = middle + 1, took
        if found is None:
            raise ValueError(
                f"the fastest setting of this model takes {fastest * 1e3:.2f} ms a text here; got a goal of "
                f"{seconds * 1e3:.2f} ms. Give more threads, or larger batches, or fit a smaller model"
            )
        return found


def trade_off(by_factor: dict[float, AllExits], *, layered: bool, depths: bool = False, steps: int = 100) -> TradeOff:
    """The outcomes of one threshold, and of one a layer (``layered``), for every strength of pruning.

    Args:
        by_factor: predictions under the model's own pruning thresholds times each factor; 1.0 is among them.
        layered: whether to look for a threshold for each layer, too.
        depths: whether everybody may leave by any exit layer.
        steps: steps of one threshold.
    """
    before = said_without_exits(by_factor[1.0])
    single, by_layer = [], []
    for factor, exits in by_factor.items():
        capped = {depth: exits.capped(depth) for depth in (None, *(exits.layers[:-1] if depths else ()))}
        outcomes = [x for of in capped.values() for x in outcomes_of_one_threshold(of, steps, factor, before)]
        single += outcomes
        if layered:
            by_layer += [
                one_threshold_a_layer(capped[start.depth], start, before=before) for start in frontier(outcomes)
            ]
    reference = outcome_of(by_factor[1.0], None)
    return TradeOff(reference, single, by_layer)


def binomial_tail(count: int, texts: int, probability: float) -> float:
    """P(X <= count), exactly, for a binomial X of that many texts."""
    if not 0 < probability < 1:
        return float(probability <= 0 or count >= texts)
    log_p, log_q = math.log(probability), math.log1p(-probability)
    logs = [
        math.lgamma(texts + 1) - math.lgamma(k + 1) - math.lgamma(texts - k + 1) + k * log_p + (texts - k) * log_q
        for k in range(count + 1)
    ]
    return min(1.0, math.fsum(map(math.exp, logs)))


def guaranteed(
    by_factor: dict[float, AllExits],
    path: Sequence[Outcome],
    max_harm: float,
    confidence: float,
    share: Literal["harm", "disagreement"] = "harm",
) -> Outcome | None:
    """The last outcome on a path whose harm is small enough for certain, and not only on these texts.

    The method is Learn then Test (Angelopoulos and others, 2021) with fixed-sequence testing: for each point in turn the
    hypothesis "more than ``max_harm`` of all texts are harmed" is tested by an exact binomial test, until one cannot be
    rejected. With probability ``confidence`` over the draw of these texts, the harm among all texts of the kind is at most
    ``max_harm``, so the accuracy falls by no more.

    Args:
        by_factor: predictions for texts that had no part in the making of the path, by strength of pruning.
        path: outcomes from the most cautious on.
        max_harm: largest share of texts that may be harmed, in (0, 1).
        confidence: probability of the guarantee, in (0, 1).
        share: the share of texts that is bounded by ``max_harm``, those harmed or those that get another answer at all.

    Returns:
        The outcome on these texts; None where not even the first point passes.
    """
    for name, value in (("max_harm", max_harm), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1; got {value}")
    passed, before = None, said_without_exits(by_factor[1.0])
    for point in path:
        exits = by_factor[point.factor].capped(point.depth)
        outcome = outcome_of(exits, point.exit_threshold, point.factor, before)
        if binomial_tail(round(getattr(outcome, share) * len(exits)), len(exits), max_harm) > 1 - confidence:
            break
        passed = outcome
    return passed


def texts_needed(max_harm: float, confidence: float) -> int:
    """Number of texts that a guarantee needs at the least, where none of them is harmed."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-max_harm))

"""Choosing exit thresholds, and how strongly to prune, on labelled validation texts.

Everything is arithmetic on :class:`mp_model.measuring.all_exits.AllExits`: the model runs once for each strength of pruning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .all_exits import AllExits

Threshold = float | list[float] | None


@dataclass(frozen=True)
class Outcome:
    """What exit thresholds do to the validation texts.

    Attributes:
        exit_threshold: one, one for each exit layer, or None: nobody leaves early.
        accuracy: share of right answers.
        expected_accuracy: share of right answers without exits, less what exits are expected to cost by the judgement of the
            model's own head (:attr:`mp_model.measuring.all_exits.AllExits.expected_cost`).
        harm: share of texts answered wrongly that the reference answers rightly; accuracy cannot fall by more.
        mean_exit_layer: mean layer of the exit.
        gflops, executed_gflops: mean work for a text, by the paper's count and as executed.
        speed_up: the work of a BERT without padding that prunes nothing, over the executed work.
        factor: what the thresholds of pruning were multiplied by.
    """

    exit_threshold: Threshold
    accuracy: float
    expected_accuracy: float
    harm: float
    mean_exit_layer: float
    gflops: float
    executed_gflops: float
    speed_up: float
    factor: float = 1.0

    @property
    def smoothed_accuracy(self) -> float:
        """The mean of what was counted and what is expected: nearly as little luck as the one, the truth of the other."""
        return (self.accuracy + self.expected_accuracy) / 2


def outcome_of(exits: AllExits, right_before: Tensor, exit_threshold: Threshold, factor: float = 1.0) -> Outcome:
    """Applies exit thresholds to the predictions of all exits.

    Args:
        exits: the predictions.
        right_before: bool ``[texts]``, which texts the reference answers rightly, mostly the model without exits.
        exit_threshold: in [0, 1]; or one for each exit layer; None: nobody leaves early.
        factor: carried over into the outcome.
    """
    answers = exits.answers(exit_threshold)
    right = answers.predictions == exits.labels
    executed = answers.executed_flops.double().mean().item()
    return Outcome(
        exit_threshold,
        accuracy=right.double().mean().item(),
        expected_accuracy=right_without_exits(exits).double().mean().item() - exits.expected_cost(answers.predictions),
        harm=(right_before & ~right).double().mean().item(),
        mean_exit_layer=answers.exit_layer.double().mean().item(),
        gflops=answers.flops.double().mean().item() / 1e9,
        executed_gflops=executed / 1e9,
        speed_up=exits.dense_flops.double().mean().item() / executed,
        factor=factor,
    )


def right_without_exits(exits: AllExits) -> Tensor:
    """bool ``[texts]``: which texts the model answers rightly if nobody leaves early."""
    return exits.predictions[-1] == exits.labels


def outcomes_of_one_threshold(
    exits: AllExits, right_before: Tensor, steps: int = 200, factor: float = 1.0
) -> list[Outcome]:
    """Nobody leaves, and the same threshold for all exit layers in ``steps`` steps from 0 to 1; slowest first."""
    thresholds: list[Threshold] = [None]
    if len(exits.layers) > 1:
        thresholds += [step / steps for step in range(steps + 1)]
    return [outcome_of(exits, right_before, threshold, factor) for threshold in thresholds]


def largest_threshold(outcomes: Iterable[Outcome], max_harm: float) -> Outcome | None:
    """The outcome of the largest single threshold (fastest) that harms at most that share of the texts; None: none does.

    Harm counts answers made wrong and does not set them off against answers made right, so it is stricter than a fall of
    the accuracy, which on few texts is mostly luck.
    """
    fit = [outcome for outcome in outcomes if outcome.exit_threshold is not None and outcome.harm <= max_harm]
    return max(fit, key=lambda outcome: outcome.exit_threshold, default=None)


def one_threshold_a_layer(exits: AllExits, right_before: Tensor, start: Outcome, steps: int = 50) -> Outcome:
    """Thresholds by layer that cost no more than ``start`` and answer at least as many texts rightly.

    Coordinate descent on the executed work, a layer's threshold at a time over ``steps`` of its uncertainties, with
    ``start``'s accuracy as the floor; once from ``start``'s own threshold, once from where nobody leaves.
    """
    last = len(exits.layers) - 1
    if last == 0:
        return start
    floor = round(start.accuracy * len(exits))
    begins = [[0.0] * last]
    if start.exit_threshold is not None:
        begins.append(exits.config.resolved_exit_threshold(start.exit_threshold))
    candidates = [_steps_between(uncertainty, steps) for uncertainty in exits.uncertainty]
    found = [outcome_of(exits, right_before, _descend(exits, t, candidates, floor), start.factor) for t in begins]
    good = [start, *(x for x in found if x.accuracy >= start.accuracy)]
    return min(good, key=lambda outcome: outcome.executed_gflops)


def _descend(exits: AllExits, thresholds: list[float], candidates: list[list[float]], floor: int) -> list[float]:
    """Thresholds of less work at which ``floor`` texts are answered rightly, or the given ones."""
    right = (exits.predictions == exits.labels).long()
    last = len(thresholds)

    def leaves_at(layer: int, threshold: float) -> Tensor:
        return exits.uncertainty[layer] <= threshold

    def work_and_right(leaves: Sequence[Tensor]) -> tuple[int, int]:
        places = torch.full_like(exits.labels, last)
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
    """0, and thresholds by which equal shares more of the texts leave each; rounded up, to four digits."""
    shares = torch.quantile(uncertainty.double(), torch.linspace(0, 1, steps, dtype=torch.float64))
    return sorted({0.0, *(min(1.0, math.ceil(share * 1e4) / 1e4) for share in shares.tolist())})


def frontier(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those that no other beats in both, accuracy and executed work; slowest first."""
    best: list[Outcome] = []
    for outcome in sorted(outcomes, key=lambda outcome: (outcome.executed_gflops, -outcome.accuracy)):
        if not best or outcome.accuracy > best[-1].accuracy:
            best.append(outcome)
    return best[::-1]


@dataclass
class TradeOff:
    """All that a model can be tuned to.

    Attributes:
        reference: the model with its own pruning and without exits, which losses are counted from.
        one_threshold: outcomes of one threshold for all layers; ``layered``: of one a layer, where they were asked for.
    """

    reference: Outcome
    one_threshold: list[Outcome]
    layered: list[Outcome] = field(default_factory=list)

    def outcomes(self) -> list[Outcome]:
        """All of them."""
        return [self.reference, *self.one_threshold, *self.layered]

    def curve(self) -> list[Outcome]:
        """The outcomes that no other beats, slowest first."""
        return frontier(self.outcomes())

    def fastest(self, max_drop: float, *, counted: bool = False) -> Outcome:
        """The least work at which the accuracy (a share) falls by at most ``max_drop`` below the reference's.

        It may do so neither as counted on these texts, nor as counted and expected together
        (:attr:`Outcome.smoothed_accuracy`): the fastest of many settings whose counted loss is small enough is one that was
        lucky on these texts, and loses more on others.

        counted: whether to take what was counted alone.
        """
        enough = self.reference.accuracy - max_drop - 1e-9

        def loses_little(outcome: Outcome) -> bool:
            return outcome.accuracy >= enough and (counted or outcome.smoothed_accuracy >= enough)

        return min(filter(loses_little, self.outcomes()), key=lambda outcome: outcome.executed_gflops)

    def most_accurate(self, speed_up: float) -> Outcome:
        """The highest accuracy at that speed-up or a higher one.

        Raises:
            ValueError: nothing is as fast.
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
        """The highest accuracy at which ``measure`` gives at most so many seconds, and what it gave.

        Work and time rise together along the curve, so a bisection of it measures few.

        Raises:
            ValueError: nothing is as fast.
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


def trade_off(by_factor: dict[float, AllExits], *, layered: bool, steps: int = 100) -> TradeOff:
    """Outcomes of one threshold, and of one a layer (``layered``), for every strength of pruning.

    by_factor: the predictions under the model's own thresholds of pruning times each factor; 1.0 among them.
    """
    right_before = right_without_exits(by_factor[1.0])
    single, by_layer = [], []
    for factor, exits in by_factor.items():
        outcomes = outcomes_of_one_threshold(exits, right_before, steps, factor)
        single += outcomes
        if layered:
            by_layer += [one_threshold_a_layer(exits, right_before, start) for start in frontier(outcomes)]
    reference = outcome_of(by_factor[1.0], right_before, None)
    return TradeOff(reference, single, by_layer)


def binomial_tail(count: int, texts: int, probability: float) -> float:
    """P(X <= count) of a binomial X with that many texts; exact."""
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
    right_before: Tensor,
    path: Sequence[Outcome],
    max_harm: float,
    confidence: float,
) -> Outcome | None:
    """The last outcome on a path for which few enough harmed answers are certain, not only seen.

    Learn then test (Angelopoulos and others, 2021), with fixed-sequence testing: for each point in turn the hypothesis
    "more than ``max_harm`` of all texts are harmed" is tested by an exact binomial test, until one cannot be rejected. With
    probability ``confidence`` over the draw of these texts, the harm among all texts of the kind is at most ``max_harm``,
    so the accuracy falls by no more.

    Args:
        by_factor: the predictions for texts that had no part in the making of the path, by strength of pruning.
        right_before: bool ``[texts]``, which of them the reference answers rightly.
        path: from the most cautious on.
        max_harm, confidence: shares in (0, 1).

    Returns:
        The outcome on these texts; None where not even the first point passes.
    """
    for name, value in (("max_harm", max_harm), ("confidence", confidence)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1; got {value}")
    passed = None
    for point in path:
        exits = by_factor[point.factor]
        outcome = outcome_of(exits, right_before, point.exit_threshold, point.factor)
        if binomial_tail(round(outcome.harm * len(exits)), len(exits), max_harm) > 1 - confidence:
            break
        passed = outcome
    return passed


def texts_needed(max_harm: float, confidence: float) -> int:
    """How many texts a guarantee needs at the least: with none of them harmed."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-max_harm))

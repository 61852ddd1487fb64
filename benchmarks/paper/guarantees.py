"""How often what ``tune`` states is exceeded, over draws of the validation texts from texts whose answers are known."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mp_model.measuring.all_exits import TEMPERATURES, AllExits
from mp_model.measuring.tuning import (
    Outcome,
    TradeOff,
    binomial_tail,
    outcomes_of_one_threshold,
    right_without_exits,
)

from .measuring import STEPS, Reading

DRAWS = 200
CONFIDENCE = 0.9
HARMS = (1.0, 2.0)  # points that ``tune --max-drop --confidence`` is asked to guarantee


def joined(reading: Reading) -> AllExits:
    """The exits on all texts of a reading, those for validation first."""
    one, other = reading.validation, reading.test
    return AllExits(
        one.config,
        torch.cat([one.labels, other.labels]),
        torch.cat([one.lengths, other.lengths]),
        torch.cat([one.survivors, other.survivors]),
        {layer: torch.cat([x, other.logits[layer]]) for layer, x in one.logits.items()},
    )


@dataclass
class Population:
    """Texts that validation texts are drawn from, and all that a choice of exits reads of them.

    Attributes:
        exits: the predictions for them.
        outcomes: outcomes on all of them, of closed exits and of thresholds for all layers, slowest first.
        right, harmed: bool ``[outcomes, texts]``, whether the answer is right; wrong where that without exits is right.
        executed: float64 ``[outcomes, texts]``, executed work.
        places: int64 ``[outcomes, texts]``, by which of the exits the text leaves.
        own_loss: float64 ``[temperatures, texts]``, minus the log-probability of the label by the last layer.
    """

    exits: AllExits
    outcomes: list[Outcome]
    right: Tensor
    harmed: Tensor
    executed: Tensor
    places: Tensor
    own_loss: Tensor

    @classmethod
    def of(cls, exits: AllExits, steps: int = STEPS) -> Population:
        """The population that predictions stand for; steps: steps of one threshold."""
        before = right_without_exits(exits)
        outcomes = outcomes_of_one_threshold(exits, steps)
        answers = [exits.answers(outcome.exit_threshold) for outcome in outcomes]
        right = torch.stack([exits.choice.same(x.predictions, exits.labels) for x in answers])
        places = torch.searchsorted(torch.tensor(exits.layers), torch.stack([x.exit_layer for x in answers]))
        executed = torch.stack([x.executed_flops for x in answers]).double()
        own = exits.judged_by.double()
        own_loss = torch.stack([-exits.choice.log_probability(own / t, exits.labels) for t in TEMPERATURES])
        return cls(exits, outcomes, right, before & ~right, executed, places, own_loss)

    def expected_cost(self, temperature: float) -> Tensor:
        """float64 ``[outcomes, texts]``: see :meth:`AllExits.expected_cost`, text by text, at a temperature."""
        logits, choice = self.exits.judged_by.double() / temperature, self.exits.choice
        by_exit = torch.stack([choice.log_probability(logits, x).exp() for x in self.exits.predictions])
        return (by_exit[-1] - by_exit).gather(0, self.places)

    def offers(self, drawn: Tensor) -> list[TradeOff]:
        """What ``tune`` would choose from on each of several samples of these texts.

        drawn: float64 ``[texts, samples]``, how often each text is in each sample.
        """
        count = drawn.sum(0)
        right, harmed, executed = (x.double() @ drawn / count for x in (self.right, self.harmed, self.executed))
        cost = torch.empty_like(right)
        fits = (self.own_loss @ drawn).argmin(0)
        for number in fits.unique().tolist():
            alike = fits == number
            cost[:, alike] = self.expected_cost(TEMPERATURES[number]) @ drawn[:, alike] / count[alike]
        found = []
        for sample in range(drawn.shape[1]):
            columns = (x[:, sample].tolist() for x in (right, right[0] - cost, harmed, executed / 1e9))
            outcomes = [
                replace(outcome, accuracy=a, expected_accuracy=b, harm=c, executed_gflops=d, texts=int(count[sample]))
                for outcome, a, b, c, d in zip(self.outcomes, *columns, strict=True)
            ]
            found.append(TradeOff(outcomes[0], outcomes))
        return found


def draw(texts: int, size: int, draws: int, seed: int = 0) -> Tensor:
    """How often each text is in each of several samples with replacement, float64 ``[texts, draws]``."""
    places = torch.randint(texts, (size, draws), generator=torch.Generator().manual_seed(seed))
    return torch.zeros(texts, draws, dtype=torch.float64).scatter_add_(0, places, torch.ones_like(places).double())


def certain(path: Iterable[Outcome], max_harm: float, confidence: float = CONFIDENCE) -> Outcome | None:
    """The outcome that :func:`mp_model.measuring.tuning.guaranteed` gives, from a path of outcomes on the drawn texts."""
    passed = itertools.takewhile(
        lambda x: binomial_tail(round(x.harm * x.texts), x.texts, max_harm) <= 1 - confidence, path
    )
    return next(reversed(list(passed)), None)


def guarantees(reading: Reading, drops: Iterable[float], draws: int = DRAWS, steps: int = STEPS) -> dict[str, Any]:
    """The shares of draws in which what was stated is exceeded among all texts.

    As many texts as there are for validation are drawn with replacement from the validation and the test texts together,
    and exits are set on them; all texts together are what such a statement is about. ``"careful"`` has, by points, the
    default rule, which promises nothing of the kind: how often the accuracy falls by more, and the deepest fall.
    ``"guaranteed"`` has ``--max-drop --confidence``: how often more texts are harmed, by promise at most ``"promised"``, and
    how often there was a setting that could be guaranteed.

    Args:
        reading: the exits of a system.
        drops: points of accuracy that exits may cost.
        draws: number of draws.
        steps: steps of one threshold.
    """
    exits = joined(reading)
    population = Population.of(exits, steps)
    truth = {outcome.exit_threshold: outcome for outcome in population.outcomes}
    offers = population.offers(draw(len(exits), len(reading.validation), draws))
    result: dict[str, Any] = {"draws": draws, "promised": round(1 - CONFIDENCE, 9), "careful": {}, "guaranteed": {}}
    for drop in drops:
        chosen = [truth[x.fastest(drop / 100).exit_threshold] for x in offers]
        lost = [100 * (population.outcomes[0].accuracy - x.accuracy) for x in chosen]
        result["careful"][f"{drop}"] = {"exceeded": _share(x > drop + 1e-9 for x in lost), "deepest": max(lost)}
    for points in HARMS:
        passed = [certain(x.one_threshold, points / 100) for x in offers]
        harms = [100 * truth[x.exit_threshold].harm for x in passed if x is not None]
        exceeded = sum(harm > points + 1e-9 for harm in harms) / draws
        result["guaranteed"][f"{points}"] = {"exceeded": exceeded, "given": len(harms) / draws}
    return result


def _share(found: Iterable[bool]) -> float:
    values = list(found)
    return sum(values) / len(values)


def all_guarantees(
    readings: Mapping[tuple[int, str], Reading], systems: Iterable[str], drops: Iterable[float]
) -> dict[str, list[dict[str, Any]]]:
    """The guarantees of every system that has exits, a row a seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for system in systems:
        seeds = sorted(seed for seed, name in readings if name == system and len(readings[seed, name].test.layers) > 1)
        rows = [{"seed": seed, **guarantees(readings[seed, system], drops)} for seed in seeds]
        if rows:
            found[system] = rows
    return found

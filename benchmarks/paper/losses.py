"""What systems lose against the fine-tuned BERT, with standard errors, at the exits that ``tune`` sets by default."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mp_model.measuring.all_exits import AllExits, Answers
from mp_model.measuring.record import Record

from .measuring import Reading


def merits(exits: AllExits, answers: Answers) -> Tensor:
    """The part that each text has in the score, float64 ``[texts]``; their mean is the score.

    The score is the accuracy: a text has 1 or 0. Where a text may have several labels it is micro F1, twice the common
    labels over all that were given or are right, linearised in the means of both.
    """
    if not exits.choice.several:
        return exits.choice.same(answers.predictions, exits.labels).double()
    common = (answers.predictions & exits.labels).sum(-1).double()
    given = (answers.predictions.sum(-1) + exits.labels.sum(-1)).double()
    if not given.any():
        return torch.zeros_like(given)
    score = 2 * common.sum() / given.sum()
    return score + (2 * common - score * given) / given.mean()


def loss_of(differences: Tensor) -> dict[str, float]:
    """The mean of texts' differences ``[texts]``, and its standard error, in points."""
    error = differences.std().item() / len(differences) ** 0.5
    return {"lost": 100 * differences.mean().item(), "standard_error": 100 * error}


def losses(
    readings: Mapping[tuple[int, str], Reading], systems: Iterable[str], drops: Iterable[float]
) -> dict[str, dict[str, Any]]:
    """Scores, losses and work on the test texts by system and by the points that exits may cost, over all seeds.

    A loss is taken text by text from the BERT of the same seed, so what both find hard is no part of its error. ``"seeds"``
    has a row a seed. Beside it stand the means over the seeds; ``"lost"`` with the standard error of the texts' means over
    the seeds, and with the deviation over the seeds where there are several (``"spread"``).

    Args:
        readings: by seed and name; ``"bert"`` is among them.
        systems: names of the systems; those that nobody read are left out.
        drops: points of validation accuracy that exits may cost.
    """
    berts = {seed: merits(x.test, x.test.answers(None)) for (seed, name), x in readings.items() if name == "bert"}
    found: dict[str, dict[str, Any]] = {}
    for system in systems:
        seeds = [seed for seed in sorted(berts) if (seed, system) in readings]
        if seeds:
            by_seed = {seed: readings[seed, system] for seed in seeds}
            found[system] = {f"{drop}": _over_seeds(by_seed, berts, drop) for drop in drops}
    return found


def _over_seeds(by_seed: Mapping[int, Reading], berts: Mapping[int, Tensor], drop: float) -> dict[str, Any]:
    """The figures of one system at one setting, for each seed and over them."""
    rows, differences = [], []
    for seed, reading in by_seed.items():
        threshold = reading.threshold(drop)
        answers = reading.test.answers(threshold)
        mine = merits(reading.test, answers)
        differences.append(berts[seed] - mine)
        record = Record.of(reading.test, answers)
        row = {"seed": seed, "exit_threshold": threshold, "score": mine.mean().item(), **loss_of(differences[-1])}
        rows.append({**row, "gflops": record.gflops, "executed_gflops": record.executed_gflops})
    means = {key: statistics.mean(row[key] for row in rows) for key in ("score", "gflops", "executed_gflops")}
    together = loss_of(torch.stack(differences).mean(0))
    spread = statistics.stdev(row["lost"] for row in rows) if len(rows) > 1 else None
    return {"seeds": rows, **means, **together, "spread": spread}

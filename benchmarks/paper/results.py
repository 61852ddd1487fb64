"""The figures of the experiments: operating points, curves, ablations and lengths, as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from mp_model.measuring.all_exits import AllExits
from mp_model.measuring.evaluation import evaluate
from mp_model.measuring.tuning import (
    Outcome,
    outcome_of,
    outcomes_of_one_threshold,
    trade_off,
)

from .guarantees import all_guarantees
from .losses import losses
from .measuring import STEPS, Reading, read_job, training_of
from .plan import ABLATION_CORPUS, CORPORA, Backbone, Corpus, jobs
from .rivals import RIVALS, add_rivals

# Points of accuracy that exits may cost on the validation texts.
DROPS = (0.0, 0.5, 1.0)
# Points of test accuracy below the fine-tuned BERT's, at which test curves are compared.
LOSSES = (0.5, 1.0)
TRAINED = ("bert", "distilbert", "power", "ltp", "fastbert", "mp", "pyramid")
SYSTEMS = (*TRAINED, *RIVALS)
CURVE_KEYS = ("exit_threshold", "accuracy", "gflops", "executed_gflops")


def figures_of(
    reading: Reading, drop: float, bounds: Iterable[int], layered: bool = False, counted: bool = True
) -> dict[str, Any]:
    """The evaluation of a system on the test texts, as JSON, with exits that ``tune`` sets on the validation texts.

    Args:
        reading: the system's exits.
        drop: points of validation accuracy that exits may cost.
        bounds: tokens of the longest texts of each range of lengths but the last.
        layered: whether each layer has a threshold of its own.
        counted: whether the loss is counted alone, as with ``tune --counted``.
    """
    threshold = reading.threshold(drop, counted=counted)
    if layered:
        offers = trade_off({1.0: reading.validation}, layered=True, steps=STEPS)
        threshold = offers.fastest(drop / 100, counted=counted).exit_threshold
    return evaluate(reading.test, threshold, tuple(bounds)).as_json()


def curve_of(exits: AllExits) -> list[Outcome]:
    """The outcomes on given texts, without exits and over thresholds."""
    return outcomes_of_one_threshold(exits, STEPS)


def least_work(outcomes: Iterable[Outcome], accuracy: float, kind: str) -> Outcome | None:
    """The outcome of least work (``"gflops"`` or ``"executed_gflops"``) at that accuracy or more; None: not reached."""
    reached = (outcome for outcome in outcomes if outcome.accuracy >= accuracy - 1e-9)
    return min(reached, key=lambda outcome: getattr(outcome, kind), default=None)


def beaten(ours: list[Outcome], theirs: list[Outcome], kind: str, lowest: float) -> tuple[int, int]:
    """The number of their points, from that accuracy on, that a point of ours beats or equals; and the number of all."""
    points = {(x.accuracy, getattr(x, kind)) for x in theirs if x.accuracy >= lowest}
    best = [(accuracy, work) for accuracy, work in points if work <= getattr(least_work(theirs, accuracy, kind), kind)]
    won = 0
    for accuracy, work in best:
        least = least_work(ours, accuracy, kind)
        won += least is not None and getattr(least, kind) <= work
    return won, len(best)


def without_layer_0(exits: AllExits) -> AllExits:
    """The same model with its exit before layer 1 closed."""
    config = exits.config.from_dict(
        {**exits.config.to_dict(), "exit_layers": exits.layers[1:-1], "exit_threshold": None}
    )
    logits = {layer: x for layer, x in exits.logits.items() if layer}
    return AllExits(config, exits.labels, exits.lengths, exits.survivors, logits)


def corpus_results(
    backbone: Backbone, corpus: Corpus, runs: Path, corpora: Path | None, console: Console
) -> dict[str, Any] | None:
    """All figures of one corpus; None where its fine-tuned BERT is not trained yet."""
    finished = [job for job in jobs(runs, backbone, [corpus.name]) if job.model.is_dir()]
    readings = {(job.seed, job.fit.name): read_job(job, corpora, console) for job in finished if job.fit.measured}
    if (0, "bert") not in readings:
        return None
    add_rivals(readings, [job for job in finished if job.fit.name == "bert"], corpora, console)
    result: dict[str, Any] = {
        "name": corpus.name,
        "title": corpus.title,
        "settings": asdict(backbone.settings(corpus)),
        "texts": {split: len(getattr(readings[0, "bert"], split)) for split in ("validation", "test")},
        "most_frequent_label": most_frequent(readings[0, "bert"].test.labels),
        "training": training_of(finished),
        "systems": {},
        "careful": {},
        "curves": {},
        "on_test": {},
        "seeds": {},
    }
    bert = {seed: _accuracy(reading) for (seed, name), reading in readings.items() if name == "bert"}
    for name in SYSTEMS:
        if (0, name) in readings:
            reading = readings[0, name]
            result["systems"][name] = {f"{drop}": figures_of(reading, drop, corpus.bounds) for drop in DROPS}
            result["systems"][name]["without exits"] = evaluate(reading.test, None, corpus.bounds).as_json()
            if len(reading.test.layers) > 1:
                careful = {f"{drop}": figures_of(reading, drop, corpus.bounds, counted=False) for drop in DROPS}
                result["careful"][name] = careful
            curve = curve_of(reading.test)
            result["curves"][name] = [{key: getattr(outcome, key) for key in CURVE_KEYS} for outcome in curve]
            result["on_test"][name] = _least_on_test(curve, bert[0])
    for name in ("bert", "ltp", "mp", "pyramid"):
        rows = [
            _seed_row(readings[seed, name], bert[seed], corpus)
            for seed in range(corpus.seeds)
            if (seed, name) in readings and seed in bert
        ]
        result["seeds"][name] = rows
    result["losses"] = losses(readings, SYSTEMS, DROPS)
    result["guarantees"] = all_guarantees(readings, SYSTEMS, DROPS)
    result["dominance"] = _dominance(readings, bert[0])
    result["lengths"] = _lengths(readings, corpus)
    if corpus.name == ABLATION_CORPUS:
        result["ablation"] = _ablation(readings, bert[0], corpus)
    return result


def _accuracy(reading: Reading) -> float:
    """Test accuracy without exits."""
    return outcome_of(reading.test, None).accuracy


def _least_on_test(curve: list[Outcome], bert: float) -> dict[str, dict[str, Any]]:
    """The least GFLOPs at which a system's test accuracy is within so many points of BERT's; None: it never is.

    ``"exit_threshold"`` is that of the least executed work.
    """
    found: dict[str, dict[str, Any]] = {}
    for loss in LOSSES:
        paper, executed = (least_work(curve, bert - loss / 100, kind) for kind in ("gflops", "executed_gflops"))
        found[f"{loss}"] = {
            "gflops": paper and paper.gflops,
            "executed_gflops": executed and executed.executed_gflops,
            "exit_threshold": executed and executed.exit_threshold,
        }
    return found


def _seed_row(reading: Reading, bert: float, corpus: Corpus) -> dict[str, float]:
    figures = figures_of(reading, DROPS[-1], corpus.bounds)
    keys = ("accuracy", "f1", "gflops", "executed_gflops", "dense_gflops", "speed_up")
    return {"without_exits": _accuracy(reading), "bert": bert, **{key: figures[key] for key in keys}}


def _dominance(readings: dict[tuple[int, str], Reading], bert: float) -> dict[str, Any]:
    """The part of the others' curves, down to 3 points below BERT, that mp's curve beats."""
    if (0, "mp") not in readings:
        return {}
    ours = curve_of(readings[0, "mp"].test)
    rivals = [name for name in ("ltp", "fastbert") if (0, name) in readings]
    return {
        name: {
            kind: beaten(ours, curve_of(readings[0, name].test), kind, bert - 0.03)
            for kind in ("gflops", "executed_gflops")
        }
        for name in rivals
    }


def _lengths(readings: dict[tuple[int, str], Reading], corpus: Corpus) -> dict[str, Any]:
    """Dense work over work, by length, of pruning alone, exits alone and both."""
    exits_alone = "cls-frozen" if (0, "cls-frozen") in readings else "fastbert"
    names = {
        "pruning (ltp)": "ltp",
        f"exits ({exits_alone})": exits_alone,
        "both (mp)": "mp",
        "pyramid": "pyramid",
        "pruning (ltp-alive)": "ltp-alive",
    }
    result: dict[str, Any] = {}
    for title, name in names.items():
        if (0, name) not in readings:
            continue
        figures = figures_of(readings[0, name], DROPS[-1], corpus.bounds)
        result[title] = [
            {
                "bucket": f"{x['shortest']}-{x['longest']}" if x["longest"] else f"{x['shortest']} or more",
                **{key: x[key] for key in ("texts", "accuracy", "gflops", "executed_gflops", "dense_gflops")},
            }
            for x in figures["buckets"]
        ]
    return result


def _ablation(readings: dict[tuple[int, str], Reading], bert: float, corpus: Corpus) -> list[dict[str, Any]]:
    """The figures of each ingredient, one after the other."""
    steps = (
        ("the paper's heads, frozen, no pruning", "cls-frozen", {}),
        ("pooled heads, from layer 1 on", "pooled-frozen", {"layer_0": False}),
        ("pooled heads, from layer 0 on", "pooled-frozen", {}),
        ("trained jointly, then frozen (still no pruning)", "pyramid-unpruned", {}),
        ("pooled heads and pruning, frozen", "pooled-pruned-frozen", {}),
        ("pruning and joint, without a teacher", "pyramid-untaught", {}),
        ("pruning and joint: `pyramid`", "pyramid", {}),
        ("`pyramid` without the last stage (exits under the frozen backbone)", "joint", {}),
        ("`pyramid` without layer 0", "pyramid", {"layer_0": False}),
        ("`pyramid`, a threshold for each layer", "pyramid", {"layered": True}),
    )
    rows = []
    for title, name, options in steps:
        if (0, name) not in readings:
            continue
        reading = readings[0, name]
        if options.get("layer_0") is False:
            reading = Reading(without_layer_0(reading.validation), without_layer_0(reading.test))
        row: dict[str, Any] = {"title": title, "without_exits": _accuracy(reading), "chosen": {}, "on_test": {}}
        for drop in DROPS:
            figures = figures_of(reading, drop, corpus.bounds, options.get("layered", False))
            keys = ("accuracy", "gflops", "executed_gflops", "dense_gflops", "speed_up")
            row["chosen"][f"{drop}"] = {key: figures[key] for key in keys}
        if not options.get("layered"):
            row["on_test"] = _least_on_test(curve_of(reading.test), bert)
        rows.append(row)
    return rows


def most_frequent(labels: Tensor) -> float:
    """The share of the texts that have the most frequent label, or set of labels."""
    return labels.unique(dim=0, return_counts=True)[1].max().item() / len(labels)


def all_results(
    backbone: Backbone, names: Iterable[str], runs: Path, corpora: Path | None, console: Console
) -> dict[str, Any]:
    """The results of every corpus that a backbone was trained on, by name."""
    results = {name: corpus_results(backbone, CORPORA[name], runs, corpora, console) for name in names}
    return {name: result for name, result in results.items() if result is not None}

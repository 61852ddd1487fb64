"""The tables of one corpus on the page of results, as lines of Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from .clocking import ORDERS, PADDED
from .results import DROPS, LOSSES, SYSTEMS

ABOUT = {
    "bert": "fine-tuned, nothing removed",
    "distilbert": "half the layers, distilled",
    "power": "top-k pruning, fixed shares",
    "ltp": "learned pruning",
    "fastbert": "exits, FastBERT's heads",
    "mp": "the paper: learned pruning and exits",
    "pyramid": "ours",
    "tfidf": "TF-IDF and logistic regression, then `bert`",
    "layer-0": "`pyramid`'s layer 0, then `bert`",
    "six-layer": "`bert` of 6 layers",
}
KINDS = ("gflops", "executed_gflops")
ALIKE = 1.05  # two savings within this factor count as the same


def table(heading: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    """A table and an empty line after it."""
    heading = list(heading)
    lines = ["| " + " | ".join(heading) + " |", "| " + " | ".join("---" for _ in heading) + " |"]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def score(figures: dict[str, Any]) -> float:
    """The accuracy; where a text may have several labels, micro F1."""
    return figures["several"]["micro_f1"] if figures.get("several") else figures["accuracy"]


def several(result: dict[str, Any]) -> bool:
    """Whether a text of the set may have several labels."""
    return bool(result["systems"]["bert"]["without exits"].get("several"))


def score_name(result: dict[str, Any]) -> str:
    """The name of what :func:`score` gives."""
    return "micro F1" if several(result) else "accuracy"


def accuracy_name(result: dict[str, Any]) -> str:
    """The name of the share of texts that are answered rightly, in all labels."""
    return "exact match" if several(result) else "accuracy"


def times_less(dense: float, work: float | None) -> str:
    """Dense work over other work; None: not reached."""
    if work is None:
        return "-"
    return f"{dense / work:.2f}x" if work > 5e-4 * dense else "all at layer 0"


def milliseconds_by_order(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Milliseconds by system, for each order of the texts that was timed."""
    return {order: result["clock"][order]["milliseconds"] for order in ORDERS if "clock" in result}


def milliseconds_at(took: dict[str, float], system: str, setting: str) -> float | None:
    """Milliseconds of a system at a setting of its exits; without exits, the same at each."""
    return took.get(f"{system}@{setting}", took.get(system))


def in_milliseconds(took: dict[str, float], system: str, setting: str) -> str:
    """Milliseconds of a system at a setting of its exits, as a cell."""
    milliseconds = milliseconds_at(took, system, setting)
    return "-" if milliseconds is None else f"{milliseconds:.2f}"


def times_faster(took: dict[str, float], system: str, setting: str) -> str:
    """Milliseconds of the padded BERT over those of a system at a setting of its exits."""
    milliseconds = milliseconds_at(took, system, setting)
    return "-" if milliseconds is None else f"{took[PADDED] / milliseconds:.2f}x"


def systems_table(result: dict[str, Any], drop: str) -> list[str]:
    """All systems, with exits that may cost so many points."""
    orders = milliseconds_by_order(result)
    rows = []
    f1 = "macro F1" if several(result) else "F1"
    heading = ["", score_name(result), f1, "mean exit", "paper GFLOPs", "x", "executed GFLOPs", "x"]
    if orders:
        gflops = ", ".join(f"{result['clock'][order]['padded_gflops']:.3f}" for order in orders)
        padded = [PADDED, "", "", "", "", "", gflops, ""]
        for order, took in orders.items():
            heading += [f"ms, {order}", "x"]
            padded += [f"{took[PADDED]:.2f}", "1.00x"]
        rows.append(padded)
    for name in SYSTEMS:
        if name not in result["systems"]:
            continue
        x = result["systems"][name][drop]
        dense = result["systems"]["bert"][drop]["dense_gflops"]
        row = [f"`{name}`: {ABOUT[name]}", f"{score(x):.2%}", f"{x['f1']:.2%}", f"{x['mean_exit_layer']:.2f}"]
        for kind in KINDS:
            row += [f"{x[kind]:.3f}", times_less(dense, x[kind])]
        for took in orders.values():
            row += [in_milliseconds(took, name, drop), times_faster(took, name, drop)]
        rows.append(row)
    return [f"Exits may cost {drop} points:", "", *table(heading, rows)]


def careful_table(result: dict[str, Any]) -> list[str]:
    """Systems with exits, set as ``tune`` sets them by default."""
    if not result.get("careful"):
        return []
    bert, orders = result["systems"]["bert"][str(DROPS[0])], milliseconds_by_order(result)
    rows = []
    for name, by_drop in result["careful"].items():
        for drop, x in by_drop.items():
            cells = [f"{score(x):.2%}", f"{100 * (score(bert) - score(x)):.2f}"]
            cells += [times_less(bert["dense_gflops"], x[kind]) for kind in KINDS]
            cells += [times_faster(took, name, f"careful {drop}") for took in orders.values()]
            rows.append([f"`{name}`", drop, *cells])
    heading = ["", "exits may cost", score_name(result), "points lost", "x paper", "x executed"]
    return [
        "Chosen carefully; points lost are below `bert`, by pruning, by training and by exits together:",
        "",
        *table([*heading, *(f"x ms, {order}" for order in orders)], rows),
    ]


def losses_table(result: dict[str, Any]) -> list[str]:
    """Scores and losses with standard errors over all seeds, at exits that ``tune`` sets by default."""
    if "losses" not in result:
        return []
    dense = result["systems"]["bert"][str(DROPS[0])]["dense_gflops"]
    rows = []
    for name, by_drop in result["losses"].items():
        for drop, x in by_drop.items():
            each = ", ".join(f"{row['lost']:.2f} ± {row['standard_error']:.2f}" for row in x["seeds"])
            spread = "-" if x["spread"] is None else f"{x['spread']:.2f}"
            lost = f"{x['lost']:.2f} ± {x['standard_error']:.2f}"
            saved = [times_less(dense, x[kind]) for kind in KINDS]
            rows.append([f"`{name}`", drop, f"{x['score']:.2%}", lost, spread, each, *saved])
    heading = ("", "exits may cost", score_name(result), "points lost ± s.e.", "over seeds", "each seed")
    return [
        "Exits set as `tune` sets them by default, means over the seeds. Points lost are below the `bert` of the same seed, "
        "text by text, with the standard error that the choice of test texts brings; *over seeds* is the deviation that the "
        "seed brings:",
        "",
        *table([*heading, "x paper", "x executed"], rows),
    ]


def guarantees_table(result: dict[str, Any]) -> list[str]:
    """How often stated losses are exceeded, beside what is promised."""
    if not result.get("guarantees"):
        return []
    rows = []
    for name, seeds in result["guarantees"].items():
        careful, guaranteed = (
            {points: [row[kind][points] for row in seeds] for points in seeds[0][kind]}
            for kind in ("careful", "guaranteed")
        )
        cells = [f"{mean_of(x, 'exceeded'):.1%} (at most {max(y['deepest'] for y in x):.2f})" for x in careful.values()]
        cells += [f"{mean_of(x, 'exceeded'):.1%} (set in {mean_of(x, 'given'):.0%})" for x in guaranteed.values()]
        rows.append([f"`{name}`", len(seeds), *cells])
    first = next(iter(result["guarantees"].values()))[0]
    heading = ["", "seeds", *(f"{points} points, `tune`" for points in first["careful"])]
    heading += [f"{points} points, guaranteed" for points in first["guaranteed"]]
    return [
        f"The share of {first['draws']} draws of the validation texts, with replacement from these and the test texts "
        "together, after which more is lost on all of them than was stated. `tune` by default promises no share (in "
        "brackets: the most that was lost); guaranteed is `--max-drop --confidence`, where more texts are harmed in at most "
        f"{first['promised']:.0%} of draws by its promise (in brackets: how often there was a setting to guarantee):",
        "",
        *table(heading, rows),
    ]


def mean_of(rows: list[dict[str, float]], key: str) -> float:
    """The mean of one figure of several rows."""
    return statistics.mean(row[key] for row in rows)


def test_curve_table(result: dict[str, Any]) -> list[str]:
    """Each system's least work on its test curve."""
    dense = result["systems"]["bert"][str(DROPS[0])]["dense_gflops"]
    orders = milliseconds_by_order(result)
    by_system = result["on_test"].items()
    reached = {(name, loss) for name, by_loss in by_system for loss, x in by_loss.items() if x["gflops"] is not None}
    if not any("@test" in way for took in orders.values() for way in took):
        orders = {}
    rows = []
    for name, by_loss in by_system:
        row = [f"`{name}`"]
        for loss, x in by_loss.items():
            row += [times_less(dense, x[kind]) for kind in KINDS]
            for took in orders.values():
                row.append(times_faster(took, name, f"test {loss}") if (name, loss) in reached else "-")
        rows.append(row)
    kinds = ("x paper", "x executed", *(f"x ms, {order}" for order in orders))
    return [
        f"Read off the test curves: the least work at which the test {accuracy_name(result)} is at most so many points "
        "below `bert`'s (-: not reached). Nobody could have chosen these settings beforehand, but they compare systems "
        "without the luck of a choice.",
        "",
        *table(["", *(f"{loss} points: {kind}" for loss in LOSSES for kind in kinds)], rows),
    ]


def comparisons(result: dict[str, Any]) -> list[str]:
    """The paper's system against others, and executed work against the paper's count."""
    counts = {"gflops": "the paper's count", "executed_gflops": "executed work"}
    lines = []
    for rival, by_kind in result["dominance"].items():
        parts = [f"{won} of {of} by {counts[kind]}" for kind, (won, of) in by_kind.items()]
        lines.append(
            f"- `mp` against `{rival}`, settings of `{rival}` that lose at most 3 points on the test texts, at which `mp` "
            f"is as accurate with no more work: {', '.join(parts)}."
        )
    for drop in map(str, DROPS):
        x = result["systems"].get("mp", {}).get(drop)
        if x and x["gflops"]:
            lines.append(
                f"- Deciding exits first, `mp` at {drop} points: {x['executed_gflops']:.3f} GFLOPs executed where the paper "
                f"counts {x['gflops']:.3f} for the same answers, {x['gflops'] / x['executed_gflops']:.2f} times less."
            )
    return [*lines, ""]


def seeds_table(result: dict[str, Any]) -> list[str]:
    """Means and deviations, where there are several seeds."""
    if max(map(len, result["seeds"].values())) < 2:
        return []
    rows = []
    for name, seeds in result["seeds"].items():
        row = [f"`{name}`", len(seeds)]
        for key, scale in (("without_exits", 100), ("accuracy", 100), ("f1", 100), ("executed", 1)):
            values = [x["dense_gflops"] / x["executed_gflops"] if key == "executed" else scale * x[key] for x in seeds]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            row.append(f"{statistics.mean(values):.2f} ± {spread:.2f}")
        rows.append(row)
    name = accuracy_name(result)
    heading = ("", "seeds", f"{name} without exits", name, "F1", "x executed")
    return [f"Mean and standard deviation over seeds; exits may cost {DROPS[-1]} points:", "", *table(heading, rows)]


def ablation_table(result: dict[str, Any]) -> list[str]:
    """Each ingredient's part, on the corpus that has it."""
    if "ablation" not in result:
        return []
    rows = []
    for x in result["ablation"]:
        row = [x["title"], f"{x['without_exits']:.2%}"]
        for drop in map(str, DROPS):
            chosen = x["chosen"][drop]
            dense = chosen["dense_gflops"]
            row += [f"{chosen['accuracy']:.2%}", *(times_less(dense, chosen[kind]) for kind in KINDS)]
        reached = [x["on_test"][f"{loss}"][kind] if x["on_test"] else None for loss in LOSSES for kind in KINDS]
        rows.append([*row, *(times_less(dense, work) for work in reached)])
    heading = ["", "without exits"]
    for drop in DROPS:
        heading += [f"{drop} points: accuracy", "x paper", "x executed"]
    heading += [f"test curve, {loss} points: {kind}" for loss in LOSSES for kind in ("x paper", "x executed")]
    return [
        "The part of each ingredient; the difference between executed and paper is what deciding first gives:",
        "",
        *table(heading, rows),
    ]


def lengths_table(result: dict[str, Any], picture: str) -> list[str]:
    """Work saved by length, and whether Figure 1's trends are there; picture: the beginning of its pictures' names."""
    lengths = result["lengths"]
    if not lengths:
        return []
    counts = {x["bucket"]: x["texts"] for rows in lengths.values() for x in rows}
    rows = []
    for name, buckets in lengths.items():
        by_bucket = {x["bucket"]: x for x in buckets}
        right = sum(x["texts"] * x["accuracy"] for x in buckets) / sum(x["texts"] for x in buckets)
        saved = [
            ", ".join(times_less(by_bucket[bucket]["dense_gflops"], by_bucket[bucket][kind]) for kind in KINDS)
            for bucket in counts
        ]
        rows.append([name, f"{right:.2%}", *saved])
    heading = ["", accuracy_name(result), *(f"{bucket} tokens ({count:,} texts)" for bucket, count in counts.items())]
    return [
        f"Work by length (paper, executed); exits may cost {DROPS[-1]} points:",
        "",
        *table(heading, rows),
        *_trends(lengths),
        f"![Work saved by length]({picture}_lengths.png)",
        "",
    ]


def _trends(lengths: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The savings on the shortest and on the longest texts, held against the paper's Figure 1."""
    lines = [
        "The paper's Figure 1 has pruning save more where texts are long, and exits more where they are short. Here, by the "
        "paper's count:",
        "",
    ]
    for kind, wanted in (("pruning", "long"), ("exits", "short")):
        for name, rows in lengths.items():
            if not name.startswith(kind) or not all(x["gflops"] for x in rows):
                continue
            short, long = (x["dense_gflops"] / x["gflops"] for x in (rows[0], rows[-1]))
            found = "long" if long > ALIKE * short else "short" if short > ALIKE * long else "neither"
            verdict = "as there" if found == wanted else "not as there"
            favours = "as much of both" if found == "neither" else f"more where they are {found}"
            lines.append(f"- {name}: {short:.2f}x of the shortest, {long:.2f}x of the longest; {favours}, {verdict}.")
    if "pruning (ltp-alive)" in lengths:
        lines += [
            "",
            "`ltp` divides importance by 128 whatever the length, as its released code does, so a token of a long text "
            "receives on average what one of a short text does. `ltp-alive` divides by the tokens that enter the layer; its "
            "threshold, temperature and threshold learning rate are scaled by 128/400, and otherwise not searched for.",
        ]
    return [*lines, ""]

"""Writes the results as a page with tables and plots, from the JSON alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mp_model.data.files import whole_file
from mp_model.measuring.tuning import frontier
from mp_model.reporting.plots import plot_buckets, plot_trade_off

from .clocking import ORDERS, PADDED
from .plan import FITS
from .results import DROPS, LOSSES, SYSTEMS

ABOUT = {
    "bert": "fine-tuned, nothing removed",
    "distilbert": "half the layers, distilled",
    "power": "top-k pruning, fixed shares",
    "ltp": "learned pruning",
    "fastbert": "exits, FastBERT's heads",
    "mp": "the paper: learned pruning and exits",
    "pyramid": "ours",
}
BARELY = 0.1  # over the most frequent label, below which a classifier has hardly learned
ALIKE = 1.05  # two savings within this factor count as the same
CURVES = ("fastbert", "mp", "pyramid")


def write_report(document: dict[str, Any], folder: Path) -> None:
    """``results.md`` in ``folder``, and its pictures under ``folder/results``."""
    with whole_file(folder / "results.md") as stream:
        stream.write("\n".join(_page(document)) + "\n")
    for name, result in document["corpora"].items():
        _plots(name, result, folder / "results")


def _table(heading: Iterable[str], rows: Iterable[Iterable[Any]]) -> list[str]:
    heading = list(heading)
    lines = ["| " + " | ".join(heading) + " |", "| " + " | ".join("---" for _ in heading) + " |"]
    return [*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]


def _times(dense: float, work: float) -> str:
    return f"{dense / work:.2f}x" if work > 5e-4 * dense else "all at layer 0"


def _page(document: dict[str, Any]) -> list[str]:
    corpora = document["corpora"]
    hours = sum(result["training"]["seconds"] for result in corpora.values()) / 3600
    lines = [
        "# The paper's experiments",
        "",
        "Written by `make paper`, which trains, measures and writes this page from `results/results.json`. A set that was "
        "not trained again keeps the figures of the commit that it names.",
        "",
        f"All training steps together took {hours:.1f} hours.",
        "",
        "## How to read it",
        "",
        "- *work* is floating-point operations of a text, 2 x multiply-accumulates, mean over the test texts. *Paper* is "
        "the paper's count (whole layers up to the exit, no heads); *executed* is what our engine computes, heads included, "
        "exits decided before the rest of a layer. `x` after either: a BERT that prunes nothing and lets nobody leave, "
        "without padding, over it.",
        "- Exits of every system are set on validation texts (a tenth of the training texts, held out), as "
        "`magic-pyramid tune --counted` does it: one threshold for all layers, the fastest at which exits cost at most so "
        "many points of validation accuracy. Accuracy and F1 are of the test texts, so they may fall by more or less than "
        "that; mostly by more, since the fastest is one that was lucky. *Chosen carefully* is what `tune` does by default: "
        "the model's own calibrated head has half a say in what exits cost. That was settled on texts of AG News' own "
        "training data that are in neither of its splits here. Sets that were measured before lack it.",
        "- *ms* is wall-clock time of a text in batches of 32, tokenisation apart, all systems taking turns batch by batch "
        f"in one run (threads: {_clock_threads(corpora)}); first for batches of similar length, then for texts as they "
        "come, where transformers pads more.",
        "- Epochs are fewer than the paper's: see each set. The pruning penalty, temperature and learning rates are one "
        "setting for all sets, not searched for.",
        "- Three things about `pyramid` were settled while test figures of AG News and QQP were being looked at: its last "
        "stage (exits under the frozen backbone, after the joint one), the heads' own learning rate in the joint stage, and "
        "one threshold for all layers instead of one a layer.",
        "- A set of one seed is one draw. When QQP was trained again on another kind of processor, which rounds otherwise, "
        "`mp` and `pyramid` changed places; so differences of that kind between systems there say little.",
        "",
    ]
    lines += _summary(corpora)
    for result in corpora.values():
        lines += _corpus(result)
    return lines


def _clock_threads(corpora: dict[str, Any]) -> str:
    threads = sorted({result["clock"]["threads"] for result in corpora.values() if "clock" in result})
    return " or ".join(map(str, threads)) or "not timed"


def _seeds(result: dict[str, Any]) -> str:
    """Numbers count from 0; tables of one model are of seed 0."""
    count = len(result["seeds"]["bert"])
    return "seed 0" if count == 1 else f"seeds 0 to {count - 1} (tables and curves of seed 0 unless they say otherwise)"


def _epochs(name: str) -> float:
    """The passes that the plan gives to one system alone."""
    return next(epochs for fit in FITS if fit.name == name for epochs in fit.changes.values())


def _corpus(result: dict[str, Any]) -> list[str]:
    settings = result["settings"]
    epochs = (
        f"{settings['epochs']:g} epochs of fine-tuning and distillation, {settings['soft_epochs']:g} soft, "
        f"{settings['hard_epochs']:g} hard, {_epochs('joint'):g} joint, {settings['exit_epochs']:g} of heads (FastBERT's, "
        f"which cannot be trained on states computed once: {_epochs('fastbert'):g})"
    )
    about, took = result["about"], result["training"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"## {result['title']}",
        "",
        f"{about['model']}, {about['layers']} layers, {_seeds(result)}. Measured at commit {about['commit']}, "
        f"{about['date']}; {versions}; {about['processor']}. {took['seconds'] / 3600:.1f} hours of training steps, "
        f"threads: {took['threads']:.0f}.",
        "",
        f"{result['texts']['test']:,} test texts, {result['texts']['validation']:,} to set exits on; {epochs}.",
        "",
    ]
    bert, guess = result["systems"]["bert"][str(DROPS[0])]["accuracy"], result["most_frequent_label"]
    if bert < guess + BARELY:
        lines += [
            f"The fine-tuned BERT itself has {bert:.1%}, where always giving the most frequent label has {guess:.1%}: it "
            "has hardly learned this set, and what is lost or kept here says little.",
            "",
        ]
    for drop in map(str, DROPS):
        lines += [f"Exits may cost {drop} points:", ""]
        lines += _systems_table(result, drop)
    lines += _careful(result)
    lines += _on_test(result)
    lines += _dominance(result)
    lines += _seeds_table(result)
    lines += _ablation_table(result)
    lines += _lengths_table(result)
    name = result["name"]
    lines += [
        f"![Accuracy over the paper's count](results/{name}_paper.png)",
        f"![Accuracy over executed work](results/{name}_executed.png)",
        "",
    ]
    return lines


def _systems_table(result: dict[str, Any], drop: str) -> list[str]:
    orders = _orders(result)
    rows = []
    heading = ["", "accuracy", "F1", "mean exit", "paper GFLOPs", "x", "executed GFLOPs", "x"]
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
        row = [
            f"`{name}`: {ABOUT[name]}",
            f"{x['accuracy']:.2%}",
            f"{x['f1']:.2%}",
            f"{x['mean_exit_layer']:.2f}",
            f"{x['gflops']:.3f}",
            _times(dense, x["gflops"]),
            f"{x['executed_gflops']:.3f}",
            _times(dense, x["executed_gflops"]),
        ]
        for took in orders.values():
            row += [f"{_milliseconds(took, name, drop):.2f}", _faster(took, name, drop)]
        rows.append(row)
    return _table(heading, rows)


def _careful(result: dict[str, Any]) -> list[str]:
    if not result.get("careful"):
        return []
    bert, orders = result["systems"]["bert"][str(DROPS[0])], _orders(result)
    rows = []
    for name, by_drop in result["careful"].items():
        for drop, x in by_drop.items():
            cells = [f"{x['accuracy']:.2%}", f"{100 * (bert['accuracy'] - x['accuracy']):.2f}"]
            cells += [_times(bert["dense_gflops"], x[kind]) for kind in ("gflops", "executed_gflops")]
            cells += [_faster(took, name, f"careful {drop}") for took in orders.values()]
            rows.append([f"`{name}`", drop, *cells])
    heading = (
        "",
        "exits may cost",
        "accuracy",
        "points lost",
        "x paper",
        "x executed",
        *(f"x ms, {x}" for x in orders),
    )
    return [
        "Chosen carefully; points lost are below `bert`, by pruning, by training and by exits together:",
        "",
        *_table(heading, rows),
    ]


def _on_test(result: dict[str, Any]) -> list[str]:
    dense = result["systems"]["bert"][str(DROPS[0])]["dense_gflops"]
    orders = _orders(result)
    by_system = result["on_test"].items()
    reached = {(name, loss) for name, by_loss in by_system for loss, x in by_loss.items() if x["gflops"] is not None}
    if not all(_milliseconds(took, name, f"test {loss}") for took in orders.values() for name, loss in reached):
        orders = {}
    rows = []
    for name, by_loss in by_system:
        row = [f"`{name}`"]
        for loss, x in by_loss.items():
            row += [_reached(dense, x["gflops"]), _reached(dense, x["executed_gflops"])]
            for took in orders.values():
                row.append(_faster(took, name, f"test {loss}") if (name, loss) in reached else "-")
        rows.append(row)
    kinds = ("x paper", "x executed", *(f"x ms, {order}" for order in orders))
    return [
        "Read off the test curves: the least work at which the test accuracy is at most so many points below `bert`'s (-: "
        "not reached). Nobody could have chosen these settings beforehand, but they compare systems without the luck of a "
        "choice.",
        "",
        *_table(["", *(f"{loss} points: {kind}" for loss in LOSSES for kind in kinds)], rows),
    ]


def _orders(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Milliseconds by system, for each order of the texts that was timed."""
    return {order: result["clock"][order]["milliseconds"] for order in ORDERS if "clock" in result}


def _milliseconds(took: dict[str, float], system: str, setting: str) -> float | None:
    """Of a system at a setting of its exits; of one without exits always the same."""
    return took.get(f"{system}@{setting}", took.get(system))


def _faster(took: dict[str, float], system: str, setting: str) -> str:
    milliseconds = _milliseconds(took, system, setting)
    return "-" if milliseconds is None else f"{took[PADDED] / milliseconds:.2f}x"


def _reached(dense: float, work: float | None) -> str:
    return "-" if work is None else _times(dense, work)


def _on_test_cells(by_loss: dict[str, dict[str, Any]], dense: float) -> list[str]:
    return [_reached(dense, by_loss[f"{loss}"][kind]) for loss in LOSSES for kind in ("gflops", "executed_gflops")]


def _dominance(result: dict[str, Any]) -> list[str]:
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


def _seeds_table(result: dict[str, Any]) -> list[str]:
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
    heading = ("", "seeds", "accuracy without exits", "accuracy", "F1", "x executed")
    return [f"Mean and standard deviation over seeds; exits may cost {DROPS[-1]} points:", "", *_table(heading, rows)]


def _ablation_table(result: dict[str, Any]) -> list[str]:
    if "ablation" not in result:
        return []
    rows = []
    for x in result["ablation"]:
        row = [x["title"], f"{x['without_exits']:.2%}"]
        for drop in map(str, DROPS):
            chosen = x["chosen"][drop]
            dense = chosen["dense_gflops"]
            row += [
                f"{chosen['accuracy']:.2%}",
                _times(dense, chosen["gflops"]),
                _times(dense, chosen["executed_gflops"]),
            ]
        row += _on_test_cells(x["on_test"], dense) if x["on_test"] else ["-"] * 2 * len(LOSSES)
        rows.append(row)
    heading = ["", "without exits"]
    for drop in DROPS:
        heading += [f"{drop} points: accuracy", "x paper", "x executed"]
    heading += [f"test curve, {loss} points: {kind}" for loss in LOSSES for kind in ("x paper", "x executed")]
    return [
        "What each ingredient gives; what executed has over paper is what deciding first gives:",
        "",
        *_table(heading, rows),
    ]


def _lengths_table(result: dict[str, Any]) -> list[str]:
    lengths = result["lengths"]
    if not lengths:
        return []
    buckets = list(dict.fromkeys(x["bucket"] for rows in lengths.values() for x in rows))
    counts = {x["bucket"]: x["texts"] for rows in lengths.values() for x in rows}
    table = []
    for name, rows in lengths.items():
        by_bucket = {x["bucket"]: x for x in rows}
        right = sum(x["texts"] * x["accuracy"] for x in rows) / sum(x["texts"] for x in rows)
        row = [name, f"{right:.2%}"]
        for bucket in buckets:
            x = by_bucket[bucket]
            row.append(", ".join(_times(x["dense_gflops"], x[kind]) for kind in ("gflops", "executed_gflops")))
        table.append(row)
    heading = ["", "accuracy", *(f"{bucket} tokens ({counts[bucket]:,} texts)" for bucket in buckets)]
    return [
        f"Work by length (paper, executed); exits may cost {DROPS[-1]} points:",
        "",
        *_table(heading, table),
        *_trends(lengths),
        f"![Work saved by length](results/{result['name']}_lengths.png)",
        "",
    ]


def _trends(lengths: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Whether Figure 1's trends are there: what is saved of the longest texts over what is saved of the shortest."""
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


def _summary(corpora: dict[str, Any]) -> list[str]:
    rows = []
    for result in corpora.values():
        bert = result["systems"]["bert"][str(DROPS[0])]
        orders = _orders(result).values()
        for name, drop in ((name, str(drop)) for name in ("mp", "pyramid") for drop in DROPS):
            if name in result["systems"]:
                x = result["systems"][name][drop]
                times = [_faster(took, name, drop) for took in orders]
                rows.append(
                    [
                        result["title"],
                        f"`{name}`, {drop}",
                        f"{100 * (bert['accuracy'] - x['accuracy']):.2f}",
                        _times(bert["dense_gflops"], x["gflops"]),
                        _times(bert["dense_gflops"], x["executed_gflops"]),
                        *(times or ["not measured"] * len(ORDERS)),
                    ]
                )
    heading = ("set", "exits may cost", "points lost", "x paper", "x executed", *(f"x ms, {order}" for order in ORDERS))
    return [
        "## Beside the paper",
        "",
        "The paper, on BERT-base with 12 layers, reports up to 70 % fewer GFLOPs (3.3x) at less than 0.5 points lost, and a "
        "mean speed-up of 8.06x on its two text classification sets; its whole BERT-base counts 9.0 GFLOPs on AG News. "
        "Here; points lost are test accuracy below the fine-tuned BERT's, by pruning, by training and by exits together:",
        "",
        *_table(heading, rows),
    ]


def _curve(outcomes: list[dict[str, Any]], kind: str) -> list[tuple[float, float]]:
    """(work, accuracy) of what no other setting beats, rising."""
    best = frontier(SimpleNamespace(accuracy=x["accuracy"], executed_gflops=x[kind]) for x in outcomes)
    return [(outcome.executed_gflops, outcome.accuracy) for outcome in reversed(best)]


def _plots(name: str, result: dict[str, Any], folder: Path) -> None:
    for kind, label in (("gflops", "paper"), ("executed_gflops", "executed")):
        curves = {system: _curve(result["curves"].get(system, []), kind) for system in CURVES}
        alone = {system: x["without exits"] for system, x in result["systems"].items() if system not in CURVES}
        points = {system: (x[kind], x["accuracy"]) for system, x in alone.items()}
        work = "GFLOPs a text, the paper's count" if label == "paper" else "GFLOPs a text, executed"
        title = f"{result['title']}: test accuracy over work"
        plot_trade_off(curves, folder / f"{name}_{label}.png", title=title, points=points, work=work)
    by_name = {
        system: {x["bucket"]: x["dense_gflops"] / x["executed_gflops"] for x in rows}
        for system, rows in result["lengths"].items()
    }
    if by_name:
        plot_buckets(by_name, folder / f"{name}_lengths.png", title=f"{result['title']}: executed work saved by length")

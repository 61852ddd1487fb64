"""The page of results with its tables and plots, written from the JSON alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mp_model.data.files import whole_file
from mp_model.measuring.tuning import frontier
from mp_model.reporting.plots import plot_buckets, plot_trade_off

from . import tables
from .plan import BACKBONES
from .results import DROPS

BARELY = 0.1  # over the most frequent label, below which a classifier has hardly learned
CURVES = ("fastbert", "mp", "pyramid")

HEAD = """# The paper's experiments

Written by `make paper`, which trains, measures and writes this page from `results/results.json`. A set that was not \
trained again keeps the figures of the commit that it names. What was concluded from particular runs, and what was \
settled while test figures were in sight, stands in [findings](findings.md).

All training steps together took {hours:.1f} hours.

## How to read it

- *Work* is the mean number of floating-point operations for a test text, 2 x multiply-accumulates. *Paper* is the \
paper's count (whole layers up to the exit, no heads); *executed* is what our engine computes, heads included, exits \
decided before the rest of a layer. The `x` after either is the work of a BERT that prunes nothing and lets nobody \
leave, without padding, over it.
- Exits of every system are set on validation texts (a tenth of the training texts, held out), as `magic-pyramid tune \
--counted` does it: one threshold for all layers, the fastest at which exits cost at most so many points of validation \
accuracy. Accuracy and F1 are those of the test texts, so they may fall by more or by less. *Chosen carefully* is what \
`tune` does by default: the model's own calibrated head has half a say in what exits cost. A set without that table \
was measured before there was such a choice.
- *ms* is the wall-clock time for a text in batches of 32, tokenisation apart, all systems taking turns batch by batch \
in one run (threads: {threads}); first for batches of similar length, then for texts as they come, where transformers \
pads more.
- Epochs are fewer than the paper's: see each set. The pruning penalty, temperature and learning rates are one setting \
for all sets, not searched for.
- A set of one seed is one draw.
"""


def write_report(document: dict[str, Any], folder: Path) -> None:
    """Writes ``results.md`` in ``folder``, and its pictures under ``folder/results``."""
    with whole_file(folder / "results.md") as stream:
        stream.write("\n".join(page(document)) + "\n")
    for backbone, corpora in document["backbones"].items():
        for name, result in corpora.items():
            _plots(f"{backbone}_{name}", result, folder / "results")


def page(document: dict[str, Any]) -> list[str]:
    """The page's lines, from the results by backbone and corpus."""
    results = [result for corpora in document["backbones"].values() for result in corpora.values()]
    hours = sum(result["training"]["seconds"] for result in results) / 3600
    threads = sorted({result["clock"]["threads"] for result in results if "clock" in result})
    lines = [HEAD.format(hours=hours, threads=" or ".join(map(str, threads)) or "not timed")]
    lines += ["## Beside the paper", "", *tables.summary_table(results)]
    for backbone, corpora in document["backbones"].items():
        for name, result in corpora.items():
            lines += _corpus(backbone, f"{backbone}_{name}", result)
    return lines


def _seeds(result: dict[str, Any]) -> str:
    """The seeds' numbers, which count from 0; tables of one model are of seed 0."""
    count = len(result["seeds"]["bert"])
    return "seed 0" if count == 1 else f"seeds 0 to {count - 1} (tables and curves of seed 0 unless they say otherwise)"


def _epochs(backbone: str, fit: str, name: str) -> str:
    """A setting that the plan gives to one fit of a backbone, in brackets; nothing where it has none."""
    found = [x.changes[name] for x in BACKBONES[backbone].fits if x.name == fit and name in x.changes]
    return "".join(f" (FastBERT's, which cannot be trained on states computed once: {epochs:g})" for epochs in found)


def _corpus(backbone: str, picture: str, result: dict[str, Any]) -> list[str]:
    """The section of one corpus; picture: the beginning of its pictures' names."""
    settings, about, took = result["settings"], result["about"], result["training"]
    epochs = (
        f"{settings['epochs']:g} epochs of fine-tuning and distillation, {settings['soft_epochs']:g} soft, "
        f"{settings['hard_epochs']:g} hard, {settings['joint_epochs']:g} joint, {settings['exit_epochs']:g} of heads"
        f"{_epochs(backbone, 'fastbert', 'exit_epochs')}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"## {result['title']}, {about['model']}",
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
        lines += tables.systems_table(result, drop)
    lines += tables.careful_table(result)
    lines += tables.test_curve_table(result)
    lines += tables.comparisons(result)
    lines += tables.seeds_table(result)
    lines += tables.ablation_table(result)
    lines += tables.lengths_table(result, picture)
    return [
        *lines,
        f"![Accuracy over the paper's count](results/{picture}_paper.png)",
        f"![Accuracy over executed work](results/{picture}_executed.png)",
        "",
    ]


def _curve(outcomes: list[dict[str, Any]], kind: str) -> list[tuple[float, float]]:
    """(work, accuracy) of the settings that no other beats, rising."""
    best = frontier(SimpleNamespace(accuracy=x["accuracy"], executed_gflops=x[kind]) for x in outcomes)
    return [(outcome.executed_gflops, outcome.accuracy) for outcome in reversed(best)]


def _plots(name: str, result: dict[str, Any], folder: Path) -> None:
    """The pictures of one corpus."""
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

"""The pages of results with their tables and plots, written from the JSON alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mp_model.data.files import whole_file
from mp_model.measuring.tuning import frontier
from mp_model.reporting.plots import plot_buckets, plot_trade_off
from readme import Place

from . import tables
from .plan import BACKBONES
from .results import DROPS
from .summary import CHOSEN, paper_table, readme_block, set_table, summary, title_of

BARELY = 0.1  # over the most frequent label, below which a classifier has hardly learned
CURVES = ("fastbert", "mp", "pyramid", "tfidf", "layer-0")
FIRST_PAGE = "results.md"
PLACE = Place("<!-- printed by `make paper` -->\n", "<!-- end of what is printed -->\n")

HEAD = """# The paper's experiments

Printed by `make paper`, which trains, measures and writes this page from `results/results.json`. A set that was not \
trained again keeps the figures of the commit that it names. What was concluded from particular runs, and what was \
settled while test figures were in sight, stands in [findings](findings.md).

{summary}

All training steps together took {hours:.1f} hours. Epochs are fewer than the paper's; the pruning penalty, \
temperature and learning rates are one setting for all sets, not searched for.

## How to read it

- Exits are set on validation texts (a tenth of the training texts, held out), as `magic-pyramid tune` does it by \
default: one threshold for all layers, the fastest at which exits cost at most {points} points of accuracy (of texts \
with all labels right), by count and by the model's own calibrated head. A set that says *counted* was measured before \
the head had a say.
- *Points lost* are below the fine-tuned `bert` in test, by pruning, by training and by exits together, with the \
standard error of the texts' differences where it was measured; figures are means over the seeds.
- *x* is the work of a `bert` that prunes nothing and lets nobody leave, without padding, over the system's: by the \
*paper*'s count (whole layers up to the exit, no heads), and as *executed* by our engine, heads included. *x ms* is \
the time of transformers' padded BERT over the system's, in batches of 32, tokenisation apart, for texts sorted by \
length and as they come (seed 0, threads: {threads}).
- *exceeded*, where it was measured, is the share of draws of validation texts after which exits cost more than \
{points} points; nothing is promised there.
- `tfidf` (words and pairs of words; a pair of texts as one) and `layer-0` are rivals: first something cheap, where it \
is not certain enough the whole `bert`, the threshold set like all others. The first answer counts as the work of a \
head at layer 0, and its time, looking up words included, is in *x ms*.
"""


def write_report(document: dict[str, Any], folder: Path) -> None:
    """Writes ``results.md`` in ``folder``, and its pages and pictures under ``folder/results``.

    In the README beside ``folder`` the table is written anew, if it has a place for one.
    """
    for name, text in pages(document).items():
        with whole_file(folder / name) as stream:
            stream.write(text)
    for picture, _, result in _sets(document):
        _plots(picture, result, folder / "results")
    PLACE.fill(folder.parent / "README.md", readme_block(document))


def _sets(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """The name of its page and pictures, the backbone and the results of every set."""
    by_backbone = document["backbones"].items()
    return [(f"{backbone}_{name}", backbone, x) for backbone, corpora in by_backbone for name, x in corpora.items()]


def pages(document: dict[str, Any]) -> dict[str, str]:
    """The texts of all pages, by their files: the first one, and one for each set."""
    texts = {FIRST_PAGE: first_page(document)}
    texts.update({f"results/{name}.md": set_page(backbone, name, x) for name, backbone, x in _sets(document)})
    return {name: "\n".join(lines).rstrip() + "\n" for name, lines in texts.items()}


def first_page(document: dict[str, Any]) -> list[str]:
    """The lines of the first page, from the results by backbone and corpus."""
    sets = _sets(document)
    results = [result for _, _, result in sets]
    hours = sum(result["training"]["seconds"] for result in results) / 3600
    threads = " or ".join(map(str, sorted({x["clock"]["threads"] for x in results if "clock" in x}))) or "not timed"
    lines = [HEAD.format(summary="\n".join(summary(results)), hours=hours, threads=threads, points=CHOSEN)]
    lines += ["## Beside the paper", "", *paper_table(results)]
    for name, _, result in sets:
        counted = "" if result.get("careful") else " Exits: *counted*."
        seeds = _seeds(result) if "losses" in result else "seed 0"
        lines += [
            f"## {title_of(result)}",
            "",
            f"{_texts(result)}, {seeds}, commit {result['about']['commit']}.{_hardly_learned(result)}{counted} "
            f"[All figures](results/{name}.md).",
            "",
            *set_table(result),
            f"![Accuracy over executed work](results/{name}_executed.png)",
            "",
        ]
    return lines


def _texts(result: dict[str, Any]) -> str:
    """The numbers of its texts."""
    return f"{result['texts']['test']:,} test texts, {result['texts']['validation']:,} to set exits on"


def _hardly_learned(result: dict[str, Any]) -> str:
    """A sentence, with a space before it, on a BERT that is hardly better than a guess."""
    bert, guess = result["systems"]["bert"][str(DROPS[0])]["accuracy"], result["most_frequent_label"]
    if bert >= guess + BARELY:
        return ""
    return (
        f" The fine-tuned BERT itself has {bert:.1%}, where always giving the most frequent label has {guess:.1%}: it has "
        "hardly learned this set, and what is lost or kept here says little."
    )


def _seeds(result: dict[str, Any]) -> str:
    """The seeds' numbers, which count from 0."""
    count = len(result["seeds"]["bert"])
    return "seed 0" if count == 1 else f"seeds 0 to {count - 1}"


def _epochs(backbone: str, fit: str, name: str) -> str:
    """A setting that the plan gives to one fit of a backbone, in brackets; nothing where it has none."""
    found = [x.changes[name] for x in BACKBONES[backbone].fits if x.name == fit and name in x.changes]
    return "".join(f" (FastBERT's, which cannot be trained on states computed once: {epochs:g})" for epochs in found)


def set_page(backbone: str, picture: str, result: dict[str, Any]) -> list[str]:
    """The lines of the page of one set; picture: the beginning of its pictures' names."""
    settings, about, took = result["settings"], result["about"], result["training"]
    epochs = (
        f"{settings['epochs']:g} epochs of fine-tuning and distillation, {settings['soft_epochs']:g} soft, "
        f"{settings['hard_epochs']:g} hard, {settings['joint_epochs']:g} joint, {settings['exit_epochs']:g} of heads"
        f"{_epochs(backbone, 'fastbert', 'exit_epochs')}"
    )
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"# {title_of(result)}",
        "",
        f"All figures of one set of [the experiments](../{FIRST_PAGE}); how to read them is said there. {about['model']}, "
        f"{about['layers']} layers, {_seeds(result)}; tables and curves are of seed 0 unless they say otherwise. Measured "
        f"at commit {about['commit']}, {about['date']}; {versions}; {about['processor']}. {took['seconds'] / 3600:.1f} "
        f"hours of training steps, threads: {took['threads']:.0f}.",
        "",
        f"{_texts(result)}; {epochs}.{_hardly_learned(result)}",
        "",
        *tables.losses_table(result),
        *tables.guarantees_table(result),
        *tables.careful_table(result),
        "## By the counted loss alone",
        "",
        "Exits set as `magic-pyramid tune --counted` sets them. Accuracy and F1 are those of the test texts.",
        "",
    ]
    for drop in map(str, DROPS):
        lines += tables.systems_table(result, drop)
    return [
        *lines,
        "## Curves and seeds",
        "",
        *tables.test_curve_table(result),
        *tables.comparisons(result),
        *tables.seeds_table(result),
        *tables.ablation_table(result),
        *tables.lengths_table(result, picture),
        f"![Accuracy over the paper's count]({picture}_paper.png)",
        f"![Accuracy over executed work]({picture}_executed.png)",
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
        title = f"{result['title']}: test {tables.accuracy_name(result)} over work"
        plot_trade_off(curves, folder / f"{name}_{label}.png", title=title, points=points, work=work)
    by_name = {
        system: {x["bucket"]: x["dense_gflops"] / x["executed_gflops"] for x in rows}
        for system, rows in result["lengths"].items()
    }
    if by_name:
        plot_buckets(by_name, folder / f"{name}_lengths.png", title=f"{result['title']}: executed work saved by length")

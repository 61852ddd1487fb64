"""The short tables of the first page of results and of the README, from the JSON alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .clocking import ORDERS, PADDED
from .results import DROPS, SYSTEMS
from .tables import ABOUT, KINDS, mean_of, milliseconds_by_order, score, score_name, table, times_faster, times_less

CHOSEN = "0.5"  # points that exits may cost in short tables
OURS, PAPERS = "pyramid", "mp"
README_SET, README_BACKBONES = "ag_news", ("mpnet", "minilm")
README_ROWS = {
    "bert": "the same weights here, nothing removed",
    "six-layer": "a fine-tuned model of 6 layers",
    "distilbert": "half the layers, distilled",
    "tfidf": "TF-IDF and logistic regression where certain, else all of it",
    "fastbert": "FastBERT's exits",
    "mp": "the paper's pruning and exits (`--recipe mp`)",
    "pyramid": "**ours** (`--recipe pyramid`)",
}


@dataclass(frozen=True)
class Standing:
    """A system at exits that may cost :data:`CHOSEN` points, a mean over its seeds.

    Attributes:
        name: the system.
        score: accuracy, or micro F1.
        lost: points below the fine-tuned BERT's score, in test.
        error: standard error of that; None: not measured.
        saved: dense work over work, by the paper's count and as executed, as cells.
        executed_gflops: work as executed.
        faster: time of transformers' padded BERT over the system's, as cells, for each order of the texts that was timed.
        exceeded: share of draws in which more than was allowed is lost; None: not measured.
    """

    name: str
    score: float
    lost: float
    error: float | None
    saved: list[str]
    executed_gflops: float
    faster: list[str]
    exceeded: float | None

    @property
    def loss(self) -> str:
        """The points lost, as a cell."""
        return f"{self.lost:.2f}" if self.error is None else f"{self.lost:.2f} ± {self.error:.2f}"


def standing(result: dict[str, Any], name: str) -> Standing | None:
    """A system's figures on a set; None: it was not measured there."""
    if name not in result["systems"]:
        return None
    bert = result["systems"]["bert"][str(DROPS[0])]
    careful = result.get("careful", {}).get(name)
    known = result.get("losses", {}).get(name, {}).get(CHOSEN)
    figures = known or (careful or result["systems"][name])[CHOSEN]
    own = known["score"] if known else score(figures)
    setting = f"careful {CHOSEN}" if careful else CHOSEN
    draws = result.get("guarantees", {}).get(name)
    return Standing(
        name=name,
        score=own,
        lost=known["lost"] if known else 100 * (score(bert) - own),
        error=known["standard_error"] if known and name != "bert" else None,
        saved=[times_less(bert["dense_gflops"], figures[kind]) for kind in KINDS],
        executed_gflops=figures["executed_gflops"],
        faster=[times_faster(took, name, setting) for took in milliseconds_by_order(result).values()],
        exceeded=mean_of([row["careful"][CHOSEN] for row in draws], "exceeded") if draws else None,
    )


def standings(result: dict[str, Any]) -> list[Standing]:
    """All systems of a set."""
    return [found for name in SYSTEMS if (found := standing(result, name))]


def title_of(result: dict[str, Any]) -> str:
    """The set and the model."""
    return f"{result['title']}, {result['about']['model']}"


def set_table(result: dict[str, Any]) -> list[str]:
    """The systems of one set; what was not measured has no column."""
    found = standings(result)
    timed, drawn = any(x.faster for x in found), any(x.exceeded is not None for x in found)
    rows = []
    for x in found:
        row = [f"`{x.name}`: {ABOUT[x.name]}", f"{x.score:.2%}", x.loss, *x.saved, *x.faster]
        if drawn:
            row.append("-" if x.exceeded is None else f"{x.exceeded:.1%}")
        rows.append(row)
    heading = ["", score_name(result), "points lost", "x paper", "x executed"]
    heading += [f"x ms, {order}" for order in ORDERS] if timed else []
    return table([*heading, *(["exceeded"] if drawn else [])], rows)


def paper_table(results: list[dict[str, Any]]) -> list[str]:
    """The paper's claims, and the paper's system and ours on all sets."""
    rows = [
        ["The paper, BERT-base: at most 70 % fewer GFLOPs", 12, "9.0 on AG News", "`mp`", "less than 0.5", "3.3x", ""],
        [
            "The paper, BERT-base: mean speed-up of two sets of text classification",
            12,
            "",
            "`mp`",
            "not said",
            "8.06x",
            "",
        ],
    ]
    for result in results:
        model = result["about"]["layers"], f"{result['systems']['bert'][CHOSEN]['dense_gflops']:.2f}"
        for x in standings(result):
            if x.name in (PAPERS, OURS):
                rows.append([title_of(result), *model, f"`{x.name}`", x.loss, *x.saved])
    return table(["set and model", "layers", "GFLOPs of all", "system", "points lost", "x paper", "x executed"], rows)


def better_than_ours(result: dict[str, Any]) -> list[str]:
    """The systems that execute less work than ours and lose no more."""
    ours = standing(result, OURS)
    if ours is None:
        return []
    return [
        x.name
        for x in standings(result)
        if x.name != OURS and x.executed_gflops < ours.executed_gflops and x.lost <= ours.lost
    ]


def summary(results: list[dict[str, Any]]) -> list[str]:
    """What the tables come to, a line a question."""
    with_ours = [(result, ours) for result in results if (ours := standing(result, OURS))]
    kept = [title_of(result) for result, ours in with_ours if ours.lost <= float(CHOSEN)]
    both = [(ours, papers) for result, ours in with_ours if (papers := standing(result, PAPERS))]
    less = sum(ours.executed_gflops < papers.executed_gflops for ours, papers in both)
    won = [
        f"{title_of(x)} ({', '.join(f'`{name}`' for name in names)})" for x in results if (names := better_than_ours(x))
    ]
    return [
        f"- `pyramid` loses at most the {CHOSEN} points that its exits may cost, pruning and training included, on "
        f"{len(kept)} of {len(with_ours)} sets in test{': ' if kept else ''}{'; '.join(kept)}.",
        f"- It executes less work than `mp` on {less} of {len(both)} sets.",
        f"- Something else loses no more in test with less work executed on {len(won)} of {len(with_ours)} sets"
        f"{': ' if won else ''}{'; '.join(won)}.",
        *_on_guarantees(results),
    ]


def _on_guarantees(results: list[dict[str, Any]]) -> Iterator[str]:
    """A line on how guarantees held, where that was measured."""
    rows = [row for result in results for seeds in result.get("guarantees", {}).values() for row in seeds]
    if rows:
        promised = rows[0]["promised"]
        shares = [x["exceeded"] for row in rows for x in row["guaranteed"].values()]
        kept = sum(share <= promised for share in shares)
        yield (
            f"- Of {len(shares)} guarantees (`--max-drop --confidence`; systems, seeds and sets), each tried in "
            f"{rows[0]['draws']} draws of validation texts, {kept} were exceeded in no more than the promised "
            f"{promised:.0%} of draws; the worst in {max(shares):.1%}."
        )


def readme_block(document: dict[str, Any]) -> list[str]:
    """The README's tables: each model's figures on AG News, the larger one's first."""
    backbones = document["backbones"]
    measured = [backbones[name][README_SET] for name in README_BACKBONES if README_SET in backbones.get(name, {})]
    return [line for result in measured for line in _readme_table(result)] or ["AG News was not measured.", ""]


def _readme_table(result: dict[str, Any]) -> list[str]:
    """A model's figures, beside the paper's where it has as many layers, and its speeds where a clock ran."""
    about, clocked = result["about"], result.get("clock")
    where = f"; time on {about['processor']}, threads: {clocked['threads']}, float32" if clocked else ""
    orders = [f"speed, {order}" for order in reversed(ORDERS)] if clocked else []
    rows = []
    if clocked:
        rows.append([PADDED, f"{standing_of_bert(result).score:.2%}", "", "", *("1.00x" for _ in orders)])
    for name, words in README_ROWS.items():
        x = standing(result, name)
        if x:
            faster = [f"**{cell}**" if name == OURS else cell for cell in reversed(x.faster)]
            rows.append([words, f"{x.score:.2%}", x.loss, x.saved[-1], *faster])
    if about["layers"] == 12:
        rows.append(["the paper's own figures, on BERT-base", "", "less than 0.5", "up to 3.3x", *("" for _ in orders)])
    return [
        f"{about['model']} ({about['layers']} layers) on {result['title']}, {result['texts']['test']:,} test texts; exits "
        f"set on {result['texts']['validation']:,} others to cost {CHOSEN} points there at most{where}:",
        "",
        *table(["", score_name(result), "points lost", "work, times less", *orders], rows),
    ]


def standing_of_bert(result: dict[str, Any]) -> Standing:
    """The fine-tuned BERT's figures, which every set has."""
    found = standing(result, "bert")
    assert found is not None
    return found

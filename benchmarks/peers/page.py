"""The page of one machine, docs/peers.md or another, printed from the figures alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mp_model.checkpoints.precisions import PRECISIONS

from .answers import RULE
from .fitted import FITTED
from .plan import MODELS, ORDERS
from .ways import OURS

FIGURES, PAGE = "benchmarks/peers/figures.json", "docs/peers.md"  # of the machine that is spoken of elsewhere
BLOCK = """```bash
make peers{options}
```
"""
NOTHING = f"""# Beside other engines on a CPU

Nothing has been measured yet. One command measures, and prints this page:

{BLOCK}"""
HEAD = f"""# Beside other engines on a CPU

Printed from `{{figures}}`, which

{BLOCK}
wrote on the machine below. All ways classify the same batches with the same weights. They take turns within one process,
round after round, and who begins changes; a figure is the median of the rounds, a ratio the median of the rounds' ratios.
Tokens are random word pieces in lengths like AG News': log-normal, mean 55, at most 100. All threads of a process stay on as
many processors as it was given threads, helpers included; OpenMP waits passively.

{RULE}
"""
MEMORY = """Each way ran 96 texts in unsorted batches of 32 alone in its process, on one thread. Weights: as they are \
saved. Loading: resident memory at most until the first batch is answered, conversions and compiling included. Running: at \
most from then on. Both are above what the process held before the model, when torch and transformers were imported.
"""
FITTED_HEAD = """Texts to answers through `Classifier`, in the precision that the folder was tuned in; other engines take \
batches of 32 of similar length with the same backbone and last head. *Apart*: tokenised before. *Included*: tokenised by \
transformers' fast tokenizer for the others, and by `Classifier` beside its model, on the same processors.
"""


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a table, and an empty one."""
    heads = list(heads)
    return [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *(f"| {' | '.join(row)} |" for row in rows), ""]


def page(known: Mapping[str, Any] | None, figures: str = FIGURES, output: str = PAGE) -> str:
    """The page's text.

    Args:
        known: the figures; None: there are none yet.
        figures, output: the files of the figures and of the page, as they are said in it.
    """
    given = [("--figures", figures, FIGURES), ("--output", output, PAGE)]
    options = " ".join(f"{name} {path}" for name, path, default in given if path != default)
    where = {"options": f' OPTIONS="{options}"' if options else "", "figures": figures}
    if known is None or not (known["cases"] or known["memory"] or known["fitted"]):
        return NOTHING.format(**where)
    machine = [
        f"{name} {' '.join(value) if isinstance(value, list) else value}" for name, value in known["machine"].items()
    ]
    lines = [HEAD.format(**where)]
    if known["dry"]:
        lines += ["**A dry run on tiny models. No number here is a measurement.**", ""]
    lines += [f"Machine: {', '.join(machine)}.", ""]
    for model, title in MODELS.items():
        lines += _model(title, model, known)
    lines += _fitted(known["fitted"])
    lines += ["## Settings", "", *table(("way", "settings"), sorted(known["settings"].items()))]
    return "\n".join(lines).rstrip("\n") + "\n"


def precision_of(way: str) -> str:
    """The precision at the end of a way's name."""
    return way.rpartition(", ")[2]


def is_ours(way: str) -> bool:
    """Whether a way is ours."""
    return way.rpartition(", ")[0] in (OURS, FITTED)


def ratios_of(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    """The rounds' ratios of two ways' times."""
    return [a / b for a, b in zip(slower, faster, strict=True)]


def ratio(slower: Sequence[float], faster: Sequence[float]) -> str:
    """The median of the rounds' ratios, with the lowest and the highest."""
    ratios = ratios_of(slower, faster)
    return f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f} to {max(ratios):.2f})"


def best_peer(ways: Mapping[str, Mapping[str, Any]], precision: str, kind: str = "seconds") -> str | None:
    """The fastest way of others in a precision among those that count; None: there is none."""
    counted = {
        name: statistics.median(figure[kind])
        for name, figure in ways.items()
        if precision_of(name) == precision and not is_ours(name) and kind in figure
    }
    return min(counted, key=lambda name: counted[name]) if counted else None


def _by_precision(ways: Iterable[str]) -> list[str]:
    """Ways in the order of precisions, ours last in each."""
    return sorted(ways, key=lambda name: (PRECISIONS.index(precision_of(name)), is_ours(name), name))


def _model(title: str, model: str, known: Mapping[str, Any]) -> list[str]:
    cases = [case for case in known["cases"].values() if case["model"] == model]
    memory = known["memory"].get(model)
    if not cases and memory is None:
        return []
    lines = [f"## {title}", ""]
    for threads in sorted({case["threads"] for case in cases}):
        mine = [case for case in cases if case["threads"] == threads]
        mine.sort(key=lambda case: (case["batch_size"], case["length_sorted"]))
        lines += [f"### Threads: {threads}", "", *_times(mine)]
    return lines + (_memory(memory["ways"]) if memory else [])


def _heading(case: Mapping[str, Any]) -> str:
    return f"batches of {case['batch_size']}, {ORDERS[case['length_sorted']]}" if case["batch_size"] > 1 else "one text"


def _times(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Texts a second of each way in each case, ratios over the best peers, and how far answers agree."""
    ways = _by_precision({name for case in cases for name in case["ways"]})
    rows: list[list[str]] = []
    out: dict[str, list[str]] = {}  # names by the reason why they are not counted
    for name in ways:
        figures = [case["ways"].get(name, {"left out": "not asked for"}) for case in cases]
        cells = [
            f"{case['texts'] / statistics.median(figure['seconds']):.1f}" if "seconds" in figure else "not counted"
            for case, figure in zip(cases, figures, strict=True)
        ]
        for reason in sorted({figure["left out"] for figure in figures if "left out" in figure}):
            out.setdefault(reason, []).append(name)
        compared = [figure for figure in figures if "error" in figure]
        worst = (
            [f"{max(x['error'] for x in compared):.1e}", f"{min(x['agreement'] for x in compared):.1%}"]
            if compared
            else ["", ""]
        )
        rows.append([name, *cells, *worst])
    heads = [_heading(case) for case in cases]
    facts = [
        f"{_heading(case)}: {case['texts']} texts, {case['rounds']} rounds, "
        f"{case['padded_tokens'] / case['tokens']:.2f} padded tokens for each real one"
        for case in cases
    ]
    lines = ["Texts a second; the worst relative error and agreement of answers with the reference's.", ""]
    lines += table(("way", *heads, "error", "agreement"), rows)
    for reason, names in out.items():
        lines.append(f"- {'; '.join(names)} {'are' if names[1:] else 'is'} not counted where it says so: {reason}.")
    lines += [""] if out else []
    lines += [f"({'; '.join(facts)}.)", "", "Texts a second of ours over:", ""]
    return lines + table(("", *heads), [*_ratios(cases), *_over_float32(cases)])


def _ratios(cases: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Ours over the best peer of the same precision, a row for each precision."""
    rows = []
    for precision in PRECISIONS:
        cells = []
        for case in cases:
            ways, mine = case["ways"], f"{OURS}, {precision}"
            peer = best_peer(ways, precision)
            both = peer is not None and "seconds" in ways.get(mine, {})
            cells.append(f"{ratio(ways[peer]['seconds'], ways[mine]['seconds'])} {peer}" if both else "")
        if any(cells):
            rows.append([f"the best peer in {precision}", *cells])
    return rows


def _over_float32(cases: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Ours over ourselves in float32."""
    rows, base = [], f"{OURS}, float32"
    for mine in (f"{OURS}, {precision}" for precision in PRECISIONS[1:]):
        cells = [
            ratio(case["ways"][base]["seconds"], case["ways"][mine]["seconds"])
            if all("seconds" in case["ways"].get(name, {}) for name in (base, mine))
            else ""
            for case in cases
        ]
        if any(cells):
            rows.append([f"ours in float32, in {precision_of(mine)}", *cells])
    return rows


def _memory(ways: Mapping[str, Mapping[str, Any]]) -> list[str]:
    base = ways.get(f"{OURS}, float32", {})
    rows = []
    for name in _by_precision(ways):
        figure = ways[name]
        if "left out" in figure:
            rows.append([name, f"not measured: {figure['left out']}", "", "", ""])
            continue
        above = {key: figure[key] - figure["before"] for key in ("loading", "running")}
        share = f"{above['running'] / (base['running'] - base['before']):.2f}" if "running" in base else ""
        rows.append([name, *(f"{x:.0f}" for x in (figure["weights"], above["loading"], above["running"])), share])
    heads = ("way", "weights, MiB", "loading", "running", "running over ours in float32")
    return ["### Memory", "", MEMORY, *table(heads, rows)]


def _fitted(parts: Mapping[str, Any]) -> list[str]:
    lines: list[str] = ["## Fitted pyramids", "", FITTED_HEAD] if parts else []
    for name, part in sorted(parts.items()):
        ways = part["ways"]
        mine = next(way for way in ways if way.startswith(f"{FITTED}, "))
        rows = []
        for way in _by_precision(ways):
            figure = ways[way]
            if "apart" not in figure:
                rows.append([way, f"not counted: {figure['left out']}", *[""] * 5])
                continue
            cells = []
            for kind in ("apart", "included"):
                over = ratio(figure[kind], ways[mine][kind]) if way != mine and kind in ways[mine] else ""
                cells += [f"{part['texts'] / statistics.median(figure[kind]):.1f}", over]
            rows.append([way, *cells, f"{figure['accuracy']:.2%}", f"{figure['agreement']:.2%}"])
        heads = (
            "way",
            "apart, texts/s",
            "fitted over it",
            "included, texts/s",
            "fitted over it",
            "accuracy",
            "agreement",
        )
        lines += [f"### {name}", "", f"{part['texts']} texts in {part['precision']}, since {part['why']}.", ""]
        lines += table(heads, rows)
    return lines

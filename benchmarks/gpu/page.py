"""The page docs/gpu.md, printed from the day's JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .document import Document
from .plan import OURS, STEPS

BLOCK = """```bash
make gpu
```
"""
NOTHING = f"""# On a GPU

Nothing has been measured on a GPU yet: no figure of this project's speed there exists, and none is claimed.

One command measures everything, in three parts of less than ten minutes each, and needs no network and no `.venv`:

{BLOCK}
It is `python3 benchmarks/gpu_day.py`, for a Python that has torch for CUDA, triton, transformers and pytest; `--part 1`, `2`
or `3` runs a part, and `--page` prints this page from the JSON files that the parts wrote. Without a GPU the same command
tries every step that needs none and lists the rest.
"""
HEAD = f"""# On a GPU

Printed from `benchmarks/gpu/figures.json`, which

{BLOCK}
wrote on the machine below. A figure counts only if its answers were compared in the same run: those of operators with their
definitions in float64, those of models with transformers' own layers in float64, with the same tokens masked and the same
exits. Where they disagreed, or a step did not pass, the page says so instead.
"""
OPERATORS = """## Operators

Microseconds of a call, by replay of a CUDA graph, so without the host's part. *In L2*: over one set of inputs, as inside a
layer, whose activations stay in the cache; *from memory*: over many sets in turn. The ratio is the other's time over ours.
Attention has 12 heads of 64 and 16,384 rows, unless its lengths are like AG News'; rows have BERT-base's widths.
"""
MODELS = """## Models

BERT-base with random weights, four labels; milliseconds of a batch by the wall clock, launches included. 55 tokens stand for
texts as long as AG News', at most 100, padded where a way pads; 128 and 512 are the same for all texts. Pruned: nine tenths
survive each layer. Exits: a twelfth of the texts leaves at each. Ours are replayed as graphs (`mp_model/graphs.py`), unless
the host starts every kernel. *Busy*: the device's time over the wall clock's; kernels and launches by the host are for each
of the 12 layers of one batch, whatever is outside of them included.
"""
TIMES = ("torch SDPA", "torch varlen_attn", "torch", "ours without importance")


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a table, and an empty one."""
    heads = list(heads)
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def page(document: Document | None) -> str:
    """The page's text; None: there are no figures yet."""
    if document is None:
        return NOTHING
    lines = [HEAD]
    if document["dry"]:
        lines += ["**A dry run: tiny shapes on a CPU, one call each. No number here is a measurement.**", ""]
    steps = document["steps"]
    lines += [_machine(document["machine"]), "", *_outcomes(steps), *_operators(steps), *_models(steps)]
    return "\n".join(lines).rstrip("\n") + "\n"


def _machine(machine: Mapping[str, Any]) -> str:
    facts = [f"{name} {value}" for name, value in machine.items() if value is not None and name != "nvidia_smi"]
    facts += [f"{name} {value}" for name, value in machine["nvidia_smi"].items()]
    return f"Machine: {', '.join(facts)}."


def _outcomes(steps: Mapping[str, Any]) -> list[str]:
    """A row for each step of the plan, whether or not it ran."""
    rows = []
    for step in STEPS:
        known = steps.get(step.name, {"status": "not run", "figures": {}})
        tests = known["figures"].get("tests")
        said = [known["reason"]] if known.get("reason") else []
        if tests:
            said.append(", ".join(f"{tests[outcome]} {outcome}" for outcome in ("passed", "failed", "skipped")))
            said += [f"`{failure['test']}`" for failure in tests["failures"]]
        seconds = f"{known['seconds']:.0f}" if "seconds" in known else ""
        when = known.get("date") or ""
        rows.append((step.name, str(step.part), known["status"], when, seconds, "; ".join(said)))
    return ["## Steps", "", *table(("step", "part", "outcome", "date", "seconds", "said"), rows)]


def _operators(steps: Mapping[str, Any]) -> list[str]:
    figures = {**steps.get("attention", {}).get("figures", {}), **steps.get("rows", {}).get("figures", {})}
    rows, kernels = [], []
    for name, ways in sorted(figures.items()):
        ours = ways[OURS]
        for label in [label for label in TIMES if label in ways]:
            cells = [_pair(ours, ways[label], key) for key in ("microseconds", "microseconds_from_memory")]
            rows.append((name, label, *cells))
        if ours.get("kernels"):
            kernels.append((name, ", ".join(f"`{kernel}`" for kernel in dict.fromkeys(ours["kernels"]))))
    if not rows:
        return []
    heads = ("operator", "beside", "in L2: ours, other, ratio", "from memory: ours, other, ratio")
    return [OPERATORS, *table(heads, rows), "Kernels that served ours:", "", *table(("operator", "kernels"), kernels)]


def _pair(ours: Mapping[str, Any], other: Mapping[str, Any], key: str) -> str:
    """Our time, the other's and their ratio; the reason instead where one is refused."""
    refused = [f"not counted: {x['refused']}" for x in (ours, other) if "refused" in x]
    if refused:
        return refused[0]
    return f"{ours[key]:.1f}, {other[key]:.1f}, **{other[key] / ours[key]:.2f}**"


def _models(steps: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for name in [step.name for step in STEPS if step.name.startswith("models, ") and step.name in steps]:
        figures = steps[name]["figures"]
        if figures:
            lines += [f"### {name.removeprefix('models, ')}", "", *_ways(figures)]
    return [MODELS, *lines] if lines else []


def _ways(figures: Mapping[str, Any]) -> list[str]:
    theirs = figures.get("transformers", {}).get("milliseconds")
    rows = []
    for name, figure in sorted(figures.items(), key=lambda item: (item[0].startswith(OURS), item[0])):
        if "milliseconds" not in figure:
            rows.append((name, figure.get("left out") or f"not counted: {figure['refused']}", *[""] * 6))
            continue
        ratio = f"**{theirs / figure['milliseconds']:.2f}**" if theirs else ""
        numbers = [f"{figure['milliseconds']:.2f}", f"{figure['texts_per_second']:.0f}", ratio]
        numbers += [f"{figure[key]:.2f}" if key in figure else "" for key in ("device_milliseconds", "busy")]
        numbers += [
            f"{figure[key]:.1f}" if key in figure else "" for key in ("kernels_per_layer", "launches_per_layer")
        ]
        rows.append((name, *numbers))
    heads = ("way", "ms", "texts/s", "transformers' time over it", "device ms", "busy", "kernels", "launches")
    return table(heads, rows)

"""The page docs/performance.md and the README's table on other engines, from the figures that are kept here."""

from __future__ import annotations

import ast
import itertools
import json
from pathlib import Path
from typing import Any

from mp_model.data.files import whole_file
from peers.summary import in_short, summary
from readme import Place

HERE = Path(__file__).parent

PLACE = Place("<!-- printed by `make peers` -->\n", "<!-- end of what `make peers` prints -->\n")
HEAD = """# Performance on a CPU

Printed by `benchmarks/report.py`, at the end of `make benchmark`, which measures ours, and of `make peers`, which measures
other engines beside ours. Why some targets were missed in particular runs stands in [findings](findings.md).

## Other engines beside ours
"""
OURS = """## Ours

`make benchmark` runs `pytest benchmarks/ --benchmark-only`. The things compared take turns within one process, round after
round; a figure is the median of the rounds' ratios, with the lowest and highest round beside it. Models have BERT-base's
shapes and random weights in float32. Texts are as long as AG News': log-normal, mean 55 tokens, at most 100; 96 of them in
batches of 32. "Time ratio over FLOPs ratio" is the share of the saved work (executed, heads and decisions included) that
becomes saved time.
"""


def _row(figure: dict[str, Any]) -> str:
    """The table's row of a figure."""
    target, ratio = figure["target"], figure["ratio"]
    if target is None:
        verdict, wanted = "", ""
    else:
        met = ratio <= target if figure["at_most"] else ratio >= target
        wanted = f"{'at most' if figure['at_most'] else 'at least'} {target:.2f}"
        verdict = "met" if met else "missed"
    facts = [f"{name} {value:.1f} ms" for name, value in figure["milliseconds"].items()]
    facts += [f"{name.replace('_', ' ')} {value:.2f}" for name, value in figure["facts"].items()]
    spread = f"{figure['lowest']:.2f} to {figure['highest']:.2f}"
    return f"| {figure['claim']} | **{ratio:.2f}** | {spread} | {wanted} | {verdict} | {', '.join(facts)} |"


def page(known: dict[str, Any]) -> str:
    """The page's text.

    known: ``machine``, facts about the processor and the software by name; ``figures``, by case.
    """
    machine = ", ".join(f"{name} {value}" for name, value in known["machine"].items())
    lines = [HEAD, *summary(), OURS, f"Measured with: {machine}."]
    for name, cases in itertools.groupby(sorted(known["figures"].items()), key=lambda case: case[0].split("::")[0]):
        lines += ["", f"### {_title(name)}", ""]
        lines += ["| ratio | median | rounds | wanted | | behind it |", "| --- | --- | --- | --- | --- | --- |"]
        lines += [_row(figure) for _, figure in cases]
    return "\n".join(lines) + "\n"


def _title(name: str) -> str:
    """The heading for a file of benchmarks: the first line of its docstring."""
    said = ast.get_docstring(ast.parse((HERE / name).read_text()))
    assert said is not None
    return said.splitlines()[0].removesuffix(".")


def main() -> None:
    """Writes the page and the README's table, and prints the page."""
    text = page(json.loads((HERE / "figures.json").read_text()))
    with whole_file(HERE.parent / "docs" / "performance.md") as stream:
        stream.write(text)
    PLACE.fill(HERE.parent / "README.md", in_short())
    print(text)


if __name__ == "__main__":
    main()

"""The page docs/performance.md, written and printed from the figures of benchmarks/figures.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEAD = """# Performance on a CPU

Printed by `make benchmark`, which runs `pytest benchmarks/ --benchmark-only` and this report. Why some targets were missed
in particular runs stands in [findings](findings.md).

How it is measured: the things compared take turns within one process, round after round; a figure is the median of the
rounds' ratios, with the lowest and highest round beside it. Models have BERT-base's shapes and random weights in
float32. Texts are as long as AG News': log-normal, mean 55 tokens, at most 100; 96 of them in batches of 32. "Time ratio
over FLOPs ratio" is the share of the saved work (executed, heads and decisions included) that becomes saved time.
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
    lines = [HEAD, f"Measured with: {machine}.", ""]
    lines += ["| ratio | median | rounds | wanted | | behind it |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [_row(figure) for _, figure in sorted(known["figures"].items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the page and prints it."""
    text = page(json.loads((Path(__file__).parent / "figures.json").read_text()))
    (Path(__file__).parent.parent / "docs" / "performance.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

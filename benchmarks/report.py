"""Writes docs/performance.md from the figures of the last benchmark runs, and prints it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

HEAD = """# Performance on a CPU

Printed by `make benchmark`, which runs `pytest benchmarks/ --benchmark-only` and this report.

How it is measured: the things compared take turns within one process, round after round; a figure is the median of the
rounds' ratios, with the lowest and highest round beside it. Models have BERT-base's shapes and random weights in
float32. Texts are as long as AG News': log-normal, mean 55 tokens, at most 100; 96 of them in batches of 32. "Time ratio
over FLOPs ratio" is the share of the saved work (executed, heads and decisions included) that becomes saved time.
"""

TAIL = """
## Where a target is missed, in this run or in others

- *Length-sorted batches*: what is left to save there is small. Nine tenths of our time are torch's matrix products, at
  the same rate as transformers', which wastes only the padding within a batch and its passes between the products.
- *Decision at batch 8*: with eight rows, the products of [CLS] wait for the layer's weights to come from memory.
- *Exits*, and more so with pruning: the same, for the few texts that are left in the upper layers; small products run below
  the rate of large ones, and FLOPs do not count the reading of weights.
- *Attention at 128 tokens*: the margin over torch varies with the machine's state around the target.
- *Gather*: rows are left out, so it cannot stream as a copy does; in turns with one, it also finds colder caches.
"""


def _row(figure: dict[str, Any]) -> str:
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


def main() -> None:
    """Entry point."""
    known = json.loads((Path(__file__).parent / "figures.json").read_text())
    machine = ", ".join(f"{name} {value}" for name, value in known["machine"].items())
    lines = [HEAD, f"Measured with: {machine}.", ""]
    lines += ["| what | median | rounds | wanted | | behind it |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [_row(figure) for _, figure in sorted(known["figures"].items())]
    text = "\n".join(lines) + "\n" + TAIL
    path = ROOT / "docs" / "performance.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    print(text)


if __name__ == "__main__":
    main()

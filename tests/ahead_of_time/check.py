"""Check of the Triton kernels, compiled ahead of time, against a budget: ``make kernels``.

Every kernel must compile without spills and local memory, fit the shared memory of its target, use tensor cores where it
multiplies matrices, and need no more registers than ``budget.json`` allows for this version of Triton. ``--all`` compiles
for every target, dtype and head_dim instead of the most important ones; ``--all --write`` makes the results the new budget.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Iterator
from typing import Annotated

import triton
import typer
from rich.console import Console
from rich.table import Table

from mp_kernels.triton import configurations

from .compiling import Compiled, compile_launch
from .matrix import BUDGET, launches

MULTIPLYING = ("attention", "head_shares")
VERSION = ".".join(triton.__version__.split(".")[:2])


def _compile(number_and_core: tuple[int, bool]) -> tuple[tuple[str, str], Compiled | str]:
    number, core = number_and_core
    target, name, launch = _LAUNCHES[core][number]
    try:
        return (target, name), compile_launch(launch, target)
    except Exception as error:  # reported as a breach, whatever it is
        return (target, name), f"{type(error).__name__}: {error}".splitlines()[0]


def breaches(target: str, name: str, made: Compiled | str, allowed: int | None) -> list[str]:
    """Sentences about what is wrong with a compiled kernel; none if it needs no more registers than ``allowed``."""
    if isinstance(made, str):
        return [f"does not compile: {made}"]
    found = []
    if made.spills or made.local:
        found.append(f"{made.spills} spills, {made.local} bytes of local memory")
    room = configurations.SHARED_MEMORY[target] * 1024
    if made.shared > room:
        found.append(f"{made.shared} bytes of shared memory, the target has {room}")
    if name.split(": ")[1].startswith(MULTIPLYING) and not made.tensor_core:
        found.append("no tensor-core instruction")
    if allowed is None:
        found.append(f"not in {BUDGET.name} for Triton {VERSION}; add it with --all --write")
    elif made.registers > allowed:
        found.append(f"{made.registers} registers, the budget allows {allowed}")
    return found


_LAUNCHES: dict[bool, list] = {}


def main(
    everything: Annotated[bool, typer.Option("--all", help="Compile for every target, dtype and head_dim.")] = False,
    write: Annotated[
        bool, typer.Option(help="Make the results the new budget (with --all; with --matching, of these kernels only).")
    ] = False,
    matching: Annotated[
        str, typer.Option(help="Compile only kernels whose target and name match this regular expression.")
    ] = "",
    jobs: Annotated[int | None, typer.Option(help="Number of processes; by default one per processor.")] = None,
) -> None:
    """Compile the Triton kernels ahead of time and compare them with the budget."""
    if write and not everything:
        raise typer.BadParameter("--write needs --all")
    core = not everything
    _LAUNCHES[core] = [entry for entry in launches(core) if re.search(matching, f"{entry[0]} {entry[1]}")]
    budget = json.loads(BUDGET.read_text())
    begin = time.monotonic()
    made = dict(_compiled(core, jobs or os.cpu_count()))
    if write and not matching:
        budget["registers"][VERSION] = {}
    registers = budget["registers"].setdefault(VERSION, {})
    if write:
        for (target, name), result in made.items():
            if isinstance(result, Compiled):
                registers.setdefault(target, {})[name] = result.registers

    table = Table(title=f"Triton {triton.__version__}, compiled ahead of time")
    for heading in ("target", "kernel", "registers", "spills", "shared", "tensor core", "occupancy"):
        table.add_column(heading, justify="left" if heading in ("target", "kernel") else "right")
    wrong: list[str] = []
    for (target, name), result in made.items():
        found = breaches(target, name, result, registers.get(target, {}).get(name))
        wrong += [f"{target}, {name}: {problem}" for problem in found]
        if isinstance(result, Compiled):
            occupancy = "" if math.isnan(result.occupancy) else f"{result.occupancy:.0%}"
            cells = (result.registers, result.spills, result.shared, result.tensor_core, occupancy)
            table.add_row(target, name, *map(str, cells), style="red" if found else None)
    console = Console(width=130)
    console.print(table)
    console.print(f"{len(made)} kernels in {time.monotonic() - begin:.0f} s, {len(wrong)} breaches")
    for problem in wrong:
        console.print(problem, style="red", highlight=False, markup=False)
    if write:
        BUDGET.write_text(json.dumps(budget, indent=1) + "\n")
    if wrong:
        raise typer.Exit(1)


def _compiled(core: bool, jobs: int) -> Iterator[tuple[tuple[str, str], Compiled | str]]:
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache  # results of another compiler version must not be reused
        with multiprocessing.get_context("fork").Pool(jobs) as pool:
            yield from pool.imap(_compile, [(number, core) for number in range(len(_LAUNCHES[core]))])


if __name__ == "__main__":
    typer.run(main)

"""One command for the first day of a GPU: correctness, operators, models, in one JSON, from which docs/gpu.md is printed.

    python3 benchmarks/gpu_day.py                    everything, three parts of less than ten minutes each
    python3 benchmarks/gpu_day.py --part 1           build, registrations, sanitizers and tests alone
    python3 benchmarks/gpu_day.py --page A B C       print docs/gpu.md from the JSON files of the parts

It needs nothing but a Python with torch, triton, transformers, pytest, hypothesis and numpy. Every step is a process of its
own with a time limit; one that fails, or is cut off, is recorded, and the others go on. The JSON, gpu.json, and a page made
from it lie in ``$OUT``, or else in build/gpu. Without a GPU, and with ``--dry``, every step that needs none is tried with
tiny shapes on the CPU, in a folder ``dry`` below, and the rest is listed. Exit status 0: all steps
that were asked for passed; 1: some did not, or could not run; 2: the command cannot be followed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from gpu import document, running  # noqa: E402
from gpu.page import page  # noqa: E402
from gpu.plan import PART_LIMIT, PARTS, STEPS, Step, missing  # noqa: E402
from mp_model.data.files import whole_file  # noqa: E402

FIGURES = ROOT / "benchmarks" / "gpu" / "figures.json"
PAGE = ROOT / "docs" / "gpu.md"
BUILT = ROOT / "mp_kernels" / "_C_cuda.so"
MACHINE = Step("machine", 0, 120, ("-m", "gpu.machine"))
DRY_PATIENCE = 10.0  # factor on all time limits in a dry run, since no lent device waits and the machine may be slow
NAMES = [step.name for step in STEPS]


class UsageError(Exception):
    """A command that cannot be followed."""


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(
        description="Measure everything on a GPU, or try all that can be tried without one."
    )
    parser.add_argument(
        "--part", type=int, choices=PARTS, action="append", help="Part to run; may be given several times."
    )
    parser.add_argument("--step", action="append", help="Step to run, by its name; may be given several times.")
    parser.add_argument("--dry", action="store_true", help="Measure nothing; without a GPU it is always so.")
    parser.add_argument("--output", type=Path, help="Folder for gpu.json. Default: $OUT, or build/gpu.")
    parser.add_argument(
        "--page", type=Path, nargs="+", metavar="JSON", help="Print docs/gpu.md from these, run nothing."
    )
    return parser.parse_args(arguments)


def print_page(paths: list[Path]) -> None:
    """Writes docs/gpu.md and the figures behind it from one or several documents.

    Raises:
        UsageError: one of them holds no measurement.
    """
    merged = document.published(document.merged([document.read(path) for path in paths]))
    if merged["dry"] or merged["machine"].get("device") is None:
        raise UsageError("these figures are of a dry run, which docs/gpu.md does not show; run it on a GPU")
    document.write(FIGURES, merged)
    write_page(PAGE, merged)
    print(f"{PAGE} and {FIGURES} are written")


def write_page(path: Path, known: document.Document) -> None:
    """Writes a document's page."""
    with whole_file(path) as stream:
        stream.write(page(known))


def say(step: Step, status: str, rest: str) -> None:
    """Prints a step's line, at once."""
    print(f"{step.part or ' '}  {step.name:<36}{status:<12}{rest}".rstrip(), flush=True)


def run_step(step: Step, path: Path, dry: bool, limit: float) -> str:
    """Runs a step and records how it ended; returns its status."""
    document.start(path, step.name, part=step.part, status=document.NOT_ENDED)
    environment = document.Sheet(path, step.name, dry).environment()
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "benchmarks", ROOT / "tests")))
    ended = running.run([sys.executable, *step.command], limit, ROOT, environment)
    facts = {"status": ended.status, "seconds": ended.seconds}
    if ended.status != document.PASSED:
        facts |= {"tail": ended.tail, "reason": (ended.tail.strip().splitlines() or ["no output"])[-1][:300]}
    document.note(path, step.name, **facts)
    say(step, ended.status, f"{ended.seconds:5.0f} s  {facts.get('reason', '')}")
    return ended.status


def leave_out(step: Step, path: Path, reason: str) -> str:
    """Records that a step does not run, and why, unless it ran before; returns its status."""
    if step.name not in document.read(path)["steps"]:
        document.start(path, step.name, part=step.part, status=document.LEFT_OUT, reason=reason)
    say(step, document.LEFT_OUT, f"{'':9}{reason}")
    return document.LEFT_OUT


def chosen(options: argparse.Namespace, dry: bool) -> list[Step]:
    """The steps to run; the build among them wherever the libraries are not there yet."""
    found = [step for step in STEPS if step.part in (options.part or PARTS)]
    if options.step:
        unknown = [name for name in options.step if name not in NAMES]
        if unknown:
            raise UsageError(f"there is no step {unknown[0]!r}; steps are {', '.join(NAMES)}")
        found = [step for step in STEPS if step.name in options.step]
    build = STEPS[0]
    if not dry and not BUILT.exists() and build not in found:
        found.insert(0, replace(build, part=found[0].part))  # whose time it takes
    return found


def begin(folder: Path, dry: bool) -> tuple[Path, bool]:
    """The document to write into, which may hold other parts of the same machine, and whether this run is dry.

    Raises:
        UsageError: no torch; or the folder holds figures of another machine.
    """
    if importlib.util.find_spec("torch") is None:
        raise UsageError(f"{sys.executable} has no torch; give the command to a Python that has")
    trial = folder / "machine.json"
    document.write(trial, {"machine": {}, "dry": dry, "steps": {}})
    try:
        if run_step(MACHINE, trial, dry, MACHINE.limit) != document.PASSED:
            reason = document.read(trial)["steps"]["machine"]["reason"]
            raise UsageError(f"this machine cannot be described: {reason}")
        machine = document.read(trial)["machine"]
    finally:
        trial.unlink()
    dry = dry or machine["device"] is None
    path = (folder / "dry" if dry else folder) / "gpu.json"
    known = {"machine": machine, "dry": dry, "steps": {}}
    if path.exists() and not dry:
        try:
            known = document.merged([document.read(path), known])
        except ValueError as error:
            raise UsageError(f"{path}: {error}; give --output another folder") from error
    document.write(path, known)
    return path, dry


def run(options: argparse.Namespace) -> int:
    """Runs the chosen steps; returns the exit status."""
    if options.step:
        chosen(options, dry=True)  # before anything is begun
    folder = options.output or Path(os.environ.get("OUT") or ROOT / "build" / "gpu")
    path, dry = begin(folder, options.dry)
    if dry:
        print("A dry run: no GPU is used, nothing is measured.")
    machine, patience = document.read(path)["machine"], DRY_PATIENCE if dry else 1.0
    began: dict[int, float] = {}
    statuses = set()
    for step in chosen(options, dry):
        part_began = began.setdefault(step.part, time.monotonic())
        left = patience * PART_LIMIT - (time.monotonic() - part_began)
        lacking = missing(step, machine, dry)
        if lacking:
            statuses.add(leave_out(step, path, f"needs {' and '.join(lacking)}"))
        elif left < 0:
            statuses.add(leave_out(step, path, f"part {step.part} had no time left for it; run it with --step"))
        else:
            statuses.add(run_step(step, path, dry, min(patience * step.limit, left)))
    write_page(path.with_suffix(".md"), document.read(path))
    print(f"{path} and a page beside it are written")
    return int(not statuses <= ({document.PASSED, document.LEFT_OUT} if dry else {document.PASSED}))


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    options = parsed(arguments)
    try:
        if options.page:
            print_page(options.page)
            return 0
        return run(options)
    except (UsageError, ValueError) as error:
        print(f"gpu_day.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

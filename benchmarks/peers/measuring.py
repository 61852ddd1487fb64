"""Parts of the measurement, each for a process of its own: files, the times of ways in turns, one way's memory."""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mp_model.checkpoints.precisions import why_unfit

from .answers import comparison, why_not_counted
from .document import Document, left_out, not_installed
from .files import ModelFiles, files_of
from .plan import Budget, Case, batches_of
from .ways import OURS, REFERENCE, Loaded, Way, load, ways

T = TypeVar("T")


def pin_to(threads: int) -> None:
    """Keeps all threads of this process on so many processors, so that a helper thread is no processor more."""
    if not hasattr(os, "sched_setaffinity"):
        return
    allowed = sorted(os.sched_getaffinity(0))[-threads:]
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), allowed)


def reason_of(error: Exception) -> str:
    """One line about an error of another library."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def prepare(files: ModelFiles, names: Sequence[str]) -> None:
    """Makes the files of some ways; a peer whose tools fail is left out by the measurement, which says why."""
    for way in (ways()[name] for name in names):
        attempt(way, lambda way=way: way.prepare(files))


def attempt(way: Way, action: Callable[[], T]) -> tuple[T | None, dict[str, Any]]:
    """An action's result, or None and the figure that says why there is none.

    A peer that is not installed or fails is left out with its reason; so are bfloat16 where it is slower than float32, and a
    precision of ours that this processor has no use for. Other errors of ours, and all of the reference, are raised.
    """
    if way.missing:
        return None, not_installed(way.missing)
    slow = why_unfit(way.precision, "cpu") if way.precision == "bfloat16" else None
    if slow is not None:
        return None, left_out(slow)
    try:
        return action(), {}
    except Exception as error:
        if way.name == REFERENCE or (way.engine == OURS and not isinstance(error, ValueError)):
            raise
        return None, left_out(reason_of(error))


def ready(
    names: Sequence[str], make: Callable[[Way], Loaded], warm: Sequence[dict[str, Tensor]]
) -> tuple[dict[str, Loaded], dict[str, dict[str, Any]]]:
    """The ways that can be measured, after a first batch of each size, and the figures of those that cannot."""

    def answer(loaded: Loaded) -> Loaded:
        for batch in warm:
            loaded.classify(batch)
        return loaded

    found: dict[str, Loaded] = {}
    out: dict[str, dict[str, Any]] = {}

    def keep(way: Way, action: Callable[[], Loaded]) -> None:
        loaded, reason = attempt(way, action)
        if loaded is None:
            found.pop(way.name, None)
            out[way.name] = reason
        else:
            found[way.name] = loaded

    # All are loaded before any answers: a class of models that comes later would have compiled ones compiled again.
    for way in (ways()[name] for name in names):
        keep(way, lambda way=way: make(way))
    for way in (ways()[name] for name in list(found)):
        keep(way, lambda way=way: answer(found[way.name]))
    return found, out


def take_turns(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way in each round; who begins changes from round to round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            begin = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def checked(answers: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """How each way's logits ``[texts, labels]`` compare with the reference's, and ``left out`` where they differ."""
    found = {}
    for name, logits in answers.items():
        compared: dict[str, Any] = comparison(logits, answers[REFERENCE])
        reason = why_not_counted(compared, ways()[name].precision)
        found[name] = compared if reason is None else {**compared, **left_out(reason)}
    return found


@torch.inference_mode()
def measure_case(loaded: Mapping[str, Loaded], batches: Sequence[dict[str, Tensor]], rounds: int) -> dict[str, Any]:
    """The figures of each way on the same batches; only those with right answers are timed."""

    def run(name: str) -> list[Tensor]:
        return [loaded[name].classify(batch) for batch in batches]

    answers, out = {}, {}
    for name in loaded:
        logits, reason = attempt(ways()[name], lambda name=name: torch.cat(run(name)))
        if logits is None:
            out[name] = reason
        else:
            answers[name] = logits
    figures = checked(answers)
    counted = {name: (lambda name=name: run(name)) for name in figures if "left out" not in figures[name]}
    for name, seconds in take_turns(counted, rounds).items():
        figures[name]["seconds"] = seconds
    return {**out, **figures}


def measure(document: Document, files: ModelFiles, names: Sequence[str], cases: Sequence[Case], budget: Budget) -> None:
    """Measures cases of one model and number of threads, and keeps each at once."""
    threads, vocabulary = cases[0].threads, files.vocabulary
    torch.set_num_threads(threads)
    batches = {case: batches_of(case, budget.texts, vocabulary) for case in cases}
    # A compiler makes one program for a text alone and one for all other sizes.
    sizes = {case.batch_size for case in cases}
    warm = [batches[next(case for case in cases if case.batch_size == size)][-1] for size in sorted(sizes)]
    with torch.inference_mode():
        loaded, out = ready(names, lambda way: load(way, files, threads), warm)
    pin_to(threads)
    for case in cases:
        masks = [batch["attention_mask"] for batch in batches[case]]
        facts = {
            **case._asdict(),
            "rounds": budget.rounds,
            "texts": sum(map(len, masks)),
            "tokens": sum(int(mask.sum()) for mask in masks),
            "padded_tokens": sum(mask.numel() for mask in masks),
        }
        begin = time.monotonic()
        figures = measure_case(loaded, batches[case], budget.rounds)
        document.keep("cases", case.name, {**facts, "ways": {**out, **figures}})
        print(f"{case.name}: {time.monotonic() - begin:.0f} s", flush=True)


def _megabytes(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{field}:\s+(\d+)", status)[0]) / 1024


def memory_of(way: Way, files: ModelFiles, batches: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Resident megabytes of this process: before the model, at most while it is loaded, at most while it runs."""
    before = _megabytes("VmRSS")
    with torch.inference_mode():
        loaded = load(way, files, torch.get_num_threads())
        loaded.classify(batches[0])
        loading = _megabytes("VmHWM")
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        for batch in batches:
            loaded.classify(batch)
    running = _megabytes("VmHWM")
    weights = loaded.weight_bytes() / 2**20
    return {"before": before, "loading": loading, "running": running, "weights": weights}


def measure_memory(document: Document, part: str, files: ModelFiles, name: str, threads: int, budget: Budget) -> None:
    """Adds one way's memory to a part of the document."""
    torch.set_num_threads(threads)
    way = ways()[name]
    batches = batches_of(Case("", threads, 32, False), 96, files.vocabulary)
    found, reason = attempt(way, lambda: memory_of(way, files, batches))
    figure = reason if found is None else found
    document.keep("memory", part, {"ways": {**document.known("memory", part), name: figure}})


def main() -> None:
    """Does one step of a JSON on the command line, which :mod:`peers.running` wrote."""
    step = json.loads(sys.argv[1])
    document, budget = Document(Path(step["figures"])), Budget(**step["budget"])
    if step["do"] == "fitted":
        from .fitted import measure_fitted

        measure_fitted(
            document,
            Path(step["folder"]),
            Path(step["texts_file"]),
            Path(step["work"]),
            step["names"],
            step["threads"],
            budget,
        )
        return
    files = files_of(step["model"], Path(step["work"]), budget.dry)
    if step["do"] == "prepare":
        prepare(files, step["names"])
    elif step["do"] == "measure":
        measure(document, files, step["names"], [Case(*case) for case in step["cases"]], budget)
    else:
        measure_memory(document, step["model"], files, step["names"][0], step["threads"], budget)


if __name__ == "__main__":
    main()

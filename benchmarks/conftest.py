"""Two threads (or a GPU, where there is one), and figures that outlive the run where ``--figures`` names a file for them.

A case times two or more ways to do one thing in turn, round after round, so that a drift of the machine's speed meets them
all alike; what counts is the median of the rounds' ratios. No case fails on a ratio: a slow machine is not a bug.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cpuinfo
import pytest
import torch

import mp_kernels
import workload
from mp_kernels.memory import keep_freed_memory
from mp_model.data.files import whole_file

THREADS = 2
ON_CUDA = workload.DEVICE.type == "cuda"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--figures``."""
    parser.addoption(
        "--figures",
        type=Path,
        metavar="PATH",
        help="JSON file to keep the figures in, beside those of cases that are not run now; left out, none are kept.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuses a file whose figures come from another device."""
    path = _figures_path(config)
    if path is None or not path.exists():
        return
    there, here = json.loads(path.read_text()).get("machine", {}).get("device"), _device()
    if there != here:
        raise pytest.UsageError(
            f"{path} holds figures of {there or 'a CPU'}, and these would be of {here or 'a CPU'}; "
            "give --figures another file"
        )


def _figures_path(config: pytest.Config) -> Path | None:
    path = config.getoption("--figures")
    return None if path is None else config.invocation_params.dir / path


def _device() -> str | None:
    """The GPU's name; None: the CPU."""
    return torch.cuda.get_device_name() if ON_CUDA else None


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(THREADS)
    keep_freed_memory()  # as a model does when it is made, and for the peers in this process too
    if not mp_kernels.extension.is_built():
        pytest.exit("the compiled kernels are not built; a benchmark without them measures the definitions", 3)


@functools.cache
def _machine() -> dict[str, Any]:
    """The processor and the software that figures come from."""
    processor = cpuinfo.get_cpu_info()
    return {
        **({"device": _device()} if ON_CUDA else {}),
        "processor": processor.get("brand_raw", processor["arch"]),
        "threads": THREADS,
        "kernels": mp_kernels.extension.chosen_instruction_set(),
        "torch": torch.__version__,
        "python": processor["python_version"].split()[0],
    }


@pytest.fixture
def record(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Keeps a figure: with the benchmark, and at once in the file of ``--figures``."""
    path = _figures_path(request.config)

    def keep(**figure: Any) -> None:
        benchmark.extra_info.update(figure)
        if path is None:
            return
        known = json.loads(path.read_text()) if path.exists() else {}
        known["machine"] = _machine()
        known.setdefault("figures", {})[request.node.nodeid.removeprefix("benchmarks/")] = figure
        with whole_file(path) as stream:
            stream.write(json.dumps(known, indent=1, sort_keys=True) + "\n")

    return keep


@pytest.fixture
def compare(benchmark: Any, record: Callable[..., None]) -> Callable[..., None]:
    """Times functions in turn, and records the first one's time over the second one's."""

    def run(
        claim: str,
        functions: dict[str, Callable[[], Any]],
        *,
        target: float | None = None,
        at_most: bool = False,
        scale: float = 1.0,
        rounds: int = 15,
        repeats: int = 1,
        **facts: Any,
    ) -> None:
        """Times one case.

        Args:
            claim: the ratio in words.
            functions: two or more ways to do one thing, by name.
            target: ratio wanted on a CPU; it is stored beside the figure, not asserted.
            at_most: whether the target is an upper bound.
            scale: factor for each ratio.
            rounds: number of turns.
            repeats: calls of each function in a turn.
            facts: numbers to store beside the figure.
        """
        times: dict[str, list[float]] = {name: [] for name in functions}

        def one_round() -> None:
            for name, function in functions.items():
                begin = time.perf_counter()
                for _ in range(repeats):
                    function()
                if ON_CUDA:
                    torch.cuda.synchronize()
                times[name].append((time.perf_counter() - begin) / repeats)

        with torch.inference_mode():
            one_round()
            for measured in times.values():
                measured.clear()
            benchmark.pedantic(one_round, rounds=rounds)
        (_, numerator), (_, denominator) = list(times.items())[:2]
        ratios = [scale * a / b for a, b in zip(numerator, denominator, strict=True)]
        record(
            claim=claim,
            ratio=statistics.median(ratios),
            lowest=min(ratios),
            highest=max(ratios),
            target=None if ON_CUDA else target,
            at_most=at_most,
            milliseconds={name: 1e3 * statistics.median(measured) for name, measured in times.items()},
            facts=facts,
        )

    return run

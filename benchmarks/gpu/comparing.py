"""One operator's figure: ours and others' ways to the same result, compared with the truth, timed by graph replay."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .agreement import demand, figure_or_refusal
from .clocks import device_work, graph_microseconds
from .document import Sheet
from .plan import DTYPES, OURS

BEYOND_THE_CACHE = 256 * 2**20  # bytes that the inputs of all repetitions take together, several times the L2
MOST_COPIES = 64

Way = Callable[..., Any]  # inputs to results


def compare(
    sheet: Sheet,
    name: str,
    make_inputs: Callable[[], list[Any]],
    ways: Mapping[str, Way],
    truth: Way,
    allowed: float,
    wrong_kernels: Callable[[list[str]], str | None] | None = None,
) -> bool:
    """Keeps the figure of an operator: microseconds of each way, over one set of inputs and over many.

    Args:
        sheet: where figures go.
        name: the figure's name.
        make_inputs: draws inputs, tensors among them.
        ways: by name, functions of the inputs.
        truth: the definition, called with float64 inputs; a way may return fewer results, the first of these.
        allowed: relative error of every way.
        wrong_kernels: says what is wrong with the kernels that ran for our way; None: nothing is.

    Returns:
        Whether all ways agree with the truth, and the right kernels ran.
    """
    first = make_inputs()
    size = sum(x.numel() * x.element_size() for x in tensors_of(first))
    copies = 1 if sheet.dry else min(MOST_COPIES, max(1, math.ceil(BEYOND_THE_CACHE / size)))
    sets = [first, *(make_inputs() for _ in range(copies - 1))]
    expected = listed(truth(*widened(first)))

    def figure_of(way: Way, is_ours: bool) -> dict[str, Any]:
        got = listed(way(*first))
        demand(got, expected[: len(got)], allowed)
        kernels = [] if sheet.dry else device_work(lambda: way(*first)).kernels
        wrong = wrong_kernels(kernels) if is_ours and wrong_kernels and not sheet.dry else None
        if wrong:
            raise RuntimeError(wrong)
        return {
            "clock": "dry" if sheet.dry else "graph replay",
            "microseconds": graph_microseconds(lambda: way(*first), sheet.dry),
            "microseconds_from_memory": graph_microseconds(lambda: [way(*x) for x in sets], sheet.dry) / copies,
            "kernels": kernels,
        }

    figures = {
        label: figure_or_refusal(lambda way=way, label=label: figure_of(way, label == OURS))
        for label, way in ways.items()
    }
    sheet.keep(name, figures)
    refused = [f"{name}, {label}: {figure['refused']}" for label, figure in figures.items() if "refused" in figure]
    for line in refused:
        print(line)
    return not refused


def listed(results: Any) -> list[Tensor]:
    """One result or several, as a list."""
    return [results] if isinstance(results, Tensor) else list(results)


def tensors_of(inputs: Iterable[Any]) -> list[Tensor]:
    """The tensors among inputs and in lists of inputs."""
    found: list[Tensor] = []
    for x in inputs:
        found += tensors_of(x) if isinstance(x, list | tuple) else [x] if isinstance(x, Tensor) else []
    return found


def widened(x: Any) -> Any:
    """The same inputs with floating tensors in float64."""
    if isinstance(x, list | tuple):
        return type(x)(map(widened, x))
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def draws(sheet: Sheet, dtype: torch.dtype) -> tuple[torch.device, Callable[..., Tensor]]:
    """The step's device, and a function that draws random numbers ``[shape]`` on it; products in float32 stay float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cpu" if sheet.dry else "cuda")
    generator = torch.Generator(device).manual_seed(0)
    return device, lambda *shape: torch.randn(*shape, generator=generator, device=device).to(dtype)


def run_all(run: Callable[[Sheet, str], bool]) -> None:
    """Keeps the figures of all dtypes by a function that does so for one; ends the program with 1 unless all is well."""
    sheet = Sheet.of_this_process()
    with torch.inference_mode():
        fine = [run(sheet, dtype) for dtype in DTYPES]
    sys.exit(not all(fine))

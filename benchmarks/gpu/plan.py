"""The steps of the day, in the order in which they run: part 1 for correctness, 2 for operators, 3 for models."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DTYPES = ("bfloat16", "float32")
SHAPES = ((55, 32), (55, 256), (128, 32), (512, 16))  # tokens of a text, texts of a batch
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PART_LIMIT = 560.0  # seconds, so that a part fits ten minutes with what is around it
PARTS = (1, 2, 3)
OURS = "ours"  # the way that others are compared with, in figures

GPU, CUDA_TORCH, NVCC, SANITIZER = "a GPU", "a torch built for CUDA", "nvcc", "compute-sanitizer"


@dataclass(frozen=True)
class Step:
    """A process of its own.

    Attributes:
        name: its name in the document.
        part: one of :data:`PARTS`.
        limit: seconds.
        command: arguments of Python.
        needs: the things that a machine must have for it; :func:`missing` knows them.
    """

    name: str
    part: int
    limit: float
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()


def _steps() -> list[Step]:
    def module(name: str, part: int, limit: float, *command: str, needs: tuple[str, ...] = ()) -> Step:
        return Step(name, part, limit, ("-m", *command), needs)

    of_models = ("engine_on_triton", "bounded", "graphs")
    triton = ("tests/mp_kernels/triton", *(f"tests/mp_model/test_{name}.py" for name in of_models))
    found = [
        module("build", 1, 150, "gpu.building"),
        module("registrations", 1, 60, "gpu.registrations"),
        Step("registrations, compiled", 1, 60, ("csrc/cuda/check_registrations.py",), (CUDA_TORCH, NVCC)),
        module("gather, compiled by nvcc", 1, 60, "gpu.gather", needs=(NVCC,)),
        module("gather", 1, 60, "gpu.gather", "run", needs=(NVCC, GPU)),
        *(module(f"gather, {t}", 1, 60, "gpu.gather", t, needs=(NVCC, SANITIZER, GPU)) for t in TOOLS),
        module("tests/gpu", 1, 300, "gpu.suites", "tests/gpu"),
        module("Triton suites", 1, 240, "gpu.suites", *triton, needs=(GPU,)),
    ]
    found += [module("attention", 2, 320, "gpu.attention"), module("rows", 2, 240, "gpu.rows")]
    found.append(module("models, compiled ahead", 3, 240, "gpu.models", "ahead", needs=(GPU,)))
    for dtype in DTYPES:
        for tokens, batch in SHAPES:
            # A dry run knows one tiny shape, so once is enough.
            needs = () if (tokens, batch) == SHAPES[0] else (GPU,)
            command = ("gpu.models", dtype, str(tokens), str(batch))
            found.append(module(f"models, {dtype}, {tokens} x {batch}", 3, 90, *command, needs=needs))
    return found


STEPS = _steps()


def missing(step: Step, machine: Mapping[str, Any], dry: bool) -> list[str]:
    """The things that a step needs and this machine, or a dry run, lacks.

    machine: ``device``, the GPU's name or None; ``cuda``, the version that torch was built for or None.
    """
    there = {
        GPU: machine["device"] is not None and not dry,
        CUDA_TORCH: machine["cuda"] is not None,
        NVCC: shutil.which("nvcc") is not None,
        SANITIZER: shutil.which("compute-sanitizer") is not None,
    }
    return [thing for thing in step.needs if not there[thing]]

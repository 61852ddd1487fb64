"""Compilation of the Triton kernels for GPUs that this machine need not have, and what it tells about them.

Kernels, constants and argument types are not listed here: the operators run on meta tensors, and whatever they would launch
is compiled.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mp_kernels.triton import configurations, launching

TARGETS = {
    **{f"sm_{number}": GPUTarget("cuda", number, 32) for number in (80, 86, 89, 90, 100, 120)},
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TENSOR_CORES = {
    **dict.fromkeys(("sm_80", "sm_86", "sm_89", "sm_120"), r"\bHMMA\b"),
    "sm_90": r"\bHG?MMA\b",
    "sm_100": r"\b(?:UTC\w*|H)MMA\b",
    "gfx942": r"\bv_mfma",
}
# For one processor: number of registers, most threads, and shared memory in KiB.
PROCESSORS = {
    "sm_80": (65536, 2048, 164),
    "sm_86": (65536, 1536, 100),
    "sm_89": (65536, 1536, 100),
    "sm_90": (65536, 2048, 228),
    "sm_100": (65536, 2048, 228),
    "sm_120": (65536, 1536, 100),
}


@dataclass
class Launch:
    """A kernel with the arguments and options of an operator that would have launched it."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: list[int]
    num_warps: int
    num_stages: int


@dataclass
class Compiled:
    """Resources of a compiled launch.

    Attributes:
        registers: 32-bit registers per thread.
        spills: number of instructions that spill registers to memory or load them again.
        local: bytes of local memory per thread.
        shared: bytes of shared memory per program.
        tensor_core: number of instructions that run on tensor cores.
        occupancy: share of a processor's threads that can be resident with these registers and this shared memory; NaN
            if unknown.
    """

    registers: int
    spills: int
    local: int
    shared: int
    tensor_core: int
    occupancy: float


_POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.int8: "*i8",
    torch.bool: "*i1",
}


@contextlib.contextmanager
def recorded(architecture: str) -> Iterator[list[Launch]]:
    """Inside, operators launch nothing; the list receives what they would have launched on ``architecture``."""
    launches: list[Launch] = []

    def record(kernel, grid, *arguments, tile, **constants) -> None:
        names = kernel.arg_names[: len(arguments)]
        signature = dict(zip(names, map(_type_of, arguments), strict=True)) | dict.fromkeys(constants, "constexpr")
        aligned = [
            place
            for place, x in enumerate(arguments)
            if isinstance(x, torch.Tensor) or (isinstance(x, int) and x % 16 == 0)
        ]
        launches.append(Launch(kernel, signature, constants, aligned, tile.num_warps, tile.num_stages))

    actual = launching.launch, configurations.architecture_of
    launching.launch, configurations.architecture_of = record, lambda device: architecture
    try:
        yield launches
    finally:
        launching.launch, configurations.architecture_of = actual


def _type_of(x: Any) -> str:
    if isinstance(x, torch.Tensor):
        return _POINTERS[x.dtype]
    if isinstance(x, float):
        return "fp32"
    return "i32" if abs(x) < 2**31 else "i64"


def compile_launch(launch: Launch, architecture: str) -> Compiled:
    """Compiles a launch for ``architecture``. Raises whatever the compiler raises."""
    source = ASTSource(
        fn=launch.kernel,
        signature=launch.signature,
        constexprs={(launch.kernel.arg_names.index(name),): value for name, value in launch.constants.items()},
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place in launch.aligned
            if not launch.kernel.params[place].do_not_specialize
        },
    )
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages, **launching.CHECKED}
    made = triton.compile(source, target=TARGETS[architecture], options=options)
    if architecture == "gfx942":
        return _read_amd(made.asm["amdgcn"], made.metadata.shared)
    return _read_nvidia(made.asm["cubin"], made.metadata, architecture, launch.num_warps)


def _tool(name: str) -> str:
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _read_nvidia(cubin: bytes, metadata: Any, architecture: str, num_warps: int) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "kernel.cubin")
        Path(path).write_bytes(cubin)
        usage, code = (
            subprocess.run([_tool(tool), *flags, path], capture_output=True, text=True, check=True).stdout
            for tool, flags in (("cuobjdump", ["-res-usage"]), ("nvdisasm", ["-c"]))
        )
    registers = int(re.search(r"REG:(\d+)", usage).group(1))
    local = int(re.search(r"STACK:(\d+)", usage).group(1)) + int(re.search(r"LOCAL:(\d+)", usage).group(1))
    all_registers, all_threads, all_shared = PROCESSORS[architecture]
    threads = 32 * num_warps
    granule = 8  # registers are allocated to a thread in multiples of this
    programs = min(
        all_registers // (threads * (-(-registers // granule) * granule)),
        all_threads // threads,
        all_shared * 1024 // (metadata.shared + 1024),  # the system reserves 1 KiB per program
    )
    return Compiled(
        registers=registers,
        spills=len(re.findall(r"\b(?:STL|LDL)\b", code)),
        local=local,
        shared=metadata.shared,
        tensor_core=len(re.findall(TENSOR_CORES[architecture], code)),
        occupancy=programs * threads / all_threads,
    )


def _read_amd(assembly: str, shared: int) -> Compiled:
    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s*(\d+)", assembly).group(1))

    return Compiled(
        registers=number("vgpr_count"),
        # Spills of scalar registers do not count: they go to vector registers, not to memory.
        spills=number("vgpr_spill_count"),
        local=number("private_segment_fixed_size"),
        shared=shared,
        tensor_core=len(re.findall(TENSOR_CORES["gfx942"], assembly)),
        occupancy=float("nan"),
    )


def launches_of(call: Callable[[], object], architecture: str) -> list[Launch]:
    """Kernels that ``call`` would launch on ``architecture``."""
    with recorded(architecture) as launches:
        call()
    return launches

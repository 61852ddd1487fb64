"""Registers and memory of the kernels of this folder, compiled for every architecture: ``make nvcc``.

The check fails if a kernel spills registers or keeps an array in local memory, since both cost accesses to memory that its
source does not show. It needs nvcc but no device.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
ARCHITECTURES = (80, 90, 100, 120)  # those of CMakeLists.txt

# The three lines that ptxas prints for a kernel.
REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


class Usage(NamedTuple):
    """Registers of a thread, and bytes of memory, that a kernel takes on an architecture."""

    kernel: str
    architecture: int
    registers: int
    shared: int
    stack: int
    spilled: int


def readable(symbol: str) -> str:
    """``namespace::kernel`` of a mangled symbol; the symbol itself if ``c++filt`` is not installed."""
    if shutil.which("c++filt") is None:
        return symbol
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    return name.removeprefix("void ").rsplit("(", 1)[0]


def compiled(header: Path, nvcc: str) -> list[Usage]:
    """Usage of every kernel of a header. Ends the program with nvcc's messages if the header does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernels.cu"
        source.write_text(f'#include "{header}"\n')
        targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in ARCHITECTURES]
        command = [nvcc, "-std=c++17", "-O3", "-Xptxas=-v", *targets, "-c", source, "-o", Path(folder) / "kernels.o"]
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if ended.returncode:
        sys.exit(ended.stdout)
    return [
        Usage(
            readable(report["kernel"]),
            int(report["architecture"]),
            int(report["registers"]),
            int(report["shared"] or 0),
            int(report["stack"]),
            int(report["stores"]) + int(report["loads"]),
        )
        for report in REPORT.finditer(ended.stdout)
    ]


def main() -> int:
    """Prints a table of all kernels. Returns the exit status: 1 if a kernel fails the check or nvcc is missing."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("nvcc was not found: install the CUDA toolkit, or put its bin folder on the PATH", file=sys.stderr)
        return 1
    headers = [header for header in sorted(FOLDER.glob("*.cuh")) if "__global__" in header.read_text()]
    usages = [usage for header in headers for usage in compiled(header, nvcc)]
    print(f"{'kernel':<32}{'sm':>5}{'registers':>11}{'shared':>8}{'stack':>7}{'spilled':>9}")
    for usage in sorted(usages):
        print(f"{usage[0]:<32}{usage[1]:>5}{usage[2]:>11}{usage[3]:>8}{usage[4]:>7}{usage[5]:>9}")
    wrong = [f"{usage.kernel} on sm_{usage.architecture}" for usage in usages if usage.stack or usage.spilled]
    if wrong:
        print(f"local memory or spilled registers: {', '.join(wrong)}", file=sys.stderr)
        return 1
    if not usages:
        print("ptxas reported no kernel", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compiles the kernels of this folder for every architecture and prints what each one takes: ``make nvcc``.

Fails where a kernel spills registers or keeps an array in local memory: either makes it wait for memory that its source
does not name. Needs nvcc and no device.
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

# What ptxas says of a kernel, on three lines.
REPORT = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)' for 'sm_(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?:[^\n]*?(?P<shared>\d+) bytes smem)?",
    re.DOTALL,
)


class Usage(NamedTuple):
    """What one kernel takes on one architecture: bytes, but for the registers."""

    kernel: str
    architecture: int
    registers: int
    shared: int
    stack: int
    spilled: int


def readable(symbol: str) -> str:
    """``namespace::kernel`` of a symbol, where there is a tool that knows."""
    if shutil.which("c++filt") is None:
        return symbol
    name = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
    return name.removeprefix("void ").rsplit("(", 1)[0]


def compiled(header: Path, nvcc: str) -> list[Usage]:
    """Usage of every kernel of a header. Ends the program with nvcc's own words if it does not compile."""
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
        print("ptxas named no kernel", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The compiled gather without torch: built by nvcc, run, and run under the tools of compute-sanitizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .document import Sheet, read

SOURCE = Path(__file__).with_name("gather_check.cu")
PROGRAM = "gather_check"  # beside the document
NO_DEVICE = "9.0"  # compute capability to compile for where there is no device


def compile_check(output: Path, capability: str) -> None:
    """Compiles the check for a compute capability, such as 9.0. Ends the program if it does not compile."""
    number = capability.replace(".", "")
    target = f"-gencode=arch=compute_{number},code=sm_{number}"
    subprocess.run(["nvcc", "-std=c++17", "-O2", "-lineinfo", target, str(SOURCE), "-o", str(output)], check=True)


def main() -> None:
    """Compiles the check; with an argument, runs it: ``run``, or the name of a tool, under which it runs."""
    sheet = Sheet.of_this_process()
    tool = sys.argv[1] if sys.argv[1:] else None
    program = sheet.path.parent / "work" / PROGRAM
    if tool is None or not program.exists():
        program.parent.mkdir(exist_ok=True)
        compile_check(program, read(sheet.path)["machine"]["capability"] or NO_DEVICE)
    if tool is not None:
        under = [] if tool == "run" else ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        sys.exit(subprocess.run([*under, str(program)]).returncode)


if __name__ == "__main__":
    main()

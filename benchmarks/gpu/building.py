"""Both libraries built in place, or in a dry run the ones that this machine can build, beside the document."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from .document import Sheet

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Builds, and ends the program with a message if a library is not there afterwards: setup.py itself carries on."""
    sheet = Sheet.of_this_process()
    apart = sheet.path.parent / "build"
    where = ["--build-lib", str(apart), "--build-temp", str(apart / "temp")] if sheet.dry else ["--inplace"]
    folder = (apart if sheet.dry else ROOT) / "mp_kernels"
    wanted = ["_C.so", *(["_C_cuda.so"] if torch.version.cuda else [])]
    for name in wanted if sheet.dry else ():
        (folder / name).unlink(missing_ok=True)
    subprocess.run([sys.executable, "setup.py", "build_ext", *where], cwd=ROOT, check=True)
    absent = [name for name in wanted if not (folder / name).exists()]
    if absent:
        sys.exit(f"not built: {', '.join(absent)}; the messages above say why")
    sheet.keep("built", wanted)


if __name__ == "__main__":
    main()

"""The device, its driver and clocks, and the software: the facts that figures come with."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import Any

import torch

from .document import Sheet, read, write

CLOCKS = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit", "memory.total")


def version(package: str) -> str | None:
    """The version of an installed package; None: it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def clocks() -> dict[str, str]:
    """The first GPU's driver, clocks and power limit as nvidia-smi tells them; nothing where there is no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return {}
    command = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader", "--id=0"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return {}
    return {} if ended.returncode else dict(zip(CLOCKS, ended.stdout.strip().split(", "), strict=False))


def facts() -> dict[str, Any]:
    """What figures depend on; ``device`` is None on a machine without a GPU."""
    there = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if there else None
    return {
        "device": properties.name if properties else None,
        "capability": f"{properties.major}.{properties.minor}" if properties else None,
        "processors": properties.multi_processor_count if properties else None,
        "l2_megabytes": properties.L2_cache_size / 2**20 if properties else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        **{name: version(name) for name in ("triton", "transformers", "numpy")},
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "date": datetime.date.today().isoformat(),
        "nvidia_smi": clocks(),
    }


def main() -> None:
    """Writes the facts into the document."""
    sheet = Sheet.of_this_process()
    document = read(sheet.path)
    document["machine"] = facts()
    write(sheet.path, document)


if __name__ == "__main__":
    main()

"""Versions, kernels and devices of this installation: ``python -m mp_kernels.info`` prints them."""

from __future__ import annotations

import importlib.metadata
import platform

import torch

from . import extension


def describe() -> dict[str, str]:
    """Versions, builds of the kernels, devices and threads of this installation, by name."""

    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    runnable = ", ".join(extension.instruction_sets())
    return {
        "magic-pyramid": version("magic-pyramid"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "transformers": version("transformers"),
        "processor": platform.machine(),
        "cpu kernels": str(extension.PATH) if extension.is_built() else "not built",
        "instruction sets, best first": runnable or "none",
        "instruction set in use": extension.chosen_instruction_set() or "none: plain PyTorch definitions",
        "cuda kernels": str(extension.CUDA_PATH) if extension.is_cuda_built() else "not built",
        "cuda": f"torch built for {torch.version.cuda}" if torch.version.cuda else "torch built without it",
        "cuda devices": ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))) or "none",
        "threads": str(torch.get_num_threads()),
    }


def main() -> None:
    """Prints the entries of :func:`describe`, one a line."""
    entries = describe()
    width = max(map(len, entries))
    for name, value in entries.items():
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()

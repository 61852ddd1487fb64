"""Every operator but those for CPUs has a kernel for CUDA tensors, whether or not this machine has a device."""

from __future__ import annotations

import sys

import torch

from mp_kernels import backends

from .document import Sheet


def without_kernel() -> list[str]:
    """Operators that no kernel is registered for; CUDA tensors would go through the plain PyTorch definition."""

    def has(name: str) -> bool:
        lines = torch._C._dispatch_dump(f"mp_kernels::{name}").splitlines()
        return any(line.startswith("CUDA:") for line in lines)

    return [name for name in backends.IN_TRITON if not has(name)]


def main() -> None:
    """Ends the program with the operators that have no kernel."""
    absent = without_kernel()
    if absent:
        sys.exit(f"no kernel for CUDA tensors: {', '.join(absent)}")
    Sheet.of_this_process().keep("operators", list(backends.IN_TRITON))


if __name__ == "__main__":
    main()

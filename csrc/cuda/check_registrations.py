"""Operators of the installed package that have a CUDA kernel, and where each was registered: ``make cuda``.

The check fails if the compiled kernels did not load or lack an operator. It needs a torch built for CUDA but no device.
"""

from __future__ import annotations

import sys

import torch

from mp_kernels import extension, schemas

COMPILED = ("ragged_gather", "ragged_gather_backward")  # those of ops_cuda.cu


def main() -> int:
    """Prints a table of all operators. Returns the exit status: 1 if a compiled kernel is missing."""
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.device_count()} devices")
    print(f"{extension.CUDA_PATH}: {'loaded' if extension.is_cuda_built() else 'not loaded'}")
    without = []
    for name in schemas.SCHEMAS:
        kernels = torch._C._dispatch_dump(f"mp_kernels::{name}").splitlines()
        registered = [line for line in kernels if line.startswith("CUDA:")]
        print(f"{name:<28}{registered[0] if registered else 'no kernel for CUDA: the plain PyTorch definition'}")
        if name in COMPILED and not any("_C_cuda" in line or "ops_cuda" in line for line in registered):
            without.append(name)
    if without or not extension.is_cuda_built():
        print(f"not registered by {extension.CUDA_PATH.name}: {', '.join(without)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

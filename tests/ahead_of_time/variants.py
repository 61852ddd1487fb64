"""The variants of each kernel that calls of the operators would have compiled on a device, found without one.

A device's cache of compiled kernels is keyed by the types of the arguments, by what the compiler is told of their values
(divisible by 16, or 1), and by the constants. The operators run on CPU tensors here; their Triton implementations are called
with the same tensors, and the keys of what they would launch are made by Triton's own code.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from mp_kernels import products
from mp_kernels.triton import IMPLEMENTATIONS, configurations, launching

from .compiling import TARGETS

Variants = dict[str, set[str]]


@functools.cache
def _binder(kernel: Any, architecture: str) -> Any:
    """Triton's function from a kernel's arguments to their specialisation."""
    # In the interpreter a kernel is no JITFunction, but keeps what makes one.
    function = kernel if isinstance(kernel, JITFunction) else JITFunction(kernel.fn, **_options_of(kernel))
    return create_function_from_signature(function.signature, function.params, make_backend(TARGETS[architecture]))


def _options_of(kernel: Any) -> dict[str, Any]:
    names = "version", "do_not_specialize", "do_not_specialize_on_alignment", "debug", "noinline", "repr"
    return {name: value for name, value in kernel.kwargs.items() if name in names}


class _Launched(TorchDispatchMode):
    """Calls the Triton implementation of each operator of ours before the operator itself."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operator.namespace == "mp_kernels":
            IMPLEMENTATIONS[operator.name().removeprefix("mp_kernels::")](*args, **(kwargs or {}))
        return operator(*args, **(kwargs or {}))


@contextmanager
def variants(architecture: str, processors: int) -> Iterator[Variants]:
    """The keys of all launches inside, by kernel, as on a device of an architecture with so many processors."""
    found: Variants = defaultdict(set)

    def record(kernel: Any, grid: tuple[int, ...], *arguments: Any, tile: Any, **constants: Any) -> None:
        if 0 in grid:
            return
        options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
        _, specialization, _ = _binder(kernel, architecture)(*arguments, **constants)
        found[kernel.__name__].add(str((specialization, sorted(constants.items()), options)))

    actual = launching.launch, configurations.architecture_of, configurations.processors_of
    in_kernels = products.in_kernels
    products.in_kernels = lambda x, *weights: False  # products are torch's own on a GPU
    launching.launch = record
    configurations.architecture_of = lambda device: architecture
    configurations.processors_of = lambda device: processors
    try:
        with _Launched():
            yield found
    finally:
        launching.launch, configurations.architecture_of, configurations.processors_of = actual
        products.in_kernels = in_kernels

"""The implementation of the operators on each device.

CPU: the compiled kernels (:mod:`mp_kernels.extension`). CUDA: the Triton kernels (:mod:`mp_kernels.triton`), and the
compiled gather where it was built. On other devices, and where one of these is missing, the definitions that
:mod:`mp_kernels.schemas` registers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection
from typing import Any

import torch

from . import extension
from .schemas import SCHEMAS, library

# They move the rows of several tensors, of whatever widths, in one launch; index_select takes one for each.
COMPILED_FOR_CUDA = ("ragged_gather", "ragged_gather_backward")
# The steps of int8 models, and linear layers with the steps around them, have no Triton kernels.
FOR_CPUS = (
    *("linear", "linear_add_layer_norm", "feed_forward", "post_norm_rest"),
    *("post_norm_layer", "post_norm_first", "int8_post_norm_layer", "int8_post_norm_first"),
    *("ordered_linear", "quantize_rows", "dequantize_rows"),
    *("int8_linear", "int8_linear_gelu", "int8_linear_add_layer_norm"),
    *("int8_dynamic_linear", "int8_post_norm_rest"),
)
IN_TRITON = tuple(name for name in SCHEMAS if name not in FOR_CPUS)


def _from_triton(name: str) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        from .triton import IMPLEMENTATIONS  # a slow import, so only once a GPU needs it

        return IMPLEMENTATIONS[name](*arguments)

    return call


def register_triton(registrations: torch.library.Library, dispatch_key: str, names: Collection[str]) -> None:
    """Registers the Triton kernels as the operators ``names`` for tensors of ``dispatch_key``."""
    for name in names:
        registrations.impl(name, _from_triton(name), dispatch_key)


def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


if has_triton():
    _compiled = COMPILED_FOR_CUDA if extension.is_cuda_built() else ()
    register_triton(library, "CUDA", [name for name in IN_TRITON if name not in _compiled])

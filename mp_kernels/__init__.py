"""Operators on packed ragged batches: attention with importance, compaction, gather, and the steps around them.

The public functions are listed in ``__all__``. :mod:`mp_kernels.reference` holds their definitions in plain PyTorch,
``torch.ops.mp_kernels`` the registered operators.
"""

from . import autograd as _autograd  # noqa: F401  (registers)
from . import backends, extension, fakes, reference, schemas  # noqa: F401
from .functional import (
    add_layer_norm,
    bias_gelu,
    exit_head,
    normalized_entropy,
    pack,
    prune_tokens,
    ragged_attention,
    ragged_gather,
    ragged_mean,
    select_samples,
    top_k_tokens,
    unpack,
)
from .ragged import Kept, Ragged

__all__ = [
    "Kept",
    "Ragged",
    "add_layer_norm",
    "bias_gelu",
    "exit_head",
    "normalized_entropy",
    "pack",
    "prune_tokens",
    "ragged_attention",
    "ragged_gather",
    "ragged_mean",
    "reference",
    "select_samples",
    "top_k_tokens",
    "unpack",
]

"""Operators on packed ragged batches: attention with importance, compaction, gather, and token-wise steps.

The public functions are listed in ``__all__``. Their definitions in plain PyTorch are in :mod:`mp_kernels.reference`, the
registered operators in ``torch.ops.mp_kernels``.
"""

from . import autograd as _autograd  # noqa: F401  (the import registers the gradients)
from . import backends, extension, fakes, reference, schemas  # noqa: F401
from .functional import (
    add_layer_norm,
    bias_gelu,
    exit_head,
    gelu_gate,
    label_entropy,
    measure_padded,
    normalized_entropy,
    pack,
    pack_padded,
    pair_features,
    prune_rows,
    prune_tokens,
    ragged_attention,
    ragged_gather,
    ragged_mean,
    rotary_embedding,
    select_samples,
    top_k_tokens,
    unpack,
)
from .int8 import (
    dequantize_rows,
    int8_dynamic_linear,
    int8_linear,
    int8_linear_add_layer_norm,
    int8_linear_gelu,
    int8_post_norm_first,
    int8_post_norm_layer,
    int8_post_norm_rest,
    ordered_linear,
    quantize_rows,
)
from .products import feed_forward, linear, linear_add_layer_norm, post_norm_first, post_norm_layer, post_norm_rest
from .ragged import Kept, Ragged

__all__ = [
    "Kept",
    "Ragged",
    "add_layer_norm",
    "bias_gelu",
    "dequantize_rows",
    "exit_head",
    "feed_forward",
    "gelu_gate",
    "int8_dynamic_linear",
    "int8_linear",
    "int8_linear_add_layer_norm",
    "int8_linear_gelu",
    "int8_post_norm_first",
    "int8_post_norm_layer",
    "int8_post_norm_rest",
    "label_entropy",
    "linear",
    "linear_add_layer_norm",
    "measure_padded",
    "normalized_entropy",
    "ordered_linear",
    "pack",
    "pack_padded",
    "pair_features",
    "post_norm_first",
    "post_norm_layer",
    "post_norm_rest",
    "prune_rows",
    "prune_tokens",
    "quantize_rows",
    "ragged_attention",
    "ragged_gather",
    "ragged_mean",
    "reference",
    "rotary_embedding",
    "select_samples",
    "top_k_tokens",
    "unpack",
]

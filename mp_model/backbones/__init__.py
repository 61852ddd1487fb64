"""Backbones: how the engine embeds texts and runs one layer, in module form or in prepared form."""

from .bert import RaggedBertEncoder, block_of, embed, embed_padded, why_embedding_modules, why_layer_modules
from .forms import Block, KeysValues, PackedInputs, Survive, first_rows
from .masked import MaskedBatch

__all__ = [
    "Block",
    "KeysValues",
    "MaskedBatch",
    "PackedInputs",
    "RaggedBertEncoder",
    "Survive",
    "block_of",
    "embed",
    "embed_padded",
    "first_rows",
    "why_embedding_modules",
    "why_layer_modules",
]

"""Backbones: how the engine embeds texts and runs one layer, in module form or in prepared form."""

from .bert import RaggedBertEncoder, block_of, embed, why_embedding_modules, why_layer_modules
from .forms import Block, KeysValues, PackedInputs, Survive, first_rows

__all__ = [
    "Block",
    "KeysValues",
    "PackedInputs",
    "RaggedBertEncoder",
    "Survive",
    "block_of",
    "embed",
    "first_rows",
    "why_embedding_modules",
    "why_layer_modules",
]

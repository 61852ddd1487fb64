"""Backbones: how the engine embeds texts and runs one layer, in module form or in prepared form."""

from .attention import MaskedBatch
from .backbone import Backbone
from .forms import Block, KeysValues, PackedInputs, Survive, block_of, first_rows, why_layer_modules
from .table import BACKBONES, backbone_of

__all__ = [
    "BACKBONES",
    "Backbone",
    "Block",
    "KeysValues",
    "MaskedBatch",
    "PackedInputs",
    "Survive",
    "backbone_of",
    "block_of",
    "first_rows",
    "why_layer_modules",
]

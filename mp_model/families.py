"""The models of each backbone: a pyramid's behaviour over transformers' class of the same task."""

from __future__ import annotations

from typing import Any

from .backbones import BACKBONES, Backbone
from .configuration import config_class
from .modelling import PyramidForSequenceClassification, PyramidModel


def _make(ours: type, stock: Any, name: str, backbone: Backbone) -> type:
    """A class under its own name in this module, by which it is found again where a model was pickled."""
    made = type(
        name,
        (ours, stock),
        {
            "__module__": __name__,
            "__doc__": ours.__doc__,
            "backbone": backbone,
            "config_class": config_class(backbone),
            "_no_split_modules": [backbone.embeddings_name, backbone.layer_name],
            "_keys_to_ignore_on_load_unexpected": list(backbone.unused),
        },
    )
    globals()[name] = made
    return made


for _backbone in BACKBONES.values():
    _make(PyramidModel, _backbone.encoder, _backbone.encoder_name, _backbone)
    _make(
        PyramidForSequenceClassification,
        _backbone.classifier,
        f"Pyramid{_backbone.name}ForSequenceClassification",
        _backbone,
    )

"""The backbones that there are: the one table that names them."""

from __future__ import annotations

from . import bert, distilbert, electra, modernbert, mpnet, roberta
from .backbone import Backbone

BACKBONES: dict[str, Backbone] = {
    backbone.model_type: backbone
    for backbone in (
        bert.BACKBONE,
        *roberta.BACKBONES,
        distilbert.BACKBONE,
        electra.BACKBONE,
        mpnet.BACKBONE,
        modernbert.BACKBONE,
    )
}

PREFIX = "pyramid_"  # of the types of pyramids


def backbone_of(model_type: str | None) -> Backbone:
    """The backbone of a configuration's ``model_type``, stock's or a pyramid's; None: BERT's, as old ones state no type.

    Raises:
        ValueError: there is none of that type; the message names those that there are.
    """
    backbone = BACKBONES.get((model_type or bert.BACKBONE.model_type).removeprefix(PREFIX))
    if backbone is None:
        raise ValueError(
            f"a model of type {model_type!r} is no encoder that a pyramid is built from; those are {', '.join(BACKBONES)}"
        )
    return backbone

"""ELECTRA: BERT with narrow embeddings that are projected, and a head with a GELU."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import ElectraConfig
from transformers.models.electra import modeling_electra

from .backbone import Backbone
from .bert_like import ragged_classes
from .embeddings import PLAIN

RAGGED = ragged_classes(modeling_electra, "Electra", __name__)
globals().update({kind.__name__: kind for kind in RAGGED.values()})


class Electra(Backbone):
    """ELECTRA's discriminator."""

    name = "Electra"
    config = ElectraConfig
    encoder = modeling_electra.ElectraModel
    classifier = modeling_electra.ElectraForSequenceClassification
    ragged = RAGGED
    plain_embeddings = PLAIN | {modeling_electra.ElectraEmbeddings}
    unused = (*Backbone.unused, r"^discriminator_predictions\.", r"^generator_")

    def embedded_width(self, config: Any) -> int:
        return config.embedding_size

    def project(self, encoder: Any, embedded: Tensor) -> Tensor:
        projection = encoder._modules.get("embeddings_project")
        return embedded if projection is None else projection(embedded)


BACKBONE = Electra()

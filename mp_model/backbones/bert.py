"""BERT."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import BertConfig
from transformers.models.bert import modeling_bert

from .backbone import Backbone
from .bert_like import ragged_classes
from .embeddings import PLAIN

RAGGED = ragged_classes(modeling_bert, "Bert", __name__)
globals().update({kind.__name__: kind for kind in RAGGED.values()})


class Bert(Backbone):
    """BERT, whose head reads its pooler."""

    name = "Bert"
    config = BertConfig
    encoder = modeling_bert.BertModel
    classifier = modeling_bert.BertForSequenceClassification
    ragged = RAGGED
    plain_embeddings = PLAIN | {modeling_bert.BertEmbeddings}
    own_head = ("classifier.", "bert.pooler.")
    unused = (*Backbone.unused, r"^cls\.")

    @property
    def encoder_name(self) -> str:
        return "PyramidBert"

    def final_head(self, model: Any, read: Tensor) -> Tensor:
        return model.classifier(model.dropout(model.bert.pooler(read.unsqueeze(1))))


BACKBONE = Bert()

"""RoBERTa, and the models of other languages that share its design: XLM-RoBERTa and CamemBERT."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import CamembertConfig, PreTrainedConfig, PreTrainedModel, RobertaConfig, XLMRobertaConfig
from transformers.models.camembert import modeling_camembert
from transformers.models.roberta import modeling_roberta
from transformers.models.xlm_roberta import modeling_xlm_roberta

from .backbone import Backbone
from .bert_like import ragged_classes
from .embeddings import PLAIN

ROBERTA = ragged_classes(modeling_roberta, "Roberta", __name__)
XLM_ROBERTA = ragged_classes(modeling_xlm_roberta, "XLMRoberta", __name__)
CAMEMBERT = ragged_classes(modeling_camembert, "Camembert", __name__)
globals().update({kind.__name__: kind for kinds in (ROBERTA, XLM_ROBERTA, CAMEMBERT) for kind in kinds.values()})


class Roberta(Backbone):
    """RoBERTa: BERT whose positions begin after the padding's, with a head of its own."""

    name = "Roberta"
    config: ClassVar[type[PreTrainedConfig]] = RobertaConfig
    encoder: ClassVar[type[PreTrainedModel]] = modeling_roberta.RobertaModel
    classifier: ClassVar[type[PreTrainedModel]] = modeling_roberta.RobertaForSequenceClassification
    ragged = ROBERTA
    plain_embeddings = PLAIN | {modeling_roberta.RobertaEmbeddings}
    unused = (*Backbone.unused, r"^lm_head\.", r"\.pooler\.")

    def first_position(self, config: Any) -> int:
        return config.pad_token_id + 1


class XLMRoberta(Roberta):
    """XLM-RoBERTa."""

    name = "XLMRoberta"
    config = XLMRobertaConfig
    encoder = modeling_xlm_roberta.XLMRobertaModel
    classifier = modeling_xlm_roberta.XLMRobertaForSequenceClassification
    ragged = XLM_ROBERTA
    plain_embeddings = PLAIN | {modeling_xlm_roberta.XLMRobertaEmbeddings}


class Camembert(Roberta):
    """CamemBERT."""

    name = "Camembert"
    config = CamembertConfig
    encoder = modeling_camembert.CamembertModel
    classifier = modeling_camembert.CamembertForSequenceClassification
    ragged = CAMEMBERT
    plain_embeddings = PLAIN | {modeling_camembert.CamembertEmbeddings}


BACKBONES = Roberta(), XLMRoberta(), Camembert()

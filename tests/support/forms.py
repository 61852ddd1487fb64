"""Models whose modules something is done to, and comparisons of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mp_model import PyramidBertForSequenceClassification
from mp_model.backbones import why_layer_modules

from . import tiny

BATCH = tiny.samples()
LABELS = torch.arange(len(BATCH)) % 3
ONE_TEXT = tiny.samples((11,)).padded()
CPU = torch.device("cpu")

EMBEDDINGS = "bert.embeddings"
PARTS_OF_EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm", "dropout")
PARTS_OF_A_LAYER = (
    *("attention", "attention.self", "attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.output", "attention.output.dense", "attention.output.LayerNorm", "attention.output.dropout"),
    *("intermediate", "intermediate.dense", "intermediate.intermediate_act_fn"),
    *("output", "output.dense", "output.LayerNorm", "output.dropout"),
)
# The last layer computes nothing but [CLS].
LAYERS = ("bert.encoder.layer.1", "bert.encoder.layer.3")
MODULES = (
    EMBEDDINGS,
    *(f"{EMBEDDINGS}.{part}" for part in PARTS_OF_EMBEDDINGS),
    *(name for layer in LAYERS for name in (layer, *(f"{layer}.{part}" for part in PARTS_OF_A_LAYER))),
    *("bert.pooler", "bert.pooler.dense", "dropout", "classifier"),
)

MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "gradients": torch.enable_grad}


def reasons(model: PyramidBertForSequenceClassification) -> list[str | None]:
    """Why the embeddings and the layers run in module form; None: prepared."""
    layers = [why_layer_modules(layer, CPU) for layer in model.bert.encoder.layer]
    return [model.backbone.why_embedding_modules(model.bert, CPU), *layers]


def assert_same_logits(model: nn.Module, other: nn.Module, inputs: dict[str, Tensor] | None = None) -> None:
    inputs = BATCH.padded() if inputs is None else inputs
    torch.testing.assert_close(model(**inputs).logits, other(**inputs).logits, atol=1e-5, rtol=1e-5)

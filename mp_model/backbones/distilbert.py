"""DistilBERT: BERT without token types and pooler, under other names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers import DistilBertConfig
from transformers.models.distilbert import modeling_distilbert as stock

from mp_kernels import Ragged

from . import post_norm
from .attention import MaskedBatch, attend_by_modules, going_on
from .backbone import Backbone
from .embeddings import PLAIN
from .forms import Survive
from .post_norm import Parts, PostNormLayer


class RaggedDistilBertSelfAttention(stock.DistilBertSelfAttention):
    """Self-attention and its projection, for the tokens that go on, and their entering states."""

    def forward(  # type: ignore[override]
        self, values: Tensor, batch: Ragged | MaskedBatch, survive: Survive | None, first_only: bool
    ) -> tuple[Tensor, Tensor]:
        projections = self.q_lin, self.k_lin, self.v_lin
        context, importance = attend_by_modules(
            self.n_heads, *projections, values, batch, first_only, survive is not None
        )
        context, residual = going_on(context, importance, values, batch, survive, first_only)
        return self.out_lin(context), residual


class RaggedTransformerBlock(PostNormLayer, stock.TransformerBlock):
    """A layer of DistilBERT."""

    activation = "activation"

    def forward(  # type: ignore[override]
        self, values: Tensor, batch: Ragged | MaskedBatch, survive: Survive | None = None, first_only: bool = False
    ) -> Tensor:
        context, residual = self.attention(values, batch, survive, first_only)
        attended = self.sa_layer_norm(context + residual)
        return self.output_layer_norm(self.ffn(attended) + attended)

    def parts(self) -> Parts:
        modules: dict[str, Any] = self._modules
        attention, ffn = modules["attention"], modules["ffn"]
        own, feed = attention._modules, ffn._modules
        return Parts(
            attention.n_heads,
            own["q_lin"],
            own["k_lin"],
            own["v_lin"],
            own["out_lin"],
            modules["sa_layer_norm"],
            feed["lin1"],
            ffn.activation,
            feed["lin2"],
            modules["output_layer_norm"],
        )


RaggedTransformerBlock.plain = post_norm.PLAIN | {RaggedTransformerBlock, RaggedDistilBertSelfAttention, stock.FFN}

RAGGED: dict[type[nn.Module], type[nn.Module]] = {
    stock.DistilBertSelfAttention: RaggedDistilBertSelfAttention,
    stock.TransformerBlock: RaggedTransformerBlock,
}
SETTINGS = {
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout": "seq_classif_dropout",
}


class DistilBert(Backbone):
    """DistilBERT."""

    name = "DistilBert"
    config = DistilBertConfig
    encoder = stock.DistilBertModel
    classifier = stock.DistilBertForSequenceClassification
    ragged = RAGGED
    plain_embeddings = PLAIN | {stock.Embeddings}
    settings = SETTINGS
    own_head = ("classifier.", "pre_classifier.")
    unused = (*Backbone.unused, r"^vocab_")

    def make_ragged(self, encoder: Any) -> None:
        super().make_ragged(encoder)
        for layer in self.layers(encoder):
            layer.ffn.chunk_size_feed_forward = 0  # type: ignore[union-attr]  # packed rows have no second dimension

    def layers(self, encoder: Any) -> Sequence[nn.Module]:
        return encoder.transformer.layer

    def call_embeddings(self, encoder: Any, words: Tensor, token_types: Tensor, positions: Tensor) -> Tensor:
        if words.is_floating_point():
            return encoder.embeddings(None, words, positions)
        return encoder.embeddings(words, position_ids=positions)

    def final_head(self, model: Any, read: Tensor) -> Tensor:
        return model.classifier(model.dropout(model.pre_classifier(read).relu()))


BACKBONE = DistilBert()

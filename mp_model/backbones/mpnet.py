"""MPNet: BERT whose layers share a bias by the distance of two tokens."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MPNetConfig
from transformers.models.mpnet import modeling_mpnet as stock

from mp_kernels import Ragged

from . import post_norm
from .attention import MaskedBatch, Relation, attend_by_modules, going_on
from .backbone import Backbone
from .embeddings import PLAIN
from .forms import Survive
from .post_norm import Parts, PostNormLayer

FARTHEST = 128  # from this distance on all pairs have one bias


@functools.cache
def buckets(device: torch.device) -> Tensor:
    """int32 ``[2 * FARTHEST + 1]``, the bucket of each distance of a key from its query."""
    with torch.inference_mode(False):
        distances = torch.arange(-FARTHEST, FARTHEST + 1)
        return stock.MPNetEncoder.relative_position_bucket(distances).to(device, torch.int32)


class RaggedMPNetSelfAttention(stock.MPNetSelfAttention):
    """Self-attention with a bias and its projection, for the tokens that go on, and their entering states."""

    def forward(  # type: ignore[override]
        self,
        values: Tensor,
        batch: Ragged | MaskedBatch,
        survive: Survive | None,
        first_only: bool,
        relation: Relation,
    ) -> tuple[Tensor, Tensor]:
        projections, choose = (self.q, self.k, self.v), survive is not None
        context, importance = attend_by_modules(
            self.num_attention_heads, *projections, values, batch, first_only, choose, relation
        )
        context, residual = going_on(context, importance, values, batch, survive, first_only)
        return self.o(context), residual


class RaggedMPNetAttention(stock.MPNetAttention):
    """Attention with its residual, for the tokens that go on."""

    def forward(  # type: ignore[override]
        self,
        values: Tensor,
        batch: Ragged | MaskedBatch,
        survive: Survive | None,
        first_only: bool,
        relation: Relation,
    ) -> Tensor:
        context, residual = self.attn(values, batch, survive, first_only, relation)
        return self.LayerNorm(self.dropout(context) + residual)


class RaggedMPNetLayer(PostNormLayer, stock.MPNetLayer):
    """A layer of MPNet.

    Attributes:
        stack: the encoder that it is a layer of, which holds the bias; no module of the layer's own.
    """

    def forward(  # type: ignore[override]
        self, values: Tensor, batch: Ragged | MaskedBatch, survive: Survive | None = None, first_only: bool = False
    ) -> Tensor:
        attended = self.attention(values, batch, survive, first_only, self.relation())
        return self.output(self.intermediate(attended), attended)

    def relation(self) -> Relation:
        table = self.__dict__["stack"].relative_attention_bias
        every = torch.arange(table.num_embeddings, device=table.weight.device)
        return Relation(bias=table(every).t(), buckets=buckets(table.weight.device))

    def parts(self) -> Parts:
        modules: dict[str, Any] = self._modules
        attention, grow, shrink = modules["attention"], modules["intermediate"], modules["output"]
        own = attention.attn
        return Parts(
            own.num_attention_heads,
            own.q,
            own.k,
            own.v,
            own.o,
            attention.LayerNorm,
            grow.dense,
            grow.intermediate_act_fn,
            shrink.dense,
            shrink.LayerNorm,
        )


RaggedMPNetLayer.plain = post_norm.PLAIN | {
    *(RaggedMPNetLayer, RaggedMPNetAttention, RaggedMPNetSelfAttention),
    *(stock.MPNetIntermediate, stock.MPNetOutput),
}

RAGGED: dict[type[nn.Module], type[nn.Module]] = {
    stock.MPNetSelfAttention: RaggedMPNetSelfAttention,
    stock.MPNetAttention: RaggedMPNetAttention,
    stock.MPNetLayer: RaggedMPNetLayer,
}


class MPNet(Backbone):
    """MPNet."""

    name = "MPNet"
    config = MPNetConfig
    encoder = stock.MPNetModel
    classifier = stock.MPNetForSequenceClassification
    ragged = RAGGED
    plain_embeddings = PLAIN | {stock.MPNetEmbeddings}
    placed = True
    unused = (*Backbone.unused, r"^lm_head\.", r"\.pooler\.")

    def make_ragged(self, encoder: Any) -> None:
        super().make_ragged(encoder)
        for layer in self.layers(encoder):
            layer.__dict__["stack"] = encoder.encoder

    def first_position(self, config: Any) -> int:
        return 2  # whatever the padding's id is: transformers' embeddings count with 1

    def call_embeddings(self, encoder: Any, words: Tensor, token_types: Tensor, positions: Tensor) -> Tensor:
        name = "inputs_embeds" if words.is_floating_point() else "input_ids"
        return encoder.embeddings(**{name: words}, position_ids=positions)


BACKBONE = MPNet()

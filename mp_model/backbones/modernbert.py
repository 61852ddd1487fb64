"""ModernBERT: layers that normalise first, rotary positions, windows, gated feed-forward; up to 8,192 tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ModernBertConfig
from transformers.activations import GELUActivation
from transformers.models.modernbert import modeling_modernbert as stock

import mp_kernels
from mp_kernels import Ragged
from mp_kernels.products import in_blocks

from . import post_norm
from .attention import MaskedBatch, Relation, attend, going_on
from .backbone import Backbone
from .embeddings import PLAIN, word_rows
from .forms import (
    Block,
    KeysValues,
    ModuleBlock,
    PackedInputs,
    RaggedLayer,
    Survive,
    first_rows,
    modules_within,
    why_modules,
    why_modules_now,
)
from .int8 import Int8Linear
from .prepared import PreparedBlock

CHANGING = "dynamic", "longrope"  # kinds of rotary positions whose frequencies depend on the longest text of a batch


class RaggedModernBertRotaryEmbedding(stock.ModernBertRotaryEmbedding):
    """Angles of all positions, computed once."""

    tables: dict[tuple[str, torch.device], tuple[Tensor, Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tables": None}

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.tables = None
        return super()._apply(*args, **kwargs)

    def table(self, layer_type: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 ``[positions, head_dim / 2]``, for a kind of layer."""
        if self.tables is None:
            self.tables = {}
        if (layer_type, device) not in self.tables:
            with torch.inference_mode(False):
                every = torch.arange(self.config.max_position_embeddings, device=device)[None]
                angles = self(torch.empty(0, device=device), every, layer_type)
                cos, sin = (x[0, :, : x.shape[2] // 2].contiguous() for x in angles)
            self.tables[layer_type, device] = cos, sin
        return self.tables[layer_type, device]


class RaggedModernBertAttention(stock.ModernBertAttention):
    """Self-attention and its projection, for the tokens that go on, and their entering states."""

    def forward(  # type: ignore[override]
        self,
        normed: Tensor,
        values: Tensor,
        batch: Ragged | MaskedBatch,
        survive: Survive | None,
        first_only: bool,
        angles: tuple[Tensor, Tensor],
        relation: Relation | None,
    ) -> tuple[Tensor, Tensor]:
        query, key, value = self.Wqkv(normed).chunk(3, dim=-1)
        heads, choose = self.config.num_attention_heads, survive is not None
        if isinstance(batch, MaskedBatch):
            query, key = (_rotate_columns(x, heads, *angles) for x in (query, key))
            context, importance = batch.attend(heads, query, key, value, choose, relation)
        else:
            assert batch.positions is not None
            places = batch.positions
            key = rotate(key, heads, places, *angles)
            if first_only:
                query, places = first_rows(query, batch), places[batch.cu_seqlens[:-1]]
            query = rotate(query, heads, places, *angles)
            context, importance = attend(heads, query, key, value, batch, choose, relation=relation)
        context, residual = going_on(context, importance, values, batch, survive, first_only)
        return self.out_drop(self.Wo(context)), residual


def rotate(x: Tensor, heads: int, positions: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys ``[rows, hidden]`` turned by the angles of their positions, int32 ``[rows]``."""
    return mp_kernels.rotary_embedding(x.unflatten(1, (heads, -1)), positions, cos, sin).flatten(1)


def _rotate_columns(x: Tensor, heads: int, cos: Tensor, sin: Tensor) -> Tensor:
    """The same in plain PyTorch for a padded batch ``[batch, width, hidden]``; a place is a column."""
    left, right = x.unflatten(2, (heads, 2, -1)).float().unbind(3)
    cos, sin = (table[: x.shape[1], None] for table in (cos, sin))
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=3).flatten(2).to(x.dtype)


class RaggedModernBertEncoderLayer(RaggedLayer, stock.ModernBertEncoderLayer):
    """A layer of ModernBERT; its states are the sums of the residuals.

    Attributes:
        rotary: the encoder's angles; no module of the layer's own.
    """

    attention_type: str

    def forward(  # type: ignore[override]
        self, values: Tensor, batch: Ragged | MaskedBatch, survive: Survive | None = None, first_only: bool = False
    ) -> Tensor:
        angles, relation = self.angles(values.device), self.relation()
        context, residual = self.attn(self.attn_norm(values), values, batch, survive, first_only, angles, relation)
        attended = residual + context
        return attended + self.mlp(self.mlp_norm(attended))

    def angles(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of all positions in this layer."""
        return self.__dict__["rotary"].table(self.attention_type, device)

    def relation(self) -> Relation | None:
        """The layer's window, where it has one."""
        is_local = self.attention_type == "sliding_attention"
        return Relation(window=self.config.sliding_window) if is_local else None

    def why_modules(self, device: torch.device) -> str | None:
        now = why_modules_now(device)
        if now is not None:
            return now
        if type(self) not in self.plain:
            return f"the layer is a {type(self).__name__}"
        return why_modules(modules_within(self, "act"), self.plain, complete=False)

    def block(self, device: torch.device) -> Block:
        return ModernBertBlock(self, device) if self.why_modules(device) is None else ModuleBlock(self)


RaggedModernBertEncoderLayer.plain = post_norm.PLAIN | {
    *(RaggedModernBertEncoderLayer, RaggedModernBertAttention, stock.ModernBertMLP, nn.Identity)
}


class ModernBertBlock(PreparedBlock):
    """The prepared form: keys and values without queries where an exit decides first; a gate in one pass."""

    def __init__(self, layer: RaggedModernBertEncoderLayer, device: torch.device) -> None:
        super().__init__(layer.config.num_attention_heads, layer.relation())
        self.layer: Any = layer
        self.width: int = layer.config.hidden_size
        self.angles = layer.angles(device)

    def queries(self, values: Tensor, places: Tensor | None) -> Tensor:
        return self._rotated(self._project(self.layer.attn_norm(values), slice(self.width)), places)

    def keys_values(self, batch: Ragged) -> KeysValues:
        rows = self._project(self.layer.attn_norm(batch.values), slice(self.width, None))
        rows[:, : self.width] = self._rotated(rows[:, : self.width], batch.positions)
        return KeysValues(rows, batch)

    def projections(self, batch: Ragged) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self._project(self.layer.attn_norm(batch.values), slice(None)).chunk(3, dim=1)
        return self._rotated(query, batch.positions), self._rotated(key, batch.positions), value

    def _project(self, normed: Tensor, outputs: slice) -> Tensor:
        """A range of the outputs of queries, keys and values, in this order: ``[rows, outputs]``."""
        linear = self.layer.attn.Wqkv
        if isinstance(linear, Int8Linear):
            return linear.part(normed, outputs)
        bias = None if linear.bias is None else linear.bias[outputs]
        return mp_kernels.linear(normed, linear.weight[outputs], bias)

    def _rotated(self, x: Tensor, places: Tensor | None) -> Tensor:
        assert places is not None
        return rotate(x, self.heads, places, *self.angles)

    def finish(self, context: Tensor, residual: Tensor, index: Tensor | None = None) -> Tensor:
        residual = residual if index is None else mp_kernels.ragged_gather(residual, index)
        attended = _added(residual, self.layer.attn.Wo, context)
        mlp, grown = self.layer.mlp, _product(self.layer.mlp.Wi, self.layer.mlp_norm(attended))
        if type(mlp.act) is GELUActivation:
            return _added(attended, mlp.Wo, mp_kernels.gelu_gate(grown))
        inner, gate = grown.chunk(2, dim=1)
        return _added(attended, mlp.Wo, mlp.act(inner) * gate)


def _product(linear: Any, x: Tensor) -> Tensor:
    """``linear(x)``, by its weights where they are not int8."""
    return mp_kernels.linear(x, linear.weight, linear.bias) if type(linear) is nn.Linear else linear(x)


def _added(residual: Tensor, linear: Any, x: Tensor) -> Tensor:
    """``residual + linear(x)``, where it can be in the product's own pass."""
    if type(linear) is nn.Linear and linear.bias is None and not in_blocks(x):
        return torch.addmm(residual, x, linear.weight.t())
    return residual + _product(linear, x)


RAGGED: dict[type[nn.Module], type[nn.Module]] = {
    stock.ModernBertRotaryEmbedding: RaggedModernBertRotaryEmbedding,
    stock.ModernBertAttention: RaggedModernBertAttention,
    stock.ModernBertEncoderLayer: RaggedModernBertEncoderLayer,
}
SETTINGS = {"hidden_act": "hidden_activation", "layer_norm_eps": "norm_eps"}


class ModernBert(Backbone):
    """ModernBERT."""

    name = "ModernBert"
    config = ModernBertConfig
    encoder = stock.ModernBertModel
    classifier = stock.ModernBertForSequenceClassification
    ragged = RAGGED
    plain_embeddings = PLAIN | {stock.ModernBertEmbeddings}
    settings = SETTINGS
    placed = True
    own_head = ("classifier.", "head.")
    unused = (*Backbone.unused, r"^decoder\.")

    def check(self, config: Any) -> None:
        super().check(config)
        for layer_type, settings in (config.rope_parameters or {}).items():
            if settings and settings.get("rope_type") in CHANGING:
                raise ValueError(
                    f"rope_parameters of {layer_type} are {settings['rope_type']!r}, whose angles depend on the other texts "
                    "of a batch; a pyramid follows those that do not"
                )

    def last_reads_all(self, config: Any) -> bool:
        return config.classifier_pooling == "mean"

    def settings_of_layers(self, config: Any, chosen: slice) -> dict[str, Any]:
        return {**super().settings_of_layers(config, chosen), "layer_types": config.layer_types[chosen]}

    def feed_forward_size(self, config: Any) -> int:
        return 3 * config.hidden_size * config.intermediate_size

    def windows(self, config: Any) -> list[int | None]:
        return [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]

    def make_ragged(self, encoder: Any) -> None:
        super().make_ragged(encoder)
        for layer in self.layers(encoder):
            layer.__dict__["rotary"] = encoder.rotary_emb

    def layers(self, encoder: Any) -> Sequence[nn.Module]:
        return encoder.layers

    def dtype(self, encoder: Any) -> torch.dtype:
        return encoder.final_norm.weight.dtype

    def embed(self, encoder: Any, inputs: PackedInputs) -> Ragged:
        # Nothing is summed, so the module itself is called on rows, unless hooks count on samples in the first dimension.
        if self.why_embedding_modules(encoder, inputs.words.values.device) is None:
            rows, ids = word_rows(encoder.embeddings.tok_embeddings, inputs.words.values)
            words = rows if ids is None else mp_kernels.ragged_gather(rows, ids)
            return inputs.with_values(encoder.embeddings.norm(words), self.placed)
        return super().embed(encoder, inputs)

    def call_embeddings(self, encoder: Any, words: Tensor, token_types: Tensor, positions: Tensor) -> Tensor:
        return encoder.embeddings(**{"inputs_embeds" if words.is_floating_point() else "input_ids": words})

    def why_embedding_modules(self, encoder: Any, device: torch.device) -> str | None:
        modules = (encoder.embeddings, *encoder.embeddings.children())
        return why_modules_now(device) or why_modules(modules, self.plain_embeddings, complete=False)

    def read(self, encoder: Any, states: Tensor) -> Tensor:
        return encoder.final_norm(states)

    def final_head(self, model: Any, read: Tensor) -> Tensor:
        return model.classifier(model.drop(model.head(read)))


BACKBONE = ModernBert()

"""BERT: transformers' own modules on packed rows, and the same layer prepared for inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import (
    BertAttention,
    BertEmbeddings,
    BertIntermediate,
    BertLayer,
    BertOutput,
    BertSelfAttention,
    BertSelfOutput,
)

import mp_kernels
from mp_kernels import Kept, Ragged
from mp_kernels.memory import cache_blocks

from .forms import Block, PackedInputs, Survive, why_modules, why_modules_now


class RaggedBertSelfAttention(BertSelfAttention):
    """BERT's self-attention over the tokens of the same sample in a packed batch."""

    def forward(  # type: ignore[override]
        self, values: Tensor, batch: Ragged, first_only: bool, need_importance: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Context ``[total, hidden]`` (``first_only``: of each sample's [CLS], ``[batch, hidden]``), and importance."""
        queries = self.query(first_rows(values, batch) if first_only else values)
        return attend(self.num_attention_heads, queries, self.key(values), self.value(values), batch, need_importance)


class RaggedBertAttention(BertAttention):
    """BERT's attention with its residual, for the tokens that survive."""

    def __init__(self, config: Any, layer_idx: int | None = None) -> None:
        super().__init__(config, layer_idx=layer_idx)
        self.self = RaggedBertSelfAttention(config, layer_idx=layer_idx)

    def forward(  # type: ignore[override]
        self, values: Tensor, batch: Ragged, survive: Survive | None, first_only: bool
    ) -> tuple[Tensor, Kept | None]:
        context, importance = self.self(values, batch, first_only, survive is not None)
        kept = None if survive is None else survive(importance)
        residual = first_rows(values, batch) if first_only else values
        if kept is not None:
            context, residual = mp_kernels.ragged_gather([context, residual], kept.index)
        return self.output(context, residual), kept


class RaggedBertLayer(BertLayer):
    """BERT's layer on the packed rows of a batch; its modules, their names and weights are transformers' own.

    Attributes:
        projections: the packed weights of the prepared form, once it was used.
    """

    def __init__(self, config: Any, layer_idx: int | None = None) -> None:
        super().__init__(config, layer_idx=layer_idx)
        self.attention = RaggedBertAttention(config, layer_idx=layer_idx)
        self.projections: Projections | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "projections": None}

    def forward(  # type: ignore[override]
        self, values: Tensor, batch: Ragged, survive: Survive | None = None, first_only: bool = False
    ) -> tuple[Tensor, Kept | None]:
        """The module form of a whole layer.

        Args:
            values: ``[total, hidden]``, the rows that enter.
            batch: their samples; its own values are not read.
            survive: the choice of survivors; None: all.
            first_only: whether to compute the output for [CLS] alone, ``[batch, hidden]``.

        Returns:
            The output of the survivors, and which these are (None: all).
        """
        attended, kept = self.attention(values, batch, survive, first_only)
        return self.feed_forward_chunk(attended), kept


class RaggedBertEncoder(nn.Module):
    """BERT's stack of layers, under its names."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList(RaggedBertLayer(config, layer_idx=i) for i in range(config.num_hidden_layers))


def first_rows(values: Tensor, batch: Ragged) -> Tensor:
    """``[batch, ...]``, each sample's [CLS] among the rows ``[total, ...]``."""
    return mp_kernels.ragged_gather(values, batch.cu_seqlens[:-1].long())


def attend(
    heads: int, query: Tensor, key: Tensor, value: Tensor, batch: Ragged, need_importance: bool
) -> tuple[Tensor, Tensor | None]:
    """Context of the projected queries, and importance by head, float32 ``[heads, total]``.

    query: ``[total, hidden]``, or one row a sample, ``[batch, hidden]``; key, value: ``[total, hidden]``.
    """
    cu_seqlens_q = None
    if query.shape[0] != key.shape[0]:
        cu_seqlens_q = torch.arange(batch.batch_size + 1, dtype=torch.int32, device=query.device)
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in (query, key, value))
    out, importance = mp_kernels.ragged_attention(
        q,
        k,
        v,
        batch.cu_seqlens,
        batch.max_seqlen,
        cu_seqlens_q=cu_seqlens_q,
        need_importance=need_importance,
        by_head=True,
    )
    return out.flatten(1), importance


@dataclass
class BertBlock:
    """The module form: the layer is called as the module that it is."""

    layer: nn.Module
    decides_first = False

    def keys_values(self, values: Tensor) -> Tensor:
        raise NotImplementedError("a module computes its layer whole")

    def first(self, batch: Ragged, keys_values: Tensor | None = None) -> Tensor:
        return self.layer(batch.values, batch, None, True)[0]

    def whole(
        self, batch: Ragged, survive: Survive | None = None, keys_values: Tensor | None = None
    ) -> tuple[Ragged, Kept | None]:
        values, kept = self.layer(batch.values, batch, survive)
        return output_of(values, kept, batch), kept


def output_of(values: Tensor, kept: Kept | None, entering: Ragged) -> Ragged:
    """The packed batch of a layer's output rows."""
    samples = entering if kept is None else kept
    return Ragged(values, samples.cu_seqlens, samples.max_seqlen)


class Projections:
    """Weights and biases of queries, keys and values in one piece, for one product.

    The modules' parameters become views of that piece, so there is no second copy, and weights that are changed in place
    (by an optimiser, by loading) are changed here too. Parameters that were replaced, moved or cast no longer lie here:
    :meth:`hold` says so, and the piece is made anew.
    """

    def __init__(self, linears: Sequence[nn.Linear]) -> None:
        # Made outside inference mode, since what is made inside could not be trained afterwards.
        with torch.inference_mode(False), torch.no_grad():
            self.weight = torch.cat([linear.weight for linear in linears])
            self.bias = torch.cat([linear.bias for linear in linears])
            for name, piece in (("weight", self.weight), ("bias", self.bias)):
                for linear, part in zip(linears, piece.chunk(len(linears)), strict=True):
                    getattr(linear, name).data = part
        self.places = self._places(linears)

    @staticmethod
    def _places(linears: Sequence[nn.Linear]) -> list[int]:
        return [x.data_ptr() for linear in linears for x in (linear.weight, linear.bias)]

    def hold(self, linears: Sequence[nn.Linear]) -> bool:
        """Whether the modules' parameters still lie in this piece."""
        return self.places == self._places(linears) and self.weight.dtype == linears[0].weight.dtype


LAYER_TYPES = frozenset(
    {
        *(RaggedBertLayer, RaggedBertAttention, RaggedBertSelfAttention),
        *(BertSelfOutput, BertIntermediate, BertOutput, nn.Linear, nn.LayerNorm, nn.Dropout),
    }
)
EMBEDDING_TYPES = frozenset({BertEmbeddings, nn.Embedding, nn.LayerNorm, nn.Dropout})


class PreparedBertBlock:
    """The prepared form: one product for queries, keys and values; bias and GELU, residual and LayerNorm in one pass."""

    decides_first = True

    def __init__(self, layer: RaggedBertLayer, projections: Projections) -> None:
        self.layer, self.projections = layer, projections
        self.heads: int = layer.attention.self.num_attention_heads
        self.hidden = projections.weight.shape[1]

    def keys_values(self, values: Tensor) -> Tensor:
        weight, bias = self.projections.weight[self.hidden :], self.projections.bias[self.hidden :]
        return torch.nn.functional.linear(values, weight, bias)

    def _queries(self, values: Tensor) -> Tensor:
        weight, bias = self.projections.weight[: self.hidden], self.projections.bias[: self.hidden]
        return torch.nn.functional.linear(values, weight, bias)

    def first(self, batch: Ragged, keys_values: Tensor | None = None) -> Tensor:
        if keys_values is None:
            keys_values = self.keys_values(batch.values)
        first = first_rows(batch.values, batch)
        key, value = keys_values.chunk(2, dim=1)
        context, _ = attend(self.heads, self._queries(first), key, value, batch, need_importance=False)
        return self._finish(context, first)

    def whole(
        self, batch: Ragged, survive: Survive | None = None, keys_values: Tensor | None = None
    ) -> tuple[Ragged, Kept | None]:
        if keys_values is None:
            projected = torch.nn.functional.linear(batch.values, self.projections.weight, self.projections.bias)
            query, key, value = projected.chunk(3, dim=1)
        else:
            query, (key, value) = self._queries(batch.values), keys_values.chunk(2, dim=1)
        context, importance = attend(self.heads, query, key, value, batch, survive is not None)
        kept = None if survive is None or importance is None else survive(importance)
        if kept is None:
            return output_of(self._finish(context, batch.values), None, batch), None
        context = mp_kernels.ragged_gather(context, kept.index)
        return output_of(self._finish(context, batch.values, kept.index), kept, batch), kept

    def _finish(self, context: Tensor, residual: Tensor, index: Tensor | None = None) -> Tensor:
        """The token-wise rest of the layer, of rows ``context``, whose entering states are ``residual[index]``."""
        attended = _add_and_norm(self.layer.attention.output, context, residual, index)
        dense = self.layer.intermediate.dense
        blocks = cache_blocks(attended, dense.out_features * attended.element_size())
        done = [self._feed_forward(block) for block in blocks]
        return done[0] if len(done) == 1 else torch.cat(done)

    def _feed_forward(self, attended: Tensor) -> Tensor:
        dense, activation = self.layer.intermediate.dense, self.layer.intermediate.intermediate_act_fn
        if type(activation) is GELUActivation:
            # The bias is added on the way through the GELU, not copied into the product's memory before it.
            grown = mp_kernels.bias_gelu(attended @ dense.weight.t(), dense.bias)
        else:
            grown = activation(dense(attended))
        return _add_and_norm(self.layer.output, grown, attended)


def _add_and_norm(output: BertSelfOutput | BertOutput, x: Tensor, residual: Tensor, index: Tensor | None = None) -> Tensor:
    norm = output.LayerNorm
    return mp_kernels.add_layer_norm(output.dense(x), residual, norm.weight, norm.bias, norm.eps, index)


def _parts(layer: RaggedBertLayer) -> tuple[nn.Module, ...]:
    """Every module of a layer but its activation."""
    attention, intermediate, output = layer.attention, layer.intermediate, layer.output
    own, projected = attention.self, attention.output
    return (
        *(layer, attention, own, own.query, own.key, own.value),
        *(projected, projected.dense, projected.LayerNorm, projected.dropout),
        *(intermediate, intermediate.dense, output, output.dense, output.LayerNorm, output.dropout),
    )


def why_layer_modules(layer: nn.Module, device: torch.device) -> str | None:
    """The reason why a layer runs in module form just now on rows of a device; None: it runs in prepared form."""
    if type(layer) is not RaggedBertLayer:
        return f"the layer is a {type(layer).__name__}"
    return why_modules_now(device) or why_modules(_parts(layer), LAYER_TYPES)


def block_of(layer: nn.Module, device: torch.device) -> Block:
    """A layer in the form that applies to it just now on rows of a device."""
    if why_layer_modules(layer, device) is not None:
        return BertBlock(layer)
    assert isinstance(layer, RaggedBertLayer)
    own = layer.attention.self
    linears = (own.query, own.key, own.value)
    if layer.projections is None or not layer.projections.hold(linears):
        layer.projections = Projections(linears)
    return PreparedBertBlock(layer, layer.projections)


def embed(embeddings: nn.Module, inputs: PackedInputs) -> Ragged:
    """BERT's embeddings of packed inputs: ``values [total, hidden]``."""
    words = inputs.words.values
    device = words.device
    parts = tuple(embeddings.children())
    if why_modules_now(device) is not None or why_modules((embeddings, *parts), EMBEDDING_TYPES) is not None:
        named = {"inputs_embeds" if words.is_floating_point() else "input_ids": words.unsqueeze(0)}
        values = embeddings(
            **named,
            token_type_ids=inputs.token_types.unsqueeze(0),
            position_ids=inputs.positions.unsqueeze(0),
        ).squeeze(0)
        return inputs.with_values(values)
    assert isinstance(embeddings, BertEmbeddings)
    ids = None
    if not words.is_floating_point():
        words, ids = embeddings.word_embeddings.weight, words.long()
    # Every sum of a type and a position once, so that each token adds a single row on its way into LayerNorm.
    end = inputs.positions_end
    table = embeddings.token_type_embeddings.weight[:, None] + embeddings.position_embeddings.weight[:end]
    norm = embeddings.LayerNorm
    rows = inputs.token_types * end + inputs.positions
    values = mp_kernels.add_layer_norm(words, table.flatten(0, 1), norm.weight, norm.bias, norm.eps, rows, x_index=ids)
    return inputs.with_values(values)

"""BERT: transformers' own modules on packed rows, and the same layer prepared for inference."""

from __future__ import annotations

from collections.abc import Iterator
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

from .forms import Block, KeysValues, PackedInputs, Survive, first_rows, why_modules, why_modules_now
from .int8 import Int8Embedding, Int8Linear
from .masked import MaskedBatch
from .projections import Projections, why_apart


class RaggedBertSelfAttention(BertSelfAttention):
    """BERT's self-attention over the tokens of the same sample, in a packed batch or in a masked one."""

    def forward(  # type: ignore[override]
        self, values: Tensor, batch: Ragged | MaskedBatch, first_only: bool, need_importance: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Context ``[total, hidden]`` (``first_only``: of each sample's [CLS], ``[batch, hidden]``), and importance."""
        if isinstance(batch, MaskedBatch):
            query, key, value = self.query(values), self.key(values), self.value(values)
            return batch.attend(self.num_attention_heads, query, key, value, need_importance)
        queries = self.query(first_rows(values, batch) if first_only else values)
        return attend(self.num_attention_heads, queries, self.key(values), self.value(values), batch, need_importance)


class RaggedBertAttention(BertAttention):
    """BERT's attention with its residual, for the tokens that survive; its second result is the importance."""

    def __init__(self, config: Any, layer_idx: int | None = None) -> None:
        super().__init__(config, layer_idx=layer_idx)
        self.self = RaggedBertSelfAttention(config, layer_idx=layer_idx)

    def forward(  # type: ignore[override]
        self, values: Tensor, batch: Ragged | MaskedBatch, survive: Survive | None, first_only: bool
    ) -> tuple[Tensor, Tensor | None]:
        context, importance = self.self(values, batch, first_only, survive is not None)
        kept = None if survive is None else survive(importance)
        residual = values
        if first_only:
            assert isinstance(batch, Ragged)
            residual = first_rows(values, batch)
        if kept is not None:
            context, residual = mp_kernels.ragged_gather([context, residual], kept.index)
        return self.output(context, residual), importance


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

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        # Weights that are moved or cast leave the piece, which nobody would need any more.
        self.projections = None
        return super()._apply(*args, **kwargs)

    def forward(  # type: ignore[override]
        self, values: Tensor, batch: Ragged | MaskedBatch, survive: Survive | None = None, first_only: bool = False
    ) -> Tensor:
        """The module form of a whole layer: its output for the survivors, one tensor as in transformers' BERT.

        Args:
            values: ``[total, hidden]``, the rows that enter; ``[batch, width, hidden]`` for a masked batch.
            batch: their samples; its own values are not read.
            survive: the choice of survivors; None: all, or the batch is masked and nothing is taken out.
            first_only: whether to compute the output for [CLS] alone, ``[batch, hidden]``.
        """
        attended, _ = self.attention(values, batch, survive, first_only)
        return self.feed_forward_chunk(attended)


class RaggedBertEncoder(nn.Module):
    """BERT's stack of layers, under its names."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layer = nn.ModuleList(RaggedBertLayer(config, layer_idx=i) for i in range(config.num_hidden_layers))


def attend(
    heads: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: Ragged,
    need_importance: bool,
    cu_seqlens_q: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Context of the projected queries, and importance by head, float32 ``[heads, total]``.

    Args:
        heads: number of heads.
        query: ``[total, hidden]``; or one row for each sample, ``[batch, hidden]``; or as ``cu_seqlens_q`` says.
        key, value: ``[total, hidden]``.
        batch: their samples.
        need_importance: whether importance is wanted; else None comes in its place.
        cu_seqlens_q: int32 ``[batch + 1]``, the first query of each sample.
    """
    if cu_seqlens_q is None and query.shape[0] != key.shape[0]:
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

    def keys_values(self, batch: Ragged) -> KeysValues:
        raise NotImplementedError("a module computes its layer whole")

    def first(self, batch: Ragged, keys_values: KeysValues | None = None) -> Tensor:
        return self.layer(batch.values, batch, None, True)

    def whole(
        self, batch: Ragged, survive: Survive | None = None, keys_values: KeysValues | None = None
    ) -> tuple[Ragged, Kept | None]:
        kept: Kept | None = None

        def choose(importance: Tensor) -> Kept | None:
            nonlocal kept
            assert survive is not None
            kept = survive(importance)
            return kept

        values = self.layer(batch.values, batch, None if survive is None else choose)
        return output_of(values, kept, batch), kept


def output_of(values: Tensor, kept: Kept | None, entering: Ragged) -> Ragged:
    """The packed batch of a layer's output rows."""
    samples = entering if kept is None else kept
    return Ragged(values, samples.cu_seqlens, samples.max_seqlen)


LAYER_TYPES = frozenset(
    {
        *(RaggedBertLayer, RaggedBertAttention, RaggedBertSelfAttention),
        *(BertSelfOutput, BertIntermediate, BertOutput, nn.Linear, nn.LayerNorm, nn.Dropout, GELUActivation),
        Int8Linear,
    }
)
EMBEDDING_TYPES = frozenset({BertEmbeddings, nn.Embedding, Int8Embedding, nn.LayerNorm, nn.Dropout})


class PreparedBertBlock:
    """The prepared form: one product for queries, keys and values; bias and GELU, residual and LayerNorm in one pass."""

    decides_first = True

    def __init__(self, layer: RaggedBertLayer, projections: Projections) -> None:
        self.layer, self.projections = layer, projections
        self.heads: int = layer.attention.self.num_attention_heads
        self.width: int = layer.attention.self.all_head_size

    def keys_values(self, batch: Ragged) -> KeysValues:
        return KeysValues(self._project(batch.values, slice(self.width, None)), batch)

    def _queries(self, values: Tensor) -> Tensor:
        return self._project(values, slice(self.width))

    def _project(self, values: Tensor, outputs: slice) -> Tensor:
        """A range of the outputs of queries, keys and values, in this order: ``[rows, outputs]``."""
        own = self.projections.rows(outputs)
        return torch.nn.functional.linear(values, own["weight"], own["bias"])

    def first(self, batch: Ragged, keys_values: KeysValues | None = None) -> Tensor:
        if keys_values is None:
            keys_values = self.keys_values(batch)
        first = first_rows(batch.values, batch)
        key, value = keys_values.rows.chunk(2, dim=1)
        context, _ = attend(self.heads, self._queries(first), key, value, batch, need_importance=False)
        return self._finish(context, first)

    def whole(
        self, batch: Ragged, survive: Survive | None = None, keys_values: KeysValues | None = None
    ) -> tuple[Ragged, Kept | None]:
        if keys_values is None:
            context, importance = self._attend_to_all(batch, survive is not None)
        else:
            query, (key, value) = self._queries(batch.values), keys_values.rows.chunk(2, dim=1)
            entered, cu_seqlens_q = keys_values.batch, keys_values.cu_seqlens_q
            context, importance = attend(self.heads, query, key, value, entered, survive is not None, cu_seqlens_q)
            if importance is not None and keys_values.asking is not None:
                importance = importance[:, keys_values.asking]
        kept = None if survive is None or importance is None else survive(importance)
        if kept is None:
            return output_of(self._finish(context, batch.values), None, batch), None
        context = mp_kernels.ragged_gather(context, kept.index)
        return output_of(self._finish(context, batch.values, kept.index), kept, batch), kept

    def _attend_to_all(self, batch: Ragged, need_importance: bool) -> tuple[Tensor, Tensor | None]:
        """Context and importance; the projections are not needed after it, and their memory is free again."""
        query, key, value = self._project(batch.values, slice(None)).chunk(3, dim=1)
        return attend(self.heads, query, key, value, batch, need_importance)

    def _finish(self, context: Tensor, residual: Tensor, index: Tensor | None = None) -> Tensor:
        """The token-wise rest of the layer, of rows ``context``, whose entering states are ``residual[index]``."""
        attended = self._add_and_norm(self.layer.attention.output, context, residual, index)
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
        return self._add_and_norm(self.layer.output, grown, attended)

    def _add_and_norm(
        self, output: BertSelfOutput | BertOutput, x: Tensor, residual: Tensor, index: Tensor | None = None
    ) -> Tensor:
        norm = output.LayerNorm
        return mp_kernels.add_layer_norm(output.dense(x), residual, norm.weight, norm.bias, norm.eps, index)


class Int8BertBlock(PreparedBertBlock):
    """The prepared form on int8 weights: rows are quantised on their way into each product, with a scale of their own."""

    def _project(self, values: Tensor, outputs: slice) -> Tensor:
        rows, scales = mp_kernels.quantize_rows(values)
        own = self.projections.rows(outputs)
        return mp_kernels.dequantize(torch._int_mm(rows, own["weight"].t()), scales, own["scale"], own["bias"])

    def _feed_forward(self, attended: Tensor) -> Tensor:
        dense: Any = self.layer.intermediate.dense
        activation = self.layer.intermediate.intermediate_act_fn
        if type(activation) is not GELUActivation:
            return self._add_and_norm(self.layer.output, activation(dense(attended)), attended)
        rows, scales = mp_kernels.quantize_rows(attended)
        product = torch._int_mm(rows, dense.weight.t())
        grown = mp_kernels.dequantize_gelu(product, scales, dense.scale, dense.bias)
        return _normed_product(self.layer.output, *grown, attended)

    def _add_and_norm(
        self, output: BertSelfOutput | BertOutput, x: Tensor, residual: Tensor, index: Tensor | None = None
    ) -> Tensor:
        return _normed_product(output, *mp_kernels.quantize_rows(x), residual, index)


def _normed_product(output: Any, rows: Tensor, scales: Tensor, residual: Tensor, index: Tensor | None = None) -> Tensor:
    """LayerNorm of the output's int8 layer on quantised rows, with the residual ``residual[index]``."""
    dense, norm = output.dense, output.LayerNorm
    return mp_kernels.dequantize_add_layer_norm(
        torch._int_mm(rows, dense.weight.t()),
        scales,
        dense.scale,
        dense.bias,
        residual,
        norm.weight,
        norm.bias,
        norm.eps,
        index,
    )


def _parts(layer: RaggedBertLayer) -> Iterator[nn.Module]:
    """Every module of a layer but an activation that the prepared form calls; what a module holds comes after it."""
    modules: list[nn.Module] = [layer]
    for module in modules:
        yield module
        # From the dictionary, since attributes of modules are found slowly, and every layer asks every time.
        parts: dict[str, Any] = module._modules
        if type(module) is BertIntermediate and type(parts["intermediate_act_fn"]) is not GELUActivation:
            modules.append(module.dense)
        else:
            modules += parts.values()


def why_layer_modules(layer: nn.Module, device: torch.device) -> str | None:
    """The reason why a layer runs in module form just now on rows of a device; None: it runs in prepared form."""
    if type(layer) is not RaggedBertLayer:
        return f"the layer is a {type(layer).__name__}"
    return _why_called(layer, device) or (None if _packed(layer) else why_apart(projections_of(layer)))


def _why_called(layer: RaggedBertLayer, device: torch.device) -> str | None:
    """The reason why the modules of a layer must be called just now; None: their weights say everything."""
    return why_modules_now(device) or why_modules(_parts(layer), LAYER_TYPES) or _why_mixed(layer)


def _packed(layer: RaggedBertLayer) -> Projections | None:
    """The piece that holds the parameters of queries, keys and values; None: none does, or no longer."""
    projections = layer.projections
    return projections if projections is not None and projections.hold(projections_of(layer)) else None


def _why_mixed(layer: RaggedBertLayer) -> str | None:
    """The reason why a layer of plain modules has no single precision; None: it has one."""
    others = layer.attention.output.dense, layer.intermediate.dense, layer.output.dense
    kinds = {type(linear) for linear in (*projections_of(layer), *others)}
    return "some of the linear layers are int8, and some are not" if len(kinds) > 1 else None


def projections_of(layer: RaggedBertLayer) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The linear layers of queries, keys and values."""
    parts: dict[str, Any] = layer.attention.self._modules
    return parts["query"], parts["key"], parts["value"]


def block_of(layer: nn.Module, device: torch.device) -> Block:
    """A layer in the form that applies to it just now on rows of a device."""
    if type(layer) is not RaggedBertLayer or _why_called(layer, device) is not None:
        return BertBlock(layer)
    linears, projections = projections_of(layer), _packed(layer)
    if projections is None:
        if why_apart(linears) is not None:
            return BertBlock(layer)
        layer.projections = projections = Projections(linears)
    return (Int8BertBlock if type(linears[0]) is Int8Linear else PreparedBertBlock)(layer, projections)


def why_embedding_modules(embeddings: nn.Module, device: torch.device) -> str | None:
    """The reason why the embeddings run in module form just now on tokens of a device; None: in prepared form."""
    return why_modules_now(device) or why_modules((embeddings, *embeddings.children()), EMBEDDING_TYPES)


def embed(embeddings: nn.Module, inputs: PackedInputs) -> Ragged:
    """BERT's embeddings of packed inputs: ``values [total, hidden]``."""
    if why_embedding_modules(embeddings, inputs.words.values.device) is not None:
        return inputs.with_values(_embed_through_padding(embeddings, inputs))
    assert isinstance(embeddings, BertEmbeddings)
    words, ids = inputs.words.values, None
    if not words.is_floating_point():
        words = words.long()
        if isinstance(embeddings.word_embeddings, Int8Embedding):
            words = embeddings.word_embeddings(words)
        else:
            words, ids = embeddings.word_embeddings.weight, words
    # Every sum of a type and a position once, so that each token adds a single row on its way into LayerNorm.
    end = inputs.positions_end
    table = embeddings.token_type_embeddings.weight[:, None] + embeddings.position_embeddings.weight[:end]
    norm = embeddings.LayerNorm
    rows = inputs.token_types * end + inputs.positions
    values = mp_kernels.add_layer_norm(words, table.flatten(0, 1), norm.weight, norm.bias, norm.eps, rows, x_index=ids)
    return inputs.with_values(values)


def _embed_through_padding(embeddings: nn.Module, inputs: PackedInputs) -> Tensor:
    """``[total, hidden]``, from modules that see a padded batch as in transformers' BERT.

    A hook that puts other vectors in the place of the embeddings (integrated gradients do) counts on its samples lying in
    the first dimension. Padding is word, type and position 0, and nobody reads what becomes of it.
    """
    places, width = padded_places(inputs.words)

    def padded(values: Tensor) -> Tensor:
        return mp_kernels.unpack(Ragged(values, inputs.words.cu_seqlens, inputs.words.max_seqlen, places, width))

    values = embed_padded(embeddings, *map(padded, (inputs.words.values, inputs.token_types, inputs.positions)))
    return mp_kernels.ragged_gather(values.flatten(0, 1), places)


def embed_padded(embeddings: nn.Module, words: Tensor, token_types: Tensor, positions: Tensor) -> Tensor:
    """Embeddings ``[batch, width, hidden]`` of a padded batch, from the modules.

    words: int ids ``[batch, width]``, or vectors ``[batch, width, hidden]``.
    """
    name = "inputs_embeds" if words.is_floating_point() else "input_ids"
    return embeddings(**{name: words}, token_type_ids=token_types, position_ids=positions)


def padded_places(batch: Ragged) -> tuple[Tensor, int]:
    """Places int64 ``[total]`` of a batch's rows in ``[batch * width, ...]``, and the width.

    They are those that it came from, or else as if it was padded on the right.
    """
    if batch.index is not None and batch.width is not None:
        return batch.index, batch.width
    total, width = batch.values.shape[0], batch.max_seqlen
    rows = torch.arange(total, device=batch.values.device)
    shifts = torch.arange(batch.batch_size, device=rows.device) * width - batch.cu_seqlens[:-1]
    return rows + torch.repeat_interleave(shifts, batch.lengths, output_size=total), width

"""Layers that normalise after each residual, as BERT's do, prepared for inference: packed, fused, in float or in int8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

import mp_kernels
from mp_kernels import Kept, Ragged
from mp_kernels.memory import in_cache_blocks

from .attention import Relation
from .forms import (
    Block,
    KeysValues,
    ModuleBlock,
    PlainModules,
    RaggedLayer,
    Survive,
    modules_within,
    output_of,
    why_modules,
    why_modules_now,
)
from .int8 import Int8Linear
from .prepared import PreparedBlock
from .projections import Projections, why_apart


class Parts(NamedTuple):
    """The modules of a layer, in the order in which they run.

    Attributes:
        heads: number of heads.
        query, key, value: the projections.
        context: the projection of the attention's output.
        context_norm: LayerNorm after it.
        grow, activation, shrink: the feed-forward.
        norm: LayerNorm after it.
    """

    heads: int
    query: Any
    key: Any
    value: Any
    context: Any
    context_norm: Any
    grow: Any
    activation: Any
    shrink: Any
    norm: Any

    @property
    def projections(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """The linear layers of queries, keys and values."""
        return self.query, self.key, self.value

    @property
    def linears(self) -> tuple[nn.Module, ...]:
        return *self.projections, self.context, self.grow, self.shrink


class PostNormLayer(RaggedLayer):
    """A layer with ``Parts``.

    Attributes:
        activation: name of the feed-forward's activation in the module that holds it.
        projections: the packed weights of the prepared form, once it was used.
        weights: all its weights, as its steps take them, for as long as they are those of its parts.
        plain_modules: its modules, once their weights were found to say everything.
    """

    activation: ClassVar[str] = "intermediate_act_fn"
    projections: Projections | None = None
    weights: Weights | None = None
    plain_modules: PlainModules | None = None

    def parts(self) -> Parts:
        """The layer's modules."""
        raise NotImplementedError

    def relation(self) -> Relation | None:
        """The part that places play in the layer's attention; None: none."""
        return None

    def outlying(self) -> Sequence[tuple[nn.Module, ...]]:
        parts = self.parts()
        return parts.projections, (parts.grow,), (parts.shrink,)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "projections": None, "weights": None, "plain_modules": None}

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        # Weights that are moved or cast leave the piece, which nobody would need any more.
        self.projections = self.weights = None
        return super()._apply(*args, **kwargs)

    def why_modules(self, device: torch.device) -> str | None:
        return self._why_called(device) or (None if self._packed() else why_apart(self.parts().projections))

    def block(self, device: torch.device) -> Block:
        if self._why_called(device) is not None:
            return ModuleBlock(self)
        parts, weights = self.parts(), self.weights
        # Weights outlive no change of the modules, so that the projections' parameters are the objects that they were.
        if weights is None or weights.parts != parts or not weights.packed.hold_own():
            projections = self._packed()
            if projections is None:
                if why_apart(parts.projections) is not None:
                    return ModuleBlock(self)
                self.projections = projections = Projections(parts.projections)
            self.weights = weights = Weights(parts, projections)
        prepared = Int8PostNormBlock if type(parts.query) is Int8Linear else PostNormBlock
        return prepared(weights, self.relation())

    def _why_called(self, device: torch.device) -> str | None:
        """The reason why the modules of the layer must be called just now; None: their weights say everything."""
        now = why_modules_now(device)
        if now is not None:
            return now
        if self.plain_modules is not None and self.plain_modules.hold(self):
            return None
        self.plain_modules = self.weights = None
        if type(self) not in self.plain:
            return f"the layer is a {type(self).__name__}"
        modules = list(modules_within(self, self.activation))
        why = why_modules(modules, self.plain)
        if why is None and len({type(linear) for linear in self.parts().linears}) > 1:
            return "some of the linear layers are int8, and some are not"
        if why is None:
            self.plain_modules = PlainModules(modules)
        return why

    def _packed(self) -> Projections | None:
        """The piece that holds the parameters of queries, keys and values; None: none does, or no longer."""
        projections = self.projections
        return projections if projections is not None and projections.hold(self.parts().projections) else None


# Types whose weights say everything, in the layers of every backbone.
PLAIN = frozenset({nn.Linear, nn.LayerNorm, nn.Dropout, GELUActivation, Int8Linear})


@dataclass
class Weights:
    """The weights of a layer as the steps of its prepared form take them.

    Attributes:
        parts: the modules that hold them.
        packed: the piece of queries, keys and values.
    """

    parts: Parts
    packed: Projections

    def projection(self, outputs: slice) -> list[Tensor]:
        """A range of the outputs of queries, keys and values, in this order, as one linear layer."""
        own = self.packed.rows(outputs)
        query = self.parts.query
        return query.factors(own) if type(query) is Int8Linear else [own["weight"], own["bias"]]

    @cached_property
    def whole(self) -> list[Tensor]:
        """Queries, keys and values as one linear layer."""
        return self.projection(slice(None))

    @cached_property
    def queries(self) -> list[Tensor]:
        """Queries as a linear layer."""
        return self.projection(slice(self.parts.query.out_features))

    @cached_property
    def keys_values(self) -> list[Tensor]:
        """Keys and values as one linear layer."""
        return self.projection(slice(self.parts.query.out_features, None))

    @cached_property
    def linears(self) -> list[list[Tensor]]:
        """The linear layers of the rest: attention's output, and the feed-forward's two."""
        return [_tensors(linear) for linear in (self.parts.context, self.parts.grow, self.parts.shrink)]

    @cached_property
    def norms(self) -> list[list[Tensor]]:
        """Weight and bias of the LayerNorms of the rest."""
        return [[norm.weight, norm.bias] for norm in (self.parts.context_norm, self.parts.norm)]


def _tensors(linear: Any) -> list[Tensor]:
    """The tensors of a linear layer as steps take them."""
    return linear.factors(linear._parameters) if type(linear) is Int8Linear else [linear.weight, linear.bias]


class PostNormBlock(PreparedBlock):
    """The prepared form: one product for queries, keys and values; bias and GELU, residual and LayerNorm in one pass."""

    def __init__(self, weights: Weights, relation: Relation | None = None) -> None:
        super().__init__(weights.parts.heads, relation)
        self.weights, self.parts = weights, weights.parts

    def queries(self, values: Tensor, places: Tensor | None) -> Tensor:
        return self._product(values, self.weights.queries)

    def keys_values(self, batch: Ragged) -> KeysValues:
        return KeysValues(self._product(batch.values, self.weights.keys_values), batch)

    def projections(self, batch: Ragged) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self._product(batch.values, self.weights.whole).chunk(3, dim=1)
        return query, key, value

    def whole(
        self, batch: Ragged, survive: Survive | None = None, keys_values: KeysValues | None = None
    ) -> tuple[Ragged, Kept | None]:
        """As :meth:`.forms.Block.whole`; in one call where nothing comes in between."""
        if survive is not None or keys_values is not None or not self._is_plain:
            return super().whole(batch, survive, keys_values)
        tokens = batch.values, batch.cu_seqlens, batch.max_seqlen, self.heads
        return output_of(self._layer(*tokens, self.weights.whole, *self._finishing), None, batch), None

    def first(self, batch: Ragged, keys_values: KeysValues | None = None) -> Tensor:
        """As :meth:`.forms.Block.first`; in one call likewise."""
        if keys_values is not None or not self._is_plain:
            return super().first(batch, keys_values)
        tokens = batch.values, batch.cu_seqlens, batch.max_seqlen, self.heads
        return self._first(*tokens, self.weights.queries, self.weights.keys_values, *self._finishing)

    @property
    def _is_plain(self) -> bool:
        """Whether places play no part, and the activation is a GELU."""
        return self.relation is None and type(self.parts.activation) is GELUActivation

    @property
    def _finishing(self) -> tuple[Any, ...]:
        """The weights of the rest of the layer, as calls take them that compute all of it."""
        (dense, grow, shrink), (first, last) = self.weights.linears, self.weights.norms
        return dense, first, self.parts.context_norm.eps, grow, shrink, last, self.parts.norm.eps

    @staticmethod
    def _product(x: Tensor, layer: Sequence[Tensor]) -> Tensor:
        """A linear layer's outputs, ``[rows, outputs]``."""
        weight, bias = layer
        return mp_kernels.linear(x, weight, bias)

    def finish(self, context: Tensor, residual: Tensor, index: Tensor | None = None) -> Tensor:
        parts, first, last = self.parts, self.parts.context_norm, self.parts.norm
        if type(parts.activation) is GELUActivation:
            return self._rest(*(context, residual, *self._finishing, index))

        def step(block: Tensor) -> Tensor:
            return self._add_and_norm(parts.shrink, last, parts.activation(self._grown(block)), block)

        attended = self._add_and_norm(parts.context, first, context, residual, index)
        return in_cache_blocks(step, attended, parts.grow.out_features * attended.element_size())

    _layer = staticmethod(mp_kernels.post_norm_layer)
    _first = staticmethod(mp_kernels.post_norm_first)
    _rest = staticmethod(mp_kernels.post_norm_rest)

    def _grown(self, attended: Tensor) -> Tensor:
        """The feed-forward's inner layer, before its activation."""
        return mp_kernels.linear(attended, self.parts.grow.weight, self.parts.grow.bias)

    def _add_and_norm(
        self, dense: Any, norm: nn.LayerNorm, x: Tensor, residual: Tensor, index: Tensor | None = None
    ) -> Tensor:
        return mp_kernels.linear_add_layer_norm(
            x, dense.weight, dense.bias, residual, norm.weight, norm.bias, norm.eps, index
        )


class Int8PostNormBlock(PostNormBlock):
    """The prepared form on int8 weights: rows are quantised on their way into each product, with a scale of their own."""

    _product = staticmethod(mp_kernels.int8_dynamic_linear)
    _layer = staticmethod(mp_kernels.int8_post_norm_layer)
    _first = staticmethod(mp_kernels.int8_post_norm_first)
    _rest = staticmethod(mp_kernels.int8_post_norm_rest)

    def _grown(self, attended: Tensor) -> Tensor:
        return self.parts.grow(attended)

    def _add_and_norm(
        self, dense: Any, norm: nn.LayerNorm, x: Tensor, residual: Tensor, index: Tensor | None = None
    ) -> Tensor:
        return mp_kernels.add_layer_norm(dense(x), residual, norm.weight, norm.bias, norm.eps, index)

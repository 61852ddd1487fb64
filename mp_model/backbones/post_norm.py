"""Layers that normalise after each residual, as BERT's do, prepared for inference: packed, fused, in float or in int8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

import mp_kernels
from mp_kernels import Ragged
from mp_kernels.memory import in_cache_blocks

from .attention import Relation
from .forms import Block, KeysValues, ModuleBlock, RaggedLayer, modules_within, why_modules, why_modules_now
from .int8 import Int8Linear, Int8Rows, linear_of, quantised
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
    """

    activation: ClassVar[str] = "intermediate_act_fn"
    projections: Projections | None = None

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
        return {**self.__dict__, "projections": None}

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        # Weights that are moved or cast leave the piece, which nobody would need any more.
        self.projections = None
        return super()._apply(*args, **kwargs)

    def why_modules(self, device: torch.device) -> str | None:
        return self._why_called(device) or (None if self._packed() else why_apart(self.parts().projections))

    def block(self, device: torch.device) -> Block:
        if self._why_called(device) is not None:
            return ModuleBlock(self)
        parts, projections = self.parts(), self._packed()
        if projections is None:
            if why_apart(parts.projections) is not None:
                return ModuleBlock(self)
            self.projections = projections = Projections(parts.projections)
        prepared = Int8PostNormBlock if type(parts.query) is Int8Linear else PostNormBlock
        return prepared(parts, projections, self.relation())

    def _why_called(self, device: torch.device) -> str | None:
        """The reason why the modules of the layer must be called just now; None: their weights say everything."""
        now = why_modules_now(device)
        if now is not None:
            return now
        if type(self) not in self.plain:
            return f"the layer is a {type(self).__name__}"
        why = why_modules(modules_within(self, self.activation), self.plain)
        if why is None and len({type(linear) for linear in self.parts().linears}) > 1:
            return "some of the linear layers are int8, and some are not"
        return why

    def _packed(self) -> Projections | None:
        """The piece that holds the parameters of queries, keys and values; None: none does, or no longer."""
        projections = self.projections
        return projections if projections is not None and projections.hold(self.parts().projections) else None


# Types whose weights say everything, in the layers of every backbone.
PLAIN = frozenset({nn.Linear, nn.LayerNorm, nn.Dropout, GELUActivation, Int8Linear})


class PostNormBlock(PreparedBlock):
    """The prepared form: one product for queries, keys and values; bias and GELU, residual and LayerNorm in one pass."""

    def __init__(self, parts: Parts, packed: Projections, relation: Relation | None = None) -> None:
        super().__init__(parts.heads, relation)
        self.parts, self.packed = parts, packed
        self.width: int = parts.query.out_features

    def queries(self, values: Tensor, places: Tensor | None) -> Tensor:
        return self._project(values, slice(self.width))

    def keys_values(self, batch: Ragged) -> KeysValues:
        return KeysValues(self._project(batch.values, slice(self.width, None)), batch)

    def projections(self, batch: Ragged) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self._project(batch.values, slice(None)).chunk(3, dim=1)
        return query, key, value

    def _project(self, values: Tensor, outputs: slice) -> Tensor:
        """A range of the outputs of queries, keys and values, in this order: ``[rows, outputs]``."""
        own = self.packed.rows(outputs)
        return mp_kernels.linear(values, own["weight"], own["bias"])

    def finish(self, context: Tensor, residual: Tensor, index: Tensor | None = None) -> Tensor:
        parts = self.parts
        attended = self._add_and_norm(parts.context, parts.context_norm, context, residual, index)
        return self._feed_forward(attended)

    def _feed_forward(self, attended: Tensor) -> Tensor:
        parts, norm = self.parts, self.parts.norm
        grow, shrink = parts.grow, parts.shrink
        if type(parts.activation) is GELUActivation:
            return mp_kernels.feed_forward(
                attended, grow.weight, grow.bias, shrink.weight, shrink.bias, norm.weight, norm.bias, norm.eps
            )

        def step(block: Tensor) -> Tensor:
            grown = parts.activation(mp_kernels.linear(block, grow.weight, grow.bias))
            return self._add_and_norm(shrink, norm, grown, block)

        return in_cache_blocks(step, attended, grow.out_features * attended.element_size())

    def _add_and_norm(
        self, dense: Any, norm: nn.LayerNorm, x: Tensor, residual: Tensor, index: Tensor | None = None
    ) -> Tensor:
        return mp_kernels.linear_add_layer_norm(
            x, dense.weight, dense.bias, residual, norm.weight, norm.bias, norm.eps, index
        )


class Int8PostNormBlock(PostNormBlock):
    """The prepared form on int8 weights: rows are quantised on their way into each product, with a scale of their own."""

    def _project(self, values: Tensor, outputs: slice) -> Tensor:
        return linear_of(quantised(values, self.parts.query.columns), self.packed.rows(outputs))

    def _feed_forward(self, attended: Tensor) -> Tensor:
        parts, norm = self.parts, self.parts.norm
        grow, shrink = parts.grow, parts.shrink
        fused = type(parts.activation) is GELUActivation

        def step(block: Tensor) -> Tensor:
            if not fused:
                return self._add_and_norm(shrink, norm, parts.activation(grow(block)), block)
            rows = quantised(block, grow.columns)
            factors = rows.rows, rows.scales, grow.weight, grow.scale, grow.bias, rows.kept, grow.kept_weight
            grown = Int8Rows(*mp_kernels.int8_linear_gelu(*factors, columns=shrink.columns))
            return _normed_product(shrink, norm, grown, block)

        return in_cache_blocks(step, attended, grow.out_features * (1 if fused else attended.element_size()))

    def _add_and_norm(
        self, dense: Any, norm: nn.LayerNorm, x: Tensor, residual: Tensor, index: Tensor | None = None
    ) -> Tensor:
        return _normed_product(dense, norm, quantised(x, dense.columns), residual, index)


def _normed_product(
    dense: Any, norm: nn.LayerNorm, rows: Int8Rows, residual: Tensor, index: Tensor | None = None
) -> Tensor:
    """LayerNorm of an int8 layer's product with quantised rows, with the residual ``residual[index]``."""
    return mp_kernels.int8_linear_add_layer_norm(
        rows.rows,
        rows.scales,
        dense.weight,
        dense.scale,
        dense.bias,
        residual,
        norm.weight,
        norm.bias,
        norm.eps,
        index,
        rows.kept,
        dense.kept_weight,
    )

"""Layers with the modules of BERT's, under its names, on packed rows: BERT's own, and those that were copied from it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor, nn

from mp_kernels import Ragged

from .attention import MaskedBatch, attend_by_modules, going_on
from .forms import Survive
from .post_norm import PLAIN, Parts, PostNormLayer


class RaggedSelfAttention(nn.Module):
    """Self-attention over the tokens of the same sample, in a packed batch or in a masked one."""

    num_attention_heads: int
    query: Any
    key: Any
    value: Any

    def forward(
        self, values: Tensor, batch: Ragged | MaskedBatch, first_only: bool, need_importance: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Context ``[total, hidden]`` (``first_only``: of each sample's [CLS], ``[batch, hidden]``), and importance."""
        heads, projections = self.num_attention_heads, (self.query, self.key, self.value)
        return attend_by_modules(heads, *projections, values, batch, first_only, need_importance)


class RaggedAttention(nn.Module):
    """Attention with its residual, for the tokens that go on; its second result is the importance."""

    self: Any  # the name of a module
    output: Any

    def forward(
        self, values: Tensor, batch: Ragged | MaskedBatch, survive: Survive | None, first_only: bool
    ) -> tuple[Tensor, Tensor | None]:
        context, importance = self.self(values, batch, first_only, survive is not None)
        return self.output(*going_on(context, importance, values, batch, survive, first_only)), importance


class BertLikeLayer(PostNormLayer):
    """A layer with BERT's modules."""

    attention: Any
    intermediate: Any
    output: Any
    feed_forward_chunk: Any

    def forward(
        self, values: Tensor, batch: Ragged | MaskedBatch, survive: Survive | None = None, first_only: bool = False
    ) -> Tensor:
        attended, _ = self.attention(values, batch, survive, first_only)
        return self.feed_forward_chunk(attended)

    def parts(self) -> Parts:
        modules: dict[str, Any] = self._modules  # attributes of modules are found slowly
        attention, grow, shrink = modules["attention"]._modules, modules["intermediate"], modules["output"]._modules
        own, output = attention["self"], attention["output"]._modules
        projections = own._modules
        return Parts(
            own.num_attention_heads,
            projections["query"],
            projections["key"],
            projections["value"],
            output["dense"],
            output["LayerNorm"],
            grow._modules["dense"],
            grow.intermediate_act_fn,
            shrink["dense"],
            shrink["LayerNorm"],
        )


def ragged_classes(stock: ModuleType, prefix: str, home: str) -> dict[type[nn.Module], type[nn.Module]]:
    """Classes on packed rows for a module of transformers whose layers were copied from BERT's, by the stock ones.

    Args:
        stock: transformers' module.
        prefix: beginning of its classes' names.
        home: name of the module that will hold the new classes under their own names.
    """
    kinds = {"SelfAttention": RaggedSelfAttention, "Attention": RaggedAttention, "Layer": BertLikeLayer}
    made: dict[type[nn.Module], type[nn.Module]] = {}
    for part, ours in kinds.items():
        theirs = getattr(stock, prefix + part)
        made[theirs] = type(f"Ragged{prefix}{part}", (ours, theirs), {"__module__": home, "__doc__": ours.__doc__})
    others = {getattr(stock, prefix + part) for part in ("SelfOutput", "Intermediate", "Output")}
    layer: Any = list(made.values())[-1]
    layer.plain = PLAIN | others | frozenset(made.values())
    return made

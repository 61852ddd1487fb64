"""Layers whose weights are int8, for inference: a scale an output for weights, a scale a row for what they multiply."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import mp_kernels


class Int8Linear(nn.Module):
    """A linear layer with int8 weights; its products are exact, and a row's result does not depend on its companions.

    Attributes:
        weight: int8 ``[out, in]``.
        scale: float32 ``[out]``; ``weight * scale[:, None]`` is about the weight that was quantised.
        bias: float32 ``[out]``.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = _constant(torch.empty(out_features, in_features, dtype=torch.int8))
        self.scale = _constant(torch.empty(out_features))
        self.bias = _constant(torch.empty(out_features))

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """The layer with the weights of a float one, rounded."""
        layer = cls(linear.in_features, linear.out_features)
        layer.weight, layer.scale = map(_constant, mp_kernels.quantize_rows(linear.weight.detach().float()))
        bias = torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach().float()
        layer.bias = _constant(bias)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """x: floating ``[..., in]``; returns ``[..., out]`` of its dtype."""
        values = self.part(x.flatten(0, -2).float(), slice(None))
        return values.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def part(self, x: Tensor, outputs: slice) -> Tensor:
        """A range of the outputs, float32 ``[rows, outputs]``; x: float32 ``[rows, in]``."""
        rows, scales = mp_kernels.quantize_rows(x)
        return mp_kernels.int8_linear(rows, scales, self.weight[outputs], self.scale[outputs], self.bias[outputs])


class Int8Embedding(nn.Module):
    """A table of int8 rows, each with a scale.

    Attributes:
        weight: int8 ``[rows, width]``.
        scale: float32 ``[rows]``.
    """

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = _constant(torch.empty(rows, width, dtype=torch.int8))
        self.scale = _constant(torch.empty(rows))

    @classmethod
    def of(cls, embedding: nn.Embedding) -> Int8Embedding:
        """The table with the rows of a float one, rounded."""
        table = cls(embedding.num_embeddings, embedding.embedding_dim)
        table.weight, table.scale = map(_constant, mp_kernels.quantize_rows(embedding.weight.detach().float()))
        return table

    def forward(self, ids: Tensor) -> Tensor:
        """ids: integers ``[...]``; returns float32 ``[..., width]``."""
        rows = mp_kernels.dequantize_rows(self.weight, self.scale, ids.flatten().long())
        return rows.view(*ids.shape, self.weight.shape[1])


def _constant(x: Tensor) -> nn.Parameter:
    return nn.Parameter(x, requires_grad=False)


class OrderedLinear(nn.Linear):
    """A float linear layer of few rows, whose results do not depend on a row's companions either."""

    @classmethod
    def of(cls, linear: nn.Linear) -> OrderedLinear:
        """The layer with the same weights."""
        layer = cls(linear.in_features, linear.out_features, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """x: float32 ``[rows, in]``; returns ``[rows, out]``."""
        bias = self.weight.new_zeros(self.out_features) if self.bias is None else self.bias
        return mp_kernels.ordered_linear(x, self.weight, bias)


def to_int8(model: Any) -> None:
    """Puts int8 layers in the place of a model's float ones: word embeddings, and the linear layers of every layer.

    Heads keep their weights, and add up in one order; LayerNorms, positions and token types stay as they are. Nothing of
    the model can be trained any more. The configuration says so, and a model that is saved is loaded in the same form. What
    is int8 stays as it is.

    model: a :class:`mp_model.PyramidModel`, or a classifier that holds one; its weights are float32.
    """
    encoder = model.base_model
    words = encoder.get_input_embeddings()
    if isinstance(words, nn.Embedding):
        encoder.set_input_embeddings(Int8Embedding.of(words).train(words.training))
    for layer in encoder.stack:
        _replace_linears(layer, Int8Linear)
    _replace_linears(model, OrderedLinear)
    model.requires_grad_(False)
    model.config.precision = "int8"


def _replace_linears(module: nn.Module, kind: type[Int8Linear | OrderedLinear]) -> None:
    """Puts layers of a kind in the place of the plain linear layers of a module."""
    for part in list(module.modules()):
        for name, child in part.named_children():
            if type(child) is nn.Linear:
                setattr(part, name, kind.of(child).train(child.training))

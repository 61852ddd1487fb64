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
        rows, scales = mp_kernels.quantize_rows(x.flatten(0, -2).float())
        product = torch._int_mm(rows, self.weight.t())
        values = mp_kernels.dequantize(product, scales, self.scale, self.bias)
        return values.to(x.dtype).view(*x.shape[:-1], self.out_features)


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


def to_int8(model: Any) -> None:
    """Puts int8 layers in the place of a model's float ones: word embeddings, and the linear layers of every layer.

    Heads, LayerNorms, positions and token types stay as they are; nothing of the model can be trained any more. The
    configuration says so, and a model that is saved is loaded in the same form. A model that is int8 stays as it is.

    model: a :class:`mp_model.PyramidBert`, or a model that holds one as ``bert``; its weights are float32.
    """
    if isinstance(model.get_input_embeddings(), Int8Embedding):
        return
    encoder = getattr(model, "bert", model)
    embeddings = encoder.embeddings
    embeddings.word_embeddings = Int8Embedding.of(embeddings.word_embeddings).train(embeddings.training)
    for layer in encoder.layers:
        for part in list(layer.modules()):
            for name, child in part.named_children():
                if isinstance(child, nn.Linear):
                    setattr(part, name, Int8Linear.of(child).train(child.training))
    model.requires_grad_(False)
    model.config.precision = "int8"

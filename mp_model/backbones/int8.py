"""Layers whose weights are int8, for inference: a scale an output for weights, a scale a row for what they multiply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import mp_kernels
from mp_kernels.int8 import pack_int8_weight_, unpack_int8_weight

from .outliers import outlying_columns


class Int8Linear(nn.Module):
    """A linear layer with int8 weights; its products are exact, and a row's result does not depend on its companions.

    Attributes:
        weight: int8 ``[out, in]``, or packed in its own memory (:meth:`pack`); a state dictionary has it as it is.
        scale: float32 ``[out]``; ``weight * scale[:, None]`` is about the weight that was quantised.
        bias: float32 ``[out]``.
        columns: int64 ``[kept]``, inputs that are multiplied as floats, where the weight is 0; None: there are none.
        kept_weight: float32 ``[out, kept]``, the weight of these; None: there are none.
    """

    columns: Tensor | None
    kept_weight: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, kept: int = 0) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = _constant(torch.empty(out_features, in_features, dtype=torch.int8))
        self.scale = _constant(torch.empty(out_features))
        self.bias = _constant(torch.empty(out_features))
        self.register_buffer("columns", torch.empty(kept, dtype=torch.int64) if kept else None)
        self.kept_weight = _constant(torch.empty(out_features, kept)) if kept else None

    @classmethod
    def of(cls, linear: nn.Linear, columns: Tensor | None = None) -> Int8Linear:
        """The layer with the weights of a float one, rounded but for those of some columns."""
        layer = cls(linear.in_features, linear.out_features, 0 if columns is None else columns.shape[0])
        rows, scales, *kept = mp_kernels.quantize_rows(linear.weight.detach().float(), columns=columns)
        layer.weight, layer.scale = _constant(rows), _constant(scales)
        if columns is not None:
            layer.columns, layer.kept_weight = columns.clone(), _constant(kept[0])
        bias = scales.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach().float()
        layer.bias = _constant(bias)
        return layer

    def pack(self) -> None:
        """Lays the weight out as this processor's products read it, where nobody else looks at its memory."""
        self.weight.data = pack_int8_weight_(self.weight.data)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.dim() == 4:
            destination[prefix + "weight"] = unpack_int8_weight(self.weight.data)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        if self.weight.dim() == 4:
            self.weight.data = unpack_int8_weight(self.weight.data)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(self, x: Tensor) -> Tensor:
        """x: floating ``[..., in]``; returns ``[..., out]`` of its dtype."""
        values = self.part(x.flatten(0, -2).float(), slice(None))
        return values.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def part(self, x: Tensor, outputs: slice) -> Tensor:
        """A range of the outputs, float32 ``[rows, outputs]``; x: float32 ``[rows, in]``."""
        own = {name: outputs_of(x, outputs) for name, x in self._parameters.items() if x is not None}
        return mp_kernels.int8_dynamic_linear(x, self.factors(own))

    def factors(self, own: Mapping[str, Tensor | None]) -> list[Tensor]:
        """The layer as :func:`mp_kernels.int8_dynamic_linear` takes it, with certain parameters, by their names."""
        kept = [self._buffers["columns"], own.get("kept_weight")]
        return [x for x in (own["weight"], own["scale"], own["bias"], *kept) if x is not None]


def outputs_of(parameter: Tensor, outputs: slice) -> Tensor:
    """A range of the outputs of a parameter of a linear layer; of a packed weight, from one panel of 16 to another."""
    if parameter.dim() != 4:
        return parameter[outputs]
    first, last, _ = outputs.indices(parameter.shape[0] * parameter.shape[2])
    return parameter[first // parameter.shape[2] : last // parameter.shape[2]]


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


# Inputs of a layer that are multiplied as floats: with 4 exits are off by a third of what they are with none, with 8 by
# hardly less, and with 2 in some models by twice as much.
KEPT_COLUMNS = 4


def to_int8(model: Any) -> None:
    """Puts int8 layers in the place of a model's float ones: word embeddings, and the linear layers of every layer.

    Heads keep their weights, and add up in one order; LayerNorms, positions and token types stay as they are. The inputs
    of layers whose values are far larger than the others' (:mod:`.outliers`) are multiplied as floats. Nothing of the model
    can be trained any more. The configuration says so, and a model that is saved is loaded in the same form. What is int8
    stays as it is.

    model: a :class:`mp_model.PyramidModel`, or a classifier that holds one; its weights are float32, or yet to be loaded
        where its configuration says that they are int8.
    """
    encoder = model.base_model
    if model.config.precision != "int8":
        model.config.int8_kept_columns = KEPT_COLUMNS
        columns = outlying_columns(encoder, KEPT_COLUMNS)
    else:
        kept = torch.arange(model.config.int8_kept_columns)
        linears = (linear for layer in encoder.stack for group in layer.outlying() for linear in group)
        columns = dict.fromkeys(linears, kept) if len(kept) else {}
    words = encoder.get_input_embeddings()
    if isinstance(words, nn.Embedding):
        encoder.set_input_embeddings(Int8Embedding.of(words).train(words.training))
    for layer in encoder.stack:
        _replace_linears(layer, lambda linear: Int8Linear.of(linear, columns.get(linear)))
    _replace_linears(model, OrderedLinear.of)
    model.requires_grad_(False)
    model.config.precision = "int8"


def pack_weights(model: nn.Module) -> None:
    """Packs the weights of all int8 layers of a model (:meth:`Int8Linear.pack`) that nobody runs yet."""
    for part in model.modules():
        if isinstance(part, Int8Linear):
            part.pack()


def _replace_linears(module: nn.Module, made_of: Callable[[nn.Linear], nn.Module]) -> None:
    """Puts layers in the place of the plain linear layers of a module that they are made of."""
    for part in list(module.modules()):
        for name, child in part.named_children():
            if type(child) is nn.Linear:
                setattr(part, name, made_of(child).train(child.training))

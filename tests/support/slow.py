"""The pyramid on any backbone, one sample at a time and without padding, out of transformers' own modules.

Every layer is computed by transformers for all the tokens that enter it, in their original places, and pruned after, as in
the paper. Only the exit heads are written out here (:mod:`support.definition`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from support import definition
from support.definition import Answer, exit_logits, survivors, uncertainty_of


@dataclass
class Layers:
    """Transformers' classifier, taken apart.

    Attributes:
        model: the classifier, in eval mode, with eager attention.
    """

    model: Any

    @property
    def base(self) -> Any:
        return self.model.base_model

    @property
    def kind(self) -> str:
        return self.model.config.model_type

    @property
    def layers(self) -> Sequence[nn.Module]:
        if self.kind == "modernbert":
            return self.base.layers
        return self.base.transformer.layer if self.kind == "distilbert" else self.base.encoder.layer

    def embed(self, ids: Tensor, sides: Tensor) -> Tensor:
        """``[n, hidden]``; sides: the token types, of a backbone that has any."""
        typed = getattr(self.model.config, "type_vocab_size", 1) > 1 and self.kind != "mpnet"
        embedded = self.base.embeddings(
            input_ids=ids.unsqueeze(0), **({"token_type_ids": sides.unsqueeze(0)} if typed else {})
        )
        if hasattr(self.base, "embeddings_project"):
            embedded = self.base.embeddings_project(embedded)
        return embedded[0]

    def run(self, number: int, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Output of layer ``number`` (from 1) for ``x [n, hidden]``, and the importance of each token."""
        layer, batch = self.layers[number - 1], x.unsqueeze(0)
        exists = torch.ones(len(x), len(x), dtype=torch.bool)
        if self.kind == "mpnet":
            stack = self.base.encoder
            buckets = stack.relative_position_bucket(places - places.unsqueeze(1))
            bias = stack.relative_attention_bias(buckets).permute(2, 0, 1).unsqueeze(0)
            output, probabilities = layer(batch, None, bias, output_attentions=True)
        elif self.kind == "modernbert":
            if layer.attention_type == "sliding_attention":
                exists = (places - places.unsqueeze(1)).abs() <= self.model.config.sliding_window
            mask = torch.zeros(len(x), len(x), dtype=x.dtype).masked_fill(~exists, -math.inf)
            angles = self.base.rotary_emb(batch, places.unsqueeze(0), layer.attention_type)
            output, probabilities = self._watched(layer, layer.attn, batch, mask[None, None], angles)
        else:
            attention = layer.attention if self.kind == "distilbert" else layer.attention.self
            output, probabilities = self._watched(layer, attention, batch)
        received = probabilities[0].double().mean(0).sum(0) / exists.sum(0)
        return output[0], received

    def _watched(self, layer: nn.Module, attention: nn.Module, *inputs: Any) -> tuple[Tensor, Tensor]:
        """A layer's output, and the probabilities that its attention returned inside."""
        seen: list[Tensor] = []
        hook = attention.register_forward_hook(lambda _, __, outputs: seen.append(outputs[1]))
        output = layer(*inputs)
        hook.remove()
        return output, seen[0]

    def read(self, states: Tensor) -> Tensor:
        return self.base.final_norm(states) if self.kind == "modernbert" else states

    @property
    def last_reads_all(self) -> bool:
        return getattr(self.model.config, "classifier_pooling", "cls") == "mean"

    def logits(self, states: Tensor) -> Tensor:
        """``[labels]``, from the last layer's output ``[n, hidden]``."""
        model, batch = self.model, self.read(states).unsqueeze(0)
        if self.kind == "bert":
            return model.classifier(self.base.pooler(batch))[0]
        if self.kind == "distilbert":
            return model.classifier(model.pre_classifier(batch[:, 0]).relu())[0]
        if self.kind == "modernbert":
            return model.classifier(model.head(batch.mean(1) if self.last_reads_all else batch[:, 0]))[0]
        return model.classifier(batch)[0]


@torch.no_grad()
def run(
    stock: Any,
    config: Any,
    heads: Mapping[str, Tensor],
    ids: Tensor,
    exit_thresholds: Mapping[int, float] | None = None,
    sides: Tensor | None = None,
) -> Answer:
    """One sample's way up the pyramid.

    Args:
        stock: transformers' classifier.
        config: the pyramid's configuration.
        heads: weights of the exit heads, by their names.
        ids: int64 ``[n]``.
        exit_thresholds: the threshold of each open exit, by the layer's number; None: nobody exits.
        sides: int64 ``[n]``, 0 for tokens of the first of two texts and 1 for those of the second; None: all 0.
    """
    sides = torch.zeros_like(ids) if sides is None else sides
    layers, count = Layers(stock), config.num_hidden_layers
    open_exits = dict(exit_thresholds or {})
    if config.depth is not None:
        open_exits = {layer: x for layer, x in open_exits.items() if layer < config.depth} | {config.depth: math.inf}
    x = layers.embed(ids, sides)
    alive = torch.arange(len(ids))
    settled = {j: x[j] for j in range(len(ids))}
    answer = Answer(None, count, math.nan, [0] * count, [], [x], x)

    def leaves(layer: int, logits: Tensor, uncertainty: float) -> bool:
        answer.logits, answer.uncertainty, answer.exit_layer = logits, uncertainty, layer
        answer.uncertainties[layer] = answer.uncertainty
        return layer == count or answer.uncertainty <= open_exits[layer]

    def exit_at(layer: int, entering: Tensor, output: Tensor, places: Tensor) -> bool:
        read = layers.read(entering), layers.read(output)
        return leaves(layer, *exit_logits(heads, config, layer, *read, sides[places]))

    left = 0 in open_exits and exit_at(0, x, x, alive)
    layer = 0
    while not left and layer < count:
        layer += 1
        entering, places = x, alive
        output, importance = layers.run(layer, entering, alive)
        if layer == count and layers.last_reads_all:
            among = torch.arange(len(alive))
        else:
            among, _ = survivors(config, layer, importance * len(alive), len(ids))
        alive, x = alive[among], output[among]
        settled |= dict(zip(alive.tolist(), x, strict=True))
        answer.importance.append(importance)
        answer.survivors.append(alive)
        answer.tokens_per_layer[layer - 1] = len(alive)
        if layer == count:
            logits = layers.logits(x)
            left = leaves(
                layer, logits, 0.0 if config.exit_uncertainty == "disagreement" else uncertainty_of(logits, config)
            )
        elif layer in open_exits:
            left = exit_at(layer, entering, x, places)
        if left:
            answer.tokens_per_layer[layer - 1] = len(entering)
    answer.last_hidden_state = layers.read(torch.stack([settled[j] for j in range(len(ids))]))
    return answer


def all_importances(stock: Any, config: Any, ids: Sequence[Tensor], layer: int, sides: Sequence[Tensor]) -> list[float]:
    """Importances in layer ``layer`` of all tokens but [CLS] that reach it."""
    answers = [run(stock, config, {}, sample, None, of_sample) for sample, of_sample in zip(ids, sides, strict=True)]
    return [value for answer in answers for value in answer.importance[layer - 1].tolist()[1:]]


__all__ = ["Layers", "all_importances", "definition", "run"]

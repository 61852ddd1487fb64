"""Exit heads: the sub-classifiers of the layers, and who leaves by them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import mp_kernels
from mp_kernels import Ragged

from .configuration import PyramidBertConfig


class ExitHead(nn.Module):
    """dense, tanh, classifier: a layer's prediction from fixed-size features (``"cls"`` and ``"pooled"``)."""

    def __init__(self, features: int, config: PyramidBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(features, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, features: Tensor) -> Tensor:
        """features: ``[batch, features]``; returns logits ``[batch, labels]``."""
        return self.classifier(torch.tanh(self.dense(features)))

    def is_plain(self) -> bool:
        """Whether the weights say it all: not where a layer was replaced, by a quantised one say."""
        return type(self.dense) is nn.Linear and type(self.classifier) is nn.Linear


class FastBertHead(nn.Module):
    """FastBERT's student: a narrow self-attention over all the layer's tokens, read at position 0."""

    width = 128
    heads = 2

    def __init__(self, config: PyramidBertConfig) -> None:
        super().__init__()
        self.input = nn.Linear(config.hidden_size, self.width)
        self.query = nn.Linear(self.width, self.width)
        self.key = nn.Linear(self.width, self.width)
        self.value = nn.Linear(self.width, self.width)
        self.output = nn.Linear(self.width, self.width)
        self.dense = nn.Linear(self.width, self.width)
        self.classifier = nn.Linear(self.width, config.num_labels)

    def forward(self, batch: Ragged) -> Tensor:
        """batch: the layer's output, ``values [total, hidden]``; returns logits ``[batch, labels]``."""
        narrow = torch.tanh(self.input(batch.values))
        first = mp_kernels.ragged_gather(narrow, batch.cu_seqlens[:-1].long())
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1))
            for project, x in ((self.query, first), (self.key, narrow), (self.value, narrow))
        )
        one_each = torch.arange(batch.batch_size + 1, dtype=torch.int32, device=narrow.device)
        context, _ = mp_kernels.ragged_attention(
            query, key, value, batch.cu_seqlens, batch.max_seqlen, cu_seqlens_q=one_each, need_importance=False
        )
        return self.classifier(torch.tanh(self.dense(self.output(context.flatten(1)))))


def make_exit_heads(config: PyramidBertConfig) -> nn.ModuleDict:
    """One head for each exit layer, under the layer's number."""

    def make() -> nn.Module:
        if config.exit_head == "fastbert":
            return FastBertHead(config)
        return ExitHead(config.hidden_size * (2 if config.exit_head == "pooled" else 1), config)

    return nn.ModuleDict({str(layer): make() for layer in config.resolved_exit_layers()})


def decision_features(kind: str, first: Tensor, entering: Ragged) -> Tensor:
    """What a head that decides first reads: ``[batch, hidden]`` ("cls") or ``[batch, 2 hidden]`` ("pooled").

    first: the layer's output for [CLS], ``[batch, hidden]``; entering: the tokens that enter the layer.
    """
    if kind == "cls":
        return first
    return torch.cat([first, mp_kernels.ragged_mean(entering.values, entering.cu_seqlens)], dim=1)


@dataclass
class Exits:
    """The exits that are open in one call.

    Attributes:
        heads: the head of each exit layer, by its number.
        kind: ``"cls"``, ``"pooled"`` or ``"fastbert"``.
        thresholds: for each exit layer, by its number: one float, or a tensor ``[batch]`` with one for each sample.
    """

    heads: dict[int, nn.Module]
    kind: str
    thresholds: dict[int, float | Tensor]

    def decides_first(self, layer: int) -> bool:
        """Whether this layer's exit needs no more of the layer than its [CLS] row."""
        return layer in self.thresholds and self.kind != "fastbert"

    def decides_last(self, layer: int) -> bool:
        """Whether this layer's exit needs the layer's whole output."""
        return layer in self.thresholds and self.kind == "fastbert"

    def threshold(self, layer: int, samples: Tensor) -> float | Tensor:
        """The threshold of ``layer``, or one for each alive sample ``[batch]``; samples: their places in the batch as it
        came."""
        threshold = self.thresholds[layer]
        return threshold[samples] if isinstance(threshold, Tensor) else threshold

    def decide(self, layer: int, first: Tensor, entering: Ragged, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A head that decides first: logits ``[batch, labels]``, uncertainty ``[batch]`` and who stays, bool ``[batch]``.

        first: the layer's output for [CLS], ``[batch, hidden]``; entering: the tokens that enter the layer; samples: the
        alive samples' places in the batch as it came.
        """
        head, threshold = self.heads[layer], self.threshold(layer, samples)
        features = decision_features(self.kind, first, entering)
        if head.is_plain() and not torch.is_grad_enabled() and not torch.is_autocast_enabled(features.device.type):
            dense, classifier = head.dense, head.classifier
            return mp_kernels.exit_head(
                features, dense.weight, dense.bias, classifier.weight, classifier.bias, threshold
            )
        logits = head(features)
        uncertainty = mp_kernels.normalized_entropy(logits)
        return logits, uncertainty, ~(uncertainty <= threshold)

    def stays(self, layer: int, uncertainty: Tensor, samples: Tensor) -> Tensor:
        """bool ``[batch]``: who goes on, by a head that was called as a module."""
        return ~(uncertainty <= self.threshold(layer, samples))

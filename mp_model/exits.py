"""Exit heads: the sub-classifiers of the layers, and who leaves by them.

A kind of head answers for itself: what it reads, from which layer on it can stand, what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import mp_kernels
from mp_kernels import Ragged

from .backbones.forms import first_rows, why_modules, why_modules_now
from .confidence import Confidence
from .problems import ONE, Problem


def as_they_are(states: Tensor) -> Tensor:
    """The states themselves."""
    return states


@dataclass
class LayerStates:
    """The states that a head may read at a layer; at layer 0 all of them are the embeddings.

    Attributes:
        first: ``[batch, hidden]``, the layer's output for [CLS].
        entering: the tokens that enter the layer.
        output: the layer's output for its survivors; None where the head decides before it is computed.
        read: the backbone's form of states for those who read them.
    """

    first: Tensor
    entering: Ragged
    output: Ragged | None = None
    read: Callable[[Tensor], Tensor] = as_they_are


class ExitHead(nn.Module):
    """A layer's sub-classifier: calling it gives logits ``[batch, labels]`` for the features that it reads.

    Attributes:
        lowest_layer: the first layer that it can stand at.
        reads_survivors: whether it needs the layer's whole output, so that nothing can be decided before.
        reads_pairs: whether it needs to know where the second of two texts begins (:attr:`Ragged.middles`).
        classifier: its last layer, from hidden numbers to logits.
        confidence: the confidence head beside it, if the model has such.
    """

    lowest_layer: ClassVar[int] = 1
    reads_survivors: ClassVar[bool] = False
    reads_pairs: ClassVar[bool] = False
    classifier: nn.Linear
    confidence: Confidence | None

    def __init__(self) -> None:
        super().__init__()
        self.register_module("confidence", None)

    @staticmethod
    def features(states: LayerStates) -> Any:
        """The part of the states that the head reads."""
        raise NotImplementedError

    @staticmethod
    def flops(config: Any, tokens: Tensor) -> Tensor:
        """Work of the head for each sample, 2 x multiply-accumulates, int64 like ``tokens``.

        tokens: the survivors of the layer where the head reads them, else the tokens that entered it.
        """
        raise NotImplementedError

    def hidden(self, features: Any) -> Tensor:
        """The numbers that the classifier reads, ``[batch, width]``."""
        raise NotImplementedError

    def forward(self, features: Any) -> Tensor:
        """Logits ``[batch, labels]``; features: what the head reads."""
        return self.classifier(self.hidden(features))

    def doubt(self, features: Any, problem: Problem = ONE) -> tuple[Tensor, Tensor]:
        """Logits ``[batch, labels]``, and how probably layer L would answer otherwise, float32 ``[batch]``."""
        assert self.confidence is not None
        hidden = self.hidden(features)
        logits = self.classifier(hidden)
        return logits, self.confidence(self.confidence.hidden(hidden).squeeze(1), logits, problem)

    def decide(self, features: Any, threshold: float | Tensor, problem: Problem = ONE) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[batch, labels]``, uncertainty ``[batch]`` and who stays, bool ``[batch]``.

        Args:
            features: what the head reads.
            threshold: one, or one for each sample ``[batch]``.
            problem: the kind of problem, whose entropy the uncertainty is.
        """
        logits = self(features)
        uncertainty = problem.uncertainty(logits)
        return logits, uncertainty, ~(uncertainty <= threshold)


class TanhHead(ExitHead):
    """dense, tanh, classifier over features of a fixed size."""

    widths: ClassVar[int] = 1  # features, in hidden sizes

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dense = nn.Linear(self.widths * config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def hidden(self, features: Tensor) -> Tensor:
        """features: ``[batch, widths x hidden]``; returns ``[batch, hidden]``."""
        return torch.tanh(self.dense(features))

    def decide(
        self, features: Tensor, threshold: float | Tensor, problem: Problem = ONE
    ) -> tuple[Tensor, Tensor, Tensor]:
        dense, classifier = self.dense, self.classifier
        if why_modules_now(features.device) or why_modules((self, dense, classifier), PLAIN):
            return super().decide(features, threshold, problem)
        weights = dense.weight, dense.bias, classifier.weight, classifier.bias
        return mp_kernels.exit_head(features, *weights, threshold, problem.several)

    def doubt(self, features: Tensor, problem: Problem = ONE) -> tuple[Tensor, Tensor]:
        assert self.confidence is not None
        parts = self.dense, self.classifier, self.confidence.hidden
        if why_modules_now(features.device) or why_modules((self, self.confidence, *parts), PLAIN):
            return super().doubt(features, problem)
        dense, *last = parts
        weight, bias = torch.cat([x.weight for x in last]), torch.cat([x.bias for x in last])
        both, _, _ = mp_kernels.exit_head(features, dense.weight, dense.bias, weight, bias, 1.0, True)
        logits = both[:, :-1].contiguous()
        return logits, self.confidence(both[:, -1], logits, problem)

    @classmethod
    def flops(cls, config: Any, tokens: Tensor) -> Tensor:
        d, labels = config.hidden_size, config.num_labels
        confidence = d if config.exit_uncertainty == DISAGREEMENT else 0
        return torch.full_like(tokens, 2 * (cls.widths * d * d + d * labels + confidence))


class ClsHead(TanhHead):
    """Magic Pyramid's head (``"cls"``): the layer's [CLS] output."""

    @staticmethod
    def features(states: LayerStates) -> Tensor:
        return states.read(states.first)


class PooledHead(TanhHead):
    """Ours (``"pooled"``): the layer's [CLS] output, and the mean of the tokens that enter it."""

    lowest_layer = 0
    widths = 2

    @staticmethod
    def features(states: LayerStates) -> Tensor:
        mean = mp_kernels.ragged_mean(states.read(states.entering.values), states.entering.cu_seqlens)
        return torch.cat([states.read(states.first), mean], dim=1)


class PairHead(TanhHead):
    """Ours, for two texts (``"pair"``): as ``"pooled"``, and distance and product of the texts' means.

    Special tokens belong to the text that they follow; the mean of a text whose tokens are all gone is 0.
    """

    lowest_layer = 0
    reads_pairs = True
    widths = 4

    @staticmethod
    def features(states: LayerStates) -> Tensor:
        entering = states.entering
        assert entering.middles is not None
        return mp_kernels.pair_features(
            states.read(states.first), states.read(entering.values), entering.cu_seqlens, entering.middles
        )


PLAIN = frozenset({ClsHead, PooledHead, PairHead, Confidence, nn.Linear})


class FastBertHead(ExitHead):
    """FastBERT's student (``"fastbert"``): a narrow self-attention over the layer's survivors, read at position 0."""

    reads_survivors = True
    width = 128
    heads = 2

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.input = nn.Linear(config.hidden_size, self.width)
        self.query = nn.Linear(self.width, self.width)
        self.key = nn.Linear(self.width, self.width)
        self.value = nn.Linear(self.width, self.width)
        self.output = nn.Linear(self.width, self.width)
        self.dense = nn.Linear(self.width, self.width)
        self.classifier = nn.Linear(self.width, config.num_labels)

    @staticmethod
    def features(states: LayerStates) -> Ragged:
        assert states.output is not None
        return replace(states.output, values=states.read(states.output.values))

    def hidden(self, batch: Ragged) -> Tensor:
        """batch: the layer's output, ``values [total, hidden]``; returns ``[batch, 128]``."""
        narrow = torch.tanh(self.input(batch.values))
        first = first_rows(narrow, batch)
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1))
            for project, x in ((self.query, first), (self.key, narrow), (self.value, narrow))
        )
        one_each = torch.arange(batch.batch_size + 1, dtype=torch.int32, device=narrow.device)
        context, _ = mp_kernels.ragged_attention(
            query, key, value, batch.cu_seqlens, batch.max_seqlen, cu_seqlens_q=one_each, need_importance=False
        )
        return torch.tanh(self.dense(self.output(context.flatten(1))))

    @classmethod
    def flops(cls, config: Any, tokens: Tensor) -> Tensor:
        d, width = config.hidden_size, cls.width
        of_all_tokens = d * width + 2 * width * width + 2 * width  # input, keys and values, attention row
        of_first = 3 * width * width + width * config.num_labels  # query, output and dense, classifier
        if config.exit_uncertainty == DISAGREEMENT:
            of_first += width
        return 2 * (tokens * of_all_tokens + of_first)


EXIT_HEADS: Mapping[str, type[ExitHead]] = {
    "cls": ClsHead,
    "pooled": PooledHead,
    "pair": PairHead,
    "fastbert": FastBertHead,
}


def make_exit_heads(config: Any) -> nn.ModuleDict:
    """One head for each exit layer of a configuration, under the layer's number."""
    kind: Any = EXIT_HEADS[config.exit_head]
    heads = nn.ModuleDict({str(layer): kind(config) for layer in config.resolved_exit_layers()})
    if config.confidence_heads:
        add_confidence_heads(heads)
    return heads


def add_confidence_heads(heads: nn.ModuleDict) -> None:
    """Puts a new confidence head beside each exit head."""
    for head in heads.values():
        assert isinstance(head, ExitHead)
        head.confidence = Confidence(head.classifier.in_features)


@dataclass(frozen=True)
class Uncertainty:
    """A kind of uncertainty by which samples leave: this one, ``"entropy"``, is that of an answer by itself.

    Attributes:
        problem: the kind of problem.
    """

    problem: Problem = ONE

    def decide(self, head: ExitHead, features: Any, threshold: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[batch, labels]``, uncertainty ``[batch]`` and who stays, bool ``[batch]``, at a head.

        Args:
            head: the head.
            features: what it reads.
            threshold: one, or one for each sample ``[batch]``.
        """
        return head.decide(features, threshold, self.problem)

    def of_last(self, logits: Tensor, operators: Any = mp_kernels) -> Tensor:
        """Uncertainty ``[batch]`` of layer L's answers; operators: as for :meth:`.problems.Problem.uncertainty`."""
        return self.problem.uncertainty(logits, operators)

    def steps(self, count: int) -> list[float]:
        """Thresholds to try, 0 to 1 in so many steps: rising, and closer where a little more lets many leave."""
        return [step / count for step in range(count + 1)]


class Disagreement(Uncertainty):
    """``"disagreement"``: the probability, by a confidence head, that layer L would answer otherwise; 0 at layer L."""

    def decide(self, head: ExitHead, features: Any, threshold: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, uncertainty = head.doubt(features, self.problem)
        return logits, uncertainty, ~(uncertainty <= threshold)

    def of_last(self, logits: Tensor, operators: Any = mp_kernels) -> Tensor:
        return torch.zeros_like(self.problem.uncertainty(logits, operators))

    def steps(self, count: int) -> list[float]:
        return [round((step / count) ** 3, 8) for step in range(count + 1)]  # nearly all probabilities are small


ENTROPY, DISAGREEMENT = "entropy", "disagreement"
AUTO = "auto"  # of those that a model has, the one that saves more work
UNCERTAINTIES: Mapping[str, type[Uncertainty]] = {ENTROPY: Uncertainty, DISAGREEMENT: Disagreement}


@dataclass
class Exits:
    """The open exits.

    Attributes:
        heads: the head of each exit layer, by its number.
        thresholds: the threshold of each exit layer, by its number, for samples that bring none of their own.
        uncertainty: the kind of uncertainty by which samples leave.
    """

    heads: dict[int, ExitHead]
    thresholds: dict[int, float]
    uncertainty: Uncertainty = field(default_factory=Uncertainty)  # made anew: older torch cannot trace an object here

    def __contains__(self, layer: int) -> bool:
        return layer in self.heads

    def threshold(self, layer: int, own: Tensor | None) -> float | Tensor:
        """The threshold at a layer: ``own``'s column ``[batch]``, or one for all samples.

        own: ``[batch, exit layers]``, thresholds that the samples brought with them; None: they brought none.
        """
        if own is None:
            return self.thresholds[layer]
        return own[:, list(self.heads).index(layer)]

    def decide(self, layer: int, states: LayerStates, own: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[batch, labels]``, uncertainty ``[batch]`` and who stays, bool ``[batch]``, at an open exit."""
        head = self.heads[layer]
        return self.uncertainty.decide(head, head.features(states), self.threshold(layer, own))

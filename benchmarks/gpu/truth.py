"""The answers that transformers' own layers give in float64, for the survivors and the exits of a pyramid's run."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from mp_kernels import reference
from mp_model import PyramidBertForSequenceClassification
from mp_model.measuring.timing import padded_twin


class Truth:
    """transformers' BERT with a pyramid's weights and heads, in float64; tokens that were pruned are masked.

    Args:
        model: the pyramid, with heads that read [CLS] after every layer but the last.
    """

    def __init__(self, model: PyramidBertForSequenceClassification) -> None:
        self.stock = padded_twin(model).double()
        self.stock.set_attn_implementation("eager")  # which returns the probabilities
        self.layers = self.stock.bert.encoder.layer
        self.heads = [copy.deepcopy(head).double() for head in model.exits.values()]

    def logits(self, ids: Tensor, mask: Tensor, pruned_by: Tensor | None = None) -> Tensor:
        """float64 ``[L, batch, labels]``, the answers after every layer.

        Args:
            ids, mask: int64 ``[batch, width]``, padded on the right.
            pruned_by: int64 ``[batch, width]``, the layer that pruned each token, 0 for those that none did; None: none.
        """
        states, answers = self.stock.bert.embeddings(input_ids=ids), []
        for number in range(1, len(self.layers) + 1):
            alive = mask.bool()
            if pruned_by is not None:
                alive = alive & ((pruned_by == 0) | (pruned_by >= number))
            states, _ = self._layer(number, states, alive)
            answers.append(self._head(number, states))
        return torch.stack(answers)

    def prune_thresholds(self, ids: Tensor, mask: Tensor, share: float) -> list[float]:
        """L thresholds by which about this share of the tokens that enter a layer survive it."""
        states, alive, thresholds = self.stock.bert.embeddings(input_ids=ids), mask.bool(), []
        for number in range(1, len(self.layers) + 1):
            states, importance = self._layer(number, states, alive)
            thresholds.append(importance[alive].quantile(1 - share).item())
            alive = alive & (importance >= thresholds[-1])
            alive[:, 0] = True
        return thresholds

    def exit_thresholds(self, logits: Tensor) -> list[float]:
        """L - 1 thresholds by which as many samples leave at every layer; logits: ``[L, batch, labels]``."""
        layers, batch = logits.shape[:2]
        alive = torch.ones(batch, dtype=torch.bool, device=logits.device)
        thresholds = []
        for answers in logits[:-1]:
            uncertainty = reference.normalized_entropy(answers)
            ordered = uncertainty[alive].sort().values
            leaving = max(1, batch // layers)
            thresholds.append(
                ordered[leaving - 1 : leaving + 1].mean().item()
            )  # between the last to leave and the next
            alive &= uncertainty > thresholds[-1]
        return thresholds

    def _layer(self, number: int, states: Tensor, alive: Tensor) -> tuple[Tensor, Tensor]:
        """States after a layer, and the importance ``[batch, width]`` of the alive tokens."""
        layer, found = self.layers[number - 1], []
        mask = torch.zeros_like(alive, dtype=states.dtype).masked_fill(~alive, torch.finfo(states.dtype).min)
        with layer.attention.self.register_forward_hook(lambda module, inputs, results: found.append(results[1])):
            states = layer(states, mask[:, None, None, :])
        rows = (found[0].mean(1) * alive.unsqueeze(2)).sum(1)
        return states, rows / alive.sum(1, keepdim=True)

    def _head(self, number: int, states: Tensor) -> Tensor:
        if number <= len(self.heads):
            return self.heads[number - 1](states[:, 0])
        return self.stock.classifier(self.stock.bert.pooler(states))

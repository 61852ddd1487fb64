"""A pyramid whose samples leave by a script, so that any pattern of exits can be had."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mp_kernels import Ragged
from mp_model.backbones import PackedInputs
from mp_model.engine import Pyramid
from mp_model.exits import Exits
from mp_model.pruning import Pruning
from support.pyramids import LAYERS


class Scripted:
    """Exits by a script: sample ``n``, whose token ids are all ``n``, leaves at layer ``leaves[n]``."""

    def __init__(self, leaves: list[int]) -> None:
        self.leaves = torch.tensor(leaves)

    def pyramid(self) -> Pyramid:
        class Layer(torch.nn.Module):
            def forward(self, values: Tensor, batch: Ragged, survive: Any = None, first_only: bool = False) -> Tensor:
                return values[batch.cu_seqlens[:-1].long()] if first_only else values

        heads = dict.fromkeys(range(LAYERS), None)
        exits = Exits(heads, dict.fromkeys(heads, 0.0))
        exits.decide = self.decide
        layers = [Layer() for _ in range(LAYERS)]
        return Pyramid(self.embed, layers, Pruning(None, None, "alive"), exits, lambda first: first[:, :2])

    def embed(self, inputs: PackedInputs) -> Ragged:
        return inputs.with_values(torch.stack([inputs.positions, inputs.words.values], dim=1).float())

    def decide(self, layer: int, states: Any, own: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        numbers = states.first[:, 1].long()
        stays = self.leaves[numbers] != layer
        return states.first[:, :2], torch.zeros(len(numbers)), stays

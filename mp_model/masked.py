"""The pyramid on a padded batch, by masks instead of removal: every state and probability is there, and no work is saved.

It has the same answers as the engine, for outputs that only a padded batch has (hidden states, attentions), and for graphs
in which no size may depend on data (``torch.compile``, ``torch.export``, ``torch.jit.trace``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import mp_kernels

from .backbones import Backbone, MaskedBatch
from .exits import ExitHead, Exits
from .flops import Step
from .inputs import PaddedInputs, first_columns
from .pruning import Pruning

NO_SINGLE_GRAPH = (
    "where tokens are pruned or exits are open, sizes depend on the texts, which no single graph can follow: leave "
    "fullgraph=True out, or call with prune_thresholds=[0.0] * layers and exit_threshold='never'"
)


@torch.compiler.assume_constant_result
def _is_exported() -> bool:
    """Whether torch.export makes a graph now. Torch 2.10 and 2.11 trace the question itself as if the answer were yes."""
    return torch.compiler.is_exporting()


def is_traced() -> bool:
    """Whether one graph is being made of the model, for all inputs to come."""
    return _is_exported() or torch.jit.is_tracing()  # type: ignore[attr-defined]


@dataclass
class Wanted:
    """Outputs that only a padded batch has.

    Attributes:
        hidden_states: the numbers of the layers whose states are returned, 0 for the embeddings; None: no states are.
        attentions: whether attention probabilities are returned.
    """

    hidden_states: Collection[int] | None
    attentions: bool

    @classmethod
    def of(cls, config: Any, hidden_states: Any = None, attentions: bool | None = None) -> Wanted:
        """The outputs of a call: as its arguments say, or else the configuration.

        hidden_states: bool; or the number of a layer, or a list of them, negative ones counting from the last.
        """
        if hidden_states is None:
            hidden_states = config.output_hidden_states
        if attentions is None:
            attentions = config.output_attentions
        count = config.num_hidden_layers + 1
        numbers: Collection[int] | None
        if isinstance(hidden_states, bool):
            numbers = range(count) if hidden_states else None
        else:
            asked = [hidden_states] if isinstance(hidden_states, int) else hidden_states
            numbers = {number % count for number in asked if -count <= number < count}
        return cls(numbers, bool(attentions))

    def runs_masked(self, pruning: Pruning, exits: Exits | ExitHead | None, layers: int) -> bool:
        """Whether a call is run on the padded batch.

        exits: the open exits, or the one by which everybody leaves; None: all go through all layers.

        Raises:
            ValueError: exits or pruning would have to be followed where they cannot be.
        """
        dense = exits is None and not any(map(pruning.happens, range(1, layers + 1)))
        if is_traced():
            if not dense:
                raise ValueError(
                    "a traced or exported graph has the same work for every input, so nothing may be pruned and nobody "
                    "may exit in it: trace with prune_thresholds=[0.0] * layers and exit_threshold='never'"
                )
            return True
        if self.hidden_states is None and not self.attentions:
            return dense and torch.compiler.is_compiling()
        if exits is not None:
            raise ValueError(
                "hidden states and attentions are those of all layers, which a sample that exits never enters: close the "
                "exits with exit_threshold='never', or set output_hidden_states and output_attentions to False"
            )
        return True


@dataclass
class MaskedRun:
    """A padded batch on its way through the layers.

    Attributes:
        states: L + 1 tensors ``[batch, width, hidden]``, the embeddings and each layer's states: of a pruned token the state
            with which it entered the layer that pruned it, 0 at padding; the last ones as the backbone's are read.
        alive: L + 1 masks, bool ``[batch, width]``, the tokens that came and those that each layer leaves.
        attentions: L tensors ``[batch, heads, width, width]``, if they were wanted; 0 for pruned tokens and padding.
    """

    states: list[Tensor]
    alive: list[Tensor]
    attentions: list[Tensor] = field(default_factory=list)

    def first(self) -> Tensor:
        """``[batch, hidden]``, each sample's [CLS] after the last layer."""
        first = first_columns(self.alive[0])
        return self.states[-1][torch.arange(first.shape[0], device=first.device), first]

    def mean(self) -> Tensor:
        """``[batch, hidden]``, the mean of the tokens that the last layer leaves."""
        alive = self.alive[-1].unsqueeze(2)
        return torch.where(alive, self.states[-1], 0).sum(1) / alive.sum(1)

    def outputs(self, wanted: Wanted) -> dict[str, Any]:
        """``hidden_states`` and ``attentions`` as a model returns them, where they are wanted."""
        outputs: dict[str, Any] = {}
        if wanted.hidden_states is not None:
            chosen = enumerate(self.states)
            outputs["hidden_states"] = tuple(x if number in wanted.hidden_states else None for number, x in chosen)
        if wanted.attentions:
            outputs["attentions"] = tuple(self.attentions)
        return outputs

    def pruned_by(self) -> Tensor:
        """int64 ``[batch, width]``: the layer that pruned each token, 0 for none and in layer L, -1 at padding."""
        pruned_by = torch.where(self.alive[0], 0, -1)
        for number, (before, after) in enumerate(zip(self.alive, self.alive[1:-1], strict=False), 1):
            pruned_by = pruned_by.masked_fill(before & ~after, number)
        return pruned_by

    def steps(self) -> list[Step]:
        """A step for each layer, for counting the work: all of it was done for all columns."""
        size, width = self.alive[0].shape
        samples = torch.arange(size, device=self.alive[0].device)
        starts = [nn.functional.pad(alive.sum(1).cumsum(0), (1, 0)).int() for alive in self.alive[:-1]]
        return [
            Step(number, "masked", False, samples, entered, width=width) for number, entered in enumerate(starts, 1)
        ]


def run_masked(
    backbone: Backbone, encoder: nn.Module, inputs: PaddedInputs, pruning: Pruning, attentions: bool = False
) -> MaskedRun:
    """Runs all layers for all columns of a padded batch; nobody exits.

    Args:
        backbone: the encoder's kind.
        encoder: the encoder, whose modules are called as they are.
        inputs: the batch.
        pruning: the rule by which each layer prunes.
        attentions: whether to keep the attention probabilities.
    """
    alive = inputs.keep
    embedded = backbone.embed_padded(encoder, *inputs.without_padding())
    run = MaskedRun([embedded.masked_fill(~alive.unsqueeze(2), 0)], [alive])
    lengths = alive.sum(1)
    for number, layer in enumerate(backbone.layers(encoder), 1):
        batch = MaskedBatch(alive, attentions)

        def survive(
            importance: Tensor, rows: Sequence[Tensor], number: int = number, entering: Tensor = alive
        ) -> tuple[Sequence[Tensor], None]:
            nonlocal alive
            alive = survivors(pruning, number, importance, entering, lengths)
            return rows, None

        states = run.states[-1]
        output = layer(states, batch, survive if pruning.happens(number) else None)
        run.states.append(torch.where(alive.unsqueeze(2), output, states))
        run.alive.append(alive)
        if batch.probabilities is not None:
            run.attentions.append(batch.probabilities)
    run.states[-1] = backbone.read(encoder, run.states[-1]).masked_fill(~inputs.keep.unsqueeze(2), 0)
    return run


def survivors(pruning: Pruning, number: int, importance: Tensor, alive: Tensor, input_lengths: Tensor) -> Tensor:
    """The tokens that survive layer ``number`` (from 1), bool ``[batch, width]``.

    Args:
        pruning: the rule.
        number: the layer's number.
        importance: float32 ``[batch, heads, width]``.
        alive: bool ``[batch, width]``, the tokens that entered.
        input_lengths: int64 ``[batch]``, the tokens that each sample came with.
    """
    entering = mp_kernels.pack(importance.detach().transpose(1, 2), alive)
    _, kept = pruning.survivors(number, entering.values.t().contiguous(), entering, input_lengths)
    if kept is None:
        return alive
    assert entering.index is not None
    return torch.zeros_like(alive).flatten().index_fill(0, entering.index[kept.index], True).view_as(alive)

"""One layer's step for one packed batch of alive samples, and the loops over whole batches.

Written once over the public operators of :mod:`mp_kernels` and the blocks of :mod:`mp_model.backbones`: which device,
backbone or precision it has is their business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

import mp_kernels
from mp_kernels import Kept, Ragged

from .backbones import Block, KeysValues, PackedInputs, block_of, first_rows
from .exits import EXIT_HEADS, ExitHead, Exits, LayerStates, Uncertainty, as_they_are
from .flops import Step
from .inputs import cat_all, concatenate, concatenate_inputs, there
from .pruning import Pruning

# An exit is decided first, before the rest of its layer, where the layer has at least so many rows and samples. With
# fewer a layer's time is the reading of its weights, which deciding first reads twice: at so many rows it pays where a
# quarter of the samples leaves (benchmarks/test_decision.py measures both). Width has no part in it, since the weights to
# read and the work of a row grow with it alike, by its square. A lone sample leaves only once. Elsewhere than on a CPU,
# deciding first costs its twenty launches more in any case, some 100 microseconds: about what a quarter of the samples of
# so many rows would save. This is an estimate for a large GPU.
DECIDE_FIRST_ROWS = 256
DECIDE_FIRST_ROWS_ON_GPUS = 16384
DECIDE_FIRST_SAMPLES = 2


def decides_first(rows: int, samples: int, device_type: str = "cpu") -> bool:
    """Whether an exit of a layer with so many rows and samples is decided before the rest of the layer is computed."""
    fewest = DECIDE_FIRST_ROWS if device_type == "cpu" else DECIDE_FIRST_ROWS_ON_GPUS
    return rows >= fewest and samples >= DECIDE_FIRST_SAMPLES


@dataclass
class Pyramid:
    """A classifier's layers with all settings of a call, resolved.

    Attributes:
        embed: the embeddings of packed inputs, ``values [total, hidden]``.
        layers: the layers that are run.
        pruning: the rule by which each layer prunes.
        exits: the open exits; None: everybody goes through all layers.
        final_head: logits ``[batch, labels]`` from its features, ``[batch, hidden]`` (:meth:`final_features`).
        read: the backbone's form of states between layers for those who read them.
        last_reads_all: whether the final head reads the mean of all tokens of layer L, and not [CLS] alone.
        cap: the exit head that answers after the last of ``layers`` instead of the final head; None: these are all L layers.
        uncertainty: the kind of uncertainty that answers have.
    """

    embed: Callable[[PackedInputs], Ragged]
    layers: Sequence[nn.Module]
    pruning: Pruning
    exits: Exits | None
    final_head: Callable[[Tensor], Tensor]
    read: Callable[[Tensor], Tensor] = as_they_are
    last_reads_all: bool = False
    cap: ExitHead | None = None
    uncertainty: Uncertainty = field(default_factory=Uncertainty)  # as in Exits

    def block(self, number: int, device: torch.device) -> Block:
        """Layer ``number`` (from 1) in the form that applies to it just now on rows of a device."""
        return block_of(self.layers[number - 1], device)

    def states(self, first: Tensor, entering: Ragged, output: Ragged | None = None) -> LayerStates:
        """The states of a layer, for an exit head."""
        return LayerStates(first, entering, output, self.read)

    def final_features(self, output: Ragged) -> Tensor:
        """The features of the final head, ``[batch, hidden]``, from layer L's output."""
        if self.last_reads_all:
            return mp_kernels.ragged_mean(self.read(output.values), output.cu_seqlens)
        return self.read(first_tokens(output))

    def last_layer(self, batch: Ragged) -> Tensor:
        """The features of the final head, ``[batch, hidden]``, from the tokens that enter layer L."""
        block = self.block(len(self.layers), batch.values.device)
        return self.final_features(block.whole(batch)[0]) if self.last_reads_all else self.read(block.first(batch))


@dataclass
class Arrived:
    """Samples before the embeddings.

    Attributes:
        inputs: their tokens.
        samples: int64 ``[batch]``, their numbers, by which answers are returned.
        thresholds: ``[batch, exit layers]``, exit thresholds that the samples brought with them; None: the pyramid's.
        follow: whether to follow their tokens; such a batch goes alone.
    """

    inputs: PackedInputs
    samples: Tensor
    thresholds: Tensor | None = None
    follow: bool = False

    @classmethod
    def of(
        cls, inputs: PackedInputs, first_number: int = 0, thresholds: Tensor | None = None, follow: bool = False
    ) -> Arrived:
        """A batch as it comes, its samples numbered from ``first_number`` on."""
        words = inputs.words
        samples = torch.arange(first_number, first_number + words.batch_size, device=words.values.device)
        return cls(inputs, samples, thresholds, follow)

    @property
    def tokens(self) -> int:
        return self.inputs.tokens

    @staticmethod
    def joined(parts: Sequence[Arrived]) -> Arrived:
        """Samples of several batches in one."""
        if len(parts) == 1:
            return parts[0]
        inputs = concatenate_inputs([part.inputs for part in parts])
        samples = torch.cat([part.samples for part in parts])
        return Arrived(inputs, samples, cat_all([part.thresholds for part in parts]))


@dataclass
class Alive:
    """Alive samples between two layers.

    Attributes:
        batch: their alive tokens.
        samples: int64 ``[batch]``, their numbers, by which answers are returned.
        input_lengths: int64 ``[batch]``, the tokens that each came with.
        thresholds: ``[batch, exit layers]``, exit thresholds that the samples brought with them; None: the pyramid's.
        rows: int64 ``[total]``, places of the alive tokens in the batch as it came; None where nobody follows them.
    """

    batch: Ragged
    samples: Tensor
    input_lengths: Tensor
    thresholds: Tensor | None = None
    rows: Tensor | None = None

    @classmethod
    def of(cls, batch: Ragged, thresholds: Tensor | None = None) -> Alive:
        """All samples of a batch as it enters layer 1, numbered by their places."""
        return cls(batch, torch.arange(batch.batch_size, device=batch.values.device), batch.lengths, thresholds)

    def __len__(self) -> int:
        return self.samples.shape[0]

    @property
    def tokens(self) -> int:
        return self.batch.values.shape[0]

    @staticmethod
    def joined(parts: Sequence[Alive]) -> Alive:
        """Samples of several batches in one; all of them follow their tokens, or none, and so for thresholds."""
        if len(parts) == 1:
            return parts[0]
        return Alive(
            concatenate([part.batch for part in parts]),
            torch.cat([part.samples for part in parts]),
            torch.cat([part.input_lengths for part in parts]),
            cat_all([part.thresholds for part in parts]),
            cat_all([part.rows for part in parts]),
        )

    def after(self, output: Ragged, kept: Kept | None) -> Alive:
        """The same samples after a layer; kept: the tokens that survived it, None: all."""
        rows = self.rows if kept is None or self.rows is None else self.rows[kept.index]
        return replace(self, batch=output, rows=rows)

    def stay(self, stays: Tensor) -> tuple[Alive, Kept | None]:
        """The samples that stay, bool ``[batch]``, and their rows and places among these; None: all of them."""
        kept = mp_kernels.select_samples(self.batch.cu_seqlens, stays, self.tokens)
        assert kept.samples is not None
        if kept.samples.shape[0] == len(self):
            return self, None
        values, *rows = mp_kernels.ragged_gather(there(self.batch.values, self.rows), kept.index)
        per_sample = there(self.samples, self.input_lengths, self.thresholds)
        samples, input_lengths, *thresholds = mp_kernels.ragged_gather(per_sample, kept.samples)
        own = thresholds[0] if thresholds else None
        return Alive(self.batch.reduced(values, kept), samples, input_lengths, own, rows[0] if rows else None), kept


@dataclass
class Decided:
    """Predictions at a layer, by which samples may leave.

    Attributes:
        layer: the layer's number, 0 to L.
        samples: int64 ``[batch]``, the numbers of the samples that were looked at.
        logits: ``[batch, labels]``, of the states' dtype.
        uncertainty: float32 ``[batch]``; NaN where answers have none.
        stays: bool ``[batch]``, the samples that go on; None: all of them leave with this answer.
    """

    layer: int
    samples: Tensor
    logits: Tensor
    uncertainty: Tensor
    stays: Tensor | None


@dataclass
class StepResult:
    """The outcome of one layer's step, without the states of the samples that go on: whoever keeps outcomes would keep them.

    Attributes:
        decided: the predictions; None: no exit was open.
        step: for counting the work.
        pruned: bool ``[rows]`` over the tokens that entered, where they are followed: those that the layer pruned, of the
            samples that stay; with their places in the batch as it came.
    """

    decided: Decided | None
    step: Step
    pruned: tuple[Tensor, Tensor] | None = None


Stepped = tuple[StepResult, Alive | None]  # a step's outcome, and the samples that go on; None: nobody does


def run_embeddings(pyramid: Pyramid, arrived: Arrived) -> Stepped:
    """Layer 0: the embeddings, and their exit, where it is open."""
    batch = pyramid.embed(arrived.inputs)
    rows = torch.arange(batch.values.shape[0], device=batch.values.device) if arrived.follow else None
    alive = Alive(batch, arrived.samples, batch.lengths, arrived.thresholds, rows)
    step = Step(0, "embedded", False, alive.samples, batch.cu_seqlens)
    if not pyramid.layers:
        return _capped(pyramid, pyramid.states(first_tokens(batch), batch, batch), alive, replace(step, decided=True))
    if pyramid.exits is None or 0 not in pyramid.exits:
        return StepResult(None, step), alive
    states = pyramid.states(first_tokens(batch), batch, batch)
    decided, stays = _decide(pyramid.exits, 0, states, alive)
    staying, _ = alive.stay(stays)
    return StepResult(decided, replace(step, decided=True)), staying if len(staying) else None


def run_layer(pyramid: Pyramid, number: int, alive: Alive) -> Stepped:
    """Layer ``number`` (from 1): who leaves, who is pruned, and the states of the rest.

    An exit that reads nothing but [CLS] and the entering tokens is decided first where that pays
    (:func:`decides_first`): keys and values of all tokens, everything else of [CLS] only; the rest of the layer is
    computed for the samples that stay. Otherwise the whole layer is computed first; the answers are the same. In layer L
    nothing but [CLS] matters, unless the final head reads all tokens.
    """
    exits = pyramid.exits
    entered = alive.batch.cu_seqlens
    if number == len(pyramid.layers) and pyramid.cap is not None:
        return _last_of_capped(pyramid, pyramid.cap, number, alive)
    if number == len(pyramid.layers):
        features = pyramid.last_layer(alive.batch)
        logits = pyramid.final_head(features).to(features.dtype)
        decided = Decided(number, alive.samples, logits, pyramid.uncertainty.of_last(logits), None)
        return StepResult(decided, Step(number, "last", False, alive.samples, entered)), None
    block = pyramid.block(number, alive.batch.values.device)
    if exits is None or number not in exits:
        output, kept = whole_layer(block, number, alive, pyramid.pruning)
        step = Step(number, "whole", False, alive.samples, entered, None if kept is None else kept.cu_seqlens)
        return StepResult(None, step, _pruned_rows(alive, kept, None)), alive.after(output, kept)
    can_decide_first = block.decides_first and not exits.heads[number].reads_survivors
    if can_decide_first and decides_first(alive.tokens, len(alive), alive.samples.device.type):
        return _decided_first(pyramid, exits, block, number, alive)
    return _decided_late(pyramid, exits, block, number, alive)


def _last_of_capped(pyramid: Pyramid, cap: ExitHead, number: int, alive: Alive) -> Stepped:
    """The last layer that is run, by whose exit everybody leaves: nothing is computed that its head does not read."""
    block, entered = pyramid.block(number, alive.batch.values.device), alive.batch.cu_seqlens
    if cap.reads_survivors:
        output, kept = whole_layer(block, number, alive, pyramid.pruning)
        states = pyramid.states(first_tokens(output), alive.batch, output)
        step = Step(number, "whole", True, alive.samples, entered, None if kept is None else kept.cu_seqlens)
    else:
        states = pyramid.states(block.first(alive.batch), alive.batch)
        nobody = alive.samples[:0]
        step = Step(number, "decided first", True, alive.samples, entered, survived=entered[:1], stayed=nobody)
    return _capped(pyramid, states, alive, step)


def _capped(pyramid: Pyramid, states: LayerStates, alive: Alive, step: Step) -> Stepped:
    """The answers of the cap, with which everybody leaves."""
    assert pyramid.cap is not None
    logits, uncertainty, _ = pyramid.uncertainty.decide(pyramid.cap, pyramid.cap.features(states), 1.0)
    decided = Decided(step.layer, alive.samples, logits.to(states.first.dtype), uncertainty, None)
    return StepResult(decided, step), None


def _decide(exits: Exits, number: int, states: LayerStates, alive: Alive) -> tuple[Decided, Tensor]:
    """The predictions at an open exit, and who stays, bool ``[batch]``."""
    logits, uncertainty, stays = exits.decide(number, states, alive.thresholds)
    # Under autocast heads answer in half precision, while states stay as they are.
    return Decided(number, alive.samples, logits.to(states.first.dtype), uncertainty, stays), stays


def _decided_first(pyramid: Pyramid, exits: Exits, block: Block, number: int, alive: Alive) -> Stepped:
    keys_values = block.keys_values(alive.batch)
    states = pyramid.states(block.first(alive.batch, keys_values), alive.batch)
    decided, stays = _decide(exits, number, states, alive)
    staying, left = alive.stay(stays)
    places = None if left is None else left.samples
    step = Step(number, "decided first", True, alive.samples, alive.batch.cu_seqlens, staying.batch.cu_seqlens, places)
    if len(staying) == 0:
        return StepResult(decided, step), None
    if left is not None:
        keys_values = keys_values.asked_by(stays, left.index)
    output, kept = whole_layer(block, number, staying, pyramid.pruning, keys_values)
    if kept is not None:
        step = replace(step, survived=kept.cu_seqlens)
    return StepResult(decided, step, _pruned_rows(staying, kept, None)), staying.after(output, kept)


def _decided_late(pyramid: Pyramid, exits: Exits, block: Block, number: int, alive: Alive) -> Stepped:
    output, kept = whole_layer(block, number, alive, pyramid.pruning)
    states = pyramid.states(first_tokens(output), alive.batch, output)
    decided, stays = _decide(exits, number, states, alive)
    survived = None if kept is None else kept.cu_seqlens
    step = Step(number, "whole", True, alive.samples, alive.batch.cu_seqlens, survived)
    staying, _ = alive.after(output, kept).stay(stays)
    return StepResult(decided, step, _pruned_rows(alive, kept, stays)), staying if len(staying) else None


def _pruned_rows(alive: Alive, kept: Kept | None, stays: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """:attr:`StepResult.pruned` of samples that entered a layer, of which ``stays`` (None: all) go on."""
    if alive.rows is None or kept is None:
        return None
    pruned = torch.ones_like(alive.rows, dtype=torch.bool).index_fill_(0, kept.index, False)
    if stays is not None:
        pruned &= torch.repeat_interleave(stays, alive.batch.lengths, output_size=alive.tokens)
    return pruned, alive.rows


def whole_layer(
    block: Block, number: int, alive: Alive, pruning: Pruning, keys_values: KeysValues | None = None
) -> tuple[Ragged, Kept | None]:
    """A layer's output for the tokens that survive it, and which these are (None: all).

    keys_values: those of all samples that entered the layer, where they are there already.
    """
    if not pruning.happens(number):
        return block.whole(alive.batch, None, keys_values)
    mask: Tensor | None = None
    recorded = torch.is_grad_enabled()

    def survive(importance: Tensor, rows: Sequence[Tensor]) -> tuple[Sequence[Tensor], Kept | None]:
        nonlocal mask
        mask = pruning.soft_mask(number, importance, alive.batch, alive.input_lengths)
        if mask is not None and recorded and not torch.is_grad_enabled():
            raise ValueError(
                "soft pruning gets no gradient through reentrant checkpoints; "
                "set gradient_checkpointing_kwargs={'use_reentrant': False}"
            )
        if mask is not None:
            return rows, None
        return pruning.survivors(number, importance, alive.batch, alive.input_lengths, rows)

    output, kept = block.whole(alive.batch, survive, keys_values)
    if mask is not None:
        output.values = output.values * mask.unsqueeze(1).to(output.values.dtype)
    return output, kept


def first_tokens(batch: Ragged) -> Tensor:
    """``[batch, hidden]``, each sample's [CLS]."""
    return first_rows(batch.values, batch)


@dataclass
class Layer:
    """One layer's run for a batch that nobody leaves.

    Attributes:
        number: from 1.
        entering, output: the batch before and after it.
        kept: the tokens that survived; None: all.
    """

    number: int
    entering: Ragged
    output: Ragged
    kept: Kept | None


def climb(layers: Sequence[nn.Module], batch: Ragged, pruning: Pruning) -> Iterator[Layer]:
    """Runs the layers one after the other; nobody exits."""
    alive = Alive.of(batch)
    for number, layer in enumerate(layers, 1):
        entering = alive.batch
        output, kept = whole_layer(block_of(layer, batch.values.device), number, alive, pruning)
        yield Layer(number, entering, output, kept)
        alive = alive.after(output, kept)


def run_encoder(layers: Sequence[nn.Module], batch: Ragged, pruning: Pruning) -> Tensor:
    """All layers for all samples: an encoder, with pruning.

    Returns:
        States between layers ``[total, hidden]`` in the order of the batch as it came; of a pruned token the state with
        which it entered the layer that pruned it.
    """
    settled = last = batch.values
    rows: Tensor | None = None  # places of the alive tokens in the batch as it came; None: all of them
    for layer in climb(layers, batch, pruning):
        if layer.kept is not None:
            entered = layer.entering.values
            settled = entered if rows is None else settled.index_copy(0, rows, entered)
            rows = layer.kept.index if rows is None else rows[layer.kept.index]
        last = layer.output.values
    return last if rows is None else settled.index_copy(0, rows, last)


def run_layers(pyramid: Pyramid, batch: Ragged) -> list[Ragged]:
    """The batch as it came and as every layer leaves it: L + 1 batches; nobody exits."""
    return [batch, *(layer.output for layer in climb(pyramid.layers, batch, pyramid.pruning))]


def run_features(pyramid: Pyramid, batch: Ragged, kind: str) -> list[Tensor]:
    """The features of the exit heads at every layer, with nobody leaving.

    Args:
        pyramid: the classifier; its exits are not asked.
        batch: the embeddings' output, packed.
        kind: kind of heads that can decide first, ``"cls"``, ``"pooled"`` or ``"pair"``.

    Returns:
        L + 1 tensors: features ``[batch, features]`` at layers 0 to L - 1, and those of the final head, ``[batch, hidden]``.
    """
    read: Callable[[LayerStates], Any] = EXIT_HEADS[kind].features
    features = [read(pyramid.states(first_tokens(batch), batch))]
    for layer in climb(pyramid.layers[:-1], batch, pyramid.pruning):
        features.append(read(pyramid.states(first_tokens(layer.output), layer.entering)))
        batch = layer.output
    return [*features, pyramid.last_layer(batch)]

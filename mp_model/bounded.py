"""Layers of which the host knows bounds alone: how many samples and rows are left stays on the device.

Buffers have room for the bounds. True counts are the last entry of ``cu_seqlens`` and the ``extents`` of the compaction that
made the batch; every kernel that could take room for rows reads them. So a layer is a fixed sequence of launches, whatever
it prunes and whoever leaves, which a device can replay. Exits are decided late: the answers are those of
:mod:`mp_model.engine`.

Room is never read as if it held somebody: rows beyond the last sample belong to none and are not kept; of samples that are
not there, whatever tokens stand in their place, nobody writes down the answers, and none stays where somebody may leave.
There is room for one row more than there are rows, so that the first row of a sample that is not there is a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import mp_kernels
from mp_kernels import Kept, Ragged

from .backbones import PackedInputs
from .engine import Pyramid, first_tokens
from .flops import Step

_ops = torch.ops.mp_kernels


@dataclass
class Held:
    """Samples between two layers, in buffers with room for more.

    Attributes:
        batch: their alive tokens; ``values [rows, hidden]`` and ``cu_seqlens [batch + 1]``, of which the first are there.
        samples: int64 ``[batch]``, their numbers; those that are not there have any number below the batch.
        count: int64 ``[1]``, the samples that are there.
        extents: int64 ``[4]``, of the last compaction: rows that are there, a bound on the samples, tokens of the longest.
        thresholds: ``[batch, exit layers]``, exit thresholds of their own.
    """

    batch: Ragged
    samples: Tensor
    count: Tensor
    extents: Tensor
    thresholds: Tensor | None = None

    @classmethod
    def of(cls, pyramid: Pyramid, inputs: PackedInputs, count: Tensor, thresholds: Tensor | None = None) -> Held:
        """Embedded inputs with room, of which the first ``count`` samples, int64 ``[1]``, are there."""
        batch = pyramid.embed(inputs)
        device = count.device
        extents = torch.full((4,), -1, dtype=torch.int64, device=device)  # with no NaN row; nobody reads the others
        return cls(batch, torch.arange(batch.batch_size, device=device), count, extents, thresholds)


@dataclass
class Board:
    """The answers of a batch and the work for it, written down by each layer where its samples are found by their numbers.

    Attributes:
        logits: ``[batch, labels]``.
        uncertainty: float32 ``[batch]``.
        exit_layer: int64 ``[batch]``.
        tokens: int32 ``[L + 1, 2, batch]``, tokens that entered and that survived each layer, 0 where nobody came.
        nan_rows: int64 ``[L + 1]``, the first row with NaN importance at each layer, or -1.
    """

    logits: Tensor
    uncertainty: Tensor
    exit_layer: Tensor
    tokens: Tensor
    nan_rows: Tensor

    @classmethod
    def empty(cls, samples: int, labels: int, layers: int, like: Tensor) -> Board:
        """A board on which nothing is written, on a tensor's device and with logits of its dtype."""
        return cls(
            like.new_zeros(samples, labels),
            like.new_zeros(samples, dtype=torch.float32),
            like.new_zeros(samples, dtype=torch.int64),
            like.new_zeros(layers + 1, 2, samples, dtype=torch.int32),
            like.new_full((layers + 1,), -1, dtype=torch.int64),
        )

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All that is written."""
        return self.logits, self.uncertainty, self.exit_layer, self.tokens, self.nan_rows

    def wipe(self) -> None:
        """Makes it empty again, so that no layer shows what it did for an earlier batch."""
        self.tokens.zero_()
        self.nan_rows.fill_(-1)

    def steps(self, pyramid: Pyramid, count: int) -> list[Step]:
        """Everything that was run for the first ``count`` samples, for counting the work; the host reads who came where."""
        found: list[Step] = []
        last, exit_layer = len(pyramid.layers), self.exit_layer[:count]
        tokens = self.tokens[0, 0, :count]
        for layer in range(last + 1):
            samples = (exit_layer >= layer).nonzero().squeeze(1)
            if samples.shape[0] == 0:
                break
            entered = tokens[samples]
            tokens = self.tokens[layer, 1, :count] if is_recorded(pyramid, layer) else tokens
            how = "embedded" if layer == 0 else "last" if layer == last else "whole"
            decided = pyramid.exits is not None and layer in pyramid.exits
            survived = _starts(tokens[samples])
            found.append(Step(layer, how, decided, samples, _starts(entered), survived))  # type: ignore[arg-type]
        return found


def is_recorded(pyramid: Pyramid, layer: int) -> bool:
    """Whether anything happens at a layer that must be written down: at others all tokens of all samples go on."""
    decided = pyramid.exits is not None and layer in pyramid.exits
    return layer in (0, len(pyramid.layers)) or decided or pyramid.pruning.happens(layer)


def _starts(counts: Tensor) -> Tensor:
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()


def can_be_bounded(pyramid: Pyramid) -> bool:
    """Whether a pyramid's rules ask for nothing that only the host could count."""
    pruning = pyramid.pruning
    reads_pairs = pyramid.exits is not None and any(head.reads_pairs for head in pyramid.exits.heads.values())
    return pruning.normalizer == "alive" and pruning.top_k is None and pyramid.cap is None and not reads_pairs


def run_bounded_embeddings(pyramid: Pyramid, held: Held, board: Board) -> Held:
    """The exit of layer 0 for embedded samples, where it is open, and what they came with."""
    return _decided(pyramid, 0, held, held.batch, held.extents, board)


def run_bounded_layer(pyramid: Pyramid, number: int, held: Held, board: Board) -> Held:
    """Layer ``number`` (from 1) for samples that the host has not counted.

    Returns:
        The samples that stay, with as much room as before; those of layer L as they were.
    """
    batch = held.batch
    if number == len(pyramid.layers):
        features = pyramid.last_layer(batch)
        logits = pyramid.final_head(features).to(features.dtype)
        _record(board, number, held, held.extents, batch.cu_seqlens, logits, pyramid.uncertainty.of_last(logits), None)
        return held
    extents = held.extents

    def survive(importance: Tensor, rows: Sequence[Tensor]) -> tuple[Sequence[Tensor], Kept]:
        nonlocal extents
        assert pyramid.pruning.thresholds is not None
        threshold = pyramid.pruning.thresholds[number - 1]
        (context,) = rows  # of a layer in prepared form
        context, index, starts, _, extents = _ops.prune_rows(context, importance, batch.cu_seqlens, threshold)
        return [context], Kept(index, starts, batch.max_seqlen)

    block = pyramid.block(number, batch.values.device)
    output, _ = block.whole(batch, survive if pyramid.pruning.happens(number) else None)
    return _decided(pyramid, number, held, output, extents, board)


def _decided(pyramid: Pyramid, number: int, held: Held, output: Ragged, extents: Tensor, board: Board) -> Held:
    """The samples that stay after a layer's exit, where it is open; all that happened is written down.

    extents: of the layer's own pruning, or of the batch that entered.
    """
    starts = output.cu_seqlens
    if not is_recorded(pyramid, number):
        return replace(held, batch=output)
    if pyramid.exits is None or number not in pyramid.exits:
        _record(board, number, held, extents, starts, None, None, None)
        return replace(held, batch=output, extents=extents)
    states = pyramid.states(first_tokens(output), held.batch, output)
    logits, uncertainty, stays = pyramid.exits.decide(number, states, held.thresholds)
    _record(board, number, held, extents, starts, logits.to(states.first.dtype), uncertainty, stays)
    index, starts, samples, extents = _ops.select_samples(starts, stays, output.values.shape[0])
    rows = [output.values] if output.positions is None else [output.values, output.positions]
    values, *positions = mp_kernels.ragged_gather(rows, index)
    of_samples = [held.samples] if held.thresholds is None else [held.samples, held.thresholds]
    numbers, *thresholds = mp_kernels.ragged_gather(of_samples, samples)
    batch = Ragged(values, starts, output.max_seqlen, positions=positions[0] if positions else None)
    return Held(batch, numbers, extents[1:2], extents, thresholds[0] if thresholds else None)


def _record(
    board: Board,
    layer: int,
    held: Held,
    extents: Tensor,
    survived: Tensor,
    logits: Tensor | None,
    uncertainty: Tensor | None,
    stays: Tensor | None,
) -> None:
    entered = held.batch.cu_seqlens
    _ops.record_answers(
        held.count, extents, held.samples, entered, survived, logits, uncertainty, stays, layer, *board.parts
    )

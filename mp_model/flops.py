"""Counting work: 2 x multiply-accumulates, from the shapes alone.

``n`` tokens enter a layer and ``m`` survive it; d is the hidden size, 2 d f the weights of a feed-forward. No padding,
LayerNorm or embeddings are counted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .exits import EXIT_HEADS


def entering_tokens(survivors: Tensor, input_lengths: Tensor) -> Tensor:
    """int64 ``[batch, L]``: tokens that enter each layer, given the survivors of each."""
    return torch.cat([input_lengths.unsqueeze(1), survivors[:, :-1]], dim=1)


def reported_tokens(entering: Tensor, exit_layer: Tensor) -> Tensor:
    """``tokens_per_layer`` as it is reported, int64 ``[batch, L]``.

    The survivors of each layer; in the layer of the exit the tokens that entered it, since nobody needs its survivors;
    0 after.

    Args:
        entering: int64 ``[batch, L]``, tokens that enter each layer up to the exit.
        exit_layer: int64 ``[batch]``.
    """
    layers = entering.shape[1]
    numbers = torch.arange(1, layers + 1, device=entering.device)
    following = torch.cat([entering[:, 1:], torch.zeros_like(entering[:, :1])], dim=1)
    exits = exit_layer.unsqueeze(1)
    return torch.where(numbers < exits, following, torch.where(numbers == exits, entering, 0))


def paper_flops(config: Any, tokens_per_layer: Tensor, input_lengths: Tensor, exit_layer: Tensor) -> Tensor:
    """int64 ``[batch]``: Magic Pyramid's (and LTP's) count, ``2 (2 d n^2 + 4 d^2 n + 2 d f m)`` a layer.

    Whole layers up to the exit, with all the tokens that entered in the exit's feed-forward; no heads. With f = 4 d this
    is the paper's ``8 d^2 n_ffn``. In a layer with windows a token reads at most those within one, whatever was pruned.
    """
    shape = Shape.of(config)
    d, n = shape.hidden_size, entering_tokens(tokens_per_layer, input_lengths)
    read = torch.stack([shape.read(n[:, layer], layer + 1) for layer in range(n.shape[1])], dim=1)
    per_layer = 2 * (2 * d * n * read + 4 * d * d * n + shape.feed_forward_size * tokens_per_layer)
    return torch.where(_visited(exit_layer, n.shape[1]), per_layer, 0).sum(1)


def dense_flops(config: Any, input_lengths: Tensor) -> Tensor:
    """int64 ``[batch]``: the paper's count of a model that prunes nothing and lets nobody leave, without padding."""
    layers = config.num_hidden_layers
    everywhere = input_lengths.unsqueeze(1).expand(-1, layers)
    return paper_flops(config, everywhere, input_lengths, torch.full_like(input_lengths, layers))


def _visited(exit_layer: Tensor, layers: int) -> Tensor:
    """bool ``[batch, L]``: layers that each sample entered."""
    return torch.arange(1, layers + 1, device=exit_layer.device) <= exit_layer.unsqueeze(1)


class Shape(NamedTuple):
    """The settings of a model that work is counted from.

    Attributes:
        hidden_size, num_hidden_layers, num_labels, exit_head, exit_uncertainty: as in its configuration.
        feed_forward_size: weights of a layer's feed-forward.
        windows: the distance at which tokens of each layer still see each other; None: any.
        final_head_size: weights of the model's own head.
        last_reads_all: whether that head reads all tokens of layer L.
    """

    hidden_size: int
    num_hidden_layers: int
    num_labels: int
    exit_head: str
    exit_uncertainty: str
    feed_forward_size: int
    windows: tuple[int | None, ...]
    final_head_size: int
    last_reads_all: bool

    @classmethod
    def of(cls, config: Any) -> Shape:
        """The shape of a pyramid's configuration; a shape itself stays as it is."""
        if isinstance(config, cls):
            return config
        backbone = config.backbone
        return cls(
            config.hidden_size,
            config.num_hidden_layers,
            config.num_labels,
            config.exit_head,
            config.exit_uncertainty,
            backbone.feed_forward_size(config),
            tuple(backbone.windows(config)),
            backbone.final_head_size(config),
            backbone.last_reads_all(config),
        )

    def read(self, n: Tensor, layer: int) -> Tensor:
        """The keys that a query of layer ``layer`` (from 1) reads at most, of n tokens that entered."""
        window = self.windows[layer - 1]
        return n if window is None else n.clamp(max=2 * window + 1)

    # The parts of a layer, each for one sample of n entering and m surviving tokens.

    def keys_values(self, n: Tensor) -> Tensor:
        return 4 * self.hidden_size**2 * n

    def first_token(self, n: Tensor, layer: int) -> Tensor:
        """Query, attention row, output projection and feed-forward of [CLS] alone."""
        d, window = self.hidden_size, self.windows[layer - 1]
        read = n if window is None else n.clamp(max=window + 1)
        return 2 * (2 * d * d + 2 * d * read + self.feed_forward_size)

    def rest(self, n: Tensor, m: Tensor, layer: int) -> Tensor:
        """Queries and attention of all tokens; output projection and feed-forward of the survivors."""
        d = self.hidden_size
        return 2 * (d * d * n + 2 * d * n * self.read(n, layer) + (d * d + self.feed_forward_size) * m)

    def last(self, n: Tensor) -> Tensor:
        """Layer L and the model's own head."""
        layer = self.num_hidden_layers
        work = self.rest(n, n, layer) if self.last_reads_all else self.first_token(n, layer)
        return self.keys_values(n) + work + 2 * self.final_head_size


How = Literal["embedded", "whole", "decided first", "last", "masked"]


@dataclass
class Step:
    """One run of one layer, as far as its work can be counted from it.

    Attributes:
        layer: the layer's number, 0 for the embeddings.
        how: ``"whole"``; ``"decided first"``: an exit, then the rest for the samples that stayed; ``"last"``: layer L, for
            [CLS] alone; ``"embedded"``: layer 0; ``"masked"``: all columns of a padded batch.
        decided: whether an exit head looked.
        samples: int64 ``[batch]``, the numbers of the samples that entered.
        entered: int32 ``[batch + 1]``, the starts of their tokens.
        survived: int32, the starts of the tokens that the rest of the layer was computed for; None: all that entered.
        stayed: int64, the places in ``samples`` of the samples in ``survived``; None: all.
        width: columns of the padded batch of a masked layer.
    """

    layer: int
    how: How
    decided: bool
    samples: Tensor
    entered: Tensor
    survived: Tensor | None = None
    stayed: Tensor | None = None
    width: int = 0

    def tokens(self) -> Tensor:
        """int64 ``[batch]``, the tokens that entered."""
        return self.entered.diff().long()

    def flops(self, config: Any) -> Tensor:
        """int64 ``[batch]``, the matrix products that were executed for each sample, heads included."""
        shape = Shape.of(config)
        n = self.tokens()
        m = n if self.survived is None else self.survived.diff().long()
        head = EXIT_HEADS[shape.exit_head]
        if self.how == "embedded":
            work = torch.zeros_like(n)
        elif self.how == "last":
            return shape.last(n)
        elif self.how == "masked":
            # The masked form computes every column, far ones too, and masks them.
            n = torch.full_like(n, self.width)
            everywhere = shape._replace(windows=(None,) * shape.num_hidden_layers)
            work = shape.keys_values(n) + everywhere.rest(n, n, self.layer)
            return work + 2 * shape.final_head_size if self.layer == shape.num_hidden_layers else work
        elif self.how == "whole":
            work = shape.keys_values(n) + shape.rest(n, m, self.layer)
        else:
            work = shape.keys_values(n) + shape.first_token(n, self.layer)
            if self.stayed is None:
                work = work + shape.rest(n, m, self.layer)
            else:
                work = work.index_add(0, self.stayed, shape.rest(n[self.stayed], m, self.layer))
        if self.decided:
            work = work + head.flops(shape, m if head.reads_survivors and self.layer else n)
        return work


class Work:
    """The work of one batch, counted when somebody asks.

    Args:
        config: the model's configuration; later changes of it change nothing.
        input_lengths: int64 ``[batch]``, the tokens that each sample came with.
        exit_layer: int64 ``[batch]``.
        steps: everything that was run for the batch; samples are numbered by their places in it.
    """

    def __init__(self, config: Any, input_lengths: Tensor, exit_layer: Tensor, steps: Sequence[Step]) -> None:
        self.config = Shape.of(config)
        self.input_lengths, self.exit_layer, self.steps = input_lengths, exit_layer, steps

    def tokens_per_layer(self) -> Tensor:
        """int64 ``[batch, L]``, see :func:`reported_tokens`."""
        entering = self.input_lengths.new_zeros(self.input_lengths.shape[0], self.config.num_hidden_layers)
        for step in self.steps:
            if step.layer:
                entering[:, step.layer - 1].index_copy_(0, step.samples, step.tokens())
        return reported_tokens(entering, self.exit_layer)

    def flops(self) -> Tensor:
        """int64 ``[batch]``, see :func:`paper_flops`."""
        return paper_flops(self.config, self.tokens_per_layer(), self.input_lengths, self.exit_layer)

    def executed_flops(self) -> Tensor:
        """int64 ``[batch]``, the matrix products that were executed, heads and short cuts included."""
        work = torch.zeros_like(self.input_lengths)
        for step in self.steps:
            work.index_add_(0, step.samples, step.flops(self.config))
        return work


def executed_flops(
    config: Any, survivors: Tensor, input_lengths: Tensor, exit_layer: Tensor, decided_layers: Collection[int]
) -> Tensor:
    """int64 ``[batch]``: the matrix products that answers take in full batches, where exits are decided first.

    A decision costs keys and values of all tokens and the rest for [CLS]; a sample that stays pays the rest of the layer
    on top. A head that reads survivors is decided after its whole layer. In layer L nothing but [CLS] is computed.

    Args:
        config: the model's configuration.
        survivors: int64 ``[batch, L]``, of each layer; those of a layer that a sample did not finish are not read.
        input_lengths: int64 ``[batch]``.
        exit_layer: int64 ``[batch]``.
        decided_layers: the exit layers that were open, 0 among them if it was.
    """
    shape = Shape.of(config)
    layers, head = shape.num_hidden_layers, EXIT_HEADS[shape.exit_head]
    entering = entering_tokens(survivors, input_lengths)
    work = torch.zeros_like(input_lengths)
    if 0 in decided_layers:
        work = work + head.flops(shape, input_lengths)
    for layer in range(1, layers + 1):
        n, m = entering[:, layer - 1], survivors[:, layer - 1]
        decided, stays = layer in decided_layers, exit_layer > layer
        rest = shape.rest(n, m, layer)
        if layer == layers:
            cost = shape.last(n)
        elif not decided:
            cost = shape.keys_values(n) + rest
        elif head.reads_survivors:
            cost = shape.keys_values(n) + rest + head.flops(shape, m)
        else:
            cost = shape.keys_values(n) + shape.first_token(n, layer) + head.flops(shape, n)
            cost = cost + torch.where(stays, rest, 0)
        work = work + torch.where(exit_layer >= layer, cost, 0)
    return work

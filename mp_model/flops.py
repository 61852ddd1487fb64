"""Counting work: 2 x multiply-accumulates, from the shapes alone.

``n`` tokens enter a layer and ``m`` survive it; d is the hidden size, f the feed-forward size.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor


def entering_tokens(tokens_per_layer: Tensor, input_lengths: Tensor) -> Tensor:
    """int64 ``[batch, L]``: tokens that enter each layer, where ``tokens_per_layer`` are the survivors of each."""
    return torch.cat([input_lengths.unsqueeze(1), tokens_per_layer[:, :-1]], dim=1)


def tokens_of_answers(tokens_per_layer: Tensor, input_lengths: Tensor, exit_layer: Tensor) -> Tensor:
    """``tokens_per_layer`` as it is reported and as the paper counts: in the layer of the exit, those that entered it.

    They differ where a ``"fastbert"`` head, which reads survivors, lets a sample go.
    """
    leaves_here = torch.arange(1, tokens_per_layer.shape[1] + 1, device=exit_layer.device) == exit_layer.unsqueeze(1)
    return torch.where(leaves_here, entering_tokens(tokens_per_layer, input_lengths), tokens_per_layer)


def _visited(exit_layer: Tensor, layers: int) -> Tensor:
    """bool ``[batch, L]``: layers that each sample entered."""
    return torch.arange(1, layers + 1, device=exit_layer.device) <= exit_layer.unsqueeze(1)


def paper_flops(config: Any, tokens_per_layer: Tensor, input_lengths: Tensor, exit_layer: Tensor) -> Tensor:
    """int64 ``[batch]``: Magic Pyramid's (and LTP's) count, ``2 (2 d n^2 + 4 d^2 n + 2 d f m)`` a layer.

    Whole layers up to the exit, with all the tokens that entered in the exit's feed-forward; no padding, LayerNorm,
    embeddings or heads. With f = 4 d this is the paper's ``8 d^2 n_ffn``.
    """
    d, f = config.hidden_size, config.intermediate_size
    n = entering_tokens(tokens_per_layer, input_lengths)
    per_layer = 2 * (2 * d * n * n + 4 * d * d * n + 2 * d * f * tokens_per_layer)
    return torch.where(_visited(exit_layer, n.shape[1]), per_layer, 0).sum(1)


def head_flops(config: Any, tokens: Tensor) -> Tensor:
    """int64, like ``tokens``: one exit head's work over that many tokens (only ``"fastbert"`` looks at them all)."""
    d, labels = config.hidden_size, config.num_labels
    if config.exit_head == "fastbert":
        width = 128
        # input, keys and values of all; query, attention row, output, dense and classifier of [CLS]
        return 2 * (tokens * (d * width + 2 * width * width + 2 * width) + 3 * width * width + width * labels)
    features = 2 * d if config.exit_head == "pooled" else d
    return torch.full_like(tokens, 2 * (features * d + d * labels))


def _constant(values: list[bool], device: torch.device) -> Tensor:
    """A small tensor from the host, which does not wait for the device to have taken it."""
    made = torch.tensor(values)
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made.to(device)


def executed_flops(
    config: Any,
    tokens_per_layer: Tensor,
    input_lengths: Tensor,
    exit_layer: Tensor,
    decided_layers: Collection[int],
    pruning_layers: Collection[int] = (),
) -> Tensor:
    """int64 ``[batch]``: the matrix products that the engine really does, heads and short cuts included.

    A decision costs keys and values of all tokens and the rest for [CLS]; a sample that stays pays the rest of the layer on
    top. Layer L is a decision by the pooler and the classifier. Pruned tokens leave before the output projection; where a
    layer decides first and also prunes, queries are made before anybody leaves.

    Args:
        config: the model's configuration.
        tokens_per_layer, input_lengths, exit_layer: as the engine returns them.
        decided_layers: the exit layers that were open, 0 among them if it was.
        pruning_layers: the layers that can prune.
    """
    d, f, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    n = entering_tokens(tokens_per_layer, input_lengths)
    m = tokens_per_layer
    numbers = torch.arange(1, layers + 1, device=n.device)
    leaves_here = numbers == exit_layer.unsqueeze(1)

    keys_values = 4 * d * d * n
    first_token = 2 * (d * d + 2 * d * n + d * d + 2 * d * f)
    rest = 2 * (d * d * n + 2 * d * n * n + (d * d + 2 * d * f) * m)
    decided, prunes = (
        _constant([number in some for number in range(1, layers + 1)], n.device)
        for some in (decided_layers, pruning_layers)
    )
    last = numbers == layers

    if config.exit_head == "fastbert":
        # Decided after the whole layer: everybody pays it, and the head reads its survivors.
        per_layer = keys_values + torch.where(last, first_token, rest) + decided * head_flops(config, m)
    else:
        per_layer = keys_values + (decided | last) * first_token + ~leaves_here * rest + decided * head_flops(config, n)
        per_layer = per_layer + (leaves_here & decided & prunes) * 2 * d * d * n
    work = torch.where(_visited(exit_layer, layers), per_layer, 0).sum(1)
    if 0 in decided_layers:
        work = work + head_flops(config, input_lengths)
    final_head = 2 * (d * d + d * config.num_labels)
    return work + (exit_layer == layers) * final_head

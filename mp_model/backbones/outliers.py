"""Inputs of linear layers that are far larger than the others: a scale a row would leave these few of int8's integers.

In encoders a few channels hold nearly all of what there is of [CLS] and of punctuation, whatever the text, and so they do
for random tokens. So no text is needed to find them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

TEXTS, TOKENS = 4, 32


def outlying_columns(encoder: Any, count: int) -> dict[nn.Module, Tensor]:
    """The inputs that are to be kept out of a rounding, int64 ``[count]``, of every linear layer that has such ones.

    Args:
        encoder: the :class:`mp_model.PyramidModel`, with float weights; it is run on a few random tokens.
        count: inputs of a layer, at most.
    """
    found: dict[nn.Module, Tensor] = {}
    hooks = []
    if not count:
        return found
    for layer in encoder.stack:
        for linears in layer.outlying():

            def note(_: nn.Module, inputs: tuple[Tensor], linears: tuple[nn.Module, ...] = linears) -> None:
                found.update(dict.fromkeys(linears, largest_columns(inputs[0].flatten(0, -2).float(), count)))

            hooks.append(linears[0].register_forward_pre_hook(note))
    if not hooks:
        return found
    modes = {module: module.training for module in encoder.modules()}
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(encoder.config.vocab_size, (TEXTS, min(TOKENS, encoder.config.positions)), generator=generator)
    try:
        encoder.eval()
        with torch.inference_mode():
            encoder(ids.to(encoder.device), prune_thresholds=[0.0] * encoder.config.num_hidden_layers)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for hook in hooks:
            hook.remove()
    return found


def largest_columns(x: Tensor, count: int) -> Tensor:
    """Columns without which the scales of rows are the smallest, one chosen after the other: int64 ``[count]``.

    x: ``[rows, width]``; count: columns, at most its width.
    """
    if x.shape[1] <= count:
        return torch.arange(x.shape[1], device=x.device)
    magnitudes, chosen = x.abs(), []
    for _ in range(count):
        largest, places = magnitudes.max(1)
        second = magnitudes.scatter(1, places[:, None], 0).amax(1)
        energy = magnitudes.square().mean(1).clamp(min=torch.finfo(x.dtype).tiny)
        gains = x.new_zeros(x.shape[1]).index_add_(0, places, (largest.square() - second.square()) / energy)
        chosen.append(int(gains.argmax()))
        magnitudes[:, chosen[-1]] = 0
    return torch.tensor(chosen, device=x.device)

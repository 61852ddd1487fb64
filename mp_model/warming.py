"""A model's first batches, run before anybody waits for them: kernels are compiled, and weights packed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# Attention is compiled for tiles of keys that double from this length on, up to a length from which keys come in blocks.
SHORTEST_TILE, LONGEST_TILE = 64, 1024


def compiles(device: torch.device) -> bool:
    """Whether kernels are compiled when they are first used on a device."""
    return device.type != "cpu"


@torch.no_grad()
def warm_up(model: Any, max_length: int | None = None, batch_size: int = 32) -> None:
    """As :meth:`mp_model.modelling.PyramidForSequenceClassification.warm_up`."""
    positions = model.config.positions
    longest = positions if max_length is None else max_length
    if batch_size < 1 or not 1 <= longest <= positions:
        raise ValueError(
            f"batch_size must be at least 1, and max_length lie in 1..{positions}; got {batch_size} and {max_length}"
        )
    was_training = model.training
    model.eval()
    try:
        for size, length in _shapes(longest, batch_size, model.device):
            for settings in _settings(model, size, length):
                model(**_texts(model, size, length), **settings)
    finally:
        model.train(was_training)


def _shapes(longest: int, batch_size: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Samples and tokens of the batches to run: a full batch and a lone sample for each tile."""
    if not compiles(device):
        yield 1, min(longest, SHORTEST_TILE)
        return
    length = SHORTEST_TILE
    while True:
        for size in {1, batch_size}:
            yield size, min(length, longest)
        if length >= min(longest, LONGEST_TILE):
            return
        length *= 2


def _texts(model: Any, size: int, length: int) -> dict[str, Tensor]:
    """Arguments of the model: random texts of one length."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (size, length), generator=generator).to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def _settings(model: Any, size: int, length: int) -> Iterator[dict[str, Any]]:
    """Settings of the calls by which a batch meets everything that its settings let happen."""
    config = model.config
    layers = config.num_hidden_layers
    nothing = [0.0] * layers
    yield {"exit_threshold": "never", "prune_thresholds": nothing}
    if config.resolved_top_k() is not None:
        yield {"exit_threshold": "never"}
    elif any(config.resolved_thresholds() or ()):
        # Importance is 1 / length on average, so some tokens lie below that and some do not.
        yield {"exit_threshold": "never", "prune_thresholds": [1 / length] * layers}
    if len(model.exits) and config.why_untrained() is None:
        yield {"exit_threshold": 0.5}
        # Whatever the heads say, every second sample leaves where it is asked, and the others stay.
        yield {"exit_threshold": (torch.arange(size) % 2).float(), "prune_thresholds": nothing}

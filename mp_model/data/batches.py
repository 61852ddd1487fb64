"""Padded batches of texts, with similar lengths together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .cutting import Cutter

Text = str | tuple[str, str]


@dataclass
class TextBatch:
    """A padded batch.

    Attributes:
        places: place of each row's text in the sequence that the batch was made from.
        inputs: ``input_ids``, ``attention_mask`` and ``token_type_ids``, int64 ``[batch, width]``, padded on the right.
    """

    places: list[int]
    inputs: dict[str, Tensor]

    def to(self, device: torch.device | str) -> TextBatch:
        """The same batch on a device."""
        return TextBatch(self.places, {name: x.to(device) for name, x in self.inputs.items()})


def are_pairs(texts: Sequence[Text]) -> bool:
    """Whether texts are pairs.

    Raises:
        TypeError: something else than a str or a tuple of two.
        ValueError: some are pairs and some are not.
    """
    for text in texts:
        parts = text if isinstance(text, tuple) and len(text) == 2 else (text,)
        if not all(isinstance(part, str) for part in parts):
            raise TypeError(f"a text must be a str, and a pair of texts a tuple of two; got {text!r:.60}")
    kinds = {isinstance(text, tuple) for text in texts}
    if len(kinds) == 2:
        raise ValueError("texts must be all single or all pairs; got both")
    return kinds == {True}


def has_types(tokenizer: Any) -> bool:
    """Whether the model of a tokenizer tells the two texts of a pair apart by token types."""
    return "token_type_ids" in tokenizer.model_input_names


def encode(tokenizer: Any, texts: Sequence[Text], max_length: int) -> list[dict[str, list[int]]]:
    """Token ids and types of each text, or pair of texts, cut to ``max_length`` tokens."""
    if not texts:
        return []
    cut, pairs = Cutter(tokenizer, max_length), are_pairs(texts)
    texts = [cut(text) for text in texts]
    firsts, seconds = zip(*texts, strict=True) if pairs else (texts, None)
    encoded = tokenizer(
        list(firsts),
        None if seconds is None else list(seconds),
        truncation=True,
        max_length=max_length,
        return_token_type_ids=has_types(tokenizer),
        return_attention_mask=False,
    )
    rows = encoded["input_ids"]
    types = encoded["token_type_ids"] if has_types(tokenizer) else [[0] * len(row) for row in rows]
    return [{"input_ids": ids, "token_type_ids": of_row} for ids, of_row in zip(rows, types, strict=True)]


def in_input_order(pieces: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    """Rows of several batches, one after the other, brought back to the order of the texts.

    pieces: ``[batch, ...]`` each; places: the texts' places, batch after batch.
    """
    return torch.cat(list(pieces))[torch.tensor(places).argsort()]


def length_sorted_batches(
    encoded: Sequence[dict[str, list[int]]], batch_size: int, pad_token_id: int
) -> Iterator[TextBatch]:
    """Batches of texts of similar length, long ones first (so that memory peaks at once and not at the end)."""
    order = sorted(range(len(encoded)), key=lambda place: -len(encoded[place]["input_ids"]))
    for begin in range(0, len(order), batch_size):
        places = order[begin : begin + batch_size]
        ids = [torch.tensor(encoded[place]["input_ids"]) for place in places]
        types = [torch.tensor(encoded[place]["token_type_ids"]) for place in places]
        masks = [torch.ones_like(row) for row in ids]
        yield TextBatch(
            places,
            {
                "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
                "attention_mask": pad_sequence(masks, batch_first=True),
                "token_type_ids": pad_sequence(types, batch_first=True),
            },
        )

"""The models and the cases that are measured, and the texts of a case."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import workload

MODELS = {"base": "BERT-base, random weights", "minilm": "MiniLM-L6, its own weights and a random head"}
LABELS = 4
ORDERS = {True: "sorted", False: "as they come"}


class Case(NamedTuple):
    """A model, threads and batches that all ways are timed with in turns."""

    model: str
    threads: int
    batch_size: int
    length_sorted: bool

    @property
    def name(self) -> str:
        """Name in the document."""
        return f"{self.model}, threads {self.threads}, batch {self.batch_size}, {ORDERS[self.length_sorted]}"


@dataclass(frozen=True)
class Budget:
    """Size of a run.

    Attributes:
        texts: texts of a case; a case has two batches at least.
        rounds: turns of each way.
        dry: whether everything is only tried: tiny models, no figure is a measurement.
    """

    texts: int
    rounds: int
    dry: bool = False


def cases_of(model: str, threads: int, batch_sizes: Iterable[int]) -> list[Case]:
    """A model's cases with so many threads; a batch of one text needs no order, as nothing is padded."""
    return [
        Case(model, threads, size, length_sorted)
        for size in batch_sizes
        for length_sorted in ORDERS
        if size > 1 or length_sorted
    ]


def texts_of(count: int, vocabulary: int, seed: int = 0) -> list[Tensor]:
    """Random word pieces in AG News' lengths, int64 ``[length]`` each; no special ids are among them."""
    generator = torch.Generator().manual_seed(seed)
    ids = (vocabulary // 30, vocabulary * 2 // 3)
    return [torch.randint(*ids, (length,), generator=generator) for length in workload.ag_news_lengths(count)]


def padded(texts: list[Tensor]) -> dict[str, Tensor]:
    """One batch, padded on the right: ``input_ids``, ``attention_mask``, ``token_type_ids``, int64 ``[batch, width]``."""
    ids = pad_sequence(texts, batch_first=True)
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def batches_of(case: Case, texts: int, vocabulary: int) -> list[dict[str, Tensor]]:
    """The case's batches."""
    rows = texts_of(max(texts, 2 * case.batch_size), vocabulary)
    if case.length_sorted:
        rows.sort(key=len, reverse=True)
    return [padded(rows[begin : begin + case.batch_size]) for begin in range(0, len(rows), case.batch_size)]

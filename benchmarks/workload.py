"""The workload: BERT-base's shapes with random weights, and texts as long as AG News'.

It runs on a GPU in bfloat16 where there is one, otherwise on the CPU in float32.
"""

from __future__ import annotations

import copy
import functools
import random
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertForSequenceClassification

from mp_model import PyramidBertConfig, PyramidBertForSequenceClassification

TEXTS = 96
BATCH_SIZE = 32
LABELS = 4
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32


def states(*shape: int) -> Tensor:
    """Random numbers of the workload's dtype on its device."""
    return torch.randn(*shape).to(DEVICE, DTYPE)


def ag_news_lengths(count: int = TEXTS) -> list[int]:
    """Log-normal token counts with AG News' mean of 55, cut at 100."""
    draw = random.Random(0)
    return [min(100, max(10, round(draw.lognormvariate(3.95, 0.33)))) for _ in range(count)]


def cu_seqlens_of(lengths: list[int]) -> Tensor:
    """Starts of the samples and the end of the last, int32 ``[batch + 1]`` on the workload's device."""
    return torch.nn.functional.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int().to(DEVICE)


def batches(length_sorted: bool) -> list[dict[str, Tensor]]:
    """The texts in padded batches, as they come or with similar lengths together."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(1000, 20_000, (n,), generator=generator) for n in ag_news_lengths()]
    if length_sorted:
        texts.sort(key=len, reverse=True)
    groups = [texts[begin : begin + BATCH_SIZE] for begin in range(0, TEXTS, BATCH_SIZE)]
    return [
        {
            "input_ids": pad_sequence(group, batch_first=True).to(DEVICE),
            "attention_mask": pad_sequence([torch.ones_like(text) for text in group], batch_first=True).to(DEVICE),
        }
        for group in groups
    ]


@functools.cache
def ours() -> PyramidBertForSequenceClassification:
    """BERT-base with random weights, as a pyramid that prunes nothing and lets nobody leave."""
    torch.manual_seed(0)
    return PyramidBertForSequenceClassification(PyramidBertConfig(num_labels=LABELS)).eval().to(DEVICE, DTYPE)


def ours_with(**settings: Any) -> PyramidBertForSequenceClassification:
    """A copy of the same pyramid under other settings of its configuration."""
    model = copy.deepcopy(ours())
    model.config.update(settings)
    return model


@functools.cache
def stock() -> BertForSequenceClassification:
    """The same weights in transformers' own model, with its scaled-dot-product attention."""
    model = BertForSequenceClassification(BertConfig(num_labels=LABELS)).eval().to(DEVICE, DTYPE)
    model.load_state_dict({name: x for name, x in ours().state_dict().items() if not name.startswith("exits.")})
    return model

"""Tiny random models of every backbone: transformers' own, and pyramids with their weights."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from mp_model import PyramidConfig, PyramidForSequenceClassification
from mp_model.backbones import BACKBONES
from mp_model.configuration import config_class

LAYERS = 4
WINDOW = 5  # at which tokens see each other in a layer with windows
COMMON = {"vocab_size": 50, "num_labels": 3, "attention_dropout": 0.0}
BERT_LIKE = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
    "camembert": {"type_vocab_size": 1},
    "electra": {"embedding_size": 16},
    "distilbert": {
        "dim": 32,
        "n_layers": LAYERS,
        "n_heads": 4,
        "hidden_dim": 64,
        "dropout": 0.0,
        "seq_classif_dropout": 0.0,
    },
    "modernbert": {
        "local_attention": 2 * WINDOW,
        "global_attn_every_n_layers": 2,
        **{f"{name}_token_id": place for place, name in enumerate(("pad", "bos", "eos", "cls", "sep"))},
    },
}
KINDS = list(BACKBONES)
POSITIONS = 64
LENGTHS = (17, 1, 40, 2, 3, 9, 28, 5, 33, 64, 21, 7)


def _texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(5, 50, (n,), generator=generator) for n in LENGTHS]


BATCH = _texts()
SIDES = [(torch.arange(n) >= 2 * n // 5).long() for n in LENGTHS]  # of each token, where these texts are pairs


def padded(kind: str, side: str = "right", pairs: bool = False) -> dict[str, Tensor]:
    """Arguments of a model for :data:`BATCH`; side is "left", "right" or "mixed" (by turns); pairs: as pairs of texts."""
    width = max(LENGTHS)
    ids = torch.full((len(BATCH), width), stock_config(kind).pad_token_id)
    mask, types = torch.zeros_like(ids), torch.ones_like(ids)
    for row, text in enumerate(BATCH):
        left = side == "left" or (side == "mixed" and row % 2)
        place = slice(width - len(text), width) if left else slice(0, len(text))
        ids[row, place], mask[row, place], types[row, place] = text, 1, SIDES[row]
    return {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": types} if pairs else {})


def settings(kind: str, **changed: Any) -> dict[str, Any]:
    """Settings of a tiny configuration with room for :data:`POSITIONS` tokens."""
    own = {**COMMON, **({} if kind == "distilbert" else BERT_LIKE), **SETTINGS.get(kind, {})}
    backbone = BACKBONES[kind]
    first = backbone.first_position(backbone.config(**own))
    return {**own, "max_position_embeddings": POSITIONS + first, **changed}


def stock_config(kind: str, **changed: Any) -> PreTrainedConfig:
    return BACKBONES[kind].config(**settings(kind, **changed))


def config(kind: str, **changed: Any) -> PyramidConfig:
    return config_class(BACKBONES[kind])(**settings(kind, **changed))


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 3) -> None:
    """Weights far from a fresh model's, the same for modules of the same name; no bias stays 0, no scale 1."""
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed + sum(name.encode())))
        if weight.dim() == 1:
            weight.copy_(float("norm" in name.lower() and name.endswith("weight")) + 0.2 * noise)
        elif "embeddings." in name:
            weight.copy_(noise)
        else:
            sharp = any(part in name for part in ("classifier", "query", "key", ".q.", ".k.", "q_lin", "k_lin", "Wqkv"))
            weight.copy_((2.0 if sharp else 1.0) * noise / weight.shape[1] ** 0.5)


@functools.cache
def stock(kind: str, seed: int = 3, **changed: Any) -> PreTrainedModel:
    """Transformers' classifier, in eval mode, with attention whose probabilities can be had."""
    make: Any = BACKBONES[kind].classifier
    model = make._from_config(stock_config(kind, **changed), attn_implementation="eager")
    randomise(model, seed)
    return model.eval()


@functools.cache
def exact(kind: str, **changed: Any) -> PreTrainedModel:
    """Transformers' classifier in float64, for the slow pyramid."""
    changed.pop("top_k", None)
    return copy.deepcopy(stock(kind, **changed)).double()


@functools.cache
def half(kind: str) -> PreTrainedModel:
    """Transformers' classifier in bfloat16."""
    return copy.deepcopy(stock(kind)).to(torch.bfloat16)


def heads_of(model: PyramidForSequenceClassification) -> dict[str, Tensor]:
    """Weights of the exit heads in float64."""
    return {name: x.detach().double() for name, x in model.named_parameters() if name.startswith("exits.")}


def pyramid(kind: str, seed: int = 3, **changed: Any) -> PyramidForSequenceClassification:
    """The pyramid with the same weights, in eval mode."""
    model = PyramidForSequenceClassification.from_config(config(kind, **changed))
    randomise(model, seed)
    return model.eval()

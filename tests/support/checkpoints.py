"""Folders of tiny classifiers with their tokenizer, and ways to damage them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from mp_model import PyramidBertForSequenceClassification
from support import tiny, wordpiece

NAMES = ("sport", "money", "weather")
TEXTS = [text for text in wordpiece.texts(14, seed=1) if text]


def classifier(**settings: Any) -> PyramidBertForSequenceClassification:
    """A classifier for texts of the tests' tokenizer."""
    return tiny.classifier(**{"vocab_size": len(wordpiece.VOCABULARY), "id2label": dict(enumerate(NAMES)), **settings})


def stock_classifier(**settings: Any) -> BertForSequenceClassification:
    """Stock BERT's classifier of the same size, which has no exits."""
    ours = classifier(**settings).config.to_dict()
    shared = {name: value for name, value in ours.items() if name in BertConfig().to_dict() or name == "id2label"}
    model = BertForSequenceClassification(BertConfig(**{**shared, "model_type": "bert"}))
    tiny.randomise(model)
    return model.eval()


def save(model: Any, folder: Path, tokenizer: Any = None) -> Path:
    """A folder of a model and its tokenizer."""
    model.save_pretrained(folder)
    (tokenizer or wordpiece.tokenizer()).save_pretrained(folder)
    return folder


def change_json(path: Path, **values: Any) -> None:
    """Sets values in a JSON file; None takes one out."""
    found = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Rewrites model.safetensors; change: works on the tensors, by their names."""
    path = folder / "model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(path).items()}
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})

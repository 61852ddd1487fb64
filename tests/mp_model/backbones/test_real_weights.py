"""A real model of 12 layers and width 768, where somebody has put its checkpoint together (benchmarks/weights.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, MPNetModel

from mp_model import PyramidModel

FOLDER = os.environ.get("MAGIC_PYRAMID_MPNET")
TEXTS = [
    "Wall St. bears claw back into the black.",
    "Oil prices soar to an all-time record, posing a new menace to the economy, three months before the elections.",
    "Yes.",
    "The company said " * 40,
]


@pytest.mark.skipif(FOLDER is None, reason="real weights: benchmarks/weights.py mpnet-base F, MAGIC_PYRAMID_MPNET=F")
def test_like_transformers() -> None:
    folder = Path(FOLDER or "")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    stock, model = MPNetModel.from_pretrained(folder).eval(), PyramidModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        theirs, ours = stock(**inputs), model(**inputs)
    tokens = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours.last_hidden_state[tokens], theirs.last_hidden_state[tokens], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.pooler_output, theirs.pooler_output, atol=1e-5, rtol=1e-5)

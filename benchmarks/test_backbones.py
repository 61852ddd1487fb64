"""Every backbone at its base size against transformers, nothing pruned and nobody leaving; ModernBERT on long texts too."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import workload
from mp_model import PyramidForSequenceClassification
from mp_model.backbones import BACKBONES
from mp_model.configuration import as_pyramid

Batches = list[dict[str, torch.Tensor]]
# XLM-RoBERTa and CamemBERT have RoBERTa's layers; BERT itself is in test_model.py.
KINDS = [kind for kind in BACKBONES if kind not in ("bert", "xlm-roberta", "camembert")]
# ELECTRA's own defaults are those of its small model.
SIZES = {"electra": {"embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}}
LONG = (1024, 2048, 4096)  # tokens of long texts, mixed in one batch


@functools.cache
def models(kind: str) -> tuple[Any, PyramidForSequenceClassification]:
    """Transformers' classifier with random weights, and ours."""
    torch.manual_seed(0)
    backbone: Any = BACKBONES[kind]
    stock = backbone.classifier._from_config(backbone.config(**SIZES.get(kind, {}))).eval()
    config = as_pyramid(stock.config)
    config.exit_layers = []
    ours = PyramidForSequenceClassification.from_config(config)
    ours.load_state_dict(stock.state_dict())
    return stock, ours.eval()


def words(kind: str, batches: Batches) -> Batches:
    """The batches in the form of a backbone: its own padding, no token types."""
    padding = BACKBONES[kind].config().pad_token_id or 0
    return [
        {
            "input_ids": torch.where(batch["attention_mask"].bool(), batch["input_ids"].clamp(min=5), padding),
            "attention_mask": batch["attention_mask"],
        }
        for batch in batches
    ]


def _compare(compare: Any, kind: str, batches: Batches, claim: str, target: float) -> None:
    stock, ours = models(kind)
    with torch.inference_mode():
        for batch in batches[:1]:
            torch.testing.assert_close(ours(**batch).logits, stock(**batch).logits, atol=1e-4, rtol=1e-3)
    ways = {
        name: lambda model=model: [model(**batch) for batch in batches]
        for name, model in (("transformers", stock), ("ours", ours))
    }
    compare(claim, ways, target=target, rounds=3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("length_sorted", "target"), [(False, 1.6), (True, 1.4)], ids=["unsorted", "sorted"])
def test_dense(compare: Any, kind: str, length_sorted: bool, target: float) -> None:
    batches = words(kind, workload.batches(length_sorted))
    order = "length-sorted" if length_sorted else "unsorted"
    _compare(compare, kind, batches, f"transformers' time over ours, {kind}, {order} batches", target)


def test_long_texts(compare: Any) -> None:
    """Texts of 1,024 to 4,096 tokens in one batch; transformers pads without flash attention."""
    generator = torch.Generator().manual_seed(0)
    width = max(LONG)
    ids = torch.randint(5, 1000, (len(LONG), width), generator=generator)
    mask = (torch.arange(width) < torch.tensor(LONG).unsqueeze(1)).long()
    claim = "transformers' time over ours, modernbert, texts of 1,024, 2,048 and 4,096 tokens in a batch"
    batches = words("modernbert", [{"input_ids": ids, "attention_mask": mask}])
    _compare(compare, "modernbert", batches, claim, 1.6)

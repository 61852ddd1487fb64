"""Variants of the Triton kernels that a stream of batches would have compiled on a GPU, and ``warm_up``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ahead_of_time.variants import Variants, variants
from mp_kernels import functional
from mp_model import PyramidBertForSequenceClassification, engine, warming
from support import tiny

MOST_VARIANTS = 8
LAYERS = 4
# A batch of eleven texts fills the device, as it fills an H100 where a model has 12 heads.
HEADS, PROCESSORS = 1, 11


def ag_like(seed: int, size: int) -> tiny.Batch:
    """Texts as long as AG News'."""
    generator = torch.Generator().manual_seed(seed)
    lengths = 52 * (0.32 * torch.randn(size, generator=generator)).exp()
    return tiny.samples(lengths.round().clamp(8, 250).int().tolist(), seed)


def model_of(**settings: Any) -> PyramidBertForSequenceClassification:
    """A small model whose sizes are multiples of 16, as those of all checkpoints are."""
    sizes = {"hidden_size": 64, "num_attention_heads": HEADS, "intermediate_size": 64, "num_hidden_layers": LAYERS}
    model = tiny.classifier(**sizes, max_position_embeddings=256, **settings)
    return model.to(torch.bfloat16)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "MOVE_WHILE_PRUNING", {"cpu"})


@pytest.fixture(params=["first", "late"])
def decision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "decides_first", lambda *_: request.param == "first")


PYRAMIDS = {
    "thresholds": {"exit_head": "pooled", "exit_layers": [0, 1, 2, 3], "prune_thresholds": [0.02] * LAYERS},
    "top-k": {"exit_head": "cls", "top_k": [40, 0.9, 20, 10]},
}


@torch.no_grad()
def stream(model: PyramidBertForSequenceClassification) -> Variants:
    """The variants met by 40 batches of every size up to 32, of which some texts leave and some do not."""
    left: set[int] = set()
    with variants("sm_90", PROCESSORS) as found:
        for seed in range(40):
            batch = ag_like(seed, 32 if seed % 3 else 1 + seed * 3 % 32)
            own = torch.rand(len(batch), generator=torch.Generator().manual_seed(seed))
            left |= set(model(**batch.padded(), exit_threshold=own if seed % 2 else 0.5).exit_layer.tolist())
    assert len(left) > 2, "texts must leave at several layers"
    return found


@pytest.mark.parametrize("kind", PYRAMIDS)
def test_few_variants_and_none_after_warming_up(kind: str, decision: None, monkeypatch: pytest.MonkeyPatch) -> None:
    met = stream(model_of(**PYRAMIDS[kind]))
    assert {"attention_one_pass", "place_in_batch", "pack_rows", "head_decision"} <= set(met)
    assert {name: len(keys) for name, keys in met.items() if len(keys) > MOST_VARIANTS} == {}

    monkeypatch.setattr(warming, "compiles", lambda device: True)
    with variants("sm_90", PROCESSORS) as warmed:
        model_of(**PYRAMIDS[kind]).warm_up(max_length=256)
    assert {name: keys - warmed[name] for name, keys in met.items() if keys - warmed[name]} == {}
    assert {name: len(keys) for name, keys in warmed.items() if len(keys) > MOST_VARIANTS} == {}


def test_on_a_cpu_the_weights_are_packed() -> None:
    model = model_of(**PYRAMIDS["thresholds"]).train()
    model.warm_up()
    assert model.training
    assert all(layer.projections is not None for layer in model.bert.stack)


@pytest.mark.parametrize("wrong", [{"max_length": 257}, {"max_length": 0}, {"batch_size": 0}])
def test_refused_sizes(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"max_length lie in 1\.\.256; got"):
        model_of().warm_up(**wrong)

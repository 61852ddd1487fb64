"""Learned Token Pruning's own released code, run on a tiny model: the same survivors, states and logits.

Its conventions, worked out from the numbers: layer i (from 0) compares the scores of its own attention, summed over
the alive queries and divided by the padded width, with ``thr/i``; its survivors ``mask/i`` are the tokens that its
feed-forward sees (``ffn_len``) and that enter layer i + 1 (``attn_len``). The final threshold D of the schedule is
never used: ``thr/i`` is D i / L, so that layer 0 never prunes and the last layer prunes by D (L - 1) / L, one step
short.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mp_model import PyramidBert, PyramidBertConfig, PyramidBertForSequenceClassification, engine
from mp_model.pruning import Pruning
from support.ltp_numbers import our_name, read_numbers

LAYERS = 4
PADDED_WIDTH = 24
FIRST_POSITION = 2

Golden = dict[str, Tensor]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return read_numbers("ltp_hard_cls.npz")


@pytest.fixture(scope="module")
def model(golden: Golden) -> PyramidBertForSequenceClassification:
    config = PyramidBertConfig(
        vocab_size=97,
        hidden_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=160,
        layer_norm_eps=1e-12,
        num_labels=3,
        prune_thresholds=[float(golden[f"thr/{i}"]) for i in range(LAYERS)],
        importance_normalizer=PADDED_WIDTH,
    )
    model = PyramidBertForSequenceClassification(config).eval()
    weights = {our_name(name.removeprefix("w/")): x for name, x in golden.items() if name.startswith("w/")}
    ours = model.state_dict()
    missing = {name for name in ours if name not in weights and not name.startswith("exits.")}
    assert not missing
    model.load_state_dict({name: weights.get(name, ours[name]) for name in ours})
    return model


@pytest.fixture(scope="module")
def inputs(golden: Golden) -> dict[str, Tensor]:
    ids = golden["ids"]
    return {
        "input_ids": ids,
        "attention_mask": golden["attention_mask"],
        "position_ids": (torch.arange(ids.shape[1]) + FIRST_POSITION)[None],
    }


def test_the_numbers_are_away_from_the_thresholds(golden: Golden) -> None:
    """So survivors must be the same everywhere; and many tokens are pruned."""
    for i in range(1, LAYERS):
        entered = golden[f"mask/{i - 1}"]
        assert ((golden[f"scores/{i}"] - golden[f"thr/{i}"])[entered].abs() > 1e-6).all()
        assert golden[f"mask/{i}"].sum() < entered.sum()


@torch.no_grad()
def test_logits(golden: Golden, model: PyramidBertForSequenceClassification, inputs: dict) -> None:
    output = model(**inputs)
    torch.testing.assert_close(output.logits, golden["logits"], atol=1e-5, rtol=0)
    # The logits of these random weights lie close together: see that they tell the samples apart at all.
    assert (golden["logits"] - golden["logits"].roll(1, 0)).abs().max(1).values.min() > 1e-4
    torch.testing.assert_close(output.logits, golden["logits"], atol=1e-6, rtol=0)


@torch.no_grad()
def test_survivors_of_every_layer(golden: Golden, model: PyramidBertForSequenceClassification, inputs: dict) -> None:
    real = golden["attention_mask"].bool()
    output = model(**inputs, follow_tokens=True)
    for layer in range(1, LAYERS):
        survives = real & ((output.pruned_by == 0) | (output.pruned_by > layer))
        assert torch.equal(survives, golden[f"mask/{layer - 1}"]), f"layer {layer}"

    encoder = model.bert
    batch = encoder.embed(**inputs, token_type_ids=None, inputs_embeds=None)
    lengths = torch.stack(
        [
            x.lengths
            for x in [batch, *(x.output for x in engine.climb(encoder.stack, batch, Pruning.of(encoder.config)))]
        ]
    )
    assert torch.equal(lengths[1:], golden["ffn_len"])
    assert torch.equal(lengths[:-1], golden["attn_len"])


@torch.no_grad()
def test_states(golden: Golden, model: PyramidBertForSequenceClassification, inputs: dict) -> None:
    """A token pruned by layer i keeps the state with which it entered, ``hidden/i``; survivors have ``hidden/4``."""
    encoder: PyramidBert = model.bert
    expected = golden["hidden/4"].clone()
    for i in reversed(range(1, LAYERS)):
        expected = torch.where(golden[f"mask/{i}"][..., None], expected, golden[f"hidden/{i}"])
    real = golden["attention_mask"].bool()
    states = encoder(**inputs).last_hidden_state
    torch.testing.assert_close(states[real], expected[real], atol=1e-5, rtol=0)
    for i in range(1, LAYERS):
        pruned_here = golden[f"mask/{i - 1}"] & ~golden[f"mask/{i}"]
        moved = (golden[f"hidden/{i + 1}"] - golden[f"hidden/{i}"])[pruned_here].abs().amax(-1)
        assert (moved > 1e-3).all(), "the next state must differ, or this test could not tell them apart"
        torch.testing.assert_close(states[pruned_here], golden[f"hidden/{i}"][pruned_here], atol=1e-5, rtol=0)


@torch.no_grad()
def test_importance(golden: Golden, model: PyramidBertForSequenceClassification, inputs: dict) -> None:
    """Each threshold moved just above one token's score prunes exactly those at or below it."""
    layer = 1
    scores, entered = golden[f"scores/{layer}"], golden[f"mask/{layer - 1}"]
    ordered = scores[entered].sort().values
    thresholds = [0.0] * LAYERS
    gaps = ordered.diff()
    for place in gaps.topk(6).indices.tolist():
        thresholds[layer] = float(ordered[place : place + 2].mean())
        model.config.prune_thresholds, old = thresholds, model.config.prune_thresholds
        survives = model(**inputs, follow_tokens=True).pruned_by == 0
        model.config.prune_thresholds = old
        expected = entered & (scores >= thresholds[layer])
        expected[:, 0] = True
        assert torch.equal(survives, expected)

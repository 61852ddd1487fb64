"""The whole engine through the Triton kernels, in Triton's interpreter, gives the CPU kernels' answers."""

from __future__ import annotations

import pytest
import torch

from support import tiny
from support.pyramids import calibrated

LENGTHS = (17, 1, 33, 2, 9)
BATCH = tiny.samples(LENGTHS)


@torch.no_grad()
@pytest.mark.parametrize(
    ("pruning", "head", "exits"),
    [
        ("nothing", "cls", False),
        ("nothing", "pooled_from_0", True),
        ("alive", "cls", True),
        ("alive", "pooled_from_0", True),
        ("alive", "pair_from_0", True),
        ("alive", "fastbert", True),
        ("shares", "cls", True),
    ],
)
def test_classifier(pruning: str, head: str, exits: bool, request: pytest.FixtureRequest) -> None:
    model, thresholds, _ = calibrated(pruning, head)
    call = {**BATCH.padded("mixed"), "exit_threshold": list(thresholds.values()) if exits else None}
    expected = model(**call, follow_tokens=True)
    request.getfixturevalue("on_triton")
    got = model(**call, follow_tokens=True)
    for name in ("exit_layer", "tokens_per_layer", "pruned_by", "flops", "executed_flops"):
        assert torch.equal(got[name], expected[name]), name
    for name in ("logits", "uncertainty"):
        torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=0)


@torch.no_grad()
def test_encoder(request: pytest.FixtureRequest) -> None:
    model, _, _ = calibrated("alive", "cls")
    expected = model.bert(**BATCH.padded())
    request.getfixturevalue("on_triton")
    got = model.bert(**BATCH.padded())
    torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)


def test_training_step(request: pytest.FixtureRequest) -> None:
    """Loss and gradients of a classifier that prunes while it learns."""
    template, _, _ = calibrated("alive", "cls")

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = type(template)(template.config)
        model.load_state_dict(template.state_dict())
        loss = model(**BATCH.padded(), labels=torch.tensor([0, 1, 2, 0, 1])).loss
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected_loss, expected = step()
    request.getfixturevalue("on_triton")
    loss, grads = step()
    torch.testing.assert_close(loss, expected_loss, atol=1e-5, rtol=0)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")

"""The roofline counts what moves data, and says where memory need not be the bound."""

from __future__ import annotations

import pytest
import torch

import roofline


def test_only_what_moves_data_is_a_step() -> None:
    x, y = torch.ones(4, 8), torch.ones(4, 8)
    recorder = roofline.Recorder()
    with recorder:
        x.is_set_to(y)
        x.view(8, 4)
        x.new_empty(3)
        _ = x + y
    assert [(step.name, step.bytes) for step in recorder.steps] == [("add", 3 * x.numel() * 4)]


@pytest.mark.parametrize(
    ("step", "bound"),
    [
        (roofline.Step("small", bytes=10e6), "memory, or the cache"),
        (roofline.Step("two small ones", bytes=90e6, calls=2), "memory, or the cache"),
        (roofline.Step("large", bytes=90e6), "memory"),
        (roofline.Step("product", bytes=10e6, products=1e12), "tensor cores"),
    ],
)
def test_steps_that_fit_the_cache_are_not_bound_by_memory(step: roofline.Step, bound: str) -> None:
    device = next(device for device in roofline.DEVICES if device.name.startswith("H100"))
    seconds, found = step.through_memory(device)
    assert found == bound
    assert seconds == max(step.bytes / device.memory, step.products / device.tensor)


def test_the_output_says_what_its_times_are(capsys: pytest.CaptureFixture[str]) -> None:
    roofline.main(length=8, batch=2, keep=0.5, as_json=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert "Arithmetic, not measurement" in printed
    assert "They are no floor" in printed
    assert "floors" not in printed

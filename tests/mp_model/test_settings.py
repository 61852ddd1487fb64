"""Settings are resolved once, and anew as soon as the configuration or a call says something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mp_model import PyramidBertConfig
from mp_model.settings import LastSettings, Settings


def config_of(**settings: Any) -> PyramidBertConfig:
    return PyramidBertConfig(num_hidden_layers=3, num_labels=3, prune_thresholds=[0.1, 0.2, 0.3], **settings)


def resolved(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of every call that resolves settings from now on."""
    calls: list[Any] = []
    of = Settings.of
    monkeypatch.setattr(Settings, "of", lambda *arguments: (calls.append(arguments), of(*arguments))[1])
    return calls


def test_the_same_again_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = resolved(monkeypatch)
    config, last = config_of(dtype=torch.bfloat16), LastSettings()
    found = [last.of(config, [0.0, 0.5, 1.0], exit_threshold) for exit_threshold in (0.5, 0.5, "never", "never")]
    assert found[0] is found[1]
    assert found[2] is found[3]
    assert len(calls) == 2
    assert found[0] == Settings.of(config, [0.0, 0.5, 1.0], 0.5)


def in_place(config: PyramidBertConfig) -> None:
    config.prune_thresholds[1] = 0.9


def replaced(config: PyramidBertConfig) -> None:
    config.exit_threshold = 0.25


def of_another_kind(config: PyramidBertConfig) -> None:
    config.exit_uncertainty, config.confidence_heads = "disagreement", True


@pytest.mark.parametrize("change", [in_place, replaced, of_another_kind])
def test_a_change_is_seen(change: Callable[[PyramidBertConfig], None]) -> None:
    config, last = config_of(exit_threshold=0.5), LastSettings()
    before = last.of(config)
    change(config)
    after = last.of(config)
    assert after == Settings.of(config)
    assert after != before


def test_what_is_refused_is_refused_after_its_equal_was_taken() -> None:
    config, last = config_of(), LastSettings()
    last.of(config, None, 1.0)
    with pytest.raises(TypeError, match="exit_threshold must be a number"):
        last.of(config, None, True)


def test_objects_are_resolved_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may change in ways that nobody sees."""
    calls = resolved(monkeypatch)
    config, last = config_of(), LastSettings()
    config.quantization_config = object()
    assert last.of(config) == last.of(config)
    assert len(calls) == 2

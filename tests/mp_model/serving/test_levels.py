"""Quality levels: priced by tune, asked for by name, and lowered under load within what was allowed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from mp_model import Classifier
from mp_model.measuring.all_exits import AllExits
from mp_model.measuring.levels import POINTS, Level, priced_levels, stored_levels
from mp_model.serving.admission import InvalidError
from mp_model.serving.app import create_app
from mp_model.serving.levels import Levels
from mp_model.serving.service import Service
from mp_model.serving.settings import ServerSettings
from support import tiny, wordpiece
from support.serving import TEXTS, eventually

STORED = [
    Level("tuned", 0.5, 0.91, 2.0, 0.02, 500),
    Level("high", 0.4, 0.92, 1.8, 0.01, 500),
    Level("low", [0.9, 0.7, 0.8], 0.90, 3.0, 0.04, 500),
    Level("lowest", 0.9, 0.88, 5.0, 0.08, 500),
]


@pytest.fixture
def config(served: Classifier, monkeypatch: pytest.MonkeyPatch) -> Any:
    config = served.model.config
    monkeypatch.setattr(config, "exit_threshold", 0.5)
    monkeypatch.setattr(config, "tuned_for", {"levels": [level.as_json() for level in STORED]})
    return config


def test_the_default_is_the_models_own_threshold_with_its_price(config: Any) -> None:
    levels = Levels(config, [1, 2, 3])
    assert levels.by_name["default"] == Level("default", 0.5, 0.91, 2.0, 0.02, 500)
    assert levels.by_name.keys() == {"exact", "default", "tuned", "high", "low", "lowest"}
    assert np.array_equal(levels.row_of(levels.named("low")), np.array([0.9, 0.7, 0.8], dtype=np.float32))
    assert np.isneginf(levels.row_of(levels.named("exact"))).all()


@pytest.mark.parametrize(("default", "speed_up"), [("low", 3.0), (0.3, None), ("never", None), ([0.1, 0.2, 0.3], None)])
def test_the_default_may_be_another(config: Any, default: Any, speed_up: float | None) -> None:
    own = Levels(config, [1, 2, 3], default).by_name["default"]
    assert own.exit_threshold == {"low": [0.9, 0.7, 0.8], "never": None}.get(str(default), default)
    assert own.speed_up == speed_up


def test_quality_falls_with_the_load_within_what_is_allowed(config: Any) -> None:
    levels = Levels(config, [1, 2, 3], relax_to="lowest")
    assert [levels.under(load / 100).name for load in (0, 25, 26, 50, 51, 75, 100)] == [
        *("default", "default", "low", "low", "lowest", "lowest", "lowest")
    ]
    assert [level.name for level in Levels(config, [1, 2, 3], relax_to="low").ladder] == ["default", "low"]
    assert [level.name for level in Levels(config, [1, 2, 3], "never", "tuned").ladder] == ["default", "high", "tuned"]
    assert {Levels(config, [1, 2, 3]).under(load).name for load in (0, 0.5, 1)} == {"default"}


@pytest.mark.parametrize(
    ("default", "relax_to", "said"),
    [
        (None, "best", "quality must be one of"),
        (None, "high", "no faster than the default"),
        (0.3, "low", "cannot be compared"),
        ("best", None, "quality must be one of"),
        (1.5, None, "must lie in"),
    ],
)
def test_levels_that_cannot_be_followed_are_refused(config: Any, default: Any, relax_to: str | None, said: str) -> None:
    with pytest.raises((InvalidError, ValueError), match=said):
        Levels(config, [1, 2, 3], default, relax_to)


def test_an_audit_tightens_the_default_alone(config: Any) -> None:
    levels = Levels(config, [1, 2, 3])
    levels.factor = 0.5
    assert levels.row_of(levels.named("default")).tolist() == [0.25, 0.25, 0.25]
    assert levels.row_of(levels.named("tuned")).tolist() == [0.5, 0.5, 0.5]
    levels.factor = 1.0
    assert levels.row_of(levels.named("default")).tolist() == [0.5, 0.5, 0.5]


def test_a_record_that_somebody_else_wrote_is_said() -> None:
    assert stored_levels(None) == stored_levels({"by": "hand"}) == []
    for wrong in ([{"name": "a"}], [3], {"a": 1}):
        with pytest.raises(ValueError, match="not what `magic-pyramid tune` writes"):
            stored_levels({"levels": wrong})


def test_levels_cost_what_they_may_and_say_what_they_do() -> None:
    model = tiny.classifier(exit_head="pooled", exit_layers=[0, 1, 2, 3])
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (400,), generator=generator)
    sure = 6 * torch.nn.functional.one_hot(labels, 3).float()
    logits = {layer: sure + (4 - layer) * torch.randn(400, 3, generator=generator) for layer in range(5)}
    exits = AllExits(model.config, labels, torch.full((400,), 20), torch.full((400, 4), 20), logits)
    levels = {level.name: level for level in priced_levels(exits, 0.3)}
    assert list(levels) == ["tuned", *POINTS]
    last = exits.predictions[-1]
    reference = (last == labels).double().mean().item()
    for name, level in levels.items():
        predictions = exits.answers(level.exit_threshold).predictions
        assert level.accuracy == pytest.approx((predictions == labels).double().mean().item())
        assert level.disagreement == pytest.approx((predictions != last).double().mean().item())
        assert level.texts == 400
        if name in POINTS:
            assert level.accuracy >= reference - POINTS[name] / 100 - 1e-9
    speeds = [levels[name].speed_up for name in POINTS]
    assert speeds == sorted(speeds)
    assert speeds[0] < speeds[-1]
    assert levels["tuned"].exit_threshold == 0.3


@pytest.fixture
def relaxing(served: Classifier, config: Any) -> Iterator[TestClient]:
    service = Service(served, ServerSettings(relax_to="lowest", max_queue_tokens=1000))
    with TestClient(create_app(service)) as client:
        eventually(lambda: service.is_ready)
        yield client


def test_under_load_the_answer_says_which_level_served_it(
    relaxing: TestClient, served: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    service: Service = relaxing.app.state.service  # type: ignore[attr-defined]
    at_rest = relaxing.post("/predict", json={"inputs": TEXTS[0]})
    assert at_rest.headers["x-quality"] == "default"
    may_go, policy = threading.Event(), service.worker.policy
    next_layer = policy.next_layer
    monkeypatch.setattr(policy, "patience", 0.01)
    monkeypatch.setattr(policy, "next_layer", lambda *given: next_layer(*given) if may_go.is_set() else None)
    found: list[Any] = []

    def post(**more: Any) -> threading.Thread:
        body = {"inputs": [[text] for text in TEXTS[:8]], "details": True, **more}
        thread = threading.Thread(target=lambda: found.append((more, relaxing.post("/predict", json=body))))
        before = service.worker.tokens
        thread.start()
        eventually(lambda: service.worker.tokens > before)
        return thread

    tokens = int(served.tokenise(TEXTS[:8]).lengths.sum())
    threads = []
    while service.worker.tokens + 2 * tokens <= 1000:
        threads.append(post())
    threads.append(post(quality="exact"))
    may_go.set()
    for thread in threads:
        thread.join()
    levels = {response.headers["x-quality"] for more, response in found}
    assert {"default", "exact"} < levels <= {"default", "low", "lowest", "exact"}
    for _, response in found:
        level = response.headers["x-quality"]
        thresholds = {"default": 0.5, "exact": "never", "low": [0.9, 0.7, 0.8], "lowest": 0.9}
        expected = served(TEXTS[:8], thresholds[level])
        assert [x["exit_layer"] for x in response.json()] == [x.exit_layer for x in expected]
        assert {x["quality"] for x in response.json()} == {level}


def test_levels_that_tune_has_stored_are_served(tmp_path: Path, served_folder: Path) -> None:
    from typer.testing import CliRunner

    from mp_model.command_line import app

    texts = [f"{('sport', 'money', 'weather')[n % 3]}\t{text}" for n, text in enumerate(TEXTS * 3)]
    (tmp_path / "dev.tsv").write_text("label\ttext\n" + "\n".join(texts) + "\n")
    model = Classifier.load(served_folder).model
    model.save_pretrained(tmp_path / "model")
    wordpiece.tokenizer().save_pretrained(tmp_path / "model")
    done = CliRunner().invoke(
        app, ["tune", str(tmp_path / "dev.tsv"), "--model", str(tmp_path / "model"), "--max-drop", "5"]
    )
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "model" / "config.json").read_text())["tuned_for"]
    assert [level["name"] for level in record["levels"]] == ["tuned", *POINTS]
    service = Service(Classifier.load(tmp_path / "model"), ServerSettings())
    assert service.levels.by_name["default"].disagreement == record["levels"][0]["disagreement"]

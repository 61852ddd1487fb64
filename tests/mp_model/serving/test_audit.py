"""The audit sees what it should, concludes no more than that, and tightens only what it may."""

from __future__ import annotations

import random
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mp_model import Classifier
from mp_model.measuring.levels import Level
from mp_model.serving.app import create_app
from mp_model.serving.audit import LEAST, WINDOW, Audit, wilson
from mp_model.serving.service import Service
from mp_model.serving.settings import ServerSettings
from support.serving import TEXTS, eventually

PROMISING = Level("default", 0.5, 0.9, 2.0, disagreement=0.05, texts=1000)


def test_wilson_intervals_are_those_of_the_books() -> None:
    assert wilson(10, 100) == pytest.approx((0.0552, 0.1744), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_share_of_the_texts_is_drawn() -> None:
    audit = Audit(0.1, PROMISING, seed=0)
    drawn = [draw for _ in range(500) for draw in audit.draw(20)]
    assert wilson(sum(drawn), len(drawn))[0] < 0.1 < wilson(sum(drawn), len(drawn))[1]
    assert Audit(0.0, PROMISING).draw(20) == []
    assert Audit(1.0, PROMISING).draw(3) == [True, True, True]


@pytest.mark.parametrize(("share", "drifts"), [(0.05, False), (0.02, False), (0.15, True)])
def test_drift_is_more_disagreement_than_was_promised(share: float, drifts: bool) -> None:
    audit, draw = Audit(1.0, PROMISING), random.Random(0)
    for number in range(WINDOW):
        assert (audit.drift is None) == (number < LEAST)
        audit.note("default", draw.random() < share)
    assert audit.drift is drifts
    seen = audit.seen()["default"]
    assert seen["texts"] == WINDOW
    assert seen["low"] < seen["disagreement"] < seen["high"]
    assert audit.factor == 1.0


def test_where_nothing_was_promised_nothing_drifts() -> None:
    audit = Audit(1.0, Level("default", 0.5))
    for _ in range(WINDOW):
        audit.note("default", True)
        audit.note(None, True)
    assert audit.drift is None
    assert audit.seen()["own"]["disagreement"] == 1.0


def test_other_levels_are_seen_but_not_judged() -> None:
    audit = Audit(1.0, PROMISING)
    for _ in range(WINDOW):
        audit.note("lowest", True)
    assert audit.drift is None


def test_thresholds_are_tightened_until_the_promise_holds_and_never_loosened_beyond_the_tuned() -> None:
    factors: list[float] = []
    audit, draw = Audit(1.0, PROMISING, factors.append), random.Random(0)

    def disagreement(factor: float) -> float:  # what a lower threshold does
        return 0.2 * factor**3

    for _ in range(20 * WINDOW):
        audit.note("default", draw.random() < disagreement(audit.factor))
    assert factors
    assert disagreement(audit.factor) < 0.08
    lowest = min(factors)
    for _ in range(20 * WINDOW):  # the texts are easy again
        audit.note("default", False)
    assert lowest < audit.factor == factors[-1] == 1.0
    assert max(factors) <= 1.0


def test_audited_texts_are_answered_early_and_counted_against_the_last_layer(
    served: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = served.model.config
    level = Level("tuned", config.exit_threshold, 0.9, 2.0, disagreement=0.0, texts=100_000)
    monkeypatch.setattr(config, "tuned_for", {"levels": [level.as_json()]})
    service = Service(served, ServerSettings(audit=1.0, audit_tighten=True))
    early, last = served(TEXTS), served(TEXTS, "never")
    differ = [a.label != b.label for a, b in zip(early, last, strict=True)]
    assert any(differ), "the audit has something to see"
    rounds = LEAST // len(TEXTS) + 1
    with TestClient(create_app(service)) as client:
        eventually(lambda: service.is_ready)
        for number in range(rounds):
            found: list[Any] = []
            for first in range(0, len(TEXTS), 30):
                batch = [[text] for text in TEXTS[first : first + 30]]
                found += client.post("/predict", json={"inputs": batch, "details": True}).json()
            if number == 0:
                assert [x["exit_layer"] for x in found] == [x.exit_layer for x in early]
        eventually(lambda: service.audit.drift is not None)
        assert service.audit.drift is True
        assert service.levels.factor == 0.8
        assert client.get("/health").status_code == 200
        info = client.get("/info").json()["audit"]
        assert info["drift"] is True
        assert info["promised"] < 0.001
        page = client.get("/metrics").text
        closed = client.post("/predict", json={"inputs": TEXTS[0], "quality": "exact"})
        assert closed.headers["x-exit-layer"] == "4"
    assert "magic_pyramid_audit_drift 1.0" in page
    assert "magic_pyramid_threshold_factor 0.8" in page
    place = differ.index(True)
    labels = f'{{label="{early[place].label}",layer="{early[place].exit_layer}",level="default"}}'
    assert f"magic_pyramid_audit_disagreements_total{labels}" in page

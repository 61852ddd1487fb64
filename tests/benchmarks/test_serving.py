"""The benchmark of servers and the soak, in short: every answer is the classifier's, in whatever way it was batched."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from pathlib import Path

import pytest

import serving
import soak
from mp_model import Classifier
from support import tiny, wordpiece

TEXTS = [text for text in wordpiece.texts(40) if text]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), exit_threshold=0.8).save_pretrained(folder)
    wordpiece.tokenizer().save_pretrained(folder)
    return folder


def test_nothing_is_lost_doubled_or_wrong_among_bad_slow_and_vanishing_clients(folder: Path) -> None:
    found = soak.soak(str(folder), TEXTS, seconds=4, clients=12)
    assert found.wrong == []
    assert all(found.counts[kind] > 0 for kind in ("good", "bad", "slow", "gone"))
    assert found.as_json()["memory_last_quarter_mib"] < found.as_json()["memory_first_quarter_mib"] + 100


@pytest.mark.parametrize("way", ["one", "collect", "padded"])
def test_every_way_gives_the_same_answers(folder: Path, way: str) -> None:
    model = Classifier.load(folder)
    threshold = "never" if way == "padded" else None

    async def ask(port: int) -> list[tuple[int, bytes]]:
        clients = [serving.Client(port) for _ in TEXTS]
        found = await asyncio.gather(*(client.post(text) for client, text in zip(clients, TEXTS, strict=True)))
        for client in clients:
            client.close()
        return found

    with serving.server(way, str(folder), "float32", 1) as (port, _):
        found = asyncio.run(ask(port))
        figures = asyncio.run(serving.open_loop(port, TEXTS, rate=50, seconds=1)).as_json()
    for (status, body), answer in zip(found, model(TEXTS, threshold), strict=True):
        assert status == 200
        scores = {x["label"]: x["score"] for x in json.loads(body)["predictions"]}
        assert scores == pytest.approx(answer.scores, abs=1e-5)
    assert figures["answers"] > 10
    assert figures["refused"] == 0


@pytest.mark.parametrize("most", [250.0, 90.0, 12.0])
def test_the_highest_rate_is_found_from_either_side(most: float) -> None:
    async def measure(rate: float) -> serving.Seen:
        return serving.Seen([0.1 if rate <= most else 0.3] * 100, 1.0)

    best = asyncio.run(serving.highest_rate(measure, 100.0))
    assert most / serving.NEAR < best["rate"] <= most
    assert best["p99_ms"] == 100.0


def test_no_rate_may_be_low_enough() -> None:
    async def measure(rate: float) -> serving.Seen:
        return serving.Seen([0.3], 1.0)

    assert asyncio.run(serving.highest_rate(measure, 100.0)) == {"rate": 0.0}


def test_time_of_processors_is_counted() -> None:
    began, before = time.process_time(), serving.processor_seconds(os.getpid())
    while time.process_time() < began + 0.1:
        pass
    assert 0.08 <= serving.processor_seconds(os.getpid()) - before <= 0.5


@pytest.mark.parametrize("name", ["serving", "serving-int8"])
def test_the_page_shows_what_was_measured(name: str) -> None:
    """And what ``--table`` prints."""
    root = Path(__file__).parents[2]
    figures = json.loads((root / "benchmarks" / f"{name}.json").read_text())
    assert serving.table(figures) in (root / "docs" / "serving.md").read_text()


def test_a_lone_text_is_timed_directly_and_served_in_turns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Direct:
        def __call__(self, texts: list[str]) -> None:
            asked.append(f"direct {texts[0]}")
            time.sleep(0.005)

    async def post(client: serving.Client, text: str) -> tuple[int, bytes]:
        asked.append(f"served {text}")
        time.sleep(0.02)
        return 200, b""

    monkeypatch.setattr(Classifier, "load", lambda *given, **named: Direct())
    monkeypatch.setattr(serving, "server", lambda *given: contextlib.nullcontext((0, None)))
    monkeypatch.setattr(serving.Client, "post", post)
    found = serving.lone(str(folder), "float32", ["a", "b"], 1)
    assert asked == 2 * ["direct a", "served a", "direct b", "served b"]
    assert found["direct_ms"] >= 5
    assert found["served_ms"] >= 20
    assert found["added_ms"] == pytest.approx(found["served_ms"] - found["direct_ms"], abs=0.02)  # medians of two

"""Long texts that a server reads in windows: the answers of `Classifier`, and a turn for everybody."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mp_model import Classifier
from mp_model.data.batches import Text
from mp_model.serving.admission import ExpiredError, GoneError, TokenizerError
from mp_model.serving.app import create_app
from mp_model.serving.requests import Request, Result
from mp_model.serving.service import Service, Wishes
from mp_model.serving.settings import ServerSettings
from mp_model.serving.worker import NobodyWatches, Worker
from support.serving import TEXTS, assert_same_answer, eventually, ready, request_of

LONG = [" ".join(TEXTS[first:] + TEXTS[:first]) for first in (0, 7, 20)]
PAIRS: list[Text] = [(TEXTS[0], LONG[1]), (LONG[2], TEXTS[3])]
ALL: list[Text] = [*LONG, *TEXTS[:5], *PAIRS]


@pytest.fixture
def windows(served_model: Any, served: Classifier) -> Classifier:
    """The served classifier, by itself, with windows."""
    return Classifier(served_model, served.tokenizer, long_texts="windows")


@pytest.fixture
def service(served: Classifier) -> Iterator[Service]:
    service = Service(served, ServerSettings(long_texts="windows", max_client_batch_size=100))
    service.start()
    eventually(lambda: service.is_ready)
    yield service
    assert service.close()
    assert service.permits.held == service.worker.tokens == 0


def answered(service: Service, texts: list[Text], wishes: Wishes | None = None) -> list[Any]:
    async def ask() -> Any:
        return await asyncio.gather(*(service.answer([text], wishes) for text in texts))

    return [answers.outcomes[0] for answers in asyncio.run(asyncio.wait_for(ask(), 60))]


@pytest.mark.parametrize("exit_threshold", [None, "never", 0.9, [0.2, 0.99, 0.5]])
def test_long_texts_are_answered_as_the_classifier_does(
    service: Service, windows: Classifier, exit_threshold: Any
) -> None:
    outcomes = answered(service, ALL, Wishes(exit_threshold))
    for text, outcome in zip(ALL, outcomes, strict=True):
        (expected,) = windows([text], exit_threshold)
        assert isinstance(outcome, Result), outcome
        if exit_threshold == "never":  # it may have paid for exits that others in its batch had open
            expected.flops = outcome.answer.flops
        assert_same_answer(outcome.answer, expected)
    lengths = [outcome.answer.tokens for outcome in outcomes]
    assert max(lengths) > 64 or exit_threshold is not None, "some are read beyond the first window"


def test_texts_are_read_to_their_ends_where_exits_are_closed(service: Service, windows: Classifier) -> None:
    (outcome,) = answered(service, LONG[:1], Wishes("never"))
    assert windows.windows is not None
    assert outcome.answer.tokens == sum(len(window.ids) for window in windows.windows.of(LONG[0]))


def test_a_request_may_still_have_them_cut_or_refused(served: Classifier, windows: Classifier) -> None:
    service = Service(served, ServerSettings(long_texts="windows"))
    with TestClient(create_app(service)) as client:
        eventually(lambda: service.is_ready)

        def post(**more: Any) -> Any:
            return client.post("/predict", json={"inputs": LONG[0], "exit_threshold": "never", "details": True, **more})

        whole, cut, refused = post(), post(truncate=True), post(truncate=False)
        info = client.get("/info").json()
    assert whole.json()["tokens"] == int(whole.headers["x-compute-tokens"]) == windows(LONG[:1], "never")[0].tokens
    assert cut.json()["tokens"] == 64
    assert (refused.status_code, refused.json()["error_type"]) == (422, "Validation")
    assert (info["long_texts"], info["auto_truncate"]) == ("windows", False)


class Order(NobodyWatches):
    """Notes the tokens of texts in the order in which they are answered."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def answered(self, result: Result, level: str | None) -> None:
        self.tokens.append(result.answer.tokens)


def long_request(service: Service, worker: Worker, **settings: Any) -> tuple[Request, threading.Event]:
    """A request for the first long text, with closed exits."""
    (encoded,) = service.encode(LONG[:1], "windows", None)
    request, done = request_of(worker, TEXTS[:1], "never", **settings)
    request.texts = [encoded]  # type: ignore[list-item]
    return request, done


def test_a_long_text_holds_nobody_up(served: Classifier, service: Service) -> None:
    order = Order()
    worker = Worker(served, observer=order)
    worker.state = "ready"  # all of them are there when it starts
    requests = [long_request(service, worker), *(request_of(worker, [text], "never") for text in TEXTS[:9])]
    for request, _ in requests:
        worker.submit(request)
    ready(worker)
    assert all(done.wait(60) for _, done in requests)
    assert worker.close(60)
    assert len(order.tokens) == 10
    assert order.tokens[-1] == max(order.tokens) > 64


@pytest.mark.parametrize("late", [True, False], ids=["late", "gone"])
def test_who_is_late_or_gone_between_two_windows_is_dropped(served: Classifier, service: Service, late: bool) -> None:
    class Gives(NobodyWatches):
        """Nobody waits any more once the first layers have run."""

        steps = 0

        def stepped(self, layer: int, texts: int, tokens: int, seconds: float) -> None:
            self.steps += 1
            if self.steps == 3:
                request.gone, request.deadline = not late, time.monotonic() - 1 if late else None

    gives = Gives()
    worker = Worker(served, observer=gives)
    request, done = long_request(service, worker)
    ready(worker)
    worker.submit(request)
    assert done.wait(60)
    assert worker.close(60)
    assert isinstance(request.outcomes[0], ExpiredError if late else GoneError)
    assert gives.steps == 1 + served.model.config.num_hidden_layers, "one window was read"
    assert worker.tokens == 0


def test_a_window_that_cannot_be_tokenised_fails_its_text_alone(served: Classifier, service: Service) -> None:
    def broken() -> Iterator[Any]:
        raise ValueError("no such\nvocabulary")
        yield

    worker = Worker(served)
    request, done = long_request(service, worker)
    long = request.texts[0].long
    assert long is not None
    long.windows = broken()
    other, other_done = request_of(worker, TEXTS[:1])
    ready(worker)
    worker.submit(request)
    worker.submit(other)
    assert done.wait(60)
    assert other_done.wait(60)
    assert worker.close(60)
    assert isinstance(request.outcomes[0], TokenizerError)
    assert str(request.outcomes[0]) == "the tokenizer cannot take this text: no such vocabulary"
    assert isinstance(other.outcomes[0], Result)
    assert worker.tokens == 0


def test_only_texts_that_are_read_whole_are_audited(served: Classifier) -> None:
    service = Service(served, ServerSettings(long_texts="windows", audit=1.0))
    service.start()
    eventually(lambda: service.is_ready)
    answered(service, [LONG[0], TEXTS[0]])
    eventually(lambda: service.audit.seen() != {})
    assert service.close()
    assert [seen["texts"] for seen in service.audit.seen().values()] == [1]

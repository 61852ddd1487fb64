"""Requests to a worker without a network: their texts, and waiting for their outcomes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mp_model import Answer, Classifier
from mp_model.data.batches import Text
from mp_model.schedule import CLOSED
from mp_model.serving.requests import Request, Result, separate
from mp_model.serving.worker import Worker
from support import wordpiece

TEXTS = [text for text in wordpiece.texts(40) if text]


def ready(worker: Worker) -> Worker:
    """A started worker, once it is ready."""
    worker.start()
    eventually(lambda: worker.state == "ready")
    return worker


def eventually(holds: Callable[[], Any], seconds: float = 60.0) -> None:
    """Waits until something holds, and fails if it does not in so many seconds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "this takes too long"
        time.sleep(0.002)


def request_of(
    worker: Worker, texts: Sequence[Text], exit_threshold: Any = None, **settings: Any
) -> tuple[Request, threading.Event]:
    """A request that was not submitted yet, and the event of its being done."""
    config, done = worker.classifier.model.config, threading.Event()
    row = config.resolved_exit_threshold(exit_threshold) or [CLOSED] * len(worker.exit_layers)
    rows = np.tile(np.array(row, dtype=np.float32), (len(texts), 1))
    return Request(separate(worker.classifier.tokenise(texts)), rows, lambda _: done.set(), **settings), done


def outcomes_of(worker: Worker, texts: Sequence[Text], exit_threshold: Any = None, **settings: Any) -> list[Any]:
    """The outcomes of texts that are submitted together."""
    request, done = request_of(worker, texts, exit_threshold, **settings)
    worker.submit(request)
    assert done.wait(60)
    return request.outcomes


def assert_like(
    classifier: Classifier, outcomes: Sequence[Any], texts: Sequence[Text], exit_threshold: Any = None
) -> None:
    """Outcomes are the answers that the classifier gives to each text alone.

    A text with closed exits may have paid for exits that others in its batch had open.
    """
    for text, outcome in zip(texts, outcomes, strict=True):
        (expected,) = classifier([text], exit_threshold)
        assert isinstance(outcome, Result), (text, outcome)
        if exit_threshold == "never":
            assert outcome.answer.flops >= expected.flops
            expected.flops = outcome.answer.flops
        assert_same_answer(outcome.answer, expected)


def assert_same_answer(answer: Answer, expected: Answer) -> None:
    ours, theirs = answer.as_dict(), expected.as_dict()
    scores, wanted = ours.pop("scores"), theirs.pop("scores")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == value or abs(ours[name] - value) < 1e-5, (name, ours[name], value)
    assert all(abs(scores[label] - wanted[label]) < 1e-5 for label in wanted)

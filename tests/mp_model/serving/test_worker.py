"""The worker gives each text one outcome, the classifier's answer wherever there is one, whatever comes in between."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mp_model import Answer, Classifier
from mp_model.schedule import Schedule
from mp_model.serving.admission import (
    ExpiredError,
    GoneError,
    OverloadedError,
    Permits,
    RefusedError,
    UnhealthyError,
)
from mp_model.serving.policy import InGroups
from mp_model.serving.requests import Result
from mp_model.serving.worker import NobodyWatches, Worker
from support import tiny, wordpiece
from support.serving import TEXTS, assert_like, eventually, outcomes_of, ready, request_of


@pytest.mark.parametrize("exit_threshold", [None, "never", 0.9, [0.2, 0.99, 0.5]])
def test_answers_are_the_classifiers(worker: Worker, served: Classifier, exit_threshold: Any) -> None:
    assert_like(served, outcomes_of(worker, TEXTS, exit_threshold), TEXTS, exit_threshold)


def test_pairs_and_single_texts_share_batches(worker: Worker, served: Classifier) -> None:
    pairs = list(zip(TEXTS, TEXTS[3:], strict=False))
    requests = [request_of(worker, texts) for texts in (TEXTS[:5], pairs[:6], TEXTS[5:9])]
    for request, _ in requests:
        worker.submit(request)
    for (request, done), texts in zip(requests, (TEXTS[:5], pairs[:6], TEXTS[5:9]), strict=True):
        assert done.wait(60)
        assert_like(served, request.outcomes, texts)


@pytest.mark.parametrize("policy", [InGroups(3), InGroups(), InGroups(patience=0.002, texts=3), InGroups(texts=1)])
def test_requests_from_many_threads_are_answered_once(served: Classifier, policy: Any) -> None:
    worker = ready(Worker(served, policy, budget=64))
    draw = random.Random(0)
    asked = [(draw.sample(TEXTS, draw.randint(1, 5)), draw.choice([None, "never", 0.5, 0.9, 0.95])) for _ in range(60)]
    got: list[list[Any]] = [[] for _ in asked]

    def client(numbers: range) -> None:
        for number in numbers:
            got[number] = outcomes_of(worker, *asked[number])

    clients = [threading.Thread(target=client, args=(range(first, len(asked), 6),)) for first in range(6)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert worker.tokens == 0
    assert worker.close(60)
    for outcomes, (texts, exit_threshold) in zip(got, asked, strict=True):
        assert_like(served, outcomes, texts, exit_threshold)


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.integers(0, len(TEXTS) - 1), st.integers(1, 4), st.sampled_from([None, "never", 0.7, 0.95])),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 200),
)
def test_any_mixture_is_answered(served_by: Classifier, asked: list[tuple[int, int, Any]], budget: int) -> None:
    worker = Worker(served_by, budget=budget)
    worker.state = "ready"  # all of them are there when it starts
    requests = [(request_of(worker, TEXTS[a : a + n], threshold)) for a, n, threshold in asked]
    for request, _ in requests:
        worker.submit(request)
    ready(worker)
    assert worker.close(60)
    for (request, done), (a, n, threshold) in zip(requests, asked, strict=True):
        assert done.is_set()
        assert_like(served_by, request.outcomes, TEXTS[a : a + n], threshold)
    assert worker.tokens == 0


@pytest.fixture(scope="module")
def served_by(served_model: Any) -> Classifier:
    from support import wordpiece

    return Classifier(served_model, wordpiece.tokenizer())


class Broken:
    """Makes the steps of a schedule fail in which a certain sample takes part."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sample: int, layer: int) -> None:
        run_taken = Schedule.run_taken

        def run(schedule: Schedule, number: int, part: Any) -> Any:
            if number == layer and sample in part.samples.tolist():
                raise RuntimeError("no memory")
            return run_taken(schedule, number, part)

        monkeypatch.setattr(Schedule, "run_taken", run)


@pytest.mark.parametrize("layer", [0, 2])
def test_an_error_in_a_step_fails_its_texts_alone(
    served: Classifier, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    worker = ready(Worker(served, InGroups(texts=2)))
    Broken(monkeypatch, sample=2, layer=layer)
    outcomes = outcomes_of(worker, TEXTS[:6], "never")  # two at a time
    after = outcomes_of(worker, TEXTS[:6])
    assert worker.close(60)
    assert [isinstance(outcome, Result) for outcome in outcomes] == [True, True, False, False, True, True]
    for failed in outcomes[2:4]:
        assert isinstance(failed, RefusedError)
        assert (failed.status, failed.kind) == (424, "Backend")
        assert str(failed) == f"the model failed at layer {layer}: RuntimeError"
    assert_like(served, outcomes[4:], TEXTS[4:6], "never")
    assert_like(served, after, TEXTS[:6])
    assert worker.tokens == 0


class Held:
    """A policy under which nothing happens until it is let go."""

    patience, texts = 0.01, None

    def __init__(self) -> None:
        self.go, self.policy = False, InGroups(3)

    def next_layer(self, schedule: Schedule, waiting: Any) -> int | None:
        return self.policy.next_layer(schedule, waiting) if self.go else None


class Counted(NobodyWatches):
    """Counts the texts that layers ran for."""

    def __init__(self) -> None:
        self.texts = 0

    def stepped(self, layer: int, texts: int, tokens: int, seconds: float) -> None:
        self.texts += texts


def test_who_is_late_or_gone_is_dropped_before_computing(served: Classifier) -> None:
    held, counted = Held(), Counted()
    worker = ready(Worker(served, held, observer=counted))
    late, late_done = request_of(worker, TEXTS[:2], deadline=time.monotonic() - 1)
    gone, gone_done = request_of(worker, TEXTS[2:4])
    in_time, done = request_of(worker, TEXTS[4:5], "never", deadline=time.monotonic() + 600)
    for request in (late, gone, in_time):
        worker.submit(request)
    gone.gone = True
    held.go = True
    assert late_done.wait(60)
    assert gone_done.wait(60)
    assert done.wait(60)
    assert all(isinstance(outcome, ExpiredError) for outcome in late.outcomes)
    assert all(isinstance(outcome, GoneError) for outcome in gone.outcomes)
    assert_like(served, in_time.outcomes, TEXTS[4:5], "never")
    assert worker.close(60)
    assert counted.texts == 1 + served.model.config.num_hidden_layers  # one text, at each of its layers
    assert worker.tokens == 0


def test_no_more_tokens_wait_than_are_allowed(served: Classifier) -> None:
    held = Held()
    lengths = served.tokenise(TEXTS).lengths.tolist()
    worker = ready(Worker(served, held, most_tokens=sum(lengths[:6])))
    accepted = [request_of(worker, [text]) for text in TEXTS[:6]]
    for request, _ in accepted:
        worker.submit(request)
    assert worker.load == 1.0
    refused, refused_done = request_of(worker, TEXTS[6:7])
    with pytest.raises(OverloadedError, match=f"{sum(lengths[:6])} tokens are waiting and {lengths[6]} came") as raised:
        worker.submit(refused)
    assert raised.value.retry_after >= 1
    held.go = True
    for request, done in accepted:
        assert done.wait(60)
        assert isinstance(request.outcomes[0], Result)
    assert not refused_done.is_set()
    assert worker.tokens == 0
    worker.submit(refused)
    assert refused_done.wait(60)
    assert worker.close(60)


def test_closing_answers_what_was_accepted_and_accepts_no_more(served: Classifier) -> None:
    held = Held()
    worker = ready(Worker(served, held))
    request, done = request_of(worker, TEXTS)
    worker.submit(request)
    closer = threading.Thread(target=worker.close)
    closer.start()
    eventually(lambda: worker._closing)
    with pytest.raises(UnhealthyError, match="closing"):
        worker.submit(request_of(worker, TEXTS[:1])[0])
    held.go = True
    closer.join(60)
    assert done.is_set()
    assert_like(served, request.outcomes, TEXTS)
    assert worker.state == "closed"


def test_nothing_is_accepted_before_the_model_is_warm(served: Classifier) -> None:
    worker = Worker(served)
    with pytest.raises(UnhealthyError, match="starting"):
        worker.submit(request_of(worker, TEXTS[:1])[0])
    ready(worker)
    assert_like(served, outcomes_of(worker, TEXTS[:1]), TEXTS[:1])
    assert worker.close(60)


def test_a_worker_that_breaks_says_so_to_everybody(served: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    worker = ready(Worker(served, held))
    request, done = request_of(worker, TEXTS[:3])
    worker.submit(request)

    def broken(*_: Any) -> int:
        raise ZeroDivisionError("by a mistake")

    monkeypatch.setattr(worker, "_step", broken)
    call = worker.call(lambda: 1)
    assert done.wait(60)
    with pytest.raises(UnhealthyError):
        call.result(60)
    assert all(isinstance(outcome, UnhealthyError) for outcome in request.outcomes)
    eventually(lambda: worker.state == "failed")
    with pytest.raises(UnhealthyError, match="the model's thread has ended: ZeroDivisionError: by a mistake"):
        worker.submit(request_of(worker, TEXTS[:1])[0])


def test_answers_that_are_no_numbers_are_refused(served: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = ready(Worker(served))
    monkeypatch.setattr(
        worker.schedule,
        "closed",
        worker.schedule.closed.__class__(
            **{**vars(worker.schedule.closed), "final_head": lambda first: torch.full((first.shape[0], 3), torch.nan)}
        ),
    )
    (outcome,) = outcomes_of(worker, TEXTS[:1], "never")
    assert isinstance(outcome, RefusedError)
    assert "NaN or infinite" in str(outcome)
    assert worker.close(60)


def test_functions_run_between_steps(worker: Worker) -> None:
    assert worker.call(lambda: threading.current_thread().name).result(60) == "model"
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0).result(60)
    assert worker.state == "ready"


class Audited(NobodyWatches):
    def __init__(self) -> None:
        self.answers, self.seen = 0, []

    def answered(self, *_: Any) -> None:
        self.answers += 1

    def audited(self, level: str | None, label: str, layer: int, last: str) -> None:
        self.seen.append((level, label, layer, last, self.answers))


def test_audited_texts_are_answered_early_and_go_on_to_the_last_layer(served: Classifier) -> None:
    audited = Audited()
    worker = ready(Worker(served, observer=audited))
    outcomes = outcomes_of(worker, TEXTS, audited=[True] * len(TEXTS), level="tuned")
    assert worker.close(60)
    early = served(TEXTS)
    assert [(x.answer.label, x.answer.exit_layer) for x in outcomes] == [(x.label, x.exit_layer) for x in early]
    expected = [
        ("tuned", text.label, text.exit_layer, last.label)
        for text, last in zip(early, served(TEXTS, "never"), strict=True)
    ]
    assert sorted(seen[:4] for seen in audited.seen) == sorted(expected)
    assert len({layer for _, _, layer, _, _ in audited.seen}) > 2, "texts leave at several layers"
    assert all(answers >= 1 for *_, answers in audited.seen), "an answer is there before it is audited"


def test_an_audit_of_several_labels_compares_all_of_them() -> None:
    settings = {"vocab_size": len(wordpiece.VOCABULARY), "problem_type": "multi_label_classification"}
    classifier, audited = Classifier(tiny.classifier(**settings), wordpiece.tokenizer()), Audited()
    worker = ready(Worker(classifier, observer=audited))
    outcomes = outcomes_of(worker, TEXTS, 0.97, audited=[True] * len(TEXTS), level="tuned")
    assert worker.close(60)
    early, last = classifier(TEXTS, 0.97), classifier(TEXTS, "never")
    assert [(x.answer.label, x.answer.exit_layer) for x in outcomes] == [(x.label, x.exit_layer) for x in early]

    def words(answer: Answer) -> str:
        return ",".join(name for name, score in answer.scores.items() if score > 0.5)

    expected = [("tuned", words(a), a.exit_layer, words(b)) for a, b in zip(early, last, strict=True)]
    assert sorted(seen[:4] for seen in audited.seen) == sorted(expected)
    assert any("," in said for _, said, _, _ in expected)


def test_permits_are_given_back_whatever_happens() -> None:
    permits = Permits(5)

    def fails(count: int) -> None:
        with permits.for_texts(count):
            assert permits.held == 3 + count
            raise ZeroDivisionError

    with permits.for_texts(3):
        with pytest.raises(OverloadedError, match="3 texts are waiting and 3 came; at most 5 may"):
            fails(3)
        assert permits.held == 3
        with pytest.raises(ZeroDivisionError):
            fails(2)
        assert permits.held == 3
    assert permits.held == 0


def test_alive_samples_of_closed_exits_are_not_asked(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    exits = worker.schedule.pyramid.exits
    decide = exits.decide
    monkeypatch.setattr(exits, "decide", lambda *arguments: asked.append(arguments) or decide(*arguments))
    outcomes_of(worker, TEXTS[:3], "never")
    assert asked == []
    outcomes_of(worker, TEXTS[:3], 0.1)
    assert len(asked) >= 1

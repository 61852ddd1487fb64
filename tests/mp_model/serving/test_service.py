"""The server without its network, as another host than HTTP uses it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from mp_model import Classifier
from mp_model.measuring.levels import Level
from mp_model.serving.admission import EmptyError, ExpiredError, GoneError
from mp_model.serving.service import QUICK, Service, Wishes, digest_of
from mp_model.serving.settings import ServerSettings
from support.serving import TEXTS, assert_like, eventually

Started = Callable[..., Service]


@pytest.fixture
def started(served: Classifier) -> Iterator[Started]:
    services = []

    def start(**settings: Any) -> Service:
        services.append(Service(served, ServerSettings(**settings)))
        services[-1].start()
        eventually(lambda: services[-1].is_ready)
        return services[-1]

    yield start
    for service in services:
        assert service.close()
        assert service.permits.held == service.worker.tokens == 0


def held_back(service: Service, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is computed until the event is set."""
    may_go, policy = threading.Event(), service.worker.policy
    next_layer = policy.next_layer
    monkeypatch.setattr(policy, "patience", 0.01)
    monkeypatch.setattr(policy, "next_layer", lambda *given: next_layer(*given) if may_go.is_set() else None)
    return may_go


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_a_coroutine_gives_the_outcomes(started: Started, served: Classifier) -> None:
    service = started()

    async def ask() -> Any:
        return await asyncio.gather(*(service.answer([text], Wishes(exit_threshold=0.9)) for text in TEXTS))

    for text, answers in zip(TEXTS, run(ask()), strict=True):
        assert_like(served, answers.outcomes, [text], 0.9)
        assert answers.total >= answers.queue + answers.inference >= 0


def test_what_nobody_waits_for_is_not_computed(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    service = started()
    may_go = held_back(service, monkeypatch)

    async def leave() -> None:
        gone = asyncio.get_running_loop().create_future()
        asking = asyncio.ensure_future(service.answer(TEXTS[:3], gone=gone))
        while service.worker.tokens == 0:
            await asyncio.sleep(0.001)
        assert service.permits.held == 3
        gone.set_result(None)
        with pytest.raises(GoneError):
            await asking
        assert service.permits.held == 0
        with pytest.raises(ExpiredError):
            await service.answer(TEXTS[:2], Wishes(timeout=0.02))
        asking = asyncio.ensure_future(service.answer(TEXTS[:1]))
        while service.permits.held == 0:
            await asyncio.sleep(0.001)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    run(leave())
    may_go.set()
    eventually(lambda: service.worker.tokens == 0)
    assert sum(service.metrics.exits) == 0, "nothing was answered, so nothing was computed to its end"
    assert service.worker.schedule.steps == 0


def test_quality_falls_before_texts_are_refused_too(
    started: Started, served: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few tokens they have."""
    config = served.model.config
    levels = [Level("tuned", config.exit_threshold, 0.9, 2.0), Level("lowest", 1.0, 0.8, 5.0)]
    monkeypatch.setattr(config, "tuned_for", {"levels": [level.as_json() for level in levels]})
    service = started(max_concurrent_requests=8, relax_to="lowest")
    may_go = held_back(service, monkeypatch)

    async def ask() -> Any:
        asking = [asyncio.ensure_future(service.answer([text])) for text in TEXTS[:8]]
        await asyncio.sleep(0)
        may_go.set()
        return await asyncio.gather(*asking)

    assert [answers.quality for answers in run(ask())] == ["default"] * 2 + ["lowest"] * 6


def test_texts_that_come_again_are_answered_from_the_cache(started: Started, served: Classifier) -> None:
    service = started(cache=3)
    steps = lambda: service.worker.schedule.steps  # noqa: E731

    def ask(texts: Any, **wishes: Any) -> Any:
        return run(service.answer(texts, Wishes(**wishes)))

    first = ask(TEXTS[:2])
    before = steps()
    again = ask([TEXTS[1], (TEXTS[0], TEXTS[1]), TEXTS[0]])
    assert [again.outcomes[2], again.outcomes[0]] == first.outcomes
    assert_like(served, again.outcomes, [TEXTS[1], (TEXTS[0], TEXTS[1]), TEXTS[0]])
    assert steps() > before, "the pair had to be computed"
    before = steps()
    assert ask(TEXTS[:2]).outcomes == first.outcomes
    assert steps() == before
    assert service.metrics.cached._value.get() == 4
    for wishes in ({"exit_threshold": "never"}, {"truncate": False}, {"exit_threshold": 0.9}):
        before = steps()
        assert_like(served, ask(TEXTS[:1], **wishes).outcomes, TEXTS[:1], wishes.get("exit_threshold"))
        assert steps() > before, "an answer to another question is not taken"
    assert service.cache is not None
    assert len(service.cache) == 3, "no more are kept"


def test_pairs_and_texts_of_the_same_words_are_told_apart_by_digests_of_one_size() -> None:
    texts = ["a b", ("a", "b"), ("a b", ""), ("", "a b"), '["a", "b"]', "a b " * 10_000]
    digests = {digest_of(text) for text in texts}
    assert len(digests) == len(texts)
    assert {len(digest) for digest in digests} == {32}


def test_without_the_option_nothing_is_kept_and_refusals_never_are(started: Started) -> None:
    service = started()
    for _ in range(2):
        before = service.worker.schedule.steps
        run(service.answer(TEXTS[:1]))
        assert service.worker.schedule.steps > before
    assert service.cache is None
    service = started(cache=5)
    for _ in range(2):
        (outcome,) = run(service.answer([""])).outcomes
        assert isinstance(outcome, EmptyError)
    assert service.cache is not None
    assert len(service.cache) == 0


def test_audited_texts_are_computed_though_their_answers_are_kept(started: Started) -> None:
    service = started(cache=5, audit=1.0)
    for number in range(3):
        run(service.answer(TEXTS[:1]))
        eventually(lambda number=number: [x["texts"] for x in service.audit.seen().values()] == [number + 1])
    assert service.cache is not None
    assert len(service.cache) == 0


def test_a_lone_short_text_is_tokenised_without_a_thread(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the loop meanwhile; where others are there, or the text is long, a thread does it."""
    service = started()
    encode, threads = service.encode, []

    def noted(*given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return encode(*given)

    monkeypatch.setattr(service, "encode", noted)
    run(service.answer(TEXTS[:1]))
    run(service.answer(["a " * QUICK]))

    async def several() -> None:
        await asyncio.gather(*(service.answer([text]) for text in TEXTS[:4]))

    run(several())
    assert threads[0] == threading.current_thread().name
    assert all(name.startswith("tokenise") for name in [threads[1], *threads[3:]])

"""The server without its network: requests in, outcomes out, as a coroutine each.

:mod:`mp_model.serving.app` puts HTTP around it; whatever else hosts it does the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.batches import Text
from ..inputs import ONE_TEXT
from .admission import ExpiredError, GoneError, InvalidError, Permits, RefusedError
from .audit import Audit
from .cache import Cache
from .classifier import Classifier, check_windows
from .encoding import Encoder
from .levels import DEFAULT, Levels, described
from .metrics import Metrics, State
from .policy import InGroups
from .requests import Encoded, Request, Result
from .settings import SCHEDULES, ServerSettings
from .worker import Worker

QUICK = 2000  # characters that are tokenised in less time than a thread takes to wake up
RECENT = 1000  # requests whose times the live figures are made from

# What shades a text by the way that it takes through the model, given an exit threshold.
Shade = Callable[[Classifier, Text, Any], dict[str, Any]]


@dataclass
class Answers:
    """The outcomes of a request's texts, and how they came about.

    Attributes:
        outcomes: one for each text, in order.
        quality: name of the quality level; None: the request brought thresholds.
        tokenization, queue, inference, total: seconds.
    """

    outcomes: list[Result | RefusedError]
    quality: str | None = None
    tokenization: float = 0.0
    queue: float = 0.0
    inference: float = 0.0
    total: float = 0.0

    @property
    def results(self) -> list[Result]:
        """The outcomes that are answers."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, Result)]


@dataclass(frozen=True)
class Wishes:
    """What a request asks for besides its texts; None: what the server has.

    Attributes:
        exit_threshold: a number, one for each exit layer, or ``"never"``.
        quality: name of a quality level.
        timeout: seconds.
        truncate: whether longer texts are cut.
        direction: side at which they are cut, ``"left"`` or ``"right"``.
    """

    exit_threshold: float | list[float] | str | None = None
    quality: str | None = None
    timeout: float | None = None
    truncate: bool | None = None
    direction: str | None = None


class Service:
    """A classifier that answers many clients at once.

    Args:
        classifier: the model; nobody else uses it meanwhile.
        settings: the settings.
        name: name of the model.
        shade: what shades texts for the page; None: nothing does.

    Raises:
        ValueError: settings that this model cannot follow.
    """

    def __init__(
        self, classifier: Classifier, settings: ServerSettings, name: str = "model", shade: Shade | None = None
    ) -> None:
        self.classifier, self.settings, self.name, self.shade = classifier, settings, name, shade
        config = classifier.model.config
        if settings.long_texts == "windows":
            check_windows(config)
        self.metrics = Metrics(config.num_hidden_layers)
        policy = InGroups(SCHEDULES[settings.schedule], settings.patience_ms / 1e3)
        self.worker = Worker(classifier, policy, settings.max_batch_tokens, settings.max_queue_tokens, observer=self)
        default = settings.quality if settings.exit_threshold is None else threshold_of(settings.exit_threshold)
        try:
            self.levels = Levels(config, self.worker.exit_layers, default, settings.relax_to)
        except RefusedError as error:
            raise ValueError(str(error)) from error
        tighten = self._tighten if settings.audit_tighten else None
        self.audit = Audit(settings.audit, self.levels.by_name[DEFAULT], tighten)
        self.cache: Cache[Result] | None = Cache(settings.cache) if settings.cache else None
        self.permits = Permits(settings.max_concurrent_requests)
        self.encode = Encoder(classifier)
        self.device = classifier.model.device.type  # transformers looks for it among the parameters each time
        self.draining = False
        self.recent: deque[tuple[float, float]] = deque(maxlen=RECENT)  # when a request was answered, and its seconds
        self._threads = ThreadPoolExecutor(settings.tokenization_workers, thread_name_prefix="tokenise")
        self.metrics.registry.register(State(self))

    def start(self) -> None:
        """Warms the model up; :attr:`is_ready` says when that is done."""
        self.worker.start()

    def close(self) -> bool:
        """Answers what was accepted and ends; whether that was done in time."""
        closed = self.worker.close(self.settings.drain_timeout)
        self._threads.shutdown(wait=closed)
        return closed

    @property
    def is_ready(self) -> bool:
        """Whether new clients are welcome."""
        return self.worker.state == "ready" and not self.draining

    @property
    def load(self) -> float:
        """Share of what may wait that is taken, of tokens or of texts, whichever is more."""
        return max(self.worker.load, self.permits.held / self.permits.most)

    async def answer(
        self, texts: Sequence[Text], wishes: Wishes | None = None, gone: asyncio.Future[Any] | None = None
    ) -> Answers:
        """The outcomes of a request's texts.

        Args:
            texts: single texts and pairs.
            wishes: what else is asked for.
            gone: done when the client does not wait any more.

        Raises:
            RefusedError: no text of the request gets an answer.
        """
        began, wishes = time.monotonic(), wishes or Wishes()
        if len(texts) > self.settings.max_client_batch_size:
            raise InvalidError(
                f"batch size {len(texts)} > maximum allowed batch size {self.settings.max_client_batch_size}"
            )
        with self.permits.for_texts(len(texts)):
            self.worker.check_ready()
            level, row = self._level_of(wishes)
            timeout = self.settings.timeout_ms if wishes.timeout is None else 1e3 * wishes.timeout
            deadline = None if timeout is None else began + timeout / 1e3
            audited = self.audit.draw(len(texts)) if self.audit.share and len(row) and np.isfinite(row).all() else []
            keys = self._keys(texts, wishes, row, audited)
            encoded = await self._encoded(texts, wishes, keys)
            tokenised = time.monotonic()
            answers = await self._computed(encoded, level, row, audited, deadline, gone)
            self._keep(keys, answers.outcomes)
        ended = time.monotonic()
        answers.tokenization, answers.total = tokenised - began, ended - began
        self._count(answers, ended)
        return answers

    def _way_of(self, wishes: Wishes) -> str:
        """What becomes of texts of too many tokens."""
        if wishes.truncate is None:
            return self.settings.long_texts
        return "cut" if wishes.truncate else "refuse"

    def _keys(
        self, texts: Sequence[Text], wishes: Wishes, row: np.ndarray, audited: Sequence[bool]
    ) -> list[Hashable | None]:
        """The texts' keys in the cache; None: for a text whose answer comes from the model in any case."""
        if self.cache is None:
            return [None] * len(texts)
        settings = row.tobytes(), self._way_of(wishes), wishes.direction
        computed = audited or [False] * len(texts)
        return [None if own else (digest_of(text), settings) for text, own in zip(texts, computed, strict=True)]

    async def _encoded(
        self, texts: Sequence[Text], wishes: Wishes, keys: Sequence[Hashable | None]
    ) -> list[Encoded | Result | RefusedError]:
        """The texts' tokens, or the answers that were kept."""
        found: list[Any] = [None] * len(texts)
        if self.cache is not None:
            found = [None if key is None else self.cache.get(key) for key in keys]
            self.metrics.cached.inc(sum(answer is not None for answer in found))
        others = [place for place, answer in enumerate(found) if answer is None]
        if others:
            given = [texts[place] for place in others], self._way_of(wishes), wishes.direction
            if self._is_quick(given[0]):
                encoded = self.encode(*given)
            else:
                loop = asyncio.get_running_loop()
                encoded = await loop.run_in_executor(self._threads, self.encode, *given)
            for place, tokens in zip(others, encoded, strict=True):
                found[place] = tokens
        return found

    def _is_quick(self, texts: Sequence[Text]) -> bool:
        """Whether nobody else would be held up if texts were tokenised without a thread, which takes longer to wake up."""
        return self.permits.held <= len(texts) and sum(map(characters_of, texts)) <= QUICK

    def _keep(self, keys: Sequence[Hashable | None], outcomes: Sequence[Result | RefusedError]) -> None:
        if self.cache is not None:
            for key, outcome in zip(keys, outcomes, strict=True):
                if key is not None and isinstance(outcome, Result):
                    self.cache.put(key, outcome)

    async def _computed(
        self,
        encoded: Sequence[Encoded | Result | RefusedError],
        level: str | None,
        row: np.ndarray,
        audited: Sequence[bool],
        deadline: float | None,
        gone: asyncio.Future[Any] | None,
    ) -> Answers:
        """The outcomes of texts, some of which may have no tokens to be computed from."""
        outcomes: list[Any] = list(encoded)
        to_do = {place: text for place, text in enumerate(encoded) if isinstance(text, Encoded)}
        answers = Answers(outcomes, level)
        if not to_do:
            return answers
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not answered.done():
                answered.set_result(None)

        request = Request(
            list(to_do.values()),
            np.broadcast_to(row, (len(to_do), len(row))),
            done=lambda _: loop.call_soon_threadsafe(wake),
            level=level,
            audited=[audited[place] and text.long is None for place, text in to_do.items()] if any(audited) else (),
            deadline=deadline,
        )
        self.worker.submit(request)
        try:
            await _first_of(answered, gone, deadline)
        finally:
            request.gone = not answered.done()
        for place, outcome in zip(to_do, request.outcomes, strict=True):
            outcomes[place] = outcome
        answers.queue, answers.inference = request.entered - request.came, request.ended - request.entered
        return answers

    def _level_of(self, wishes: Wishes) -> tuple[str | None, np.ndarray]:
        """The name of the level that serves a request, and its thresholds ``[exit layers]``."""
        if wishes.exit_threshold is not None:
            if wishes.quality is not None:
                raise InvalidError("exit_threshold and quality both choose exit thresholds; give one of them")
            return None, self.levels.row(wishes.exit_threshold)
        level = self.levels.under(self.load) if wishes.quality is None else self.levels.named(wishes.quality)
        return level.name, self.levels.row_of(level)

    def _count(self, answers: Answers, ended: float) -> None:
        self.recent.append((ended, answers.total))
        for phase, seconds in self.metrics.phases.items():
            seconds.observe(getattr(answers, phase))
        refused = [outcome for outcome in answers.outcomes if isinstance(outcome, RefusedError)]
        for outcome in (
            refused if answers.results else refused[1:]
        ):  # without any answer the first is raised, and counted
            self.metrics.failures.labels(outcome.kind).inc()

    async def pyramid(self, text: str, exit_threshold: float | str | None) -> dict[str, Any]:
        """A text's way through the model, for the page; for a model that reads pairs the second begins in the second line.

        Raises:
            RefusedError: nothing shades texts here; more waits than is allowed; thresholds that cannot be followed; one line
                where two texts are compared.
        """
        if self.shade is None:
            raise InvalidError("this server shades no texts")
        whole: Text = text
        if self.classifier.reads_pairs:
            first, _, second = text.partition("\n")
            if not second:
                raise InvalidError(f"{ONE_TEXT}, the second text on a line of its own")
            whole = first, second
        shade, threshold = self.shade, exit_threshold
        self.levels.row(threshold)
        if threshold is None:
            own = self.levels.by_name[DEFAULT]
            threshold = "never" if own.exit_threshold is None else own.exit_threshold  # type: ignore[assignment]
        with self.permits.for_texts(1):
            return await asyncio.wrap_future(self.worker.call(lambda: shade(self.classifier, whole, threshold)))

    def _tighten(self, factor: float) -> None:
        self.levels.factor = factor

    # The worker's observer

    def stepped(self, layer: int, texts: int, tokens: int, seconds: float) -> None:
        self.metrics.stepped(layer, texts, tokens, seconds)

    def answered(self, result: Result, level: str | None) -> None:
        self.metrics.answered(result, level)

    def audited(self, level: str | None, label: str, layer: int, last: str) -> None:
        self.metrics.audited(level, label, layer, last)
        self.audit.note(level, label != last)

    # What is said about it

    def info(self) -> dict[str, Any]:
        """The server's settings and its model's, with the names that text-embeddings-inference has for them."""
        from importlib.metadata import version

        config, settings = self.classifier.model.config, self.settings
        labels = dict(enumerate(config.label_names))
        return {
            "model_id": self.name,
            "model_sha": None,
            "model_dtype": self.classifier.precision.name,
            "model_type": {
                "classifier": {
                    "id2label": {str(number): name for number, name in labels.items()},
                    "label2id": {name: number for number, name in labels.items()},
                }
            },
            "max_concurrent_requests": settings.max_concurrent_requests,
            "max_input_length": self.encode.max_length,
            "max_batch_tokens": settings.max_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_client_batch_size,
            "auto_truncate": settings.long_texts == "cut",
            "long_texts": settings.long_texts,
            "tokenization_workers": settings.tokenization_workers,
            "version": version("magic-pyramid"),
            "task": config.task,
            "layers": config.num_hidden_layers,
            "exit_layers": self.worker.exit_layers,
            "exit_uncertainty": config.exit_uncertainty,
            "schedule": settings.schedule,
            "max_queue_tokens": settings.max_queue_tokens,
            "levels": described(self.levels.by_name),
            "relaxes_to": [level.name for level in self.levels.ladder[1:]],
            "audit": {
                "share": self.audit.share,
                "promised": self.audit.promised,
                "drift": self.audit.drift,
                "threshold_factor": self.audit.factor,
                "seen": self.audit.seen(),
            },
        }

    def figures(self) -> dict[str, Any]:
        """Live figures, for the page."""
        now = time.monotonic()
        recent = [(when, seconds) for when, seconds in tuple(self.recent) if when > now - 10]
        times = sorted(seconds for _, seconds in recent)
        since = max(0.1, now - recent[0][0]) if recent else 1.0
        return {
            "state": "draining" if self.draining else self.worker.state,
            "requests_per_second": len(recent) / since,
            "median_ms": 1e3 * times[len(times) // 2] if times else None,
            "p99_ms": 1e3 * times[min(len(times) - 1, int(0.99 * len(times)))] if times else None,
            "queue_tokens": self.worker.depths(),
            "load": self.load,
            "exits": list(self.metrics.exits),
            "drift": self.audit.drift,
        }


def digest_of(text: Text) -> bytes:
    """32 bytes that stand for a text or a pair, however long it is, so that a cache of many needs little memory."""
    return hashlib.sha256(json.dumps(text).encode()).digest()


def characters_of(text: Text) -> int:
    """Number of characters of a text, or of both of a pair."""
    return len(text) if isinstance(text, str) else sum(map(len, text))


async def _first_of(answered: asyncio.Future[None], gone: asyncio.Future[Any] | None, deadline: float | None) -> None:
    """Waits for the answer.

    Raises:
        ExpiredError, GoneError: the deadline, or the end of the client's waiting, came first.
    """
    waited = {answered} if gone is None else {answered, gone}
    timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
    done, _ = await asyncio.wait(waited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    if answered in done:
        return
    if done:
        raise GoneError("the client has gone")
    raise ExpiredError("the time for this request is over")


def threshold_of(value: str) -> float | list[float] | str:
    """An exit threshold as it was given: a number, numbers with commas between them, or ``never``.

    Raises:
        ValueError: it is neither.
    """
    if value == "never":
        return value
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError as error:
        raise ValueError(
            f"--exit-threshold must be numbers with commas between them, or never; got {value!r}"
        ) from error
    return numbers if "," in value else numbers[0]

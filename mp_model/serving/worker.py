"""The one thread that owns a server's model and its schedule."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..engine import Alive, Arrived, Decided, StepResult
from ..graphs import steps_by_graphs
from ..inputs import pack_tokens
from ..schedule import BUDGET, Schedule
from .admission import (
    ExpiredError,
    GoneError,
    InvalidError,
    OverloadedError,
    RefusedError,
    TokenizerError,
    UnhealthyError,
)
from .classifier import Answer, Classifier, LongText
from .policy import ADMIT, InGroups, Policy
from .requests import Inbox, OnItsWay, Request, Result, joined, next_window, texts_of

CALL = -1  # in the place of a layer: a function that somebody wants to have run
ASKED = -1.0  # a threshold by which nobody leaves, though the exit is asked: of texts that are audited
WARM = (4, 32, 128, 512)  # words of the texts that a model answers before it is ready
RECENT = 20.0  # seconds over which the rate of the work is counted

log = logging.getLogger("magic_pyramid")
Value = TypeVar("Value")


class Observer(Protocol):
    """Somebody who is told what the worker does, in its thread."""

    def stepped(self, layer: int, texts: int, tokens: int, seconds: float) -> None:
        """A layer ran for so many texts with so many alive tokens; 0 stands for all layers of a run by graphs."""
        ...

    def answered(self, result: Result, level: str | None) -> None:
        """A text has its answer, at a quality level, or at thresholds of its own (None)."""
        ...

    def audited(self, level: str | None, label: str, layer: int, last: str) -> None:
        """The last layer's label for a text that was answered with a label at a layer."""
        ...


class NobodyWatches:
    """An observer that does nothing."""

    def stepped(self, layer: int, texts: int, tokens: int, seconds: float) -> None:
        return

    def answered(self, result: Result, level: str | None) -> None:
        return

    def audited(self, level: str | None, label: str, layer: int, last: str) -> None:
        return


class Worker:
    """A thread that answers requests by one schedule.

    Args:
        classifier: the model; nobody else uses it meanwhile.
        policy: the choice of the next step; None: whatever waits, in one forward.
        budget: tokens at which a layer runs.
        most_tokens: tokens of texts that may be accepted and not answered.
        observer: told what happens.

    Attributes:
        state: ``"starting"``, ``"ready"``, ``"closed"``, or ``"failed"``.
        why: the reason for ``"failed"``.
        tokens: tokens of the texts that were accepted and are not answered.
    """

    def __init__(
        self,
        classifier: Classifier,
        policy: Policy | None = None,
        budget: int = BUDGET,
        most_tokens: int = 1 << 16,
        observer: Observer | None = None,
    ) -> None:
        self.classifier, self.policy = classifier, policy or InGroups()
        self.most_tokens = most_tokens
        self.observer: Observer = observer or NobodyWatches()
        config, self.device = classifier.model.config, classifier.model.device
        self.problem, self.names = config.problem, config.label_names
        self.exit_layers = exit_layers_of(classifier)
        self.columns = {layer: column for column, layer in enumerate(self.exit_layers)}
        self.schedule = Schedule(classifier.pyramid(1.0 if self.exit_layers else "never"), budget)
        self.state, self.why = "starting", ""
        self.tokens = 0
        self._inbox = Inbox()
        self._on_their_way: dict[int, OnItsWay] = {}
        self._came = 0
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._done: deque[tuple[float, int]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    # Called by others

    def start(self) -> None:
        """Warms the model up and begins to answer; returns at once."""
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Accepts a request, whose outcomes it gets in any case.

        Raises:
            InvalidError: more tokens than may ever wait.
            UnhealthyError: the worker is not ready.
            OverloadedError: too many tokens wait.
        """
        texts = texts_of(request)
        tokens = sum(text.tokens for text in texts)
        if tokens > self.most_tokens:
            raise InvalidError(f"{tokens} tokens came at once; at most {self.most_tokens} may wait: send fewer at once")
        with self._changed:
            self.check_ready()
            if self.tokens + tokens > self.most_tokens:
                raise OverloadedError(
                    f"{self.tokens} tokens are waiting and {tokens} came; at most {self.most_tokens} may: try later",
                    self.seconds_of_work(),
                )
            self.tokens += tokens
            self._inbox.add(texts)
            self._changed.notify()

    def call(self, function: Callable[[], Value]) -> Future[Value]:
        """Has a function that needs the model run in the worker's thread, between two steps.

        Raises:
            UnhealthyError: the worker is not ready.
        """
        future: Future[Value] = Future()
        with self._changed:
            self.check_ready()
            self._calls.append((function, future))
            self._changed.notify()
        return future

    def close(self, timeout: float | None = None) -> bool:
        """Answers everything that was accepted and ends; whether it did within so many seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def check_ready(self) -> None:
        """Raises UnhealthyError unless requests are accepted."""
        if self.state != "ready" or self._closing:
            raise UnhealthyError(self.why or f"the model is {'closing' if self._closing else self.state}")

    @property
    def load(self) -> float:
        """Share of ``most_tokens`` that waits."""
        return self.tokens / self.most_tokens

    def depths(self) -> list[int]:
        """Tokens that wait for each layer, 0 to L."""
        return [self._inbox.tokens, *(queue.tokens for queue in self.schedule.layers)]

    def seconds_of_work(self) -> int:
        """Seconds, 1 to 60, that the waiting tokens take at the rate of late."""
        since = time.monotonic() - RECENT
        recent = [(when, tokens) for when, tokens in tuple(self._done) if when > since]
        if not recent:
            return 1
        rate = sum(tokens for _, tokens in recent) / max(0.1, time.monotonic() - recent[0][0])
        return min(60, max(1, math.ceil(self.tokens / max(rate, 1.0))))

    # The thread

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            longest = self.classifier.tokenise.max_length
            texts = ["a " * min(words, longest) for words in WARM]
            self.classifier([(text, "a") for text in texts] if self.classifier.reads_pairs else texts)
            self.state = "ready"
            log.info("ready")
            while (number := self._next()) is not None:
                self._step(number)
            self.state = "closed"
        except BaseException as error:
            log.exception("the model's thread has ended")
            with self._changed:
                self.why = f"the model's thread has ended: {type(error).__name__}: {error}"
                self.state = "failed"
                waiting = [*self._on_their_way.values(), *self._inbox.take(1 << 62, None)]
                self._on_their_way.clear()
            for _, future in self._calls:
                future.set_exception(UnhealthyError(self.why))
            for text in waiting:
                self._refuse(text, UnhealthyError(self.why))

    def _next(self) -> int | None:
        """The next layer, as soon as there is one; None: nothing is left, and nothing is coming."""
        with self._changed:
            while True:
                if self._calls:
                    return CALL
                if (number := self.policy.next_layer(self.schedule, self._inbox)) is not None:
                    return number
                if self._inbox.texts:  # with patience for more
                    self._changed.wait(max(self.policy.patience - self._inbox.age, 1e-4))
                elif self._closing:
                    return None
                else:
                    self._changed.wait()

    def _step(self, number: int) -> None:
        if number == CALL:
            function, future = self._calls.popleft()
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)
            return
        began = time.monotonic()
        samples: list[int] = []
        part: Arrived | Alive
        try:
            results: list[StepResult] | None = None
            if number == ADMIT:
                texts = self._still_wanted()
                if not texts:
                    return
                samples = list(range(self._came, self._came + len(texts)))
                self._came += len(texts)
                self._on_their_way.update(zip(samples, texts, strict=True))
                part = arrived = self._packed(texts, samples[0])
                if not any(text.audited for text in texts):  # of these every exit's prediction is wanted
                    results = steps_by_graphs(self.classifier.model, self.schedule.pyramid, arrived)
            else:
                part = self.schedule.queues[number].take()
                samples = part.samples.tolist()
            if results is None:
                results = [self.schedule.run_taken(number, part)]
        except Exception as error:
            log.exception("a step of layer %d has failed", number)
            failed = RefusedError(f"the model failed at layer {number}: {type(error).__name__}")
            for sample in samples:
                self._refuse(self._on_their_way.pop(sample), failed)
            return
        for result in results:
            self._take(result)
        self.observer.stepped(number, len(samples), part.tokens, time.monotonic() - began)

    def _still_wanted(self) -> list[OnItsWay]:
        """The texts that waited longest, without those whom nobody waits for any more."""
        with self._changed:
            texts = self._inbox.take(self.schedule.front.budget, self.policy.texts)
        now, wanted = time.monotonic(), []
        for text in texts:
            request = text.request
            request.entered = request.entered or now
            if request.gone:
                self._refuse(text, GoneError("the client has gone"))
            elif request.deadline is not None and now >= request.deadline:
                self._refuse(text, ExpiredError("the time for this text was over before it was computed"))
            else:
                wanted.append(text)
        return wanted

    def _packed(self, texts: Sequence[OnItsWay], first: int) -> Arrived:
        tokens = joined([text.encoded for text in texts])
        rows = [
            np.full_like(row, ASKED) if text.audited else row
            for text, row in ((text, text.request.thresholds[text.place]) for text in texts)
        ]
        inputs = pack_tokens(self.classifier.model.config, tokens.ids, tokens.types, tokens.lengths, self.device)
        thresholds = torch.from_numpy(np.stack(rows)).to(self.device) if self.exit_layers else None
        return Arrived.of(inputs, first, thresholds)

    def _take(self, result: StepResult) -> None:
        """Counts a step's work, and gives the texts that leave their outcomes."""
        step, decided = result.step, result.decided
        if step.layer or step.decided:
            work = step.flops(self.classifier.model.config)
            for number, flops in zip(step.samples.tolist(), work.tolist(), strict=True):
                self._on_their_way[number].work += flops
        if decided is None:
            return
        scores = self.problem.scores(decided.logits.float())
        per_text = (decided.samples, scores.argmax(-1), scores, decided.logits, decided.uncertainty, _leaves(decided))
        columns = [column.tolist() for column in (*per_text, step.tokens())]
        for number, best, row, logits, uncertainty, leaves, kept in zip(*columns, strict=True):
            text = self._on_their_way[number]
            if not leaves and not self._would_leave(text, decided.layer, uncertainty):
                continue
            if leaves:
                del self._on_their_way[number]
            text.kept += kept
            if text.encoded.long is not None:
                whole = self._with_window(text, text.encoded.long, decided.layer, logits)
                if whole is None:
                    continue
                best, row, logits, uncertainty = whole
            if text.early is not None:
                if leaves:
                    self.observer.audited(text.request.level, *text.early, self.problem.in_words(row, self.names))
                continue
            if not all(map(math.isfinite, row)):
                self._refuse(text, RefusedError("the model's answer is NaN or infinite; its weights are damaged"))
                if not leaves:
                    text.early = "", decided.layer
                continue
            answer = Answer(
                label=self.names[best],
                score=row[best],
                scores=dict(zip(self.names, row, strict=True)),
                exit_layer=decided.layer,
                uncertainty=uncertainty if self.problem.has_uncertainty(len(row)) else None,
                tokens=text.read + text.tokens,
                flops=text.work,
            )
            if text.audited:
                said = self.problem.in_words(row, self.names)
                text.early = said, answer.exit_layer
                if leaves:
                    self.observer.audited(text.request.level, *text.early, said)
            self._answer(text, Result(answer, logits, text.kept))

    def _with_window(
        self, text: OnItsWay, long: LongText, layer: int, logits: list[float]
    ) -> tuple[int, list[float], list[float], float] | None:
        """The best label, the scores, the logits and the uncertainty of a text that is read in windows, after one more.

        None: it is not certain yet, and waits to be let in with its next window, behind the others; or it cannot be read on.

        Args:
            text: the text.
            long: its windows.
            layer: the layer that answered this window.
            logits: its logits.
        """
        mean = long.mean_with(torch.tensor(logits))[None]
        uncertainty = float(self.problem.uncertainty(mean))
        row = text.request.thresholds[text.place]
        column = self.columns.get(layer, len(row) - 1)
        if not (len(row) and uncertainty <= row[column]):
            try:
                window = next_window(long)
            except Exception as error:  # of any library that a tokenizer may call
                self._refuse(text, TokenizerError(error))
                return None
            if window is not None:
                with self._changed:
                    self.tokens += len(window.ids) - text.tokens
                    text.read, text.encoded = text.read + text.tokens, window
                    self._inbox.add([text])
                return None
        scores = self.problem.scores(mean)
        return int(scores.argmax()), scores[0].tolist(), mean[0].tolist(), uncertainty

    def _would_leave(self, text: OnItsWay, layer: int, uncertainty: float) -> bool:
        """Whether a text that is audited would leave here."""
        return text.audited and uncertainty <= text.request.thresholds[text.place, self.columns[layer]]

    def _answer(self, text: OnItsWay, result: Result) -> None:
        now = time.monotonic()
        self._done.append((now, text.tokens))
        while self._done[0][0] < now - RECENT:
            self._done.popleft()
        self.observer.answered(result, text.request.level)
        self._put(text, result)

    def _refuse(self, text: OnItsWay, reason: RefusedError) -> None:
        if text.early is None:
            self._put(text, reason)

    def _put(self, text: OnItsWay, outcome: Result | RefusedError) -> None:
        with self._changed:
            self.tokens -= text.tokens
        try:
            text.request.put(text.place, outcome)
        except Exception:
            log.exception("nobody could be told of an answer")


def _leaves(decided: Decided) -> Tensor:
    """bool ``[batch]``: the samples that leave with this answer."""
    if decided.stays is None:
        return torch.ones_like(decided.samples, dtype=torch.bool)
    return ~decided.stays


def exit_layers_of(classifier: Classifier) -> list[int]:
    """The exit layers that requests may open; none where a model's heads are untrained, or choose no one label."""
    config = classifier.model.config
    try:
        config.check_exits(1.0)
        config.resolved_exit_threshold(1.0)
    except ValueError:
        return []
    return config.resolved_exit_layers()

"""Requests on their way through the worker: their texts' tokens, what is asked of them, and their outcomes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..data.tokens import Tokens
from .admission import RefusedError
from .classifier import Answer, LongText


class Encoded(NamedTuple):
    """One text's token ids, int64 ``[tokens]``, and their types; None for a single text.

    Of a text that is read in windows they are one window's; ``long`` holds the others and what is known so far.
    """

    ids: np.ndarray
    types: np.ndarray | None
    long: LongText | None = None


@dataclass(slots=True)
class Result:
    """One text's answer.

    Attributes:
        answer: the answer.
        logits: the logits that it is made from, by the labels' numbers.
        kept: tokens that entered the layer that answered.
    """

    answer: Answer
    logits: list[float]
    kept: int


@dataclass(slots=True, eq=False)
class Request:
    """Texts that came together.

    Attributes:
        texts: their tokens.
        thresholds: float32 ``[texts, exit layers]``; below 0: the exit is closed.
        done: called once, when each text has its outcome, in the worker's thread.
        level: name of the quality level that the thresholds stand for; None: they are the request's own.
        audited: whether each text goes on to the last layer after its answer; empty: none does.
        deadline: end of the time for it, of :func:`time.monotonic`; None: there is none.
        gone: whether nobody waits for the outcomes any more.
        outcomes: one for each text, as far as they are there.
        came, entered, ended: times of :func:`time.monotonic`: of its coming, of its first text's being let in, and of its
            last outcome; 0 before.
        open: number of texts without an outcome.
    """

    texts: Sequence[Encoded]
    thresholds: np.ndarray
    done: Callable[[Request], object]
    level: str | None = None
    audited: Sequence[bool] = ()
    deadline: float | None = None
    gone: bool = False
    outcomes: list[Result | RefusedError | None] = field(init=False)
    came: float = field(default_factory=time.monotonic)
    entered: float = 0.0
    ended: float = 0.0
    open: int = field(init=False)

    def __post_init__(self) -> None:
        self.open = len(self.texts)
        self.outcomes = [None] * self.open

    def put(self, place: int, outcome: Result | RefusedError) -> None:
        """Gives a text its outcome, its only one."""
        assert self.outcomes[place] is None, "a text is answered once"
        self.outcomes[place] = outcome
        self.open -= 1
        if not self.open:
            self.ended = time.monotonic()
            self.done(self)


@dataclass(slots=True, eq=False)
class OnItsWay:
    """One text of a request.

    Attributes:
        request, place: its request, and its place in it.
        encoded: its tokens, or those of the window that is being read.
        read: tokens of the windows before that.
        kept: tokens that entered the layer that answered, of all windows so far.
        work: executed work so far, 2 x multiply-accumulates.
        early: label and layer of its answer, where it has that and goes on for the audit alone.
    """

    request: Request
    place: int
    encoded: Encoded
    read: int = 0
    kept: int = 0
    work: int = 0
    early: tuple[str, int] | None = None

    @property
    def tokens(self) -> int:
        return self.encoded.ids.shape[0]

    @property
    def audited(self) -> bool:
        """Whether it goes on to the last layer after its answer."""
        return bool(self.request.audited) and self.request.audited[self.place]


def texts_of(request: Request) -> list[OnItsWay]:
    """The texts of a request, one by one."""
    return [OnItsWay(request, place, encoded) for place, encoded in enumerate(request.texts)]


def next_window(long: LongText) -> Encoded | None:
    """The next window of a text; None: there is none."""
    window = next(long.windows, None)
    if window is None:
        return None
    types = np.array(window.types, dtype=np.int64) if long.typed else None
    return Encoded(np.array(window.ids, dtype=np.int64), types, long)


def joined(texts: Sequence[Encoded]) -> Tokens:
    """The tokens of several texts, back to back; single texts have type 0 where there are pairs too."""
    ids = [text.ids for text in texts]
    types = None
    if any(text.types is not None for text in texts):
        types = np.concatenate([np.zeros_like(text.ids) if text.types is None else text.types for text in texts])
    return Tokens(np.concatenate(ids), types, np.array([len(row) for row in ids], dtype=np.int64))


def separate(tokens: Tokens) -> list[Encoded]:
    """The texts of :class:`Tokens`, each by itself."""
    found, begin = [], 0
    for length in tokens.lengths.tolist():
        rows = slice(begin, begin := begin + length)
        found.append(Encoded(tokens.ids[rows], None if tokens.types is None else tokens.types[rows]))
    return found


class Inbox:
    """Texts that wait to be let in, those that came first in front; not for several threads at once.

    Attributes:
        tokens: number of their tokens.
    """

    def __init__(self) -> None:
        self._waiting: deque[OnItsWay] = deque()
        self.tokens = 0

    @property
    def texts(self) -> int:
        return len(self._waiting)

    @property
    def age(self) -> float:
        return time.monotonic() - self._waiting[0].request.came if self._waiting else 0.0

    def add(self, texts: Sequence[OnItsWay]) -> None:
        self._waiting.extend(texts)
        self.tokens += sum(text.tokens for text in texts)

    def take(self, budget: int, most: int | None) -> list[OnItsWay]:
        """The first texts, up to a budget of tokens and the text that exceeds it, and not more than ``most``."""
        taken: list[OnItsWay] = []
        tokens = 0
        while self._waiting and tokens < budget and (most is None or len(taken) < most):
            taken.append(self._waiting.popleft())
            tokens += taken[-1].tokens
        self.tokens -= tokens
        return taken

"""Rows on their way past a stream of texts, in which those without a text keep their places."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import islice
from typing import TypeAlias, TypeVar

from .partial import row_after_row

Text: TypeAlias = str | tuple[str, str]
Row: TypeAlias = Text | ValueError
Answer = TypeVar("Answer")


class OnError(StrEnum):
    """The ways to treat a row without a text."""

    FAIL = "fail"
    SKIP = "skip"
    NULL = "null"


class RowsInPassing:
    """Gives the texts of rows to a stream, and the rows back with the answers.

    A thread of the stream's may take the texts, ahead of the answers.

    Args:
        rows: texts, and in the place of a row without one the error that says so.
        on_error: what becomes of such a row.
        done: rows that are answered already, to be passed over.
        digest: the hash of these rows, by :func:`mp_model.command_line.partial.row_after_row`.

    Attributes:
        read: rows that were read.
        bad: those among them without a text.
        first_bad: the error of the first of these.
    """

    def __init__(self, rows: Iterable[Row], on_error: OnError, done: int = 0, digest: str = "") -> None:
        self._rows, self._on_error, self._done, self._digest = rows, on_error, done, digest
        self._waiting: deque[Row] = deque()  # to be given back
        self.read = self.bad = 0
        self.first_bad: ValueError | None = None

    def texts(self) -> Iterator[Text]:
        """The texts.

        Raises:
            ValueError: a row without a text, if such a row is to fail; rows that are not those that are answered.
        """
        rows = self._rows_with_a_line()
        self._pass_over(rows)
        for row in rows:
            self._waiting.append(row)
            if not isinstance(row, ValueError):
                yield row

    def with_answers(self, answers: Iterable[Answer]) -> Iterator[tuple[Row, Answer | None]]:
        """Each row in order with its answer; None for a row without a text."""
        for answer in answers:
            while isinstance(row := self._waiting.popleft(), ValueError):
                yield row, None
            yield row, answer
        while self._waiting:
            yield self._waiting.popleft(), None

    def _rows_with_a_line(self) -> Iterator[Row]:
        for row in self._rows:
            self.read += 1
            if isinstance(row, ValueError):
                if self._on_error is OnError.FAIL:
                    raise row
                self.bad += 1
                self.first_bad = self.first_bad or row
                if self._on_error is OnError.SKIP:
                    continue
            yield row

    def _pass_over(self, rows: Iterator[Row]) -> None:
        digest = ""
        for row in islice(rows, self._done):
            digest = row_after_row(digest, row)
        if digest != self._digest:
            raise ValueError(
                f"the first {self._done} rows are not those whose answers were kept; give the same input and format, or "
                "remove the partial file to start over"
            )

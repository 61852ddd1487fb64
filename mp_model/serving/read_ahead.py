"""Making the next items of a stream in a thread, while the last ones are being used."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
PATIENCE = 0.5  # seconds for the item in the making, once nobody wants any more


class ReadAhead(Generic[Item]):
    """Iterates in a thread of its own, and holds the items until they are taken.

    Args:
        source: the items; iterated in the thread.
        ahead: most items that wait to be taken; one more may be in the making.
    """

    def __init__(self, source: Iterable[Item], ahead: int = 1) -> None:
        self._ahead = ahead
        self._made: deque[Item] = deque()
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        # A daemon, since a source may wait for a person who never types another line.
        self._thread = threading.Thread(target=self._run, args=(source,), name="read-ahead", daemon=True)
        self._thread.start()

    def _run(self, source: Iterable[Item]) -> None:
        try:
            for item in source:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or len(self._made) < self._ahead)
                    if self._closed:
                        return
                    self._made.append(item)
                    self._changed.notify_all()
        except BaseException as error:  # handed to the thread that takes the items
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def take(self, most: int = 1, timeout: float | None = None) -> list[Item] | None:
        """The next items, as many as are there but not more than ``most``.

        It waits until there is one; an empty list comes after the last, and None if ``timeout`` seconds pass without one.

        Raises:
            BaseException: the error that the source raised, after the items before it.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._made or self._ended or self._closed, timeout):
                return None
            items = [self._made.popleft() for _ in range(min(most, len(self._made)))]
            self._changed.notify_all()
        if not items and self._error is not None:
            raise self._error
        return items

    def pieces(self, most: int) -> Iterator[list[Item]]:
        """Lists of the items: of as many as are there when the next list is asked for, but not more than ``most``."""
        while items := self.take(most):
            yield items

    def close(self) -> None:
        """Lets the thread end with the item that it is making, and everybody who waits for one find none.

        It waits a little for that: a thread that is still in a library when Python ends may take the process down.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join(PATIENCE)

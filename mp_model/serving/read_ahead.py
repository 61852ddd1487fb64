"""Making the next items of a stream in a thread, while the last ones are being used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class End:
    """The end of a stream, in place of an item."""


END = End()


class ReadAhead(Generic[Item]):
    """Iterates in a thread of its own, and holds what it made until it is taken.

    Args:
        source: the items; iterated in the thread.
        ahead: items that may wait to be taken; one more may be in the making.
    """

    def __init__(self, source: Iterable[Item], ahead: int = 1) -> None:
        self._made: queue.Queue[Item | End | BaseException] = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        # A daemon, since a source may wait for a person who never types another line.
        threading.Thread(target=self._run, args=(source,), name="read-ahead", daemon=True).start()

    def _run(self, source: Iterable[Item]) -> None:
        try:
            for item in source:
                if not self._hand_over(item):
                    return
            self._hand_over(END)
        except BaseException as error:  # handed to the thread that takes the items
            self._hand_over(error)

    def _hand_over(self, item: Item | End | BaseException) -> bool:
        while not self._stopped.is_set():
            try:
                self._made.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def take(self, timeout: float | None = None) -> Item | End | None:
        """The next item; :data:`END` after the last; None if none was made within ``timeout`` seconds.

        Raises:
            BaseException: whatever the source raised, in its turn.
        """
        try:
            item = self._made.get(timeout=timeout)
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Lets the thread end with the item that it is making."""
        self._stopped.set()

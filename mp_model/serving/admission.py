"""The bound on the texts that a server has accepted and not answered, and the reasons for which a text has no answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class RefusedError(Exception):
    """A text without an answer, and the reason.

    Attributes:
        kind: kind of the reason, as text-embeddings-inference names it on its wire.
        status: HTTP status that goes with it.
    """

    kind, status = "Backend", 424


class UnhealthyError(RefusedError):
    """The server is not ready, or no longer."""

    kind, status = "Unhealthy", 503


class OverloadedError(RefusedError):
    """More waits than is allowed.

    Attributes:
        retry_after: seconds after which another attempt may be accepted.
    """

    kind, status = "Overloaded", 429

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InvalidError(RefusedError):
    """A request that cannot be followed."""

    kind, status = "Validation", 422


class TooLargeError(RefusedError):
    """A body of more bytes than are read."""

    kind, status = "Validation", 413


class EmptyError(RefusedError):
    """No text."""

    kind, status = "Empty", 400


class TokenizerError(RefusedError):
    """A text that the tokenizer cannot take; error: what it says."""

    kind, status = "Tokenizer", 422

    def __init__(self, error: Exception) -> None:
        super().__init__(f"the tokenizer cannot take this text: {' '.join(str(error).split())}")


class ExpiredError(RefusedError):
    """A text whose deadline passed before it was answered."""

    kind, status = "Timeout", 504


class GoneError(RefusedError):
    """A text whose client does not wait any more."""

    kind, status = "Gone", 499


class Permits:
    """A bound on texts, shared by all requests.

    Args:
        most: texts that may be held at a time.

    Attributes:
        held: texts that are held now.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._lock = threading.Lock()

    @contextmanager
    def for_texts(self, count: int) -> Iterator[None]:
        """Holds a permit for each text until the block is left, whichever way.

        A coroutine enters it before it awaits anything: where others may run between the check and the count, all of them
        pass the check.

        Raises:
            InvalidError: there never are so many.
            OverloadedError: there are not so many now.
        """
        if count > self.most:
            raise InvalidError(f"{count} texts came at once; at most {self.most} may wait: send fewer at once")
        with self._lock:
            if self.held + count > self.most:
                raise OverloadedError(
                    f"{self.held} texts are waiting and {count} came; at most {self.most} may: try later"
                )
            self.held += count
        try:
            yield
        finally:
            with self._lock:
                self.held -= count

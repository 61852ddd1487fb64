"""A fixture for tests whose results must not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch


@pytest.fixture
def with_threads() -> Iterator[Callable[[int, Callable], object]]:
    """``with_threads(n, function)`` returns the result of ``function()`` on n threads."""

    def run(threads: int, function: Callable) -> object:
        torch.set_num_threads(threads)
        return function()

    yield run
    torch.set_num_threads(1)

"""The process of a server, before it answers."""

from __future__ import annotations

import gc
import socket
from collections.abc import Iterator

import pytest

from mp_model import Classifier
from mp_model.serving import running
from mp_model.serving.service import Service
from mp_model.serving.settings import ServerSettings


@pytest.fixture
def thawed() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_stays_is_not_looked_through_while_it_answers(
    served: Classifier, monkeypatch: pytest.MonkeyPatch, thawed: None
) -> None:
    """To look through all that is loaded, the model and torch among it, would hold up every answer."""
    spared: list[int] = []
    monkeypatch.setattr(running.DrainingServer, "run", lambda self, sockets: spared.append(gc.get_freeze_count()))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        running.run(Service(served, ServerSettings()), bound)
    assert spared[0] > 100_000

"""The server does what its OpenAPI description says, whatever is sent to it: schemathesis, bounded."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings

from mp_model import Classifier, PyramidBertForSequenceClassification
from mp_model.command_line.serve import shaded
from mp_model.serving.app import create_app
from mp_model.serving.service import Service
from mp_model.serving.settings import ServerSettings
from support import wordpiece
from support.serving import eventually

schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")


@pytest.fixture(scope="module")
def described(served_model: PyramidBertForSequenceClassification) -> Iterator[Any]:
    """The description of a server, as it gives it itself."""
    service = Service(Classifier(served_model, wordpiece.tokenizer()), ServerSettings(), "tiny", shaded)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None))
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        eventually(lambda: service.is_ready)
        yield schemathesis.openapi.from_url(f"http://127.0.0.1:{bound.getsockname()[1]}/openapi.json")
        server.should_exit = True
        thread.join()
    assert service.worker.state == "closed"
    assert service.permits.held == service.worker.tokens == 0


def test_every_answer_is_one_of_those_described(described: Any) -> None:
    # A schema cannot say all: that an exit threshold has one number for each exit layer, say, or which levels there are.
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    operations = [result.ok() for result in described.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/predict", "/classify", "/invocations", "/", "/health"}
    for operation in operations:

        @settings(max_examples=25 if operation.method == "post" else 2, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def check(case: Any) -> None:
            asked = case.body.get("timeout_ms") if isinstance(case.body, dict) else None
            if isinstance(asked, int | float) and 0 < asked <= 3.6e6:
                case.body["timeout_ms"] = 3.6e6  # or the answer may be that its time is over
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        check()

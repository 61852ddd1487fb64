"""Requests are traced where OpenTelemetry's variables ask for it, and nowhere else."""

from __future__ import annotations

import sys

import pytest
from fastapi.testclient import TestClient

from mp_model import Classifier
from mp_model.serving.app import create_app
from mp_model.serving.service import Service
from mp_model.serving.settings import ServerSettings
from mp_model.serving.telemetry import tracer_of
from support.serving import TEXTS, eventually


def test_nothing_is_traced_unless_asked_for() -> None:
    assert tracer_of({}) is None


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ValueError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT is set, and opentelemetry.* is not installed"):
        tracer_of({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"})


def test_each_request_is_a_span_of_its_callers_trace(served: Classifier) -> None:
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason="pip install opentelemetry-sdk")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans, provider = InMemorySpanExporter(), trace.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    service = Service(served, ServerSettings())
    parent = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with TestClient(create_app(service, provider.get_tracer("test"))) as client:
        eventually(lambda: service.is_ready)
        response = client.post("/predict", json={"inputs": TEXTS[0]}, headers=parent)
    (span,) = spans.get_finished_spans()
    assert span.name == "POST /predict"
    assert f"{span.context.trace_id:032x}" == "0af7651916cd43dd8448eb211c80319c"
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["magic_pyramid.exit-layer"] == response.headers["x-exit-layer"]
    provider.shutdown()

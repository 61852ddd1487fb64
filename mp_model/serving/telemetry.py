"""Traces for OpenTelemetry, where its own environment variables name somebody who collects them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def tracer_of(environment: Mapping[str, str] = os.environ) -> Any:
    """The tracer that sends a span a request, by OTLP over HTTP; None: no variable names an endpoint.

    Raises:
        ValueError: an endpoint is named, and OpenTelemetry's packages are not there.
    """
    named = [name for name in ENDPOINTS if environment.get(name)]
    if not named:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{named[0]} is set, and {error.name} is not installed: pip install 'magic-pyramid[telemetry]', or unset it"
        ) from error
    name = environment.get("OTEL_SERVICE_NAME", "magic-pyramid")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider.get_tracer("magic_pyramid")


class Span:
    """The span of a request, or nothing where there is no tracer.

    Args:
        tracer: the tracer; None: there is none.
        name: name of the span.
        headers: headers of the request, which may say what it is a part of.
    """

    def __init__(self, tracer: Any, name: str, headers: Mapping[str, str]) -> None:
        self.span: Any = None
        if tracer is not None:
            from opentelemetry.propagate import extract
            from opentelemetry.trace import SpanKind

            self.span = tracer.start_span(name, context=extract(headers), kind=SpanKind.SERVER)

    def end(self, attributes: Mapping[str, str | int | float]) -> None:
        """Ends it with what is known by then."""
        if self.span is not None:
            self.span.set_attributes(attributes)
            self.span.end()

"""The figures of a server, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .levels import DEFAULT
from .requests import Result

if TYPE_CHECKING:
    from .service import Service

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
TOKENS = (8, 32, 128, 512, 1024, 2048, 4096, 8192)
SHARES = tuple(step / 10 for step in range(1, 11))
PREFIX = "magic_pyramid_"


class Metrics:
    """What is counted; an observer of the worker and of the audit.

    Args:
        layers: number of the model's layers, L.

    Attributes:
        exits: number of texts that each layer answered, 0 to L.
    """

    def __init__(self, layers: int) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, said: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(PREFIX + name, said, labels, buckets=buckets, registry=self.registry)

        def counter(name: str, said: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, said, labels, registry=self.registry)

        self.requests = counter("requests", "Requests, by path and status of the answer.", "path", "status")
        self.failures = counter("failures", "Texts and requests without an answer, by kind of the reason.", "kind")
        self.texts = counter("texts", "Texts that were answered, by quality level.", "level")
        self.cached = counter("cached", "Texts whose answer was kept from before, so that nothing was computed.")
        self.tokens = counter("tokens", "Tokens of the texts that were answered.")
        self.flops = counter("flops", "Executed work of the texts that were answered, 2 x multiply-accumulates.")
        self.step_tokens = histogram("step_tokens", "Alive tokens for which a layer ran at once.", TOKENS, "layer")
        taken = (
            "Seconds of a layer's run; on a GPU, where graphs run all layers of a group at once, they count as layer 0."
        )
        self.step_seconds = histogram("step_seconds", taken, SECONDS, "layer")
        self.phase_seconds = histogram(
            "phase_seconds", "Seconds of a request: tokenization, queue, inference, total.", SECONDS, "phase"
        )
        self.phases = {
            phase: self.phase_seconds.labels(phase) for phase in ("tokenization", "queue", "inference", "total")
        }
        self.exit_layer = histogram("exit_layer", "Layer that answered.", tuple(range(layers + 1)))
        self.uncertainty = histogram("uncertainty", "Uncertainty of the answer.", SHARES)
        self.kept = histogram("tokens_kept", "Share of a text's tokens that entered the layer that answered.", SHARES)
        self.audited_texts = counter("audited", "Texts that went on to the last layer.", "level", "label", "layer")
        self.disagreements = counter(
            "audit_disagreements", "Those that the last layer answers otherwise.", "level", "label", "layer"
        )
        self.exits = [0] * (layers + 1)
        self._steps = [
            (self.step_tokens.labels(str(layer)), self.step_seconds.labels(str(layer))) for layer in range(layers + 1)
        ]

    def stepped(self, layer: int, texts: int, tokens: int, seconds: float) -> None:
        of_tokens, of_seconds = self._steps[layer]
        of_tokens.observe(tokens)
        of_seconds.observe(seconds)

    def answered(self, result: Result, level: str | None) -> None:
        answer = result.answer
        self.texts.labels(level or "own").inc()
        self.tokens.inc(answer.tokens)
        self.flops.inc(answer.flops)
        self.exit_layer.observe(answer.exit_layer)
        self.exits[answer.exit_layer] += 1
        self.kept.observe(result.kept / answer.tokens)
        if answer.uncertainty is not None:
            self.uncertainty.observe(answer.uncertainty)

    def audited(self, level: str | None, label: str, layer: int, last: str) -> None:
        labels = level or "own", label, str(layer)
        self.audited_texts.labels(*labels).inc()
        if label != last:
            self.disagreements.labels(*labels).inc()

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)


class State(Collector):
    """Figures that are read when Prometheus asks: queues, permits, the audit.

    Args:
        service: the server.
    """

    def __init__(self, service: Service) -> None:
        self.service = service

    def collect(self) -> Iterator[Metric]:
        service = self.service
        audit, worker = service.audit, service.worker

        def gauge(name: str, said: str, value: float | None = None) -> GaugeMetricFamily:
            return GaugeMetricFamily(PREFIX + name, said, value)

        depths = GaugeMetricFamily(PREFIX + "queue_tokens", "Tokens that wait for a layer.", labels=["layer"])
        for layer, tokens in enumerate(worker.depths()):
            depths.add_metric([str(layer)], tokens)
        yield depths
        yield gauge("accepted_tokens", "Tokens of texts that were accepted and are not answered.", worker.tokens)
        yield gauge("accepted_texts", "Texts that were accepted and are not answered.", service.permits.held)
        yield gauge("load", "Share of the texts or the tokens that may wait, whichever is more.", service.load)
        yield gauge("ready", "Whether the server is ready, 0 or 1.", float(service.is_ready))
        yield gauge("threshold_factor", "Factor of the default exit thresholds, below 1 if tightened.", audit.factor)
        yield gauge(
            "audit_drift", "Whether early answers differ more than was promised, 0 or 1.", float(bool(audit.drift))
        )
        if audit.promised is not None:
            yield gauge("audit_promised", "Largest share of such answers that agrees with tuning.", audit.promised)
        seen = audit.seen().get(DEFAULT)
        if seen is not None and seen["texts"]:
            for name, said in (
                ("disagreement", "Share of early answers that differ from the last layer's, of late."),
                ("low", "Lower end of its interval at 95 %."),
                ("high", "Upper end of its interval at 95 %."),
            ):
                yield gauge(f"audit_{name}", said, seen[name])

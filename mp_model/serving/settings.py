"""The settings of a server; the options of ``magic-pyramid serve`` are made from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

SCHEDULES = {"greedy": 1, "depth-wise": 3}  # groups of texts that are in at a time
LONG_TEXTS = ("cut", "windows", "refuse")
# Variables, read when torch is imported, by which threads that wait for work give their processor away at once: a server's
# other threads need it.
WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """The settings of a server, each with its help."""

    host: Annotated[str, "Address to listen at; 0.0.0.0 lets other machines in."] = "127.0.0.1"
    port: Annotated[int, "Port to listen at; 0 takes a free one."] = 8080
    uds: Annotated[str | None, "Path of a Unix socket to listen at, instead of an address."] = None
    api_key: Annotated[str | None, "Key that requests must bring, as `Authorization: Bearer KEY`."] = None
    model_id: Annotated[str | None, "Name of the model in /info and /classify; the folder's if left out."] = None
    precision: Annotated[
        str, "float32, bfloat16 or int8; auto is the one that the model was saved in or tuned for."
    ] = "auto"
    device: Annotated[str, "Device of the model."] = "cpu"
    threads: Annotated[int | None, "Threads of the model; all processors if left out."] = None
    tokenization_workers: Annotated[int, "Threads that tokenise."] = 2
    exit_threshold: Annotated[
        str | None, "Exit threshold of requests that bring none: 0 to 1, one for each exit layer by commas, or never."
    ] = None
    quality: Annotated[str | None, "Quality level of requests that ask for none, a name that tune stored."] = None
    relax_to: Annotated[str | None, "Level down to which quality may fall under load, before requests are refused."] = (
        None
    )
    long_texts: Annotated[
        str,
        "Texts of too many tokens, where a request says nothing: cut, windows (read one after the other, until the text is "
        "certain) or refuse.",
    ] = "cut"
    cache: Annotated[int, "Answers that are kept for texts that come again; 0: none."] = 0
    schedule: Annotated[
        str, "Order of the work: greedy: all that waits together; or depth-wise: with those before."
    ] = "greedy"
    patience_ms: Annotated[float, "Milliseconds that a text may wait for company."] = 0.0
    max_batch_tokens: Annotated[int, "Tokens with which a layer runs at its full rate."] = 2048
    max_concurrent_requests: Annotated[int, "Texts that may be accepted and not answered; more get 429."] = 512
    max_queue_tokens: Annotated[int, "Their tokens, likewise."] = 65536
    max_client_batch_size: Annotated[int, "Texts of one request; more get 422."] = 32
    payload_limit: Annotated[int, "Bytes of a request's body; more get 413."] = 2_000_000
    timeout_ms: Annotated[
        float | None, "Milliseconds for a request that brings no timeout_ms; no limit if left out."
    ] = None
    audit: Annotated[float, "Share of texts that go on to the last layer after their answer, to watch for drift."] = 0.0
    audit_tighten: Annotated[bool, "Lower exit thresholds where more answers differ than was promised."] = False
    drain_seconds: Annotated[
        float, "After SIGTERM, seconds in which /health says 503 and requests are still taken."
    ] = 0.0
    drain_timeout: Annotated[float, "After that, seconds for the requests that were accepted."] = 30.0
    log_requests: Annotated[bool, "Write a line for each request."] = False
    json_logs: Annotated[bool, "Write logs as JSON, one object a line."] = False

    def __post_init__(self) -> None:
        for name, least in {
            "port": 0,
            "threads": 1,
            "tokenization_workers": 1,
            "patience_ms": 0,
            "max_batch_tokens": 1,
            "max_concurrent_requests": 1,
            "max_queue_tokens": 1,
            "max_client_batch_size": 1,
            "payload_limit": 1,
            "cache": 0,
            "timeout_ms": 0,
            "audit": 0,
            "drain_seconds": 0,
            "drain_timeout": 0,
        }.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{_option(name)} must be at least {least}; got {value}")
        if self.port > 65535:
            raise ValueError(f"--port must be at most 65535; got {self.port}")
        if self.audit > 1:
            raise ValueError(f"--audit is a share, 0 to 1; got {self.audit}")
        if self.audit_tighten and not self.audit:
            raise ValueError("--audit-tighten goes by what an audit sees; give --audit too")
        for name, known in {"schedule": SCHEDULES, "long_texts": LONG_TEXTS}.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{_option(name)} must be {' or '.join(known)}; got {getattr(self, name)!r}")
        if self.exit_threshold is not None and self.quality is not None:
            raise ValueError("--exit-threshold and --quality both choose exit thresholds; give one of them")
        if self.api_key == "":
            raise ValueError("--api-key is empty; leave it out where no key is wanted")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"

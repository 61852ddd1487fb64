"""The process of a server: its sockets, its signals, its logs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from .app import create_app
from .service import Service
from .settings import ServerSettings

# Seconds for which a connection may be idle; more than proxies keep theirs, so that none sends a request to one that closes.
KEEP_ALIVE = 75

log = logging.getLogger("magic_pyramid")


def bound_socket(settings: ServerSettings) -> socket.socket:
    """The socket that the server will listen at, bound, so that an address that is taken is known at once.

    Raises:
        ValueError: it cannot be bound.
    """
    if settings.uds is not None:
        return _unix_socket(Path(settings.uds))
    found = None
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        if found is not None:
            found.close()
        raise ValueError(
            f"cannot listen at {settings.host}, port {settings.port}: {error.strerror}; choose others with --host and --port"
        ) from error
    return found


def _unix_socket(path: Path) -> socket.socket:
    """A Unix socket for the user and the group; one that a server has left behind, at which nobody listens, is removed."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and found.connect_ex(str(path)):
            path.unlink()
        found.close()
        found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o117)
        try:
            found.bind(str(path))
        finally:
            os.umask(before)
    except OSError as error:
        found.close()
        raise ValueError(
            f"cannot listen at {path}: {error.strerror or error}; choose another path with --uds"
        ) from error
    return found


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which drains at SIGTERM and SIGINT, ends at once at a second one, and then exits with 0.

    Args:
        config: uvicorn's own settings.
        service: told of the draining, so that /health says so.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop, numbers = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.drain)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def drain(self) -> None:
        """Tells clients to go elsewhere, and after a while takes no more requests and answers the last."""
        if self.service.draining:
            self.force_exit = self.should_exit = True
            return
        self.service.draining = True
        log.info("draining")
        asyncio.get_running_loop().call_later(self.service.settings.drain_seconds, self._stop)

    def _stop(self) -> None:
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for bound in sockets or []:
            if bound.family == socket.AF_UNIX:
                log.info("listening at unix:%s", bound.getsockname())
            else:
                host, port = bound.getsockname()[:2]
                log.info("listening at http://%s:%s", f"[{host}]" if ":" in host else host, port)


def spare_what_is_loaded() -> None:
    """Takes all objects that there are out of the garbage collector's sight.

    The libraries and the model make half a million that stay to the end. To look through them takes a sixth of a second, in
    which nobody is answered.
    """
    gc.collect()
    gc.freeze()


def run(service: Service, bound: socket.socket, tracer: Any = None) -> None:
    """Serves until a signal comes.

    Args:
        service: the server.
        bound: the socket to listen at.
        tracer: as for :func:`create_app`.
    """
    config = uvicorn.Config(
        create_app(service, tracer),
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(service.settings.drain_timeout)),
    )
    path = bound.getsockname() if bound.family == socket.AF_UNIX else None
    spare_what_is_loaded()
    try:
        DrainingServer(config, service).run([bound])
    finally:
        if path is not None:
            Path(path).unlink(missing_ok=True)


class JsonLines(logging.Formatter):
    """A log record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up_logs(as_json: bool, requests: bool) -> None:
    """Writes logs to standard error.

    Args:
        as_json: whether each is a JSON object.
        requests: whether each request is logged.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else logging.Formatter("%(levelname)s: %(message)s"))
    for name in ("magic_pyramid", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "magic_pyramid" else logging.WARNING)
    logging.getLogger("magic_pyramid.requests").setLevel(logging.INFO if requests else logging.WARNING)

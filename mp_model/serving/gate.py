"""What every request passes on its way in and out: its number, its key, the size of its body, the count and the log."""

from __future__ import annotations

import logging
import random
import re
import secrets
import time
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .admission import GoneError, TooLargeError
from .telemetry import Span

if TYPE_CHECKING:
    from .service import Service

# For GET, without a key.
OPEN_PATHS = {"/", "/docs", "/openapi.json", "/health", "/ping", "/metrics", "/v2/health/live", "/v2/health/ready"}
GOOD_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)

log = logging.getLogger("magic_pyramid.requests")


class Gate:
    """An ASGI application around another.

    Args:
        app: the application.
        service: the server.
        tracer: OpenTelemetry's, for a span a request; None: there is none.
    """

    def __init__(self, app: ASGIApp, service: Service, tracer: Any = None) -> None:
        self.app, self.service, self.tracer = app, service, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        number = given if GOOD_ID.fullmatch(given) else new_id()
        span = Span(self.tracer, f"{scope['method']} {scope['path']}", headers)
        traced: dict[str, str] = {}

        async def numbered(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                traced.update((name.decode(), value.decode()) for name, value in message.get("headers", []))
                message["headers"] = [*message.get("headers", []), (b"x-request-id", number.encode())]
            await send(message)

        try:
            await self._pass(scope, headers, receive, numbered)
        except ClientDisconnect:
            status = GoneError.status
        except Exception:
            log.exception("request %s has failed", number)
            if not status:
                content = {"error": "the server has made a mistake; its log says which", "error_type": "Backend"}
                await JSONResponse(content, 500)(scope, receive, numbered)
        finally:
            self._count(scope, status, number, time.monotonic() - began)
            ours = {f"magic_pyramid.{name[2:]}": value for name, value in traced.items() if name.startswith("x-")}
            span.end({"http.request.method": scope["method"], "http.response.status_code": status, **ours})

    async def _pass(self, scope: Scope, headers: dict[str, str], receive: Receive, send: Send) -> None:
        settings = self.service.settings
        is_open = scope["method"] in ("GET", "HEAD") and scope["path"] in OPEN_PATHS
        if settings.api_key is not None and not is_open and not _has_key(headers, settings.api_key):
            content = {
                "error": "this server wants its key, as `Authorization: Bearer KEY`",
                "error_type": "Unauthorized",
            }
            await JSONResponse(content, 401, {"www-authenticate": "Bearer"})(scope, receive, send)
            return
        limit, read = settings.payload_limit, 0
        too_large = TooLargeError(f"the body has more than {limit} bytes; send fewer texts at once")
        length = headers.get("content-length", "")

        async def bounded() -> Message:
            nonlocal read
            if length.isdigit() and int(length) > limit:
                raise too_large
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise too_large
            return message

        await self.app(scope, bounded, send)

    def _count(self, scope: Scope, status: int, number: str, seconds: float) -> None:
        route: Any = scope.get("route")
        path = getattr(route, "path", "other")
        self.service.metrics.requests.labels(path, str(status)).inc()
        if log.isEnabledFor(logging.INFO):
            fields = {"id": number, "method": scope["method"], "path": scope["path"], "status": status}
            log.info(
                "%(method)s %(path)s %(status)s", fields, extra={"fields": {**fields, "ms": round(1e3 * seconds, 2)}}
            )


def new_id() -> str:
    """A number of 32 digits, for logs; drawn without a call of the system, for which a busy thread would have to wait."""
    return f"{random.getrandbits(128):032x}"


def _has_key(headers: dict[str, str], key: str) -> bool:
    return secrets.compare_digest(headers.get("authorization", "").encode(), f"Bearer {key}".encode())

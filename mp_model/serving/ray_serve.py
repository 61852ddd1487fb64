"""The server under Ray Serve: the same application, in as many processes as are wanted, each with a model of its own.

``serve run mp_model.serving.ray_serve:app folder=/models/news`` starts it on a cluster, and :func:`run` on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from .ray_cluster import check_gpus, cluster, share_of  # first, since it says how Ray is installed

# isort: split
from fastapi import FastAPI
from pydantic import TypeAdapter, ValidationError
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .app import create_app
from .classifier import Classifier
from .running import bound_socket, set_up_logs, spare_what_is_loaded
from .service import Service, Shade
from .settings import WAITING, ServerSettings
from .telemetry import tracer_of

NAME = "magic-pyramid"
# What a replica has no say in: where Ray's proxies listen, and how they drain.
NOT_HERE = ("uds", "drain_seconds")
LOST = "the replica that had this request is gone; send it again"
NOBODY = "no replica serves this path yet, or any longer; send it again"
NO_ROUTE = b"Path '"  # the beginning of the answer of Ray's own proxy where no application is there
PROXY = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"  # variable that names what Ray's proxies put around themselves

log = logging.getLogger("magic_pyramid")


class Replica:
    """One process with a model, which answers as ``magic-pyramid serve`` does.

    Args:
        folder: folder of the model.
        settings: the settings; Ray's proxies listen, whatever they say of an address.
        shade: as for :class:`Service`.
    """

    def __init__(self, folder: str, settings: ServerSettings, shade: Shade | None = None) -> None:
        set_up_logs(settings.json_logs, settings.log_requests)
        classifier = Classifier.load(folder, settings.precision, settings.device, settings.threads)
        self.service = Service(classifier, settings, settings.model_id or Path(folder).resolve().name, shade)
        spare_what_is_loaded()

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = create_app(self.service, tracer_of())
        lifespan = app.router.lifespan_context

        @contextlib.asynccontextmanager
        async def until_warm(app: FastAPI) -> AsyncIterator[Any]:
            async with lifespan(app) as state:
                while self.service.worker.state == "starting":  # requests come as soon as this is over
                    await asyncio.sleep(0.01)
                self.check_health()
                yield state

        app.router.lifespan_context = until_warm
        return app

    def check_health(self) -> None:
        """Raises where the model has failed; Ray puts another replica in the place of this one then."""
        if self.service.worker.state == "failed":
            raise RuntimeError(self.service.worker.why)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The tokens of the texts that were accepted and are not answered, for :class:`TokensWaiting`."""
        return {"tokens": float(self.service.worker.tokens)}


class TokensWaiting:
    """The rule by which the number of replicas follows the tokens that wait in them.

    Args:
        tokens: tokens for which one replica is enough.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number of replicas that are wanted, given Ray's ``AutoscalingContext``, and the state of the rule: none."""
        waiting = sum((context.aggregated_metrics or {}).get("tokens", {}).values())
        fewest, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return min(most, max(fewest, math.ceil(waiting / self.tokens))), {}


class LostRequests:
    """What stands around a proxy of Ray's: 503 and ``Retry-After`` for a request whose replica dies, and for one that comes
    before there is an application, or after.

    An answer begins when its body is there, so a client gets all of it or nothing.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: Message | None = None
        answered, reason = False, LOST

        async def with_its_body(message: Message) -> None:
            nonlocal start, answered, reason
            if message["type"] == "http.response.start":
                start = {**message, "headers": list(dict.fromkeys(map(tuple, message["headers"])))}  # Ray repeats one
                return
            if start is not None and start["status"] == 404 and message.get("body", b"").startswith(NO_ROUTE):
                reason = NOBODY
                return
            if start is not None and not answered:
                answered = True
                await send(start)
            await send(message)

        try:
            await self.app(scope, receive, with_its_body)
        finally:
            if not answered:
                content = {"error": reason, "error_type": "Unhealthy"}
                await JSONResponse(content, 503, {"retry-after": "1"})(scope, receive, send)


def proxy_middlewares() -> list[Middleware]:
    """What Ray's proxies put around themselves where the variable of :data:`PROXY` names this function."""
    return [Middleware(LostRequests)]


def app(arguments: dict[str, Any]) -> serve.Application:
    """The application, for ``serve run`` and the files of ``serve deploy``.

    Args:
        arguments: ``folder``; ``replicas``, or ``min_replicas`` and ``max_replicas`` with ``tokens_per_replica``, the tokens
            that may wait in one before another is wanted (8192); and the server's settings, by the names of its options
            with underscores.

    Raises:
        ValueError: arguments that cannot be followed.
    """
    given = dict(arguments)
    folder = given.pop("folder", None)
    if not isinstance(folder, str) or not (Path(folder) / "config.json").is_file():
        raise ValueError(f"folder must be a folder of a saved model, with config.json; got {folder!r}")
    numbers = {}
    for name, usual in {"replicas": 1, "min_replicas": 0, "max_replicas": 0, "tokens_per_replica": 8192}.items():
        value = str(given.pop(name, usual))
        if not value.isdigit():
            raise ValueError(f"{name} must be a whole number; got {value!r}")
        numbers[name] = int(value)
    settings = settings_of({"threads": 1, **given})
    if not numbers["max_replicas"]:
        return deployed(folder, settings, numbers["replicas"])
    scaling = AutoscalingConfig(
        min_replicas=numbers["min_replicas"] or 1,
        max_replicas=numbers["max_replicas"],
        policy=AutoscalingPolicy(
            policy_function=TokensWaiting, policy_kwargs={"tokens": numbers["tokens_per_replica"]}
        ),
    )
    return deployed(folder, settings, scaling)


def settings_of(given: dict[str, Any]) -> ServerSettings:
    """Settings from values that may be strings.

    Raises:
        ValueError: a name or a value that is none of theirs.
    """
    fields = [
        field.name for field in dataclasses.fields(ServerSettings) if field.name not in ("host", "port", *NOT_HERE)
    ]
    if unknown := [name for name in given if name not in fields]:
        raise ValueError(f"{unknown[0]!r} is no setting of a replica; expected one of {', '.join(fields)}")
    try:
        return TypeAdapter(ServerSettings).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'settings'}: {first['msg']}") from error


def deployed(
    folder: str,
    settings: ServerSettings,
    replicas: int | AutoscalingConfig,
    processors: float | None = None,
    shade: Shade | None = None,
) -> serve.Application:
    """The application with its replicas.

    Args:
        folder, settings, shade: as for :class:`Replica`.
        replicas: number of replicas, or the bounds and the rule that choose it.
        processors: processors that Ray sets aside for one; None: as many as it has threads.
    """
    many: dict[str, Any] = {"num_replicas": replicas} if isinstance(replicas, int) else {"autoscaling_config": replicas}
    resources = {
        "num_cpus": settings.threads if processors is None else processors,
        "num_gpus": 0 if settings.device == "cpu" else 1,
        "runtime_env": {"env_vars": WAITING},
    }
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        max_ongoing_requests=settings.max_concurrent_requests,  # the schedule makes batches of them
        max_queued_requests=settings.max_concurrent_requests,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        health_check_period_s=2,
        graceful_shutdown_timeout_s=settings.drain_timeout,
        ray_actor_options=resources,
        **many,
    )
    return deployment.bind(folder, settings, shade)


def run(folder: Path, settings: ServerSettings, replicas: int, shade: Shade | None = None) -> None:
    """Serves on this machine until a signal comes, by a cluster of its own.

    Args:
        folder, settings, shade: as for :class:`Replica`; without threads the processors are divided among the replicas.
        replicas: number of replicas.

    Raises:
        ValueError: an address that is taken; settings that replicas or this model cannot follow; too few GPUs.
        OSError: replicas that do not start.
    """
    for name in NOT_HERE:
        if getattr(settings, name):
            raise ValueError(
                f"--{name.replace('_', '-')} cannot be followed with --replicas, where Ray's proxy listens"
            )
    with contextlib.closing(bound_socket(settings)) as bound:
        port = bound.getsockname()[1]
    processors = os.cpu_count() or 1
    settings = dataclasses.replace(settings, port=port, threads=settings.threads or max(1, processors // replicas))
    if settings.device == "cpu":  # what is wrong is said here, in a line
        Service(Classifier.load(folder, settings.precision), settings)
    set_up_logs(settings.json_logs, settings.log_requests)
    around = f"{__name__}:{proxy_middlewares.__name__}"
    variables = {PROXY: around, "RAY_DEDUP_LOGS": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}
    with cluster(processors, shows_logs=settings.log_requests, **variables), stopped() as stop:
        check_gpus(settings.device, replicas)
        quiet = {"log_level": "ERROR", "enable_access_log": False}
        address = {"host": settings.host, "port": port}
        serve.start(proxy_location="HeadOnly", http_options=address, logging_config=quiet)
        share = share_of(processors, settings.threads or 1, replicas)
        replicated = deployed(str(folder.resolve()), settings, replicas, share, shade)
        try:
            serve.run(replicated, name=NAME, logging_config=quiet)
        except RuntimeError as error:
            raise OSError(f"the replicas did not start: {error}") from error
        log.info("listening at http://%s:%s", settings.host, port)
        log.info("ready, %s replicas of %s threads", replicas, settings.threads)
        stop.wait()
        log.info("draining")
        serve.delete(NAME)
        serve.shutdown()


@contextlib.contextmanager
def stopped() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set."""
    event, numbers = threading.Event(), (signal.SIGTERM, signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        event.set()

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

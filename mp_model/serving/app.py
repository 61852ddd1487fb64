"""The server's HTTP: text-embeddings-inference's routes, vLLM's /classify, and ours."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from ..data.batches import Text
from . import wire
from .admission import InvalidError, OverloadedError, RefusedError, UnhealthyError
from .gate import Gate, new_id
from .requests import Result
from .service import Answers, Service, Wishes, characters_of

PAGES = Path(__file__).parent / "page"
# The pages load nothing, and speak to nobody but their server.
ALONE = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; connect-src 'self'"
STATUSES = {
    400: "No text.",
    401: "No key, or a wrong one.",
    413: "The body has too many bytes.",
    422: "The request cannot be followed.",
    424: "The model failed.",
    429: "Too much waits; try later.",
    503: "Not ready, or closing.",
    504: "The time for the request was over.",
}
FUNCTIONS: dict[str, Callable[[Sequence[float]], list[float]]] = {
    "none": list,
    "sigmoid": lambda logits: [1 / (1 + math.exp(-min(max(x, -60), 60))) for x in logits],
    "softmax": lambda logits: [1 / sum(math.exp(min(y - x, 700)) for y in logits) for x in logits],
}


def create_app(service: Service, tracer: Any = None) -> FastAPI:
    """The application; it starts and closes the service with itself.

    Args:
        service: the server.
        tracer: OpenTelemetry's (:func:`mp_model.serving.telemetry.tracer_of`); None: requests are not traced.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.get_running_loop().run_in_executor(None, service.close)

    # FastAPI's own pages on routes need a network.
    app = FastAPI(
        title="Magic Pyramid",
        summary="Text classification.",
        version=version("magic-pyramid"),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(Gate, service=service, tracer=tracer)
    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(HTTPException, _unknown)
    _add_answering(app, service)
    _add_describing(app, service)
    return app


def _add_answering(app: FastAPI, service: Service) -> None:
    async def predict(request: Request) -> Response:
        """Classify a text, a pair of texts, or a batch of them."""
        body = wire.parsed(wire.PredictRequest, await request.body())
        texts, is_batch = wire.asked(body.inputs)
        answers = await _answer(service, request, texts, body, body.truncate, body.truncation_direction)
        found = [_prediction(outcome, body, answers.quality) for outcome in answers.outcomes]
        refused = [outcome for outcome in answers.outcomes if isinstance(outcome, RefusedError)]
        if len(refused) == len(found):
            raise refused[0]
        nested = is_batch or body.parameters is not None
        return _json(found if nested else found[0], headers_of(answers, texts, service))

    async def classify(request: Request) -> Response:
        """Classify a text or a list of texts, as vLLM does."""
        body = wire.parsed(wire.ClassifyRequest, await request.body())
        texts = [body.input] if isinstance(body.input, str) else body.input
        if not texts:
            raise InvalidError("`input` cannot be empty")
        answers = await _answer(service, request, texts, body, None if body.truncate_prompt_tokens is None else True)
        for outcome in answers.outcomes:
            if isinstance(outcome, RefusedError):
                raise outcome
        return _json(_classified(answers.results, body, service.name), headers_of(answers, texts, service))

    async def pyramid(request: Request) -> Response:
        """Show the way of a text through the model: which words were pruned where, and which layer answered."""
        body = wire.parsed(wire.PyramidRequest, await request.body())
        began = time.monotonic()
        found = await service.pyramid(body.inputs, body.exit_threshold)
        return _json({**found, "milliseconds": 1e3 * (time.monotonic() - began)})

    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": wire.ErrorBody, "description": said} for status, said in STATUSES.items()
    }
    for path in ("/predict", "/", "/invocations"):
        _post(app, path, predict, wire.PredictRequest, {**errors, 200: {"model": wire.PredictResponse}})
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"description": said} for status, said in STATUSES.items() if status != 422
    }
    _post(app, "/classify", classify, wire.ClassifyRequest, {**refusals, 200: {"model": wire.ClassifyResponse}})
    _post(app, "/pyramid", pyramid, wire.PyramidRequest, errors)


def _post(app: FastAPI, path: str, route: Any, body: Any, responses: dict[int | str, dict[str, Any]]) -> None:
    schema = body.model_json_schema()
    described = {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
    app.add_api_route(path, route, methods=["POST"], responses=responses, openapi_extra=described)


def _add_describing(app: FastAPI, service: Service) -> None:
    unhealthy: dict[int | str, dict[str, Any]] = {503: {"model": wire.ErrorBody, "description": STATUSES[503]}}

    async def health() -> Response:
        """Tell whether new clients are welcome."""
        if not service.is_ready:
            raise UnhealthyError("unhealthy")
        return Response()

    async def live() -> Response:
        """Tell whether the process works at all."""
        if service.worker.state == "failed":
            raise UnhealthyError("unhealthy")
        return Response()

    for path in ("/health", "/ping", "/v2/health/ready"):
        app.add_api_route(path, health, methods=["GET"], responses=unhealthy, response_class=Response)
    app.add_api_route("/v2/health/live", live, methods=["GET"], responses=unhealthy, response_class=Response)

    @app.get("/info")
    async def info() -> Response:
        """Describe the model and the server's settings."""
        return _json(service.info())

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Give all figures to Prometheus."""
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/figures")
    async def figures() -> Response:
        """Give the live figures of the page."""
        return _json(service.figures())

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return _page("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return _page("docs.html")


def _page(name: str) -> HTMLResponse:
    return HTMLResponse((PAGES / name).read_text(encoding="utf-8"), headers={"content-security-policy": ALONE})


async def _answer(
    service: Service,
    request: Request,
    texts: Sequence[Text],
    options: wire.Options,
    truncate: bool | None,
    direction: str | None = None,
) -> Answers:
    """The service's answers, or none if the client goes away."""
    timeout = None if options.timeout_ms is None else options.timeout_ms / 1e3
    side = None if direction is None else direction.lower()
    wishes = Wishes(options.exit_threshold, options.quality, timeout, truncate, side)
    gone = asyncio.ensure_future(_until_gone(request))
    try:
        return await service.answer(texts, wishes, gone)
    finally:
        gone.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _prediction(outcome: Result | RefusedError, body: wire.PredictRequest, quality: str | None) -> Any:
    """One text's answer in text-embeddings-inference's shape; of a text without one the error in its place."""
    if isinstance(outcome, RefusedError):
        return {"error": str(outcome), "error_type": outcome.kind}
    answer, parameters = outcome.answer, body.parameters or {}
    values = dict(answer.scores)
    function = "none" if body.raw_scores else parameters.get("function_to_apply")
    if function is not None:
        if function not in FUNCTIONS:
            raise InvalidError(f"function_to_apply must be one of {', '.join(FUNCTIONS)}; got {function!r}")
        values = dict(zip(values, FUNCTIONS[function](outcome.logits), strict=True))
    ranked = sorted(values.items(), key=lambda item: -item[1])[: _top_k(parameters)]
    predictions = [{"label": label, "score": score} for label, score in ranked]
    if not body.details:
        return predictions
    return {
        "predictions": predictions,
        "exit_layer": answer.exit_layer,
        "uncertainty": answer.uncertainty,
        "tokens": answer.tokens,
        "flops": answer.flops,
        "quality": quality,
    }


def _top_k(parameters: dict[str, Any]) -> int | None:
    top_k = parameters.get("top_k")
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise InvalidError(f"top_k must be a number of labels, at least 1; got {top_k!r}")
    return top_k


def _classified(results: Sequence[Result], body: wire.ClassifyRequest, name: str) -> dict[str, Any]:
    """The answers in vLLM's shape."""
    raw = False in (body.use_activation, body.activation, body.softmax)
    data = [
        {
            "index": index,
            "label": result.answer.label,
            "probs": result.logits if raw else list(result.answer.scores.values()),
            "num_classes": len(result.logits),
        }
        for index, result in enumerate(results)
    ]
    tokens = sum(result.answer.tokens for result in results)
    return {
        "id": f"classify-{new_id()}",
        "object": "list",
        "created": int(time.time()),
        "model": name,
        "data": data,
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        },
    }


def headers_of(answers: Answers, texts: Sequence[Text], service: Service) -> dict[str, str]:
    """The headers of text-embeddings-inference, times in whole milliseconds, and ours."""
    layers = [str(x.answer.exit_layer) if isinstance(x, Result) else "-" for x in answers.outcomes]
    headers = {
        "x-compute-type": service.device,
        "x-compute-characters": str(sum(map(characters_of, texts))),
        "x-compute-tokens": str(sum(result.answer.tokens for result in answers.results)),
        "x-exit-layer": ",".join(layers),
    }
    for name in ("total", "tokenization", "queue", "inference"):
        headers[f"x-{name}-time"] = str(round(1e3 * getattr(answers, name)))
    headers["x-compute-time"] = headers["x-total-time"]
    if answers.quality is not None:
        headers["x-quality"] = answers.quality
    return headers


def _json(content: Any, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return Response(body, media_type="application/json", headers=headers)


async def _refused(request: Request, error: Exception) -> Response:
    """The answer to a request that was refused."""
    assert isinstance(error, RefusedError)
    service: Service = request.app.state.service
    service.metrics.failures.labels(error.kind).inc()
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, OverloadedError) else None
    if request.url.path != "/classify":
        return JSONResponse({"error": str(error), "error_type": error.kind}, error.status, headers)
    status = 400 if error.status == 422 else error.status
    content = {"message": str(error), "type": f"{error.kind}Error", "param": None, "code": status}
    return JSONResponse({"error": content}, status, headers)


async def _unknown(request: Request, error: Exception) -> Response:
    """The answer where there is no such path, or not for that method."""
    assert isinstance(error, HTTPException)
    said = {404: f"there is nothing at {request.url.path}", 405: f"{request.url.path} does not take {request.method}"}
    content = {"error": said.get(error.status_code, error.detail), "error_type": "Validation"}
    return JSONResponse(content, error.status_code, dict(error.headers or {}))

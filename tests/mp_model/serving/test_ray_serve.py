"""The server in many processes by Ray: the same answers, and what is lost when one of them is killed."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mp_model import Classifier
from mp_model.serving.settings import ServerSettings
from support.serving import TEXTS, eventually
from support.situations import situation

pytest.importorskip("ray", reason="pip install -e .[ray]")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray warns of what it does itself
    from ray.serve import Application

    from mp_model.serving import ray_serve
    from mp_model.serving.ray_serve import LostRequests, TokensWaiting

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]
CLIENTS = 8


class Server:
    """``magic-pyramid serve --replicas 2`` in a process of its own.

    Attributes:
        url: where it listens.
    """

    def __init__(self, folder: Path) -> None:
        program = "from mp_model.command_line import main; main()"
        arguments = ["serve", str(folder), "--port", "0", "--replicas", "2"]
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        eventually(lambda: "ready, 2 replicas" in "".join(self.lines) or self.process.poll() is not None, 300)
        found = re.search(r"listening at (http://[\d.]+:\d+)\n", "".join(self.lines))
        assert found is not None, "".join(self.lines)
        self.url = found[1]

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines += self.process.stderr

    def post(self, body: Any, path: str = "/predict") -> tuple[int, dict[str, str], Any]:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, dict(response.headers), json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), json.load(error)

    def get(self, path: str) -> tuple[int, bytes]:
        with urllib.request.urlopen(self.url + path, timeout=120) as response:
            return response.status, response.read()

    def replicas(self) -> list[int]:
        """Numbers of the processes that hold a model."""
        return [number for number in descendants(self.process.pid) if name_of(number).startswith("ray::ServeReplica")]


def name_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descendants(process: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, rest = path.read_text().split(" (", 1)
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(int(rest.rpartition(") ")[2].split()[1]), []).append(int(number))
    found, waiting = [], [process]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


@pytest.fixture(scope="module")
def server(served_folder: Path) -> Iterator[Server]:
    server = Server(served_folder)
    yield server
    started = descendants(server.process.pid)
    server.process.terminate()
    status = server.process.wait(120)
    server.reader.join()
    assert server.process.stderr is not None
    server.process.stderr.close()
    assert status == 0, "".join(server.lines)
    assert len(started) > 4
    eventually(lambda: not any(name_of(number) for number in started), 60)
    with pytest.raises(urllib.error.URLError):
        server.get("/health")


def scores_of(predictions: Any) -> dict[str, float]:
    return {x["label"]: x["score"] for x in predictions}


def test_replicas_answer_as_one_process_does(server: Server, served: Classifier) -> None:
    (answer,) = served([TEXTS[0]])
    status, headers, body = server.post({"inputs": TEXTS[0]})
    assert (status, scores_of(body)) == (200, pytest.approx(answer.scores, abs=1e-5))
    assert headers["x-exit-layer"] == str(answer.exit_layer)
    assert body[0]["label"] == answer.label
    status, _, body = server.post({"inputs": [[TEXTS[1]], [TEXTS[0], TEXTS[1]]], "exit_threshold": "never"})
    assert [scores_of(x) for x in body] == [
        pytest.approx(x.scores, abs=1e-5)
        for x in (*served([TEXTS[1]], "never"), *served([(TEXTS[0], TEXTS[1])], "never"))
    ]
    status, _, body = server.post({"inputs": ""})
    assert (status, body["error_type"]) == (400, "Empty")
    status, _, body = server.post({"inputs": TEXTS[0]}, "/pyramid")
    assert (status, body["exit_layer"]) == (200, answer.exit_layer)
    assert server.get("/health") == (200, b"")
    assert b"<!doctype html>" in server.get("/")[1].lower()
    assert json.loads(server.get("/info")[1])["model_id"] == "model"


@situation(
    "serve",
    "a replica that is killed under load",
    "its requests in flight are answered by 503 with Retry-After, all others as ever, and another takes its place",
)
def test_a_replica_that_is_killed_loses_its_requests_in_flight(server: Server, served: Classifier) -> None:
    eventually(lambda: len(server.replicas()) == 2)
    expected = [answer.scores for answer in served(TEXTS)]
    got: list[tuple[int, int, dict[str, str], Any]] = []
    asked: dict[int, float] = {}  # by client, when it sent the request that it waits for
    ending = threading.Event()

    def client(first: int) -> None:
        for number in itertools.count(first):
            if ending.is_set():
                break
            asked[first] = time.monotonic()
            got.append((number, *server.post({"inputs": TEXTS[number % len(TEXTS)]})))

    clients = [threading.Thread(target=client, args=(first,)) for first in range(CLIENTS)]
    for thread in clients:
        thread.start()
    eventually(lambda: len(got) > 5 * CLIENTS)
    killed, left = server.replicas()

    def stopped_with_requests() -> bool:
        """Stops the replica; it goes on where it has no requests in flight."""
        os.kill(killed, signal.SIGSTOP)
        time.sleep(1)
        has_requests = any(time.monotonic() - since > 0.9 for since in asked.values())
        if not has_requests:
            os.kill(killed, signal.SIGCONT)
        return has_requests

    eventually(stopped_with_requests)
    os.kill(killed, signal.SIGKILL)
    there = len(got)
    eventually(lambda: len(got) > there + 10 * CLIENTS)
    eventually(lambda: len(server.replicas()) == 2 and killed not in server.replicas(), 180)
    ending.set()
    for thread in clients:
        thread.join()
    assert left in server.replicas()
    lost = [answer for answer in got if answer[1] != 200]
    assert 1 <= len(lost) <= CLIENTS
    for _, status, headers, body in lost:
        assert (status, headers["retry-after"]) == (503, "1")
        assert body == {"error": ray_serve.LOST, "error_type": "Unhealthy"}
    for number, status, _, body in got:
        if status == 200:
            assert scores_of(body) == pytest.approx(expected[number % len(TEXTS)], abs=1e-5)
    for number, *_ in lost:  # whoever asks again is answered
        assert server.post({"inputs": TEXTS[number % len(TEXTS)]})[0] == 200


# Without a cluster


def said_through(messages: list[dict[str, Any]], error: Exception | None = None) -> list[Any]:
    """What a client gets where a proxy of Ray's sends these messages, and then fails."""
    sent: list[Any] = []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)
        if error is not None:
            raise error

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        await LostRequests(proxy)({"type": "http", "method": "POST", "path": "/predict", "headers": []}, send, send)

    asyncio.run(ask())
    return sent


START = {"type": "http.response.start", "status": 200, "headers": []}
BODY = {"type": "http.response.body", "body": b"[]"}


def test_answers_pass_as_they_are() -> None:
    more = [{**BODY, "more_body": True}, {**BODY, "body": b"{}"}]
    assert said_through([START, BODY]) == [START, BODY]
    assert said_through([START, *more]) == [START, *more]


def test_headers_are_not_repeated() -> None:
    """Ray's proxy adds the number of a request once more."""
    number, other = (b"x-request-id", b"7"), (b"x-quality", b"high")
    start, _ = said_through([{**START, "headers": [number, other, number]}, BODY])
    assert start["headers"] == [number, other]


@pytest.mark.parametrize("messages", [[], [START]])
def test_a_request_without_an_answer_may_be_sent_again(messages: list[dict[str, Any]]) -> None:
    """Also where the replica died after the first line of its answer."""
    start, body = said_through(messages)
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert json.loads(body["body"]) == {"error": ray_serve.LOST, "error_type": "Unhealthy"}


def test_where_nobody_serves_yet_one_may_try_again() -> None:
    """Ray's own proxy says 404 then, which nobody tries again; a page that the application lacks stays one."""
    not_found = {**START, "status": 404}
    from_ray = {**BODY, "body": b"Path '/predict' not found. Ping http://.../-/routes for available routes."}
    start, body = said_through([not_found, from_ray])
    assert start["status"] == 503
    assert (b"retry-after", b"1") in start["headers"]
    assert json.loads(body["body"]) == {"error": ray_serve.NOBODY, "error_type": "Unhealthy"}
    ours = [not_found, {**BODY, "body": b'{"error":"there is nothing at /nowhere"}'}]
    assert said_through(ours) == ours


@pytest.mark.parametrize(("waiting", "wanted"), [(0, 1), (100, 1), (101, 2), (350, 4), (10_000, 5)])
def test_replicas_follow_the_tokens_that_wait(waiting: int, wanted: int) -> None:
    context = SimpleNamespace(
        aggregated_metrics={"tokens": {"one": waiting / 2, "other": waiting / 2}},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=5,
    )
    assert TokensWaiting(100)(context) == (wanted, {})


def test_nothing_known_wants_the_fewest() -> None:
    context = SimpleNamespace(
        aggregated_metrics=None, capacity_adjusted_min_replicas=2, capacity_adjusted_max_replicas=5
    )
    assert TokensWaiting(100)(context) == (2, {})


def deployment_of(application: Application) -> Any:
    return application._bound_deployment


def test_the_application_is_made_from_words(served_folder: Path) -> None:
    """As ``serve run`` gives them."""
    built = ray_serve.app({"folder": str(served_folder), "replicas": "3", "threads": "2", "long_texts": "windows"})
    deployment = deployment_of(built)
    folder, settings, _ = deployment.init_args
    assert (folder, settings) == (str(served_folder), ServerSettings(threads=2, long_texts="windows"))
    assert deployment.num_replicas == 3
    assert deployment.max_ongoing_requests == settings.max_concurrent_requests
    assert deployment.ray_actor_options["num_cpus"] == 2
    assert deployment.ray_actor_options["runtime_env"]["env_vars"]["GOMP_SPINCOUNT"] == "0"


def test_the_number_of_replicas_may_be_left_to_ray(served_folder: Path) -> None:
    given = {"folder": str(served_folder), "max_replicas": 8, "tokens_per_replica": 4096}
    scaling = deployment_of(ray_serve.app(given))._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 8)
    assert scaling.policy.policy_kwargs == {"tokens": 4096}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"folder": "nowhere"}, "folder must be a folder of a saved model, with config.json; got 'nowhere'"),
        ({"replicas": "many"}, "replicas must be a whole number; got 'many'"),
        ({"port": 80}, "'port' is no setting of a replica; expected one of api_key,"),
        ({"threads": "few"}, "threads: Input should be a valid integer"),
        ({"audit": "2"}, "--audit is a share, 0 to 1; got 2"),
    ],
)
def test_words_that_cannot_be_followed_are_refused(served_folder: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        ray_serve.app({"folder": str(served_folder), **given})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"uds": "socket"}, "--uds cannot be followed with --replicas, where Ray's proxy listens"),
        ({"port": 0, "quality": "best"}, "quality must be one of 'exact', 'default'; got 'best'"),
    ],
)
def test_what_replicas_cannot_follow_is_said_before_they_start(
    served_folder: Path, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ray_serve.run(served_folder, ServerSettings(**settings), 2)

"""``magic-pyramid serve`` as a process: real clients, signals, sockets, and what is said before anything is loaded."""

from __future__ import annotations

import dataclasses
import http.client
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import InferenceClient

from mp_model import Classifier
from mp_model.command_line.serve import WAITING
from mp_model.serving import running
from mp_model.serving.settings import ServerSettings
from support.commands import Command
from support.serving import TEXTS, eventually
from support.situations import situation

TEXT = TEXTS[0]


class Process:
    """A server in a process of its own.

    Attributes:
        url: where it listens.
    """

    def __init__(self, folder: Path, *options: object, environment: dict[str, str] | None = None) -> None:
        program = "from mp_model.command_line import main; main()"
        arguments = [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            program,
            "serve",
            str(folder),
            "--port",
            "0",
            "--threads",
            "1",
        ]
        self.process = subprocess.Popen(
            [*arguments, *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.url = ""

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines += self.process.stderr

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def wait_until_ready(self) -> Process:
        eventually(lambda: "ready" in self.log or self.process.poll() is not None, 120)
        found = re.search(r"listening at (http://[\d.]+:\d+|unix:\S+?)[\"\n]", self.log)
        assert found is not None, self.log
        self.url = found[1].rstrip('"')
        return self

    def post(self, body: Any, path: str = "/predict", timeout: float = 60) -> tuple[int, Any]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as response:
                return response.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        status = self.process.wait(60)
        self.reader.join()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return status


@contextmanager
def serving(folder: Path, *options: object, environment: dict[str, str] | None = None) -> Iterator[Process]:
    process = Process(folder, *options, environment=environment)
    try:
        yield process.wait_until_ready()
    finally:
        process.end(signal.SIGKILL)


@pytest.fixture
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Takes back what a server's command changes of the process that it runs in."""
    for name in WAITING:
        monkeypatch.setenv(name, os.environ.get(name, "passive" if name == "OMP_WAIT_POLICY" else "0"))
    loggers = [logging.getLogger(name) for name in ("magic_pyramid", "magic_pyramid.requests", "uvicorn")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="module")
def process(folder: Path) -> Iterator[Process]:
    with serving(folder, "--json-logs", "--log-requests") as process:
        yield process


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Classifier:
    return Classifier.load(folder)


def scores_of(predictions: Sequence[Any]) -> dict[str, float]:
    return {x["label"]: x["score"] for x in predictions}


def test_hugging_faces_client_is_answered(process: Process, classifier: Classifier) -> None:
    (answer,) = classifier([TEXT])
    for model in (process.url, f"{process.url}/predict"):
        found = InferenceClient(model).text_classification(TEXT)
        assert {x.label: x.score for x in found} == pytest.approx(answer.scores, abs=1e-5)
        assert found[0].label == answer.label
    (best,) = InferenceClient(process.url).text_classification(TEXT, top_k=1)
    assert (best.label, best.score) == (answer.label, pytest.approx(answer.score, abs=1e-5))


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_is_answered(process: Process, classifier: Classifier) -> None:
    body = json.dumps({"inputs": [[TEXT], [TEXTS[1]]]})
    arguments = ["curl", "-sS", "-H", "Content-Type: application/json", "-d", body, f"{process.url}/predict"]
    found = json.loads(subprocess.run(arguments, capture_output=True, check=True, text=True).stdout)
    for predictions, answer in zip(found, classifier([TEXT, TEXTS[1]]), strict=True):
        assert scores_of(predictions) == pytest.approx(answer.scores, abs=1e-5)


def test_it_listens_on_this_machine_only(process: Process) -> None:
    assert process.url.startswith("http://127.0.0.1:")


def test_clients_that_go_away_leave_nothing_behind(process: Process) -> None:
    host, port = process.url.removeprefix("http://").split(":")
    body = json.dumps({"inputs": [[text] for text in TEXTS[:20]]}).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    for cut in (len(head) // 2, len(head) + len(body) // 2, len(head) + len(body)) * 5:
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall((head + body)[:cut])
    eventually(lambda: json.loads(urllib.request.urlopen(process.url + "/figures").read())["load"] == 0)
    assert process.post({"inputs": TEXT})[0] == 200
    assert "failed" not in process.log
    assert "Traceback" not in process.log


def test_a_connection_may_be_idle_for_longer_than_uvicorns_five_seconds(process: Process) -> None:
    """A proxy that keeps its connections for longer would send requests to those that are about to be closed."""
    client = http.client.HTTPConnection(process.url.removeprefix("http://"), timeout=60)
    addresses = set()
    for pause in (0, 7):
        time.sleep(pause)
        client.request("POST", "/predict", json.dumps({"inputs": TEXT}))
        response = client.getresponse()
        assert (response.status, len(response.read()) > 0) == (200, True)
        addresses.add(client.sock.getsockname())
    assert len(addresses) == 1, "one connection was enough"
    client.close()


def test_logs_are_json(process: Process) -> None:
    process.post({"inputs": TEXT}, "/invocations")
    eventually(lambda: "/invocations" in process.log)
    entries = [json.loads(line) for line in process.lines]
    assert {"level", "message", "time", "logger"} <= entries[0].keys()
    (entry,) = (entry for entry in entries if entry.get("path") == "/invocations")
    assert (entry["method"], entry["status"]) == ("POST", 200)
    assert entry["ms"] > 0
    assert len(entry["id"]) == 32


@situation(
    "serve",
    "SIGTERM to a server under load",
    "what was accepted is answered, new clients are told to go elsewhere, and it exits with 0",
)
def test_sigterm_answers_all_that_was_accepted(folder: Path, classifier: Classifier) -> None:
    with serving(folder, "--drain-seconds", 1.0) as process:
        expected = [scores_of([{"label": k, "score": v} for k, v in x.scores.items()]) for x in classifier(TEXTS)]
        got: list[tuple[int, int, Any]] = []
        stopping = threading.Event()

        def client(first: int) -> None:
            number = first
            while True:
                begun_before = not stopping.is_set()
                try:
                    status, body = process.post({"inputs": TEXTS[number % len(TEXTS)]})
                except (urllib.error.URLError, ConnectionError):
                    if begun_before:
                        got.append((number, 0, "lost"))
                    return
                got.append((number, status, body))
                number += 1

        clients = [threading.Thread(target=client, args=(first,)) for first in range(8)]
        for thread in clients:
            thread.start()
        eventually(lambda: len(got) > 40)
        process.process.send_signal(signal.SIGTERM)
        eventually(lambda: process.status("/health") == 503)
        assert process.status("/v2/health/live") == 200
        stopping.set()  # from now on a refused connection is no loss
        for thread in clients:
            thread.join()
        assert process.process.wait(60) == 0
        for number, status, body in got:
            assert status == 200, (number, status, body)
            assert scores_of(body) == pytest.approx(expected[number % len(TEXTS)], abs=1e-5)


def test_every_option_can_come_from_the_environment(folder: Path, tmp_path: Path) -> None:
    environment = {
        "MAGIC_PYRAMID_UDS": str(tmp_path / "socket"),
        "MAGIC_PYRAMID_API_KEY": "secret",
        "MAGIC_PYRAMID_MODEL_ID": "news",
        "MAGIC_PYRAMID_SCHEDULE": "depth-wise",
        "MAGIC_PYRAMID_LONG_TEXTS": "windows",
    }
    with serving(folder, environment=environment) as process:
        assert process.url == f"unix:{tmp_path / 'socket'}"
        info = over_unix(tmp_path / "socket", "/info", "Bearer secret")
        assert (info["model_id"], info["schedule"], info["auto_truncate"]) == ("news", "depth-wise", False)
        assert over_unix(tmp_path / "socket", "/info", "Bearer wrong")["error_type"] == "Unauthorized"
        assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o660
        assert process.end() == 0
        assert not (tmp_path / "socket").exists()


OTHERS = {
    "host": "::1",
    "port": 9,
    "uds": "socket",
    "api_key": "secret",
    "model_id": "news",
    "precision": "float32",
    "device": "meta",
    "threads": 3,
    "tokenization_workers": 4,
    "exit_threshold": "0.5,0.25",
    "quality": None,  # not beside the exit threshold
    "relax_to": "lowest",
    "long_texts": "windows",
    "cache": 7,
    "schedule": "depth-wise",
    "patience_ms": 1.5,
    "max_batch_tokens": 100,
    "max_concurrent_requests": 101,
    "max_queue_tokens": 102,
    "max_client_batch_size": 103,
    "payload_limit": 104,
    "timeout_ms": 105.5,
    "audit": 0.25,
    "audit_tighten": True,
    "drain_seconds": 106.5,
    "drain_timeout": 107.5,
    "log_requests": True,
    "json_logs": True,
}


@pytest.mark.usefixtures("as_it_was")
def test_each_variable_is_its_option(magic_pyramid: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAGIC_PYRAMID_FOLDER", str(folder))
    for name, value in OTHERS.items():
        if value is not None:
            monkeypatch.setenv(f"MAGIC_PYRAMID_{name.upper()}", "1" if value is True else str(value))
    seen: list[ServerSettings] = []

    def bound_socket(settings: ServerSettings) -> socket.socket:
        seen.append(settings)
        raise ValueError("enough was seen")

    monkeypatch.setattr(running, "bound_socket", bound_socket)
    ended = magic_pyramid("serve")
    assert ended.err.strip() == "error: enough was seen"
    assert [dataclasses.asdict(settings) for settings in seen] == [OTHERS]


def over_unix(path: Path, target: str, key: str) -> Any:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(
            f"GET {target} HTTP/1.1\r\nhost: x\r\nauthorization: {key}\r\nconnection: close\r\n\r\n".encode()
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def test_a_second_signal_ends_it_at_once(folder: Path) -> None:
    with serving(folder, "--drain-seconds", 600) as process:
        process.process.send_signal(signal.SIGINT)
        eventually(lambda: process.status("/health") == 503)
        began = time.monotonic()
        assert process.end() == 0
        assert time.monotonic() - began < 60


@situation(
    "serve", "a port that another program listens at", "one line says so before the model is loaded, exit status 2"
)
def test_a_port_that_is_taken_is_known_before_anything_is_loaded(magic_pyramid: Command, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = magic_pyramid("serve", folder, "--port", port)
    assert ended.status == 2
    assert ended.err.strip() == (
        f"error: cannot listen at 127.0.0.1, port {port}: Address already in use; choose others with --host and --port"
    )


@pytest.mark.usefixtures("as_it_was")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "70000"], "--port must be at most 65535; got 70000"),
        (["--max-client-batch-size", "0"], "--max-client-batch-size must be at least 1; got 0"),
        (["--audit", "2"], "--audit is a share, 0 to 1; got 2.0"),
        (["--audit", "nan"], "--audit must be at least 0; got nan"),
        (["--audit-tighten"], "--audit-tighten goes by what an audit sees"),
        (["--schedule", "lazy"], "--schedule must be greedy or depth-wise; got 'lazy'"),
        (["--long-texts", "burn"], "--long-texts must be cut or windows or refuse; got 'burn'"),
        (["--cache", "-1"], "--cache must be at least 0; got -1"),
        (["--quality", "exact", "--exit-threshold", "0.1"], "give one of them"),
        (["--port", "0", "--quality", "best"], "quality must be one of 'exact', 'default'; got 'best'"),
        (["--port", "0", "--precision", "int3"], "precision must be"),
        (["--uds", "/nowhere/socket"], "cannot listen at /nowhere/socket: No such file or directory"),
    ],
)
def test_options_that_cannot_be_followed_are_refused_in_a_line(
    magic_pyramid: Command, folder: Path, options: list[str], said: str
) -> None:
    ended = magic_pyramid("serve", folder, *options)
    assert ended.status == 2
    assert said in ended.err
    assert len(ended.err.strip().splitlines()) == 1


def test_what_is_not_installed_is_said(magic_pyramid: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    ended = magic_pyramid("serve", folder)
    assert ended.status == 2
    assert ended.err.strip() == (
        "error: a server needs uvicorn, which is not installed: pip install 'magic-pyramid[serve]'"
    )


def test_a_folder_without_a_model_is_refused(magic_pyramid: Command, tmp_path: Path) -> None:
    ended = magic_pyramid("serve", tmp_path)
    assert ended.status == 2
    assert "must be a folder of a saved model" in ended.err


def test_a_socket_that_was_left_behind_is_taken_over(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with serving(folder, "--uds", path):
        assert over_unix(path, "/info", "")["layers"] == 4


def test_http_is_not_imported_by_anything_else() -> None:
    program = (
        "import sys, pkgutil, mp_model.serving.classifier, mp_model.command_line, mp_model.training, mp_model\n"
        "from mp_model import Classifier\n"
        "print([name for name in ('fastapi', 'uvicorn', 'starlette', 'prometheus_client') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

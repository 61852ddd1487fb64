"""docs/serving.md says what there is: every option, every metric, every route, and examples that work."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from mp_model import Classifier
from mp_model.command_line import app
from mp_model.command_line.serve import shaded
from mp_model.schedule import EMBEDDED_BUDGETS
from mp_model.serving.app import STATUSES, create_app
from mp_model.serving.audit import TIGHTER, WINDOW
from mp_model.serving.levels import RELAX_FROM, RELAX_TO
from mp_model.serving.service import Service
from mp_model.serving.settings import SCHEDULES, ServerSettings
from mp_model.serving.wire import ClassifyRequest, PredictRequest
from support.serving import eventually

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")


def table(heading: str) -> list[list[str]]:
    """The rows of the first table after a heading."""
    part = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_every_option_has_its_line() -> None:
    hints = get_type_hints(ServerSettings, include_extras=True)
    expected = []
    for field in dataclasses.fields(ServerSettings):
        default = "" if field.default is None or field.default is False else f"`{field.default}`"
        note = get_args(hints[field.name])[1]
        expected.append([f"`--{field.name.replace('_', '-')}`", default, note])
    assert table("Options") == expected


def test_the_help_names_every_option_and_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    printed = re.sub(r"\x1b\[[0-9;]*m", "", CliRunner().invoke(app, ["serve", "--help"]).output)
    for option, _, note in table("Options"):
        name = option.strip("`")
        assert re.search(rf"{name}\s", printed), name
        assert f"[env var: MAGIC_PYRAMID_{name[2:].replace('-', '_').upper()}]" in printed
        assert note.replace("`", "") in printed


@pytest.fixture
def client(served: Classifier) -> Any:
    service = Service(served, ServerSettings(audit=0.5), "tiny", shaded)
    with TestClient(create_app(service)) as client:
        eventually(lambda: service.is_ready)
        yield client


def test_every_metric_has_its_line(client: TestClient) -> None:
    client.post("/predict", json={"inputs": "a"})
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    service.audit.promised = 0.1
    service.audit.note("default", False)
    expected = {}
    for metric in service.metrics.registry.collect():
        labels = {label for sample in metric.samples for label in sample.labels if label != "le"}
        name = metric.name + "_total" * (metric.type == "counter")
        expected[f"`{name}`"] = (labels, metric.documentation)
    # Those of which nothing was counted yet show no labels.
    counted = {
        "`magic_pyramid_failures_total`",
        "`magic_pyramid_audited_total`",
        "`magic_pyramid_audit_disagreements_total`",
    }
    rows = {name: (labels, said) for name, labels, said in table("Metrics")}
    assert list(rows) == list(expected)
    for name, (labels, said) in expected.items():
        assert rows[name][1] == said
        if name not in counted:
            assert set(re.findall(r"\w+", rows[name][0])) == labels, name


def test_every_field_and_every_error_has_its_line() -> None:
    fields = {name.strip("`") for name, _ in table("Fields of a request")}
    assert fields == set(PredictRequest.model_fields)
    assert fields >= set(ClassifyRequest.model_fields) & {"exit_threshold", "quality", "timeout_ms"}
    assert [int(status) for status, *_ in table("Errors")] == sorted(STATUSES)


def test_every_route_is_there(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    named = {
        (method.lower(), path)
        for cell, _ in table("Routes")
        for method in re.findall(r"GET|POST", cell)
        for path in re.findall(r"/[\w/.]*", cell)
    }
    described = {(method, path) for path, methods in paths.items() for method in methods}
    assert named == described | {("get", "/docs"), ("get", "/openapi.json")}
    assert all(client.get(path).status_code == 200 for method, path in named if method == "get")


def test_the_examples_work(client: TestClient) -> None:
    examples = re.findall(r"^(curl .* -d .*)$", PAGE, re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        _, address, option, body = shlex.split(example)
        assert (address, option) == ("localhost:8080/predict", "-d")
        response = client.post("/predict", content=body)
        assert response.status_code == 200
        is_batch = isinstance(json.loads(body)["inputs"][0], list)
        first = response.json()[0][0] if is_batch else response.json()[0]
        assert first.keys() == {"label", "score"}


def test_the_probes_are_of_routes_that_there_are(client: TestClient) -> None:
    block = PAGE.partition("On Kubernetes:\n\n")[2].partition("\n\nwith")[0]
    probes = yaml.safe_load(block)
    for probe in ("livenessProbe", "readinessProbe"):
        asked = probes[probe]["httpGet"]
        assert asked["port"] == ServerSettings().port
        assert client.get(asked["path"]).status_code == 200
    assert probes["terminationGracePeriodSeconds"] > 5 + ServerSettings().drain_timeout


def test_numbers_of_the_page() -> None:
    text = " ".join(PAGE.split())
    shares = {0.25: "a quarter of the queue", 0.75: "three quarters"}
    for statement in (
        f"A = {EMBEDDED_BUDGETS} B tokens",
        f"depth-wise within {SCHEDULES['depth-wise']} (L + 1)",
        f"the last {WINDOW:,} audited texts",
        f"multiplied by {TIGHTER}",
        shares[RELAX_FROM],
        shares[RELAX_TO],
    ):
        assert statement in text

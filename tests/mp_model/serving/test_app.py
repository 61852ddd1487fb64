"""The server over HTTP: the wire formats of others, our own additions, and what is refused how."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from mp_model import Answer, Classifier
from mp_model.command_line.serve import shaded
from mp_model.serving.app import create_app
from mp_model.serving.service import Service
from mp_model.serving.settings import ServerSettings
from support import tiny, wordpiece
from support.serving import TEXTS, eventually

TEXT, OTHER = TEXTS[0], TEXTS[3]
LONG = "rate " * 100  # more tokens than the 64 that the model takes


@contextmanager
def server(classifier: Classifier, **settings: Any) -> Iterator[TestClient]:
    service = Service(classifier, ServerSettings(**settings), "tiny", shaded)
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        eventually(lambda: service.is_ready)
        yield client


@pytest.fixture
def client(served: Classifier) -> Iterator[TestClient]:
    with server(served) as client:
        yield client


def ranked(answer: Answer) -> list[dict[str, Any]]:
    found = [{"label": label, "score": pytest.approx(score, abs=1e-5)} for label, score in answer.scores.items()]
    return sorted(found, key=lambda prediction: -prediction["score"].expected)


# text-embeddings-inference's shape


@pytest.mark.parametrize("path", ["/predict", "/", "/invocations"])
def test_a_text_is_answered_by_all_labels_in_falling_order(client: TestClient, served: Classifier, path: str) -> None:
    response = client.post(path, json={"inputs": TEXT})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == ranked(served([TEXT])[0])


@pytest.mark.parametrize(
    ("inputs", "texts"),
    [
        ([TEXT, OTHER], (TEXT, OTHER)),  # one pair, not two texts
        ([TEXT], TEXT),
    ],
)
def test_a_list_of_strings_is_one_text(client: TestClient, served: Classifier, inputs: Any, texts: Any) -> None:
    assert client.post("/predict", json={"inputs": inputs}).json() == ranked(served([texts])[0])


def test_a_batch_of_texts_and_pairs_is_answered_in_order(client: TestClient, served: Classifier) -> None:
    found = client.post("/predict", json={"inputs": [[TEXT], [TEXT, OTHER], [OTHER]]}).json()
    assert found == [ranked(served([x])[0]) for x in (TEXT, (TEXT, OTHER), OTHER)]


def test_raw_scores_are_logits(client: TestClient, served_model: Any) -> None:
    found = client.post("/predict", json={"inputs": TEXT, "raw_scores": True, "exit_threshold": "never"}).json()
    row = wordpiece.tokenizer()(TEXT, return_tensors="pt", truncation=True, max_length=64)
    with torch.no_grad():
        logits = served_model(row["input_ids"], exit_threshold="never").logits[0]
    expected = dict(zip(served_model.config.label_names, logits.tolist(), strict=True))
    assert {x["label"]: x["score"] for x in found} == pytest.approx(expected, abs=1e-4)
    assert [x["score"] for x in found] == sorted((x["score"] for x in found), reverse=True)


def test_long_texts_are_cut_where_asked(served: Classifier) -> None:
    text = "the " * 80 + LONG
    with server(served) as client:
        right = client.post("/predict", json={"inputs": text}).json()
        left = client.post("/predict", json={"inputs": text, "truncate": True, "truncation_direction": "left"})
        refused = client.post("/predict", json={"inputs": text, "truncate": False})
    with server(served, long_texts="refuse") as client:
        by_default = client.post("/predict", json={"inputs": text})
        cut = client.post("/predict", json={"inputs": text, "truncate": True})
    assert right == cut.json() == ranked(served(["the " * 62])[0])
    assert left.json() == ranked(served(["rate " * 62])[0])
    for response in (refused, by_default):
        assert response.status_code == 422
        assert response.json()["error_type"] == "Validation"
        assert "at most 64 tokens. Given: 182" in response.json()["error"]


def test_unknown_fields_are_ignored(client: TestClient) -> None:
    plain = client.post("/predict", json={"inputs": TEXT}).json()
    assert client.post("/predict", json={"inputs": TEXT, "normalize": True, "model": 3}).json() == plain


@pytest.mark.parametrize(
    ("body", "status", "kind", "said"),
    [
        ({"inputs": ""}, 400, "Empty", "`inputs` cannot be empty"),
        ({"inputs": []}, 400, "Empty", "`inputs` cannot be empty"),
        ({"inputs": [[""], [""]]}, 400, "Empty", "`inputs` cannot be empty"),
        ({}, 422, "Validation", "`inputs`: Field required"),
        ({"inputs": 3}, 422, "Validation", "`inputs` must be a text, a pair of texts"),
        ({"inputs": ["a", "b", "c"]}, 422, "Validation", "neither one nor a pair"),
        ({"inputs": [["a", "b", "c"]]}, 422, "Validation", "neither one nor a pair"),
        ({"inputs": [["a"], "b"]}, 422, "Validation", "`inputs` must be"),
        ({"inputs": [["a"]] * 33}, 422, "Validation", "batch size 33 > maximum allowed batch size 32"),
        ({"inputs": "a", "truncate": "yes"}, 422, "Validation", "`truncate`"),
        ({"inputs": "a", "truncation_direction": "up"}, 422, "Validation", "`truncation_direction`"),
        ({"inputs": "a", "exit_threshold": 1.5}, 422, "Validation", "`exit_threshold`"),
        ({"inputs": "a", "exit_threshold": [0.5]}, 422, "Validation", "one number for each exit layer, 3; got 1"),
        (
            {"inputs": "a", "quality": "best"},
            422,
            "Validation",
            "quality must be one of 'exact', 'default'; got 'best'",
        ),
        ({"inputs": "a", "quality": "exact", "exit_threshold": 0.5}, 422, "Validation", "give one of them"),
        ({"inputs": "a", "timeout_ms": -1}, 422, "Validation", "`timeout_ms`"),
        ({"inputs": "a", "parameters": {"top_k": 0}}, 422, "Validation", "top_k must be a number of labels"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    client: TestClient, body: dict[str, Any], status: int, kind: str, said: str
) -> None:
    response = client.post("/predict", json=body)
    assert response.status_code == status
    assert response.json().keys() == {"error", "error_type"}
    assert response.json()["error_type"] == kind
    assert said in response.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"inputs": "\xff"}', b'{"inputs": "\\ud800"}', b"null"])
def test_bodies_that_are_no_json_are_refused(client: TestClient, body: bytes) -> None:
    response = client.post("/predict", content=body)
    assert response.status_code == 422
    assert response.json()["error_type"] == "Validation"


def test_one_bad_text_in_a_batch_fails_alone(client: TestClient, served: Classifier) -> None:
    batch = [[TEXT], [""], [LONG], [OTHER]]
    response = client.post("/predict", json={"inputs": batch, "truncate": False})
    found = response.json()
    assert response.status_code == 200
    assert [found[0], found[3]] == [ranked(served([x])[0]) for x in (TEXT, OTHER)]
    assert [found[1]["error_type"], found[2]["error_type"]] == ["Empty", "Validation"]


def test_headers_say_what_it_took(client: TestClient, served: Classifier) -> None:
    response = client.post("/predict", json={"inputs": [[TEXT], [TEXT, OTHER]]}, headers={"x-request-id": "mine-1"})
    answers = [served([TEXT])[0], served([(TEXT, OTHER)])[0]]
    headers = response.headers
    assert headers["x-compute-tokens"] == str(sum(answer.tokens for answer in answers))
    assert headers["x-compute-characters"] == str(2 * len(TEXT) + len(OTHER))
    assert headers["x-exit-layer"] == ",".join(str(answer.exit_layer) for answer in answers)
    assert headers["x-compute-type"] == "cpu"
    assert headers["x-quality"] == "default"
    assert headers["x-request-id"] == "mine-1"
    for name in ("total", "tokenization", "queue", "inference", "compute"):
        assert 0 <= int(headers["x-compute-time" if name == "compute" else f"x-{name}-time"]) < 60_000
    other = client.post("/predict", json={"inputs": TEXT}, headers={"x-request-id": "not one\twe take"})
    assert len(other.headers["x-request-id"]) == 32


# Ours


@pytest.mark.parametrize("exit_threshold", ["never", 0.9, [0.2, 0.99, 0.5]])
def test_quality_is_part_of_a_request(client: TestClient, served: Classifier, exit_threshold: Any) -> None:
    asked = {"inputs": TEXT, "exit_threshold": exit_threshold, "details": True}
    found = client.post("/predict", json=asked).json()
    (answer,) = served([TEXT], exit_threshold)
    assert found == {
        "predictions": ranked(answer),
        "exit_layer": answer.exit_layer,
        "uncertainty": pytest.approx(answer.uncertainty, abs=1e-5),
        "tokens": answer.tokens,
        "flops": answer.flops,
        "quality": None,
    }


def test_details_of_a_batch_come_text_by_text(client: TestClient, served: Classifier) -> None:
    found = client.post("/predict", json={"inputs": [[TEXT], [OTHER]], "details": True}).json()
    assert [x["exit_layer"] for x in found] == [x.exit_layer for x in served([TEXT, OTHER])]
    assert [x["quality"] for x in found] == ["default", "default"]


def test_the_servers_own_threshold_is_the_default(served: Classifier) -> None:
    with server(served, exit_threshold="never") as client:
        assert client.post("/predict", json={"inputs": TEXT}).json() == ranked(served([TEXT], "never")[0])
    with server(served, quality="exact") as client:
        response = client.post("/predict", json={"inputs": TEXT})
    assert response.json() == ranked(served([TEXT], "never")[0])
    assert response.headers["x-exit-layer"] == "4"


def test_hugging_face_clients_get_a_list_for_each_text(client: TestClient, served: Classifier) -> None:
    (answer,) = served([TEXT])

    def post(**parameters: Any) -> Any:
        return client.post("/", json={"inputs": TEXT, "parameters": parameters}).json()

    assert post() == [ranked(answer)]
    assert post(top_k=1) == [ranked(answer)[:1]]
    assert post(function_to_apply="softmax") == [ranked(answer)]
    logits = {x["label"]: x["score"] for x in post(function_to_apply="none")[0]}
    sigmoids = {x["label"]: x["score"] for x in post(function_to_apply="sigmoid")[0]}
    assert sigmoids == pytest.approx({label: 1 / (1 + 2.718281828459045**-x) for label, x in logits.items()})


def test_late_answers_are_refused(client: TestClient) -> None:
    response = client.post("/predict", json={"inputs": TEXT, "timeout_ms": 1e-6})
    assert (response.status_code, response.json()["error_type"]) == (504, "Timeout")


@pytest.mark.parametrize("task", ["multi_label_classification", "regression"])
def test_other_tasks_are_answered_as_such(task: str) -> None:
    """Each label by itself, and values as they are; text-embeddings-inference makes a softmax of the first."""
    labels = 1 if task == "regression" else 3
    settings = {"num_labels": labels, "problem_type": task, "exit_layers": [] if labels == 1 else None}
    classifier = Classifier(tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), **settings), wordpiece.tokenizer())
    with server(classifier) as client:
        found = client.post("/predict", json={"inputs": TEXT, "details": True}).json()
        early = client.post("/predict", json={"inputs": TEXT, "exit_threshold": 1.0, "details": True})
    (answer,) = classifier([TEXT])
    assert found["predictions"] == ranked(answer)
    assert found["uncertainty"] == (None if labels == 1 else pytest.approx(answer.uncertainty, abs=1e-5))
    assert early.status_code == (422 if labels == 1 else 200)
    if labels == 3:
        (answer,) = classifier([TEXT], 1.0)
        assert early.json()["predictions"] == ranked(answer)
        assert early.json()["exit_layer"] == answer.exit_layer == 1
        assert sum(x["score"] for x in found["predictions"]) != pytest.approx(1)


# vLLM's shape


def test_classify_answers_as_vllm_does(client: TestClient, served: Classifier) -> None:
    found = client.post("/classify", json={"model": "any", "input": [TEXT, OTHER]}).json()
    answers = served([TEXT, OTHER])
    assert found["object"] == "list"
    assert found["model"] == "tiny"
    assert found["id"].startswith("classify-")
    for index, (data, answer) in enumerate(zip(found["data"], answers, strict=True)):
        assert data == {
            "index": index,
            "label": answer.label,
            "probs": pytest.approx(list(answer.scores.values()), abs=1e-5),
            "num_classes": 3,
        }
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] == sum(x.tokens for x in answers)
    single = client.post("/classify", json={"input": TEXT}).json()["data"]
    assert [x["label"] for x in single] == [answers[0].label]
    raw = client.post("/classify", json={"input": TEXT, "use_activation": False}).json()["data"][0]["probs"]
    assert torch.tensor(raw).softmax(0).tolist() == pytest.approx(single[0]["probs"], abs=1e-5)


@pytest.mark.parametrize("body", [{}, {"input": 3}, {"input": []}, {"input": [""]}, {"input": ["a"] * 33}])
def test_classify_refuses_as_vllm_does(client: TestClient, body: dict[str, Any]) -> None:
    response = client.post("/classify", json=body)
    assert response.status_code == 400
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == 400


# Load, health, keys


def test_more_than_may_ever_wait_is_not_tried_again(served: Classifier) -> None:
    with server(served, max_concurrent_requests=4) as client:
        texts = client.post("/predict", json={"inputs": [["a"]] * 5})
        assert client.post("/predict", json={"inputs": [["a"]] * 4}).status_code == 200
    with server(served, max_queue_tokens=20) as client:
        tokens = client.post("/predict", json={"inputs": LONG})
    for response, said in ((texts, "5 texts came at once"), (tokens, "64 tokens came at once")):
        assert (response.status_code, response.json()["error_type"]) == (422, "Validation")
        assert said in response.json()["error"]


def test_of_many_requests_at_once_as_many_are_answered_as_there_are_permits(
    served: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that is followed by waiting, and then by the count, lets nearly all of them through."""
    with server(served, max_concurrent_requests=6) as client:
        service: Service = client.app.state.service  # type: ignore[attr-defined]
        may_go, policy = threading.Event(), service.worker.policy
        next_layer = policy.next_layer
        monkeypatch.setattr(policy, "patience", 0.01)
        monkeypatch.setattr(policy, "next_layer", lambda *given: next_layer(*given) if may_go.is_set() else None)
        statuses: list[int] = []

        def post() -> None:
            response = client.post("/predict", json={"inputs": TEXT})
            assert response.status_code == 200 or int(response.headers["retry-after"]) >= 1
            assert response.status_code == 200 or response.json()["error_type"] == "Overloaded"
            statuses.append(response.status_code)

        clients = [threading.Thread(target=post) for _ in range(40)]
        for thread in clients:
            thread.start()
        eventually(lambda: len(statuses) == 34)
        assert set(statuses) == {429}
        may_go.set()
        for thread in clients:
            thread.join()
        assert sorted(statuses) == [200] * 6 + [429] * 34
        assert service.permits.held == 0


def test_bodies_that_are_too_large_are_refused(served: Classifier) -> None:
    with server(served, payload_limit=200) as client:
        known = client.post("/predict", content=b" " * 201)
        unknown = client.post("/predict", content=(part for part in [b" " * 150, b" " * 150]))
        fits = client.post("/predict", content=json.dumps({"inputs": "a"}).ljust(200).encode())
    for response in (known, unknown):
        assert (response.status_code, response.json()["error_type"]) == (413, "Validation")
    assert fits.status_code == 200


def test_nobody_is_welcome_before_the_model_is_warm_or_while_it_drains(
    served: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(served, ServerSettings())
    warm = threading.Event()
    call = Classifier.__call__
    monkeypatch.setattr(Classifier, "__call__", lambda *given: warm.wait(60) and call(*given))

    def statuses(client: TestClient) -> list[int]:
        paths = ("/health", "/ping", "/v2/health/ready", "/v2/health/live")
        return [client.get(path).status_code for path in paths]

    with TestClient(create_app(service)) as client:
        assert statuses(client) == [503, 503, 503, 200]
        early = client.post("/predict", json={"inputs": TEXT})
        assert (early.status_code, early.json()["error_type"]) == (503, "Unhealthy")
        assert client.get("/health").json() == {"error": "unhealthy", "error_type": "Unhealthy"}
        warm.set()
        eventually(lambda: service.is_ready)
        assert statuses(client) == [200, 200, 200, 200]
        service.draining = True
        assert statuses(client) == [503, 503, 503, 200]
        assert client.post("/predict", json={"inputs": TEXT}).status_code == 200


def test_without_the_key_only_health_and_figures_are_seen(served: Classifier) -> None:
    with server(served, api_key="secret") as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            response = client.post("/predict", json={"inputs": TEXT}, headers=headers)
            assert (response.status_code, response.json()["error_type"]) == (401, "Unauthorized")
            assert client.get("/info", headers=headers).status_code == 401
        for path in ("/health", "/ping", "/metrics", "/", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        with_key = client.post("/predict", json={"inputs": TEXT}, headers={"authorization": "Bearer secret"})
        assert with_key.status_code == 200


def test_paths_that_are_not_there_say_so(client: TestClient) -> None:
    assert client.get("/nowhere").json() == {"error": "there is nothing at /nowhere", "error_type": "Validation"}
    response = client.get("/predict")
    assert (response.status_code, response.json()["error"]) == (405, "/predict does not take GET")


def test_mistakes_of_the_server_are_its_own(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    monkeypatch.setattr(service, "info", lambda: 1 / 0)
    response = client.get("/info")
    assert (response.status_code, response.json()["error_type"]) == (500, "Backend")
    assert "x-request-id" in response.headers


def test_info_has_the_names_of_text_embeddings_inference(client: TestClient) -> None:
    info = client.get("/info").json()
    assert info["model_id"] == "tiny"
    assert info["model_type"]["classifier"]["id2label"] == {"0": "sport", "1": "money", "2": "weather"}
    assert info["max_input_length"] == 64
    assert (info["max_concurrent_requests"], info["max_client_batch_size"], info["auto_truncate"]) == (512, 32, True)
    assert info["levels"].keys() == {"exact", "default"}
    assert info["exit_layers"] == [1, 2, 3]


def test_metrics_count_what_happened(client: TestClient, served: Classifier) -> None:
    client.post("/predict", json={"inputs": [[TEXT], [OTHER]]})
    client.post("/predict", json={"inputs": ""})
    client.post("/predict", json={"inputs": 3})
    figures = parsed(client.get("/metrics").text)
    answers = served([TEXT, OTHER])
    assert figures['magic_pyramid_requests_total{path="/predict",status="200"}'] == 1
    assert figures['magic_pyramid_requests_total{path="/predict",status="422"}'] == 1
    assert figures['magic_pyramid_failures_total{kind="Empty"}'] == 1
    assert figures['magic_pyramid_texts_total{level="default"}'] == 2
    assert figures["magic_pyramid_tokens_total"] == sum(answer.tokens for answer in answers)
    assert figures["magic_pyramid_exit_layer_sum"] == sum(answer.exit_layer for answer in answers)
    assert figures["magic_pyramid_uncertainty_sum"] == pytest.approx(sum(x.uncertainty for x in answers), abs=1e-4)
    assert figures["magic_pyramid_tokens_kept_count"] == 2
    assert figures['magic_pyramid_phase_seconds_count{phase="total"}'] == 2
    assert figures['magic_pyramid_step_tokens_count{layer="0"}'] == 1
    assert figures['magic_pyramid_queue_tokens{layer="4"}'] == 0
    assert figures["magic_pyramid_ready"] == 1
    assert figures["magic_pyramid_accepted_texts"] == figures["magic_pyramid_accepted_tokens"] == 0


def parsed(page: str) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def test_the_pyramid_of_a_text_is_shown_word_by_word(client: TestClient, served: Classifier) -> None:
    found = client.post("/pyramid", json={"inputs": TEXT, "exit_threshold": 0.9}).json()
    (answer,) = served([TEXT], 0.9)
    assert found["predictions"] == ranked(answer)
    assert (found["exit_layer"], found["layers"], found["tokens"]) == (answer.exit_layer, 4, answer.tokens)
    assert len(found["words"]) == len(found["reached"])
    assert max(found["reached"]) == answer.exit_layer
    assert client.post("/pyramid", json={"inputs": TEXT}).json()["predictions"] == ranked(served([TEXT])[0])
    assert client.post("/pyramid", json={"inputs": ""}).status_code == 422


def test_live_figures(client: TestClient) -> None:
    client.post("/predict", json={"inputs": TEXT})
    figures = client.get("/figures").json()
    assert figures["state"] == "ready"
    assert sum(figures["exits"]) == 1
    assert figures["queue_tokens"] == [0, 0, 0, 0, 0]
    assert figures["requests_per_second"] > 0
    assert figures["p99_ms"] >= figures["median_ms"] > 0


def test_settings_that_a_model_cannot_follow_are_refused(served: Classifier) -> None:
    for settings, said in (
        ({"quality": "best"}, "quality must be one of"),
        ({"exit_threshold": "much"}, "--exit-threshold must be numbers"),
        ({"exit_threshold": "2"}, "must lie in"),
        ({"relax_to": "exact"}, "cannot be compared|no faster"),
    ):
        with pytest.raises(ValueError, match=said):
            Service(served, ServerSettings(**settings))


def test_a_classifier_needs_no_http() -> None:
    program = (
        "import sys\nfrom mp_model import Classifier\nimport mp_model.command_line\n"
        "print(sorted({'fastapi', 'uvicorn', 'starlette', 'prometheus_client', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

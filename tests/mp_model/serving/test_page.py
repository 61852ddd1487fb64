"""The pages at / and /docs, in a headless Chromium: words are shaded, routes described, nothing comes from elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from mp_model import Classifier
from mp_model.command_line.serve import shaded
from mp_model.serving.app import PAGES, create_app
from mp_model.serving.service import Service
from mp_model.serving.settings import ServerSettings
from support.serving import TEXTS, eventually

TEXT = next(text for text in TEXTS if 6 < len(text.split()) < 15)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_the_pages_need_no_network(name: str) -> None:
    text = (PAGES / name).read_text(encoding="utf-8")
    assert not re.findall(r"(?:https?:)?//\w[\w.]*", text)
    assert not re.findall(r"<(?:script|img|iframe|link)[^>]+(?:src|href)=\"(?!data:)", text)
    assert "innerHTML" not in text, "texts and labels are never taken for HTML"


@contextmanager
def serving(served: Classifier, **settings: Any) -> Iterator[str]:
    """The address of a server in a thread."""
    service = Service(served, ServerSettings(**settings), "tiny <b>model</b>", shaded)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None))
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        eventually(lambda: service.is_ready)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def url(served: Classifier) -> Iterator[str]:
    with serving(served) as url:
        yield url


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def waiting() -> Any:
    """Playwright's assertions, which wait until they hold; with time for a busy machine."""
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    return expect


def test_a_text_is_shaded_word_by_word(url: str, browser: Any, served: Classifier) -> None:
    page, expect, asked, errors = browser.new_page(), waiting(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(url)
    expect(page.locator("#model")).to_have_text("tiny <b>model</b>, 4 layers, float32")
    assert not page.is_visible("#key")
    for threshold in (0.0, 0.9, 1.0):
        page.fill("#text", f"{TEXT} <img src=x>")
        page.fill("#threshold", str(threshold))
        page.click("#go")
        (answer,) = served([f"{TEXT} <img src=x>"], threshold)
        where = f"{answer.label}, answered by layer {answer.exit_layer} of 4"
        expect(page.locator("#caption")).to_contain_text(where)
        words = page.locator("#words span").all_inner_texts()
        assert "".join(words) == f"{TEXT}<imgsrc=x>".replace(" ", "")
        assert page.locator("#legend span").count() == 5
        assert page.locator("#labels tr").count() == 3
        assert f"{answer.score:.3f}" in page.inner_text("#labels")
    expect(page.locator("#figures")).to_contain_text("ready")
    assert page.locator("#exits tr").count() == 5
    if "MP_SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["MP_SCREENSHOTS"]) / "page.png", full_page=True)
    assert not errors
    assert all(address.startswith((url, "data:")) for address in asked)


def test_errors_are_shown(url: str, browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Service, "pyramid", lambda *_: 1 / 0)
    page, expect = browser.new_page(), waiting()
    page.goto(url)
    page.fill("#text", TEXT)
    page.click("#go")
    expect(page.locator("#error")).to_have_text("the server has made a mistake; its log says which")
    assert page.is_enabled("#go")


def test_a_key_is_asked_for_where_the_server_wants_one(served: Classifier, browser: Any) -> None:
    with serving(served, api_key="secret") as url:
        page, expect = browser.new_page(), waiting()
        page.goto(url)
        page.wait_for_selector("#key", state="visible")
        page.fill("#key", "secret")
        page.fill("#text", TEXT)
        page.click("#go")
        expect(page.locator("#caption")).to_contain_text(f"{served([TEXT])[0].label}, answered")
        page.close()


def test_the_routes_are_described_without_a_network(url: str, browser: Any) -> None:
    page, expect, asked, errors = browser.new_page(), waiting(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"{url}/docs")
    expect(page.locator("#title")).to_have_text(re.compile(r"Magic Pyramid \d"))
    routes = page.evaluate("fetch('openapi.json').then(answer => answer.json())")["paths"]
    assert page.locator("details").count() == sum(map(len, routes.values())) > 10
    predict = page.locator("details", has=page.locator("summary code", has_text=re.compile("^/predict$")))
    predict.locator("summary").click()
    shown = predict.inner_text()
    for said in (
        "inputs",
        "required",
        "exit_threshold",
        "number, at least 0, at most 1",
        '"never"',
        "429",
        "Too much waits",
    ):
        assert said in shown
    example = predict.locator("pre").inner_text()
    assert example == f"curl {url}/predict -d '{json.dumps({'inputs': 'I like you.'}, separators=(',', ':'))}'"
    if "MP_SCREENSHOTS" in os.environ:
        page.screenshot(path=Path(os.environ["MP_SCREENSHOTS"]) / "docs.png", full_page=True)
    assert not errors
    assert all(address.startswith((url, "data:")) for address in asked)

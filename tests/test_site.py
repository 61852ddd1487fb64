"""The documents as a site: every page has its place in it, and what leads nowhere or comes from a network is found.

``make docs`` builds the site and checks it by ``docs/site/check.py``.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ADDED = {"changelog.md", "contributing.md"}  # by docs/site/pages.py, from the repository's top


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_check", ROOT / "docs" / "site" / "check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages_of(entries: Any) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            for below in entry.values():
                yield from [below] if isinstance(below, str) else pages_of(below)


def test_every_page_has_its_place() -> None:
    pages = list(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    found = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    of_sets = {page for page in found if page.startswith("results/")}
    first = (ROOT / "docs" / "results.md").read_text()
    assert len(pages) == len(set(pages))
    assert set(pages) == (found - of_sets) | ADDED
    assert of_sets
    assert all(f"]({page})" in first for page in of_sets)


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ("<a href='other.html#here'>", None),
        ("<a href='https://example.com'>", None),
        ("<link rel='canonical' href='https://example.com'>", None),
        ("<a href='nowhere.html'>", "index.html links to nowhere.html, which is not there"),
        ("<a href='other.html#there'>", "index.html links to other.html#there, a heading that is not there"),
        ("<a href='#there'>", "index.html links to #there, a heading that is not there"),
        ("<script src='https://example.com/x.js'></script>", "index.html fetches https://example.com/x.js"),
        ("<link rel='stylesheet' href='//example.com/x.css'>", "index.html fetches //example.com/x.css"),
        ("<img src='x.png'>", "index.html fetches x.png, which is not there"),
    ],
)
def test_what_leads_nowhere_or_elsewhere_is_found(
    check: ModuleType, tmp_path: Path, html: str, fault: str | None
) -> None:
    (tmp_path / "index.html").write_text(html)
    (tmp_path / "other.html").write_text("<h1 id='here'>")
    assert list(check.faults_of(tmp_path)) == ([] if fault is None else [fault])


def test_no_site_is_a_fault(check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["check", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"has no index\.html"):
        check.main()

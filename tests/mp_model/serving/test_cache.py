"""Answers are kept for texts that come again, and are those that the model would give."""

from __future__ import annotations

import itertools

import pytest
import torch

from mp_model import Classifier
from mp_model.serving.cache import Cache
from mp_model.serving.classifier import Answer
from support import tiny, wordpiece

TEXTS = ["the rate", "a b c", "rate", "the the the a b", "b"]


def classifier(cache: int) -> Classifier:
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), exit_head="pooled", exit_layers=[0, 1, 2, 3])
    return Classifier(model, wordpiece.tokenizer(), cache)


def assert_same(got: list[Answer], expected: list[Answer]) -> None:
    """The same answers, but for last digits, which go by the texts of a batch."""
    assert [answer.exit_layer for answer in got] == [answer.exit_layer for answer in expected]
    for one, other in zip(got, expected, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


def count_texts(one: Classifier, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of texts of each piece that is tokenised from now on."""
    counts: list[int] = []
    tokenise = one.tokenise

    def counting(texts: list) -> object:
        counts.append(len(texts))
        return tokenise(texts)

    monkeypatch.setattr(one, "tokenise", counting)
    return counts


def test_without_a_cache_every_text_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    one = classifier(0)
    counts = count_texts(one, monkeypatch)
    assert one(TEXTS) == one(TEXTS)
    assert (counts, one.cache) == ([5, 5], None)


def test_texts_that_come_again_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one = classifier(100)
    counts = count_texts(one, monkeypatch)
    first = one(TEXTS, exit_threshold=0.5)
    assert_same(first, classifier(0)(TEXTS, exit_threshold=0.5))
    assert one([*reversed(TEXTS), "c"], exit_threshold=0.5)[:5] == first[::-1]
    assert one(TEXTS, exit_threshold=0.5) == first
    assert counts == [5, 1]
    one.cache.clear()
    one(TEXTS, exit_threshold=0.5)
    assert counts == [5, 1, 5]


def test_other_thresholds_are_other_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    one = classifier(100)
    counts = count_texts(one, monkeypatch)
    by_text = torch.tensor([0.0, 1.0, 0.0, 1.0, 1.0])
    for threshold, computed in (("never", 5), (1.0, 5), ([0.5] * 4, 5), (by_text, 5), (by_text.flip(0), 2), (1.0, 0)):
        counts.clear()
        assert_same(one(TEXTS, exit_threshold=threshold), classifier(0)(TEXTS, exit_threshold=threshold))
        assert sum(counts) == computed
    one.model.config.prune_thresholds = [0.1] * 4
    counts.clear()
    one(TEXTS, exit_threshold=1.0)
    assert counts == [5]


def test_a_stream_keeps_its_order_and_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    one = classifier(3)
    texts = list(itertools.islice(itertools.cycle(TEXTS[:3]), 300)) + TEXTS
    expected = dict(zip(TEXTS, classifier(0)(TEXTS, exit_threshold=0.3), strict=True))
    counts = count_texts(one, monkeypatch)
    answers = list(one.stream(iter(texts), window=16, exit_threshold=0.3))
    assert [answer.label for answer in answers] == [expected[text].label for text in texts]
    assert [answer.exit_layer for answer in answers] == [expected[text].exit_layer for text in texts]
    assert sum(counts) < 100
    assert len(one.cache) == 3


def test_pairs_have_answers_of_their_own() -> None:
    one = classifier(10)
    one(["the rate"])
    assert one([("the", "rate")])[0].tokens > one(["the rate"])[0].tokens


def test_the_value_that_was_not_used_for_longest_goes() -> None:
    cache: Cache[int] = Cache(2)
    for number, key in enumerate("ab"):
        cache.put(key, number)
    assert cache.get("a") == 0
    cache.put("c", 2)
    assert [cache.get(key) for key in "abc"] == [0, None, 2]


def test_a_size_that_is_none() -> None:
    with pytest.raises(ValueError, match="cache must be a number of answers, 0 or more; got -1"):
        classifier(-1)

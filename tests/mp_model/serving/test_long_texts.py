"""Texts longer than a model's positions are answered by windows as if each window had been answered by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

import mp_kernels
from mp_model import Answer, Classifier, PyramidBertForSequenceClassification
from mp_model.data.batches import Text
from mp_model.data.windows import Windows
from mp_model.serving import classifier as serving
from support import tiny, wordpiece
from support.situations import situation

WIDTH = 24
TOKENIZER = wordpiece.tokenizer(WIDTH)
TOKENIZER.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT's own has them


def words(count: int, seed: int) -> str:
    """Words of which every dozen is drawn from two others, so that windows differ."""
    draw = random.Random(seed)
    two = [draw.sample(["the", "rate", ".", "!", *wordpiece.LETTERS], 2) for _ in range(0, count, 12)]
    return " ".join(draw.choice(two[place // 12]) for place in range(count))


TEXTS: list[Text] = [
    words(count, seed) for seed, count in enumerate((3, 90, 22, 23, 0, 60, 300, 10, 41, 120, 75, 50, 200, 64, 99, 33))
]
PAIRS: list[Text] = [(words(a, a), words(b, b + 7)) for a, b in ((2, 90), (50, 4), (3, 4), (30, 31), (60, 0))]
THRESHOLDS = (None, "never", 0.6, 0.8, [0.3, 0.7, 0.6])


@pytest.fixture(scope="module")
def model() -> PyramidBertForSequenceClassification:
    names = {0: "sport", 1: "money", 2: "weather"}
    settings = {"prune_thresholds": [0.01, 0.02, 0.02, 0.02], "exit_threshold": 0.7}
    return tiny.classifier(4, vocab_size=len(wordpiece.VOCABULARY), id2label=names, **settings)


@torch.no_grad()
def by_hand(model: PyramidBertForSequenceClassification, text: Text, threshold: object = None) -> tuple[Answer, int]:
    """The answer of one text, a window at a time, and the number of windows that it took."""
    at = model.config.resolved_exit_threshold(threshold)
    logits, tokens, flops = [], 0, 0
    for window in Windows(TOKENIZER, WIDTH).of(text):
        types = torch.tensor([window.types])
        out = model(torch.tensor([window.ids]), token_type_ids=types, exit_threshold=threshold)
        logits.append(out.logits[0])
        tokens, flops = tokens + len(window.ids), flops + int(out.executed_flops)
        mean = torch.stack(logits).mean(0)
        several = model.config.problem_type == "multi_label_classification"
        uncertainty = float((mp_kernels.label_entropy if several else mp_kernels.normalized_entropy)(mean[None]))
        layer = int(out.exit_layer)
        if at is not None and uncertainty <= at[min(layer, len(at)) - 1]:
            break
    chances = mean.sigmoid() if several else mean.softmax(0)
    scores = dict(zip(model.config.label_names, chances.tolist(), strict=True))
    label = max(scores, key=lambda name: scores[name])
    return Answer(label, scores[label], scores, layer, uncertainty, tokens, flops), len(logits)


def windows_of(text: Text) -> int:
    return len(list(Windows(TOKENIZER, WIDTH).of(text)))


def assert_same(answers: Sequence[Answer], expected: Sequence[Answer]) -> None:
    for ours, theirs in zip(answers, expected, strict=True):
        mine, wanted = ours.as_dict(), theirs.as_dict()
        assert mine.pop("scores") == pytest.approx(wanted.pop("scores"), abs=1e-5)
        assert mine == pytest.approx(wanted, abs=1e-5)


@situation(
    "file",
    "texts longer than the model's positions, with `--long-texts windows`",
    "each is read in windows until it is certain, and gets one answer, in its place; by default it is cut, and how many "
    "were is said",
)
@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("threshold", THRESHOLDS, ids=str)
def test_answers_are_those_of_windows_by_hand(
    model: PyramidBertForSequenceClassification, texts: list[Text], threshold: object
) -> None:
    classifier = Classifier(model, TOKENIZER, long_texts="windows")
    expected, windows = zip(*(by_hand(model, text, threshold) for text in texts), strict=True)
    if threshold == "never":
        assert windows == tuple(map(windows_of, texts))
    assert_same(classifier(texts, threshold), expected)
    assert_same(list(classifier.stream(texts, 8, threshold)), expected)
    assert classifier.longer == 2 * sum(windows_of(text) > 1 for text in texts)


def test_texts_stop_where_they_are_certain(model: PyramidBertForSequenceClassification) -> None:
    read = [(by_hand(model, text)[1], windows_of(text)) for text in TEXTS]
    kinds = {"at once" if n == 1 < of else "later" if n < of else "whole" for n, of in read if of > 1}
    assert kinds == {"at once", "later", "whole"}


@pytest.mark.parametrize("budget", [1, 50, 10_000])
@pytest.mark.parametrize("window", [1, 4, 1024])
def test_streams_of_long_and_short_texts(
    model: PyramidBertForSequenceClassification, window: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "BUDGET", budget)
    texts = [*TEXTS, *TEXTS[::-1]]
    classifier = Classifier(model, TOKENIZER, long_texts="windows")
    assert_same(list(classifier.stream(texts, window)), [by_hand(model, text)[0] for text in texts])


@pytest.mark.parametrize("chunk", [4, 256])
def test_thresholds_of_the_texts_own(
    model: PyramidBertForSequenceClassification, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "CHUNK", chunk)
    classifier = Classifier(model, TOKENIZER, long_texts="windows")
    thresholds = torch.linspace(0.4, 1, len(TEXTS))
    expected = [by_hand(model, text, float(own))[0] for text, own in zip(TEXTS, thresholds, strict=True)]
    assert_same(classifier(TEXTS, thresholds), expected)


def test_kept_answers_are_those_of_whole_texts(model: PyramidBertForSequenceClassification) -> None:
    classifier = Classifier(model, TOKENIZER, cache=100, long_texts="windows")
    expected = [by_hand(model, text)[0] for text in TEXTS]
    assert_same(classifier(TEXTS), expected)
    longer = classifier.longer
    assert_same(classifier(TEXTS[::-1]), expected[::-1])
    assert classifier.longer == longer


def test_texts_are_cut_unless_windows_are_asked_for(model: PyramidBertForSequenceClassification) -> None:
    cut = Classifier(model, TOKENIZER)
    first = [next(Windows(TOKENIZER, WIDTH).of(text)) for text in TEXTS]
    assert [answer.tokens for answer in cut(TEXTS)] == [len(window.ids) for window in first]
    assert cut.longer == sum(windows_of(text) > 1 for text in TEXTS)
    with pytest.raises(ValueError, match="long_texts must be one of 'cut', 'windows'; got 'whole'"):
        Classifier(model, TOKENIZER, long_texts="whole")
    with pytest.raises(ValueError, match="long_texts must be one of 'cut', 'windows'; got 'whole'"):
        Classifier.load("nowhere", long_texts="whole")


def test_values_and_several_labels_are_read_to_the_end() -> None:
    for settings in ({"num_labels": 1}, {"problem_type": "multi_label_classification"}):
        model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), **settings)
        text = TEXTS[6]
        rows = [torch.tensor([window.ids]) for window in Windows(TOKENIZER, WIDTH).of(text)]
        with torch.no_grad():
            mean = torch.stack([model(row).logits[0] for row in rows]).mean(0)
        (answer,) = Classifier(model, TOKENIZER, long_texts="windows")([text])
        expected = mean if "num_labels" in settings else mean.sigmoid()
        assert list(answer.scores.values()) == pytest.approx(expected.tolist(), abs=1e-5)
        assert answer.tokens == sum(row.shape[1] for row in rows)
        assert (answer.uncertainty is None) == ("num_labels" in settings)


def test_several_labels_are_read_until_all_are_certain() -> None:
    settings = {"problem_type": "multi_label_classification", "exit_threshold": 0.97}
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), **settings)
    expected, windows = zip(*(by_hand(model, text) for text in TEXTS), strict=True)
    assert_same(Classifier(model, TOKENIZER, long_texts="windows")(TEXTS), expected)
    assert any(1 < count < windows_of(text) for count, text in zip(windows, TEXTS, strict=True))

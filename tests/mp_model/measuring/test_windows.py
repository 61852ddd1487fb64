"""Texts in windows are measured as the classifier answers them, though every window was read once, without exits."""

from __future__ import annotations

import math
import random

import pytest
import torch

from mp_model import Classifier, PyramidBertForSequenceClassification
from mp_model.data.batches import length_sorted_batches
from mp_model.data.windows import Windows
from mp_model.measuring.all_exits import read_all_exits
from mp_model.measuring.evaluation import evaluate
from mp_model.measuring.windows import ExitsOfWindows
from support import tiny, wordpiece

WIDTH = 24
TOKENIZER = wordpiece.tokenizer(WIDTH)


def words(count: int, seed: int) -> str:
    draw = random.Random(seed)
    two = [draw.sample(["the", "rate", ".", "!", *wordpiece.LETTERS], 2) for _ in range(0, count, 12)]
    return " ".join(draw.choice(two[place // 12]) for place in range(count))


TEXTS = [words(count, seed) for seed, count in enumerate((3, 90, 22, 23, 1, 60, 300, 10, 41, 120, 75, 50, 200, 64))]
LABELS = [number % 3 for number in range(len(TEXTS))]


@pytest.fixture(scope="module", params=[None, 2, 1], ids=["all layers", "2", "1"])
def model(request: pytest.FixtureRequest) -> PyramidBertForSequenceClassification:
    settings = {"prune_thresholds": [0.01, 0.02, 0.02, 0.02], "exit_threshold": 0.7, "depth": request.param}
    return tiny.classifier(4, vocab_size=len(wordpiece.VOCABULARY), **settings)


@pytest.fixture(scope="module")
def exits(model: PyramidBertForSequenceClassification) -> ExitsOfWindows:
    rows, labels, text_of = [], [], []
    for number, text in enumerate(TEXTS):
        for window in Windows(TOKENIZER, WIDTH).of(text):
            rows.append({"input_ids": window.ids, "token_type_ids": window.types})
            labels.append(LABELS[number])
            text_of.append(number)
    read = read_all_exits(model, length_sorted_batches(rows, 8, 0), labels)
    return ExitsOfWindows(read, torch.tensor(text_of))


@pytest.mark.parametrize("threshold", [None, 0.7, 0.5, 1.0, [0.3, 0.7, 0.6]], ids=str)
def test_answers_are_the_classifiers(
    model: PyramidBertForSequenceClassification, exits: ExitsOfWindows, threshold: float | list[float] | None
) -> None:
    classifier = Classifier(model, TOKENIZER, long_texts="windows")
    expected = classifier(TEXTS, "never" if threshold is None else threshold)
    found = exits.answers(threshold)
    names = model.config.label_names
    assert [names[label] for label in found.predictions.tolist()] == [answer.label for answer in expected]
    assert found.exit_layer.tolist() == [answer.exit_layer for answer in expected]
    assert found.executed_flops.tolist() == [answer.flops for answer in expected]
    scores = exits.answered(found).softmax(-1)
    for row, answer in zip(scores, expected, strict=True):
        assert row.tolist() == pytest.approx(list(answer.scores.values()), abs=1e-5)
    read = torch.zeros(len(TEXTS), dtype=torch.int64).index_add_(0, exits.text_of, exits.windows.lengths * found.read)
    assert read.tolist() == [answer.tokens for answer in expected]


def test_an_evaluation(model: PyramidBertForSequenceClassification, exits: ExitsOfWindows) -> None:
    found = evaluate(exits, 0.7, (WIDTH, 100))
    answers = exits.answers(0.7)
    assert found.texts == len(TEXTS)
    assert found.accuracy == pytest.approx((answers.predictions == torch.tensor(LABELS)).double().mean().item())
    assert sum(found.exits) == len(TEXTS)
    assert [bucket.texts for bucket in found.buckets] == [
        int((exits.lengths <= WIDTH).sum()),
        int(((exits.lengths > WIDTH) & (exits.lengths <= 100)).sum()),
        int((exits.lengths > 100).sum()),
    ]
    assert found.dense_gflops == pytest.approx(exits.dense_flops.double().mean().item() / 1e9)
    # Of the windows that were read and went through layer 4, the survivors of layer 1 over their tokens.
    rows = answers.read & (answers.of_windows.exit_layer > 1)
    kept = exits.windows.survivors[rows, 0].sum() / exits.windows.lengths[rows].sum()
    assert (found.tokens_kept[0] or math.nan) == pytest.approx(kept.item(), nan_ok=True)

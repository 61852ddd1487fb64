"""A stream of texts gets the answers that the model gives to each text alone, in input order."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence

import pytest
import torch

from mp_model import PyramidBertForSequenceClassification
from mp_model.data.batches import Text, encode
from mp_model.serving.classifier import Answer, classify_stream
from support import tiny, wordpiece

TOKENIZER = wordpiece.tokenizer()
TEXTS = wordpiece.texts(23)
PAIRS = list(zip(TEXTS, TEXTS[9:] + TEXTS[:9], strict=True))


@pytest.fixture(scope="module")
def model() -> PyramidBertForSequenceClassification:
    """Prunes and lets samples leave at thresholds that lie away from every text's values, so rounding decides nothing."""
    names = {0: "sport", 1: "money", 2: "weather"}
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), id2label=names)
    rows = encode(TOKENIZER, TEXTS, 64) + encode(TOKENIZER, PAIRS, 64)
    batch = tiny.Batch(*([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "token_type_ids")))
    tiny.calibrate_pruning(model, batch)
    nobody_leaves = dict.fromkeys(model.config.resolved_exit_layers(), 0.0)
    answers = tiny.define(model, batch, nobody_leaves)
    model.config.exit_threshold = tiny.one_exit_threshold([answer.uncertainties for answer in answers])
    return model


@torch.no_grad()
def one_at_a_time(model: PyramidBertForSequenceClassification, texts: Sequence[Text]) -> list[Answer]:
    answers = []
    for text in texts:
        (row,) = encode(TOKENIZER, [text], 64)
        out = model(**{name: torch.tensor([values]) for name, values in row.items()})
        scores = out.logits[0].softmax(0)
        answers.append(
            Answer(
                label=model.config.id2label[int(scores.argmax())],
                score=float(scores.max()),
                exit_layer=int(out.exit_layer),
                uncertainty=float(out.uncertainty),
                tokens=len(row["input_ids"]),
                flops=int(out.executed_flops),
            )
        )
    return answers


def assert_same(answers: Sequence[Answer], expected: Sequence[Answer]) -> None:
    assert len(answers) == len(expected)
    for ours, theirs in zip(answers, expected, strict=True):
        assert ours.as_dict() == pytest.approx(theirs.as_dict(), abs=1e-5)


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize(("batch_size", "window"), [(1, 1), (4, 7), (5, 5), (100, 3), (32, 1024)])
def test_answers_are_the_models(
    model: PyramidBertForSequenceClassification, texts: list[Text], batch_size: int, window: int
) -> None:
    expected = one_at_a_time(model, texts)
    assert len({answer.exit_layer for answer in expected}) > 1
    assert len({answer.label for answer in expected}) > 1
    assert max(answer.tokens for answer in expected) == 64
    assert_same(list(classify_stream(model, TOKENIZER, texts, batch_size=batch_size, window=window)), expected)


def test_the_callers_exit_threshold_goes_before_the_models(model: PyramidBertForSequenceClassification) -> None:
    patient = classify_stream(model, TOKENIZER, TEXTS, exit_threshold=0.0)
    assert {answer.exit_layer for answer in patient} == {4}
    only_the_second_exit = classify_stream(model, TOKENIZER, TEXTS, exit_threshold=[0.0, 1.0, 0.0])
    assert {answer.exit_layer for answer in only_the_second_exit} == {2}


def test_an_endless_stream_is_read_a_window_at_a_time(model: PyramidBertForSequenceClassification) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for text in itertools.cycle(TEXTS):
            taken += 1
            yield text

    answers = classify_stream(model, TOKENIZER, endless(), window=4)
    assert taken == 0
    five = list(itertools.islice(answers, 5))
    assert taken == 8
    assert_same(five, one_at_a_time(model, TEXTS[:5]))


def test_no_texts_no_answers(model: PyramidBertForSequenceClassification) -> None:
    assert list(classify_stream(model, TOKENIZER, [])) == []


def test_answers_are_json(model: PyramidBertForSequenceClassification) -> None:
    (answer,) = classify_stream(model, TOKENIZER, ["the rates"])
    assert json.loads(json.dumps(answer.as_dict())) == answer.as_dict()


@pytest.mark.parametrize(
    ("sizes", "got"),
    [({"batch_size": 0}, "0 and 1024"), ({"window": 0}, "32 and 0"), ({"batch_size": -1}, "-1 and 1024")],
)
def test_sizes_below_one_are_refused(
    model: PyramidBertForSequenceClassification, sizes: dict[str, int], got: str
) -> None:
    with pytest.raises(ValueError, match=f"batch_size and window must be at least 1; got {got}"):
        next(classify_stream(model, TOKENIZER, TEXTS, **sizes))

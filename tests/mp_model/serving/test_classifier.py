"""Texts get the answers that the model gives to each of them alone, in input order, from calls and from streams."""

from __future__ import annotations

import itertools
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline

from mp_model import Answer, Classifier, PyramidBertForSequenceClassification
from mp_model.data.batches import Text, encode
from mp_model.data.tokens import Tokeniser, Tokens
from mp_model.serving import classifier as serving
from mp_model.serving.read_ahead import ReadAhead
from support import tiny, wordpiece
from support.situations import situation

TOKENIZER = wordpiece.tokenizer()
TOKENIZER.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT's own has them
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


@pytest.fixture(scope="module")
def classifier(model: PyramidBertForSequenceClassification) -> Classifier:
    return Classifier(model, TOKENIZER)


@torch.no_grad()
def one_at_a_time(
    model: PyramidBertForSequenceClassification, texts: Sequence[Text], thresholds: Sequence[object] | None = None
) -> list[Answer]:
    answers = []
    for text, threshold in zip(texts, thresholds or [None] * len(texts), strict=True):
        (row,) = encode(TOKENIZER, [text], 64)
        out = model(**{name: torch.tensor([values]) for name, values in row.items()}, exit_threshold=threshold)
        scores = out.logits[0].softmax(0)
        answers.append(
            Answer(
                label=model.config.id2label[int(scores.argmax())],
                score=float(scores.max()),
                scores={model.config.id2label[n]: x for n, x in enumerate(scores.tolist())},
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
        mine, wanted = ours.as_dict(), theirs.as_dict()
        assert mine.pop("scores") == pytest.approx(wanted.pop("scores"), abs=1e-5)
        assert mine == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_a_call(classifier: Classifier, texts: list[Text], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = one_at_a_time(classifier.model, texts)
    assert len({answer.exit_layer for answer in expected}) > 1
    assert len({answer.label for answer in expected}) > 1
    assert max(answer.tokens for answer in expected) == 64
    assert_same(classifier(texts), expected)
    monkeypatch.setattr(serving, "CHUNK", 4)  # more texts than a chunk go through a thread that reads ahead
    assert_same(classifier(texts), expected)


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("budget", [1, 100, 10_000])
@pytest.mark.parametrize("window", [1, 3, 7, 1024])
def test_a_stream(
    classifier: Classifier, texts: list[Text], budget: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "BUDGET", budget)
    assert_same(list(classifier.stream(texts, window)), one_at_a_time(classifier.model, texts))


def test_exit_thresholds_of_a_call(classifier: Classifier) -> None:
    assert {answer.exit_layer for answer in classifier(TEXTS, "never")} == {4}
    assert {answer.exit_layer for answer in classifier(TEXTS, [0.0, 1.0, 0.0])} == {2}
    assert {answer.exit_layer for answer in classifier.stream(TEXTS, exit_threshold=1.0)} == {1}


@pytest.mark.parametrize("chunk", [4, 256])
def test_one_exit_threshold_a_text(classifier: Classifier, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "CHUNK", chunk)
    thresholds = [float(n % 2) for n in range(len(TEXTS))]
    answers = classifier(TEXTS, torch.tensor(thresholds))
    assert_same(answers, one_at_a_time(classifier.model, TEXTS, thresholds))
    assert {answer.exit_layer for answer in answers} == {1, 4}


@pytest.mark.parametrize(
    ("threshold", "message"),
    [
        (torch.rand(3), "one entry per text, \\[23\\]; got \\[3\\]"),
        (1.5, "must lie in \\[0, 1\\]"),
        ([0.5], "one number for each exit layer, 3; got 1"),
        ("always", "or None"),
    ],
)
def test_thresholds_that_cannot_be_followed(classifier: Classifier, threshold: object, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        classifier(TEXTS, threshold)
    if not isinstance(threshold, torch.Tensor):
        with pytest.raises((ValueError, TypeError), match=message):
            classifier.stream(TEXTS, exit_threshold=threshold)


def test_texts_that_cannot_be_read(classifier: Classifier) -> None:
    with pytest.raises(TypeError, match="put it into a list"):
        classifier("a text")
    with pytest.raises(ValueError, match=r"all single or all pairs; got both: texts\[1\]"):
        classifier(["one", ("one", "two")])
    with pytest.raises(ValueError, match="window must be at least 1; got 0"):
        classifier.stream(TEXTS, window=0)
    with pytest.raises(TypeError, match="exit_threshold of a stream"):
        classifier.stream(TEXTS, exit_threshold=torch.rand(len(TEXTS)))
    for unordered in ({"text": "a"}, {"a", "b"}):
        with pytest.raises(TypeError, match=r"texts must be a list of texts; got a single (dict|set)"):
            classifier(unordered)


@pytest.mark.parametrize("window", [1, 4, 16])
def test_an_endless_stream_is_read_a_window_at_a_time(classifier: Classifier, window: int) -> None:
    taken, most = 0, 0

    def endless() -> Iterator[str]:
        nonlocal taken
        for text in itertools.cycle(TEXTS):
            taken += 1
            yield text

    answers = classifier.stream(endless(), window=window)
    assert taken == 0, "nothing is read before somebody asks for answers"
    found = []
    for number, answer in enumerate(itertools.islice(answers, 40)):
        found.append(answer)
        most = max(most, taken - number)
    assert_same(found, one_at_a_time(classifier.model, list(itertools.islice(itertools.cycle(TEXTS), 40))))
    assert most <= max(window, 6)
    answers.close()


def test_answers_do_not_wait_for_texts_that_do_not_come(classifier: Classifier) -> None:
    """Somebody types three lines and looks at the screen; a piece could hold many more."""
    go_on = threading.Event()

    def typed() -> Iterator[str]:
        yield from TEXTS[:3]
        assert go_on.wait(60)
        yield from TEXTS[3:5]

    answers = classifier.stream(typed())
    first = [next(answers) for _ in range(3)]
    go_on.set()
    assert_same([*first, *answers], one_at_a_time(classifier.model, TEXTS[:5]))


def test_an_error_of_the_texts_comes_after_the_answers_before_it(classifier: Classifier) -> None:
    def broken() -> Iterator[str]:
        yield from TEXTS[:4]
        raise OSError("the disk is gone")

    answers = classifier.stream(broken(), window=4)
    assert_same([next(answers) for _ in range(4)], one_at_a_time(classifier.model, TEXTS[:4]))
    with pytest.raises(OSError, match="the disk is gone"):
        next(answers)


NO_TEXTS = {
    "None": (None, TypeError, "must be a str or a pair of them, (str, str); got None"),
    "bytes": (b"hi", TypeError, "must be a str or a pair of them, (str, str); got b'hi'"),
    "a list": (["a", "b"], TypeError, "must be a str or a pair of them, (str, str); got ['a', 'b']"),
    "three": (("a", "b", "c"), TypeError, "must be a str or a pair of them, (str, str); got ('a', 'b', 'c')"),
    "a pair with None": (("a", None), TypeError, "must be a str or a pair of them, (str, str); got ('a', None)"),
    "a number": (3.5, TypeError, "must be a str or a pair of them, (str, str); got 3.5"),
    "half a character": ("so \ud83d", ValueError, "holds '\\ud83d', a lone surrogate, which is half a character"),
}


@situation("run", "an item that is no text among the texts of a call", "named by its place before anything is computed")
@pytest.mark.parametrize("kind", NO_TEXTS)
def test_items_that_are_no_texts(classifier: Classifier, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    item, error, message = NO_TEXTS[kind]
    monkeypatch.setattr(classifier, "tokenise", None)  # nothing may be tokenised
    for texts, place in ((TEXTS[:5], 3), (TEXTS * 20, 400)):
        with pytest.raises(error, match=re.escape(f"texts[{place}] {message}")):
            classifier([*texts[:place], item, *texts[place:]])


@situation("run", "the same in a stream", "the texts before it are answered first")
@pytest.mark.parametrize("kind", NO_TEXTS)
@pytest.mark.parametrize("window", [4, 1024])
def test_items_of_a_stream_that_are_no_texts(classifier: Classifier, kind: str, window: int) -> None:
    item, error, message = NO_TEXTS[kind]
    answers = classifier.stream([*TEXTS[:6], item, *TEXTS], window)
    assert_same([next(answers) for _ in range(6)], one_at_a_time(classifier.model, TEXTS[:6]))
    with pytest.raises(error, match=re.escape(f"texts[6] {message}")):
        next(answers)


def test_texts_of_other_collections(classifier: Classifier) -> None:
    expected = classifier(TEXTS)
    assert_same(classifier(tuple(TEXTS)), expected)
    assert_same(classifier(np.array(TEXTS)), expected)
    assert_same(classifier(text for text in TEXTS), expected)


# Kinds of tasks


def scores_by(model: PyramidBertForSequenceClassification, function: Callable[[torch.Tensor], torch.Tensor]) -> list:
    """The definition's logits of the texts as scores, by label, without exits."""
    rows = encode(TOKENIZER, TEXTS, 64)
    batch = tiny.Batch(*([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "token_type_ids")))
    return [
        dict(zip(model.config.label_names, function(answer.logits).tolist(), strict=True))
        for answer in tiny.define(model, batch)
    ]


@situation(
    "checkpoint",
    "a model for several labels a text",
    "a probability of its own for each label, as a pipeline's; its exits open",
)
def test_several_labels(tmp_path: Path) -> None:
    names = {0: "sport", 1: "money", 2: "weather"}
    settings = {"vocab_size": len(wordpiece.VOCABULARY), "id2label": names, "prune_thresholds": [0.01] * 4}
    model = tiny.classifier(problem_type="multi_label_classification", **settings)
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    answers = Classifier.load(tmp_path)(TEXTS)
    stock = pipeline("text-classification", model=str(tmp_path), truncation=True, max_length=64, top_k=None)
    for answer, expected, theirs in zip(answers, scores_by(model, torch.sigmoid), stock(TEXTS), strict=True):
        assert answer.scores == pytest.approx(expected, abs=1e-5)
        assert answer.scores == pytest.approx({row["label"]: row["score"] for row in theirs}, abs=1e-5)
        assert answer.score == answer.scores[answer.label] == max(answer.scores.values())
        assert answer.uncertainty == pytest.approx(max(map(binary_entropy, answer.scores.values())), abs=1e-5)
    assert any(abs(sum(answer.scores.values()) - 1) > 0.1 for answer in answers)


def binary_entropy(p: float) -> float:
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


def test_several_labels_leave_where_all_are_certain() -> None:
    """Thresholds for all texts, for each layer, for each text; every way of answering gives what the model gives."""
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), problem_type="multi_label_classification")
    classifier = Classifier(model, TOKENIZER)
    rows = encode(TOKENIZER, TEXTS, 64)
    left = set()
    for threshold in (0.9, [0.99, 0.9, 0.8], torch.linspace(0.5, 1, len(TEXTS))):
        answers = classifier(TEXTS, threshold)
        for place, (answer, row) in enumerate(zip(answers, rows, strict=True)):
            own = threshold[place : place + 1] if isinstance(threshold, torch.Tensor) else threshold
            ids, types = (torch.tensor([row[name]]) for name in ("input_ids", "token_type_ids"))
            with torch.no_grad():
                out = model(ids, token_type_ids=types, exit_threshold=own)
            assert answer.exit_layer == int(out.exit_layer)
            assert list(answer.scores.values()) == pytest.approx(out.logits.sigmoid()[0].tolist(), abs=1e-5)
            assert answer.uncertainty == pytest.approx(float(out.uncertainty), abs=1e-5)
            left.add(answer.exit_layer)
    assert len(left) > 2


@situation("checkpoint", "a model for regression", "the value itself, and null for its uncertainty")
@pytest.mark.parametrize("settings", [{"num_labels": 1}, {"num_labels": 2, "problem_type": "regression"}], ids=str)
def test_values(settings: dict) -> None:
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY), **settings)
    with torch.no_grad():
        model.classifier.bias += 3.7
    answers = Classifier(model, TOKENIZER)(TEXTS)
    for answer, expected in zip(answers, scores_by(model, lambda logits: logits), strict=True):
        assert answer.scores == pytest.approx(expected, abs=1e-4)
        assert answer.score == answer.scores[answer.label] == max(answer.scores.values())
    assert max(answer.score for answer in answers) > 1
    row = json.loads(json.dumps(answers[0].as_dict(), allow_nan=False))
    assert row["uncertainty"] is None
    assert row["label"] in model.config.label_names


@situation("run", "a model that computes NaN for a text", "an error that names the text, after the answers before it")
@pytest.mark.parametrize("exit_threshold", ["never", 0.0])
def test_answers_that_are_no_numbers(exit_threshold: object) -> None:
    model = tiny.classifier(vocab_size=len(wordpiece.VOCABULARY))
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[wordpiece.VOCABULARY.index("rate")] = float("nan")
    classifier = Classifier(model, TOKENIZER)
    texts = ["the", "the the", "the rate", "the"]
    message = r"the model's answer to texts\[2\] is NaN or infinite"
    with pytest.raises(ValueError, match=message):
        classifier(texts, exit_threshold)
    answers = classifier.stream(texts, exit_threshold=exit_threshold)
    assert_same([next(answers), next(answers)], classifier(texts[:2], exit_threshold))
    with pytest.raises(ValueError, match=message):
        next(answers)


def test_no_texts_no_answers(classifier: Classifier) -> None:
    assert classifier([]) == []
    assert list(classifier.stream([])) == []


def test_answers_are_json(classifier: Classifier) -> None:
    (answer,) = classifier(["the rates"])
    assert json.loads(json.dumps(answer.as_dict())) == answer.as_dict()
    assert sum(answer.scores.values()) == pytest.approx(1)
    assert answer.scores[answer.label] == answer.score == max(answer.scores.values())


def test_a_saved_folder(classifier: Classifier, tmp_path: Path) -> None:
    classifier.model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    assert_same(Classifier.load(tmp_path)(TEXTS), classifier(TEXTS))
    with pytest.raises(ValueError, match="precision must be"):
        Classifier.load(tmp_path, precision="float8")
    for precision in ("auto", "int8"):
        with pytest.raises(ValueError, match="'abacus' cannot be used here: PyTorch finds cpu"):
            Classifier.load(tmp_path, precision, device="abacus")
    with pytest.raises(ValueError, match=r"a folder with config\.json"):
        Classifier.load(tmp_path / "nothing")


def test_bfloat16_needs_a_processor_for_it(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier.model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert Classifier.load(tmp_path, precision="bfloat16").model.dtype == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.raises(ValueError, match="without which bfloat16 is slower than float32"):
        Classifier.load(tmp_path, precision="bfloat16")


class Slow:
    """A tokenizer without a Rust object behind it."""

    is_fast = False
    model_input_names = TOKENIZER.model_input_names

    def __call__(self, *arguments: object, **options: object) -> object:
        return TOKENIZER(*arguments, **options)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, Slow()], ids=["fast", "slow"])
@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
def test_token_ids_are_the_tokenizers(tokenizer: object, texts: list[Text]) -> None:
    tokens, rows = Tokeniser(tokenizer, 30)(texts), encode(TOKENIZER, texts, 30)
    assert tokens.lengths.tolist() == [len(row["input_ids"]) for row in rows]
    assert tokens.ids.tolist() == [token for row in rows for token in row["input_ids"]]
    types = [kind for row in rows for kind in row["token_type_ids"]]
    assert types == ([0] * len(types) if tokens.types is None else tokens.types.tolist())
    assert (tokens.types is None) == (texts is TEXTS)
    whole = Tokeniser(tokenizer, 500)(texts).lengths
    assert tokens.cut is not None
    assert tokens.cut.tolist() == (whole > 30).tolist()
    assert Tokeniser(tokenizer, 500)(texts).cut is None


def test_slices_of_tokens() -> None:
    lengths = np.array([5, 3, 9, 1, 1, 4])
    tokens = Tokens(np.arange(23), None, lengths, lengths > 5)
    slices = tokens.slices(8)
    assert [(x.start, x.stop) for x in slices] == [(0, 2), (2, 3), (3, 6)]
    parts = [tokens[x] for x in slices]
    assert [part.ids.tolist() for part in parts] == [list(range(8)), list(range(8, 17)), list(range(17, 23))]
    assert [part.lengths.tolist() for part in parts] == [[5, 3], [9], [1, 1, 4]]
    assert [part.cut.tolist() for part in parts if part.cut is not None] == [[False, False], [True], [False] * 3]
    assert Tokens(np.arange(0), None, np.arange(0)).slices(8) == []


def test_reading_ahead() -> None:
    made = []

    def source() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number

    ahead = ReadAhead(source(), ahead=2)
    deadline = time.monotonic() + 30
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.01)
    assert made == [0, 1, 2], "two wait and one is in the maker's hands"
    assert [ahead.take() for _ in range(6)] == [[0], [1], [2], [3], [4], []]


def test_taking_all_that_is_there() -> None:
    go_on = threading.Event()

    def source() -> Iterator[int]:
        yield from range(5)
        assert go_on.wait(60)
        yield 5
        raise OSError("gone")

    ahead = ReadAhead(source(), ahead=10)
    taken = []
    while len(taken) < 5:
        taken += ahead.take(3)
    assert taken == [0, 1, 2, 3, 4]
    assert ahead.take(timeout=0.001) is None
    go_on.set()
    assert ahead.take(3) == [5]
    with pytest.raises(OSError, match="gone"):
        ahead.take()
    waiting = ReadAhead(iter(go_on.wait, False), ahead=1)
    waiting.close()
    assert list(waiting.pieces(2)) in ([], [[True]])

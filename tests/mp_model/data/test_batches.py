"""Texts into token ids, and those into padded batches of similar length."""

from __future__ import annotations

import pytest
import torch

from mp_model.data.batches import encode, length_sorted_batches
from support import wordpiece

TOKENIZER = wordpiece.tokenizer()
PAD = 99  # unlike [PAD] no token, so that what it fills can be told apart


def encoded(*lengths: int) -> list[dict[str, list[int]]]:
    """Rows of these lengths, told apart by their ids."""
    return [{"input_ids": [10 + i] * n, "token_type_ids": [i % 2] * n} for i, n in enumerate(lengths)]


def ids(*pieces: str) -> list[int]:
    return [wordpiece.VOCABULARY.index(piece) for piece in pieces]


def test_encode_single_texts() -> None:
    rows = encode(TOKENIZER, ["The rates", "", "ab"], 64)
    assert [row["input_ids"] for row in rows] == [
        ids("[CLS]", "the", "rate", "##s", "[SEP]"),
        ids("[CLS]", "[SEP]"),
        ids("[CLS]", "a", "##b", "[SEP]"),
    ]
    assert [row["token_type_ids"] for row in rows] == [[0] * 5, [0] * 2, [0] * 4]


def test_encode_pairs() -> None:
    rows = encode(TOKENIZER, [("the", "rates"), ("a", "")], 64)
    assert [row["input_ids"] for row in rows] == [
        ids("[CLS]", "the", "[SEP]", "rate", "##s", "[SEP]"),
        ids("[CLS]", "a", "[SEP]", "[SEP]"),
    ]
    assert [row["token_type_ids"] for row in rows] == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1]]


def test_encode_cuts_to_max_length() -> None:
    single, short = encode(TOKENIZER, ["the " * 100, "the"], 9)
    assert single["input_ids"] == ids("[CLS]", *["the"] * 7, "[SEP]")
    assert short["input_ids"] == ids("[CLS]", "the", "[SEP]")

    (pair,) = encode(TOKENIZER, [("a " * 100, "the the")], 9)
    assert pair["input_ids"] == ids("[CLS]", *"aaaa", "[SEP]", "the", "the", "[SEP]")
    assert pair["token_type_ids"] == [0] * 6 + [1] * 3


def test_encode_refuses_single_texts_among_pairs() -> None:
    with pytest.raises(ValueError, match="texts must be all single or all pairs; got both"):
        encode(TOKENIZER, ["a", ("b", "c")], 64)


@pytest.mark.parametrize("text", [None, b"a", 1.5, ["a", "b"], ("a",), ("a", None), ("a", "b", "c")])
def test_encode_refuses_what_is_no_text(text: object) -> None:
    with pytest.raises(TypeError, match="a text must be a str, and a pair of texts a tuple of two; got "):
        encode(TOKENIZER, ["a", text], 64)  # type: ignore[list-item]


def test_nothing_gives_nothing() -> None:
    assert encode(TOKENIZER, [], 64) == []
    assert list(length_sorted_batches([], 4, PAD)) == []


def test_similar_lengths_share_a_batch_and_long_ones_come_first() -> None:
    batches = list(length_sorted_batches(encoded(3, 9, 1, 5, 9, 2, 4), 3, PAD))
    assert [batch.places for batch in batches] == [[1, 4, 3], [6, 0, 5], [2]]
    assert [batch.inputs["input_ids"].shape for batch in batches] == [(3, 9), (3, 4), (1, 1)]


def test_padding() -> None:
    (batch,) = length_sorted_batches(encoded(2, 4, 3), 8, PAD)
    assert batch.places == [1, 2, 0]
    assert batch.inputs["input_ids"].tolist() == [[11, 11, 11, 11], [12, 12, 12, PAD], [10, 10, PAD, PAD]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch.inputs["token_type_ids"].tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert {x.dtype for x in batch.inputs.values()} == {torch.int64}


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_every_text_is_in_one_batch(batch_size: int) -> None:
    rows = encode(TOKENIZER, wordpiece.texts(30), 64)
    places = []
    for batch in length_sorted_batches(rows, batch_size, PAD):
        assert len(batch.places) <= batch_size
        places += batch.places
        for place, row, mask in zip(
            batch.places, batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True
        ):
            assert row[mask.bool()].tolist() == rows[place]["input_ids"]
    assert sorted(places) == list(range(30))

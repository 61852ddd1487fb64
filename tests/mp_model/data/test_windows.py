"""Windows over long texts hold all of their tokens, each with a quarter of the one before and a text's special tokens."""

from __future__ import annotations

import itertools
import random

import pytest

from mp_model.data.batches import encode
from mp_model.data.tokens import Tokeniser
from mp_model.data.windows import OVERLAP, UNBROKEN, Windows, parts_of, tokens_of, with_windows
from support import wordpiece

TOKENIZER = wordpiece.tokenizer()
CLS, SEP = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id


def words(count: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(["the", "rate", "cab", "a", "b"], k=count))


def ids_of(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("count", [0, 1, 8, 10, 11, 14, 15, 100, 3000])
def test_windows_of_a_text(count: int) -> None:
    text = words(count)
    ids, room, step = ids_of(text), 10, 10 - 10 // OVERLAP
    found = list(Windows(TOKENIZER, room + 2).of(text))
    starts = range(0, max(1, len(ids) - (room - step)), step)
    assert [window.ids for window in found] == [[CLS, *ids[start : start + room], SEP] for start in starts]
    assert [window.types for window in found] == [[0] * len(window.ids) for window in found]


def test_the_first_window_is_what_is_left_of_a_text_that_is_cut() -> None:
    texts = [words(count, count) for count in (3, 30, 300)]
    for text, row in zip(texts, encode(TOKENIZER, texts, 20), strict=True):
        assert next(Windows(TOKENIZER, 20).of(text)).ids == row["input_ids"]


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("short", "long"), [(2, 60), (0, 60), (40, 60), (3, 9)])
def test_windows_of_a_pair(short: int, long: int, swapped: bool) -> None:
    texts = (words(short, 1), words(long, 2))
    room = 21
    other = ids_of(texts[0])[: room // 2]
    ids = ids_of(texts[1])
    pair = texts[::-1] if swapped else texts
    seen: list[int] = []
    for window in Windows(TOKENIZER, room + 3).of(pair):
        parts = window.ids[1 : window.ids.index(SEP)], window.ids[window.ids.index(SEP) + 1 : -1]
        assert window.types == [0] * (len(parts[0]) + 2) + [1] * (len(parts[1]) + 1)
        assert len(window.ids) <= room + 3
        kept, stretch = parts[::-1] if swapped else parts
        assert kept == other
        begin = next(place for place in range(len(seen) + 1) if seen[place:] == stretch[: len(seen) - place])
        seen = seen[:begin] + stretch
    assert seen == ids


def test_a_short_pair_is_encoded_as_ever() -> None:
    pair = ("the cab", "a rate b")
    (row,) = encode(TOKENIZER, [pair], 64)
    (window,) = Windows(TOKENIZER, 64).of(pair)
    assert window._asdict() == {"ids": row["input_ids"], "types": row["token_type_ids"]}


def test_a_text_is_tokenised_as_its_windows_are_taken() -> None:
    windows = Windows(TOKENIZER, 12)
    asked = []
    encode_part = windows.backend.encode

    class Counting:
        def encode(self, part: str, **options: bool) -> object:
            asked.append(len(part))
            return encode_part(part, **options)

    windows.backend = Counting()
    next(windows.of(words(100_000)))
    assert sum(asked) < 300


def test_parts_end_before_blanks() -> None:
    text = words(500) + " " * 50 + "x" * (UNBROKEN * 20) + " y"
    parts = list(parts_of(text, 20))
    assert "".join(parts) == text
    assert max(map(len, parts)) <= UNBROKEN * 20
    for part, following in itertools.pairwise(parts[:-2]):
        assert following[0] == " "
        assert not part[-1].isspace()
    assert [len(part) for part in parts_of("x" * 1000, 20)] == [320, 320, 320, 40]
    assert list(parts_of("", 20)) == []


def test_windows_take_the_places_of_texts() -> None:
    texts = ["the cab", words(50), "a"]
    tokens = Tokeniser(TOKENIZER, 12)(texts)
    window = list(Windows(TOKENIZER, 12).of(texts[1]))[-1]
    replaced = with_windows(tokens, {1: window})
    rows = [replaced[slice(place, place + 1)].ids.tolist() for place in range(3)]
    assert rows == [[CLS, *ids_of("the cab"), SEP], window.ids, [CLS, *ids_of("a"), SEP]]
    assert replaced.cut is None
    assert tokens_of([window, window], pairs=False).ids.tolist() == 2 * window.ids

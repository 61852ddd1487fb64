"""Windows over long texts hold all of their tokens, each with a quarter of the one before and a text's special tokens."""

from __future__ import annotations

import itertools
import random

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mp_model.data.batches import Text, encode
from mp_model.data.tokens import Tokeniser
from mp_model.data.windows import OVERLAP, UNBROKEN, Windows, parts_of, tokens_of, with_windows
from support import wordpiece

TOKENIZER = wordpiece.tokenizer()
TOKENIZER.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]  # as BERT's own has them
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
    assert tokens_of([window, window], typed=False).ids.tolist() == 2 * window.ids


# Other tokenizers


def test_a_model_without_types_gets_none() -> None:
    pair, tokenizer = (words(5, 1), words(50, 2)), wordpiece.tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    for window in Windows(tokenizer, 24).of(pair):
        assert window.types == [0] * len(window.ids)
    assert tokens_of([window], typed=False).types is None


class Slow:
    """A tokenizer without a Rust object behind it."""

    is_fast = False
    model_input_names = TOKENIZER.model_input_names

    def __call__(self, *arguments: object, **options: object) -> object:
        return TOKENIZER(*arguments, **options)


@pytest.mark.parametrize("text", [words(0), words(100), (words(3), words(50)), (words(70), words(40))])
def test_a_slow_tokenizer_gives_the_same_windows(text: Text) -> None:
    assert list(Windows(Slow(), 20).of(text)) == list(Windows(TOKENIZER, 20).of(text))


PRE_TOKENIZERS = {
    "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "bytes after a blank": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "metaspace": pre_tokenizers.Metaspace(),
}


@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
def test_tokens_of_the_pieces_are_those_of_the_whole(kind: str) -> None:
    letters = [*"abcdefgh.,! ▁", *pre_tokenizers.ByteLevel.alphabet()]
    built = Tokenizer(models.BPE({letter: i for i, letter in enumerate(dict.fromkeys(letters))}, []))
    built.pre_tokenizer = PRE_TOKENIZERS[kind]
    special = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, **special)
    built = tokenizer.backend_tokenizer
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in special.values()}
    built.post_processor = processors.BertProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))
    draw = random.Random(0)
    text = "".join(draw.choices("abcdefgh.,!  \n", k=5000))
    whole = built.encode(text, add_special_tokens=False).ids
    windows = Windows(tokenizer, 34)
    assert windows.at_once is not None
    assert [id for piece in windows._pieces(text) for id in piece] == whole
    assert next(windows.of(text)).ids == [ids["<s>"], *whole[:32], ids["</s>"]]

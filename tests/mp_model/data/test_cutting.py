"""Long texts are cut before they are tokenised, and no token that is kept changes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mp_model.data import cutting
from mp_model.data.batches import Text, encode
from mp_model.data.cutting import Cutter
from mp_model.data.tokens import Tokeniser
from support import wordpiece
from support.situations import situation

CORPUS = [*wordpiece.texts(60), "the rate, the Rate. don't [x] 12 3.4 é"]


NAMES = ["input_ids", "token_type_ids", "attention_mask"]


def bert(max_length: int) -> PreTrainedTokenizerFast:
    """BERT's steps, with added tokens that take blanks with them, that are normalised, and that share beginnings."""
    tokenizer = wordpiece.tokenizer(max_length)
    tokenizer.add_tokens([AddedToken("[ab]", normalized=True), AddedToken("[a,b]", lstrip=True, rstrip=True)])
    return tokenizer


def cased(max_length: int) -> PreTrainedTokenizerFast:
    tokenizer = wordpiece.tokenizer(max_length)
    tokenizer.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, handle_chinese_chars=False)
    return tokenizer


def trained(model: Any, trainer: Any, max_length: int, **parts: Any) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.train_from_iterator(CORPUS, trainer)
    ends = [("<s>", tokenizer.token_to_id("<s>")), ("</s>", tokenizer.token_to_id("</s>"))]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B:1 </s>:1", ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=NAMES,
        model_max_length=max_length,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
    )


SPECIAL = ["<s>", "</s>", "<pad>", "<unk>"]


def byte_level_bpe(max_length: int) -> PreTrainedTokenizerFast:
    return trained(
        models.BPE(),
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False),
        max_length,
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True),
        decoder=decoders.ByteLevel(),
    )


def unigram(max_length: int) -> PreTrainedTokenizerFast:
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return trained(
        models.Unigram(), trainer, max_length, normalizer=normalizers.NFKC(), pre_tokenizer=pre_tokenizers.Metaspace()
    )


def without_words(max_length: int) -> PreTrainedTokenizerFast:
    """Its tokens go across blanks, so nothing is settled before a text's end."""
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    return trained(models.BPE(), trainer, max_length, normalizer=normalizers.Replace(" ", "▁"))


MAKERS = [bert, cased, byte_level_bpe, unigram, without_words]


@cache
def tokenizer_of(maker: Callable[[int], Any], max_length: int, side: str) -> Any:
    tokenizer = maker(max_length)
    tokenizer.truncation_side = side
    return tokenizer


def uncut(tokenizer: Any, text: Text, max_length: int) -> tuple[list[int], list[int]]:
    """Ids and types that the tokenizer finds in the whole text."""
    firsts, seconds = (text, None) if isinstance(text, str) else ([x] for x in text)
    given = ([firsts], None) if isinstance(text, str) else (firsts, seconds)
    encoded = tokenizer(*given, truncation=True, max_length=max_length, return_token_type_ids=True)
    return encoded["input_ids"][0], encoded["token_type_ids"][0]


# Pieces of texts: words, blanks, and all that makes a boundary, moves one, or vanishes.
PIECES = st.one_of(
    st.sampled_from(
        ["the ", "rate ", "a", "b", " ", "  ", ", ", "don't ", "12", "\n", "\t ", "\x00", "\u200d", "\x1c"]
    ),
    st.sampled_from(["[ab]", "[a,b]", "[a", ",b]", "[a\x00b]", "[", "]", "</s>", "</", "s>", "[SEP]", "[SE"]),
    st.sampled_from(
        ["é", "e\u0301", " \u0301", "=\u0338", "中", "中文", "ﬁ", "…", "İ", "ß", "ไทย", "\ufffd", "😀", "가"]
    ),
    st.sampled_from(["a" * 99, "b" * 101, "x" * 150, "a\u0301" * 60, " " * 60, "\x00" * 60, "abab" * 30]),
    st.text(max_size=3),
)
TEXTS = st.lists(st.tuples(PIECES, st.integers(1, 12)), max_size=25).map(
    lambda pieces: "".join(piece * times for piece, times in pieces).encode(errors="ignore").decode()
)


@pytest.mark.parametrize("maker", MAKERS)
@given(text=TEXTS, max_length=st.sampled_from([3, 4, 8, 21]), side=st.sampled_from(["right", "left"]))
@example(text="a" * 2000 + " the rate" * 3, max_length=8, side="right")
@example(text="the rate " * 3 + "a" * 2000, max_length=8, side="left")
@example(text="the rate" + " " * 2000 + "a", max_length=8, side="right")
@example(text="the rate [a" + "\x00" * 2000 + "b]" + " the" * 100, max_length=4, side="right")
def test_no_token_changes(maker: Callable[[int], Any], text: str, max_length: int, side: str) -> None:
    tokenizer = tokenizer_of(maker, max_length, side)
    ids, _ = uncut(tokenizer, text, max_length)
    assert Tokeniser(tokenizer, max_length)([text]).ids.tolist() == ids
    assert encode(tokenizer, [text], max_length)[0]["input_ids"] == ids


# A tokenizer's time for a whole pair goes by the product of its tokens.
WORDS = st.sampled_from(["the ", "a", "don't ", ", ", "[a,b]", "中"])
SHORTER = st.lists(st.tuples(WORDS, st.integers(1, 15)), max_size=5).map(
    lambda pieces: "".join(word * times for word, times in pieces)
)


@pytest.mark.parametrize("maker", [bert, byte_level_bpe])
@given(
    text=st.tuples(SHORTER, SHORTER), max_length=st.sampled_from([8, 9, 12]), side=st.sampled_from(["right", "left"])
)
@example(text=("the " * 200, "rate " * 200), max_length=8, side="right")
@example(text=("the " * 200, "rate " * 3), max_length=8, side="right")
@example(text=("the", "rate " * 200), max_length=8, side="left")
@example(text=("the " * 200, "rate " * 170), max_length=8, side="right")
@example(text=("a" * 900 + " the" * 30, "the " * 100), max_length=8, side="right")
def test_no_token_of_a_pair_changes(
    maker: Callable[[int], Any], text: tuple[str, str], max_length: int, side: str
) -> None:
    tokenizer = tokenizer_of(maker, max_length, side)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "COUNTED", 10_000)
        tokens = Tokeniser(tokenizer, max_length)([text])
        encoded = encode(tokenizer, [text], max_length)[0]
    ids, types = uncut(tokenizer, text, max_length)
    assert (tokens.ids.tolist(), tokens.types.tolist()) == (ids, types)
    assert (encoded["input_ids"], encoded["token_type_ids"]) == (ids, types)


def test_of_two_very_long_texts_that_with_more_characters_is_longer() -> None:
    """The tokenizer keeps five tokens of both, and three of the longer."""
    tokenise = Tokeniser(tokenizer_of(wordpiece.tokenizer, 8, "right"), 8)
    for pair, second in ((("the " * 2000, "rate " * 1800), 3), (("the " * 2300, "rate " * 1800), 2)):
        assert tokenise([pair]).types.tolist().count(1) == second + 1


class Counting:
    """A backend that counts the characters of all texts that it is given."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.characters = backend, 0

    def encode(self, text: str, **options: Any) -> Any:
        self.characters += len(text)
        return self.backend.encode(text, **options)


@situation(
    "file", "a text of 20 MB", "cut before it is tokenised: the tokenizer gets some thousand characters, not millions"
)
@pytest.mark.parametrize(
    ("side", "text"),
    [
        ("right", "the rate, " * 2_000_000),
        ("left", "the rate, " * 2_000_000),
        ("right", "x" * 20_000_000),
        ("right", "привет" * 3_000_000),
        ("right", "é" * 10_000_000),
        ("right", " " * 20_000_000),
        ("right", "\x00" * 20_000_000),
        ("right", "中" * 20_000_000),
        ("right", '{"key":"0123456789abcdef"},' * 740_000),
    ],
    ids=[
        "words",
        "words, from the end",
        "one word",
        "one word in Cyrillic",
        "one word of accents",
        "blanks",
        "NULs",
        "ideographs",
        "JSON",
    ],
)
def test_a_tokenizer_gets_a_bounded_part(side: str, text: str) -> None:
    max_length = 512
    cut = Cutter(tokenizer_of(wordpiece.tokenizer, max_length, side), max_length)
    counting = cut.backend = Counting(cut.backend)
    part = cut(text)
    assert len(part) <= 16 * max_length
    assert counting.characters <= 32 * max_length


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("times", [(1, 2_000_000), (2_000_000, 1), (2_000_000, 2_000_001)])
def test_a_tokenizer_gets_a_bounded_part_of_a_pair(side: str, times: tuple[int, int]) -> None:
    """Whole, two long texts would take it hours: its time goes by the product of their tokens."""
    cut = Cutter(tokenizer_of(wordpiece.tokenizer, 64, side), 64)
    counting = cut.backend = Counting(cut.backend)
    parts = cut(("the rate, " * times[0], "the rate, " * times[1]))
    for part, whole in zip(parts, times, strict=True):
        assert len(part) == 10 if whole == 1 else 64 < len(part) <= 40 * 64
    assert counting.characters <= 2 * 2 * 16 * 8 * 64 + 200 * 64


def test_short_texts_are_not_looked_at() -> None:
    cut = Cutter(wordpiece.tokenizer(), 64)
    counting = cut.backend = Counting(cut.backend)
    text = "the rate " * 100
    assert cut(text) is text
    assert cut((text, text)) == (text, text)
    assert counting.characters == 0


def test_a_tokenizer_that_may_not_be_cut_for_gets_whole_texts() -> None:
    tokenizer = wordpiece.tokenizer()
    tokenizer.add_tokens(["the rate"])
    for cut in (Cutter(without_words(8), 8), Cutter(tokenizer, 8)):
        assert cut("the rate " * 1000) == "the rate " * 1000

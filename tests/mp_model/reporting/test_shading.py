"""Words with the layers that they reached, in the terminal and as a picture."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest

from mp_model.reporting.shading import PALE, STRONG, ShadedText, colours, for_terminal, save_picture, shade
from support import wordpiece

TOKENIZER = wordpiece.tokenizer()


def shaded(*words: str, exit_layer: int = 3) -> ShadedText:
    return ShadedText(
        list(words), [i % 4 for i in range(len(words))], exit_layer, layers=4, caption="sport, by layer 3"
    )


# Words


def test_a_word_goes_as_far_as_its_last_piece() -> None:
    pruned_by = {"[CLS]": 0, "c": 1, "##a": 3, "##b": 2, "the": 1, "rate": 2, "##s": 1, "!": 0, "[SEP]": 1}
    text = shade(TOKENIZER, "cab  the Rates!", list(pruned_by.values()), 4, 6, "a caption", 64)
    assert TOKENIZER.tokenize("cab  the Rates!", add_special_tokens=True) == list(pruned_by)
    assert text == ShadedText(["cab", "the", "Rates!"], [3, 1, 4], exit_layer=4, layers=6, caption="a caption")


def test_words_of_a_text_that_left_at_the_embeddings_reached_no_layer() -> None:
    text = shade(TOKENIZER, "the cab", [0] * 6, 0, 6, "", 64)
    assert text.words == ["the", "cab"]
    assert text.reached == [0, 0]


def test_words_beyond_the_models_length_are_left_out() -> None:
    assert shade(TOKENIZER, "the the the the", [0] * 4, 2, 6, "", 4).words == ["the", "the"]


def test_words_of_a_pair_follow_one_another() -> None:
    pruned_by = {"[CLS]": 0, "the": 1, "a [SEP]": 2, "[SEP]": 0, "the b": 1, "rate": 3, "[SEP] ": 0}
    text = shade(TOKENIZER, ("the a", "b rate"), list(pruned_by.values()), 4, 6, "", 64)
    assert text.words == ["the", "a", "b", "rate"]
    assert text.reached == [1, 2, 1, 3]


# Colours


def test_colours_go_from_pale_to_strong() -> None:
    backgrounds = [colours(reached, 4)[1] for reached in range(5)]
    assert backgrounds[0] == "#{:02x}{:02x}{:02x}".format(*PALE)
    assert backgrounds[-1] == "#{:02x}{:02x}{:02x}".format(*STRONG)
    assert len(set(backgrounds)) == 5
    assert colours(0, 4)[0] != colours(4, 4)[0]


# Terminal


def test_terminal_text_holds_the_words() -> None:
    text = shaded("one", "[two]", "three")  # square brackets are markup to rich
    line = for_terminal(text)
    assert line.plain == "sport, by layer 3\none [two] three "
    styles = {line.plain[span.start : span.end]: str(span.style) for span in line.spans}
    for word, reached in zip(text.words, text.reached, strict=True):
        assert styles[word] == "{} on {}".format(*colours(reached, 4))


def test_terminal_text_is_cut_at_the_limit() -> None:
    text = shaded(*"abcdef")
    assert for_terminal(text, limit=4).plain.endswith("a b c d … and 2 more words")
    assert for_terminal(text, limit=6).plain.endswith("e f ")


# Picture


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG, after a look at its signature and its end."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
    assert png.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", png[16:24])


def picture(*texts: ShadedText, **options: int) -> bytes:
    pytest.importorskip("matplotlib", reason="pictures: pip install 'magic-pyramid[demo]'")
    stream = io.BytesIO()
    save_picture(texts, stream, **options)
    return stream.getvalue()


def test_picture_is_a_png_that_grows_with_its_texts(tmp_path: Path) -> None:
    short, long = shaded("one", "two"), shaded(*["word"] * 100)
    width, height = size_of(picture(short))
    assert width == 1430
    assert 100 < height < 300
    assert size_of(picture(short, long))[0] == width
    assert height + 100 < size_of(picture(short, long))[1] < 1000

    path = tmp_path / "picture.png"
    save_picture([short], str(path))
    assert size_of(path.read_bytes()) == (width, height)


def test_picture_is_cut_at_the_limit() -> None:
    def height(words: int, **options: int) -> int:
        return size_of(picture(shaded(*["word"] * words), **options))[1]

    assert height(300, limit=20) == height(21, limit=20)
    assert height(300) == height(111) < height(300, limit=300)


def test_dollar_signs_are_no_formulas() -> None:
    assert size_of(picture(shaded("$5-$10", "$^$")))[0] == 1430

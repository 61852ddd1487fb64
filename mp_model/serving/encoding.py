"""Texts of requests into token ids, in threads, so that a text that cannot be tokenised fails alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from ..data.batches import Text
from ..data.tokens import Tokeniser
from ..data.windows import Windows
from ..inputs import ONE_TEXT
from .admission import EmptyError, InvalidError, RefusedError, TokenizerError
from .classifier import Classifier, LongText
from .requests import Encoded, next_window, separate

UNLIMITED = 1 << 24  # tokens


class Encoder:
    """The tokenizer of a classifier, with the ways of cutting that requests may ask for.

    Args:
        classifier: the model and its tokenizer.
    """

    def __init__(self, classifier: Classifier) -> None:
        tokenizer, self.max_length = classifier.tokenizer, classifier.tokenise.max_length
        self.only_pairs = classifier.reads_pairs
        self.own_side = getattr(tokenizer, "truncation_side", "right")
        other = copy.deepcopy(tokenizer)
        other.truncation_side = "left" if self.own_side == "right" else "right"
        self._cut = {
            self.own_side: Tokeniser(tokenizer, self.max_length),
            other.truncation_side: Tokeniser(other, self.max_length),
        }
        self._whole = Tokeniser(tokenizer, UNLIMITED)
        self._windows = Windows(tokenizer, self.max_length)

    def __call__(self, texts: Sequence[Text], long_texts: str, direction: str | None) -> list[Encoded | RefusedError]:
        """The tokens of each text, or of each pair, or the reason why it has none.

        Args:
            texts: single texts and pairs, in any order.
            long_texts: what becomes of longer ones: ``"cut"``, ``"windows"``, of which the first is there then, or
                ``"refuse"``.
            direction: side at which they are cut, ``"left"`` or ``"right"``; None: the tokenizer's own.
        """
        tokenise = {
            "cut": self._cut[direction or self.own_side],
            "windows": self._cut[self.own_side],
            "refuse": self._whole,
        }[long_texts]
        found: list[Encoded | RefusedError] = [EmptyError("`inputs` cannot be empty")] * len(texts)
        for kind in (str, tuple):
            places = [place for place, text in enumerate(texts) if isinstance(text, kind) and _says_something(text)]
            if kind is str and self.only_pairs:
                for place in places:
                    found[place] = InvalidError(ONE_TEXT)
                continue
            kept = self._all(tokenise, [texts[place] for place in places], long_texts == "windows")
            for place, encoded in zip(places, kept, strict=True):
                found[place] = self._if_short(encoded) if long_texts == "refuse" else encoded
        return found

    def _all(self, tokenise: Tokeniser, texts: Sequence[Text], windows: bool) -> list[Encoded | RefusedError]:
        """The tokens of texts of one kind; windows: whether the first window takes the place of what was cut."""
        if not texts:
            return []
        try:
            tokens = tokenise(texts)
            found: list[Encoded | RefusedError] = [*separate(tokens)]
            if windows and tokens.cut is not None:
                for place in np.flatnonzero(tokens.cut).tolist():
                    long = LongText(self._windows.of(texts[place]), tokens.types is not None)
                    found[place] = next_window(long) or found[place]
            return found
        except Exception as error:  # of any library that a tokenizer may call
            if len(texts) == 1:
                return [TokenizerError(error)]
            return [encoded for text in texts for encoded in self._all(tokenise, [text], windows)]

    def _if_short(self, encoded: Encoded | RefusedError) -> Encoded | RefusedError:
        if isinstance(encoded, RefusedError) or len(encoded.ids) <= self.max_length:
            return encoded
        return InvalidError(
            f'`inputs` must have at most {self.max_length} tokens. Given: {len(encoded.ids)}; set "truncate" to true to '
            "have it cut"
        )


def _says_something(text: Text) -> bool:
    return bool(text) if isinstance(text, str) else any(text)

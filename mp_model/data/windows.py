"""Windows over texts of more tokens than a model takes: stretches of tokens that overlap, each like a text of its own."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .batches import Text, has_types
from .cutting import CHARACTERS, Cutter
from .tokens import Tokens

OVERLAP = 4  # a window begins with the last quarter of the one before it
UNBROKEN = 16  # times as many characters as are tokenised at once, after which a word without an end is broken
BLANK = re.compile(r"(?<=\S) ")


class Window(NamedTuple):
    """A window's token ids, special tokens included, and their token types, 0 for a model without types."""

    ids: list[int]
    types: list[int]


@dataclass(frozen=True)
class Frame:
    """The special tokens around a text, or around and between the texts of a pair.

    Attributes:
        ids: tokens before, between (of pairs) and after.
        types: their token types.
        inner: token types of each text's own tokens.
    """

    ids: list[list[int]]
    types: list[list[int]]
    inner: list[int]

    @classmethod
    def of(cls, tokenizer: Any, pairs: bool) -> Frame:
        """The frame that a tokenizer puts around texts, read from what it makes of short ones."""
        texts = ("a", "a") if pairs else ("a",)
        typed = has_types(tokenizer)
        found = tokenizer(*texts, return_special_tokens_mask=True, return_token_type_ids=typed)
        ids, special_tokens = found["input_ids"], found["special_tokens_mask"]
        types = found["token_type_ids"] if typed else [0] * len(ids)
        frame = cls([[]], [[]], [])
        after_special = True
        for id, type, special in zip(ids, types, special_tokens, strict=True):
            if special:
                frame.ids[-1].append(id)
                frame.types[-1].append(type)
            elif after_special:
                frame.inner.append(type)
                frame.ids.append([])
                frame.types.append([])
            after_special = bool(special)
        return frame

    @property
    def size(self) -> int:
        """Number of special tokens."""
        return sum(map(len, self.ids))

    def around(self, *texts: list[int]) -> Window:
        """The window of a text's tokens, or of two texts'."""
        ids, types = list(self.ids[0]), list(self.types[0])
        for text, type, after, after_types in zip(texts, self.inner, self.ids[1:], self.types[1:], strict=True):
            ids += [*text, *after]
            types += [*([type] * len(text)), *after_types]
        return Window(ids, types)


class Windows:
    """Cuts texts into windows of ``max_length`` tokens, special tokens included, of which each begins with the last quarter
    of the one before.

    A text is tokenised piece by piece as its windows are taken, so that a very long one needs little memory. Of a pair, the
    text of more tokens is cut into windows, and each has the other text too, or as much of it as half a window holds.

    Args:
        tokenizer: any tokenizer of transformers.
        max_length: tokens of a window.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self._frames: dict[bool, Frame] = {}
        self.backend: Any = None
        if getattr(tokenizer, "is_fast", False):
            self.backend = copy.deepcopy(tokenizer.backend_tokenizer)
            self.backend.no_padding()
            self.backend.no_truncation()
        # Pieces can be told apart only where words do not depend on words far from them.
        self.at_once = CHARACTERS * max_length if Cutter(tokenizer, max_length).backend is not None else None

    def of(self, text: Text) -> Iterator[Window]:
        """The windows of a text, or of a pair, in order; a text that is short enough has one."""
        pairs = isinstance(text, tuple)
        frame = self._frames.setdefault(pairs, self._frames.get(pairs) or Frame.of(self.tokenizer, pairs))
        room = self.max_length - frame.size
        if isinstance(text, str):
            for stretch in self._stretches(text, room):
                yield frame.around(stretch)
            return
        heads = [self._head(part, room + 1) for part in text]
        longer = int(len(heads[1]) > len(heads[0]) or (len(heads[1]) == len(heads[0]) and len(text[1]) > len(text[0])))
        other = heads[1 - longer][: room // 2]
        for stretch in self._stretches(text[longer], room - len(other)):
            yield frame.around(other, stretch) if longer else frame.around(stretch, other)

    def _stretches(self, text: str, room: int) -> Iterator[list[int]]:
        """Stretches of ``room`` tokens, and one of what is left."""
        waiting: list[int] = []
        for ids in self._pieces(text):
            waiting += ids
            while len(waiting) > room:
                yield waiting[:room]
                del waiting[: max(1, room - room // OVERLAP)]
        yield waiting

    def _head(self, text: str, count: int) -> list[int]:
        """The first tokens of a text."""
        ids: list[int] = []
        for piece in self._pieces(text):
            ids += piece
            if len(ids) >= count:
                break
        return ids[:count]

    def _pieces(self, text: str) -> Iterator[list[int]]:
        """The token ids of a text, some at a time."""
        for part in [text] if self.at_once is None else parts_of(text, self.at_once):
            if self.backend is not None:
                yield self.backend.encode(part, add_special_tokens=False).ids
            else:
                yield self.tokenizer(part, add_special_tokens=False)["input_ids"]


def parts_of(text: str, size: int) -> Iterator[str]:
    """Parts of a text that end before a space, of ``size`` characters or somewhat more.

    Within a word of more than ``UNBROKEN`` times as many characters a part ends anywhere.
    """
    begin = 0
    while begin < len(text):
        blank = BLANK.search(text, begin + size, begin + UNBROKEN * size)
        end = blank.start() if blank else begin + UNBROKEN * size
        yield text[begin:end]
        begin = end


def with_windows(tokens: Tokens, windows: Mapping[int, Window]) -> Tokens:
    """Tokens in which some texts, by their places, are replaced by windows; none counts as cut any more."""
    ends = np.cumsum(tokens.lengths)[:-1]
    ids = np.split(tokens.ids, ends)
    types = None if tokens.types is None else np.split(tokens.types, ends)
    for place, window in windows.items():
        ids[place] = np.array(window.ids, dtype=np.int64)
        if types is not None:
            types[place] = np.array(window.types, dtype=np.int64)
    lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
    return Tokens(np.concatenate(ids), None if types is None else np.concatenate(types), lengths)


def tokens_of(windows: list[Window], typed: bool) -> Tokens:
    """Windows as texts back to back; typed: whether their types are kept."""
    lengths = np.array([len(window.ids) for window in windows], dtype=np.int64)
    ids = np.array([id for window in windows for id in window.ids], dtype=np.int64)
    types = np.array([type for window in windows for type in window.types], dtype=np.int64) if typed else None
    return Tokens(ids, types, lengths)

"""Texts into token ids, without padding and without lists of numbers on the way."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from .batches import Text, are_pairs, has_types
from .cutting import Cutter


@dataclass
class Tokens:
    """The token ids of several texts, back to back.

    Attributes:
        ids: int64 ``[total]``.
        types: int64 ``[total]``, 0 for the first text of a pair and 1 for the second; None for single texts, and for models
            without types.
        lengths: int64 ``[texts]``.
        cut: bool ``[texts]``, whether a text had more tokens; None: none had.
    """

    ids: np.ndarray
    types: np.ndarray | None
    lengths: np.ndarray
    cut: np.ndarray | None = None

    def __len__(self) -> int:
        return self.lengths.shape[0]

    def slices(self, budget: int) -> list[slice]:
        """Ranges of texts in order, each of at most ``budget`` tokens, or of a single text."""
        ends = np.cumsum(self.lengths)
        found, begin = [], 0
        while begin < len(self):
            before = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + budget, side="right")))
            found.append(slice(begin, end))
            begin = end
        return found

    def __getitem__(self, texts: slice) -> Tokens:
        ends = np.cumsum(self.lengths)
        begin = int(ends[texts.start - 1]) if texts.start else 0
        rows = slice(begin, int(ends[texts.stop - 1]))
        types = None if self.types is None else self.types[rows]
        return Tokens(self.ids[rows], types, self.lengths[texts], None if self.cut is None else self.cut[texts])


class Tokeniser:
    """A tokenizer of transformers for texts that are cut to a number of tokens.

    Tokenising works on a copy of the tokenizer's own Rust object, which lets other threads run meanwhile.

    Args:
        tokenizer: any tokenizer of transformers; a slow one is called as it is.
        max_length: tokens of a text at most.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.cut = Cutter(tokenizer, max_length)
        self.backend: Any = None
        if getattr(tokenizer, "is_fast", False):
            self.backend = copy.deepcopy(tokenizer.backend_tokenizer)
            self.backend.no_padding()
            self.backend.enable_truncation(max_length, direction=tokenizer.truncation_side)

    def __call__(self, texts: Sequence[Text]) -> Tokens:
        """Token ids of each text, or pair of texts."""
        pairs = are_pairs(texts)
        typed = pairs and has_types(self.tokenizer)
        texts = [self.cut(text) for text in texts]
        if self.backend is not None:
            encodings = self.backend.encode_batch_fast(texts)
            rows = [encoding.ids for encoding in encodings]
            types = [encoding.type_ids for encoding in encodings] if typed else None
            cut = [bool(encoding.overflowing) for encoding in encodings]
        else:
            encoded = self._called(texts, pairs, typed, self.max_length)
            rows, types = encoded["input_ids"], encoded["token_type_ids"] if typed else None
            whole = self._called(texts, pairs, typed, self.max_length + 1)["input_ids"]
            cut = [len(ids) > self.max_length for ids in whole]
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        flat_types = None if types is None else _flat(types, lengths)
        return Tokens(_flat(rows, lengths), flat_types, lengths, np.array(cut) if any(cut) else None)

    def _called(self, texts: Sequence[Any], pairs: bool, typed: bool, max_length: int) -> Any:
        """The tokenizer's own encodings of texts that are cut to a number of tokens."""
        firsts, seconds = zip(*texts, strict=True) if pairs else (texts, None)
        return self.tokenizer(
            list(firsts),
            None if seconds is None else list(seconds),
            truncation=True,
            max_length=max_length,
            return_token_type_ids=typed,
            return_attention_mask=False,
        )


def _flat(rows: Sequence[Sequence[int]], lengths: np.ndarray) -> np.ndarray:
    return np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))

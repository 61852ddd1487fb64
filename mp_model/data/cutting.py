"""Long texts, cut before a tokenizer sees them in such a way that it keeps the same tokens."""

from __future__ import annotations

import copy
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .batches import Text

# Parts of a tokenizer by which text that is added at one end changes only the words next to it.
LOCAL = {
    *("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"),
    *("BertPreTokenizer", "ByteLevel", "Digits", "Metaspace", "Punctuation", "Whitespace", "WhitespaceSplit"),
}
# A letter or a digit, below the ideographs, of which BERT's normalizer makes one character or more of the same word.
LETTER = r"[^\W_\u2e80-\U0010ffff]"
COUNTED = 16  # times as many tokens of a pair's texts as are kept are counted, to know which is longer
CHARACTERS = 8  # for each token that is kept, in the first attempt
BESIDE = 2  # words next to the cut that it may change


class Cutter:
    """Cuts texts to a part in which a tokenizer finds the tokens that it keeps of the whole.

    A part does so if enough of its tokens are in words that no continuation can change: all but those at the cut, of which
    the beginning of an added token, such as ``[MASK]``, may be as many words as it has characters. Where that cannot be
    known, as without words, the text stays whole.

    Args:
        tokenizer: any tokenizer of transformers; texts for a slow one stay whole.
        max_length: tokens that are kept, at most.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.max_length, self.at_end = max_length, getattr(tokenizer, "truncation_side", "right") == "left"
        self.backend: Any = None
        self.runs: list[tuple[re.Pattern[str], str]] = []
        backend = tokenizer.backend_tokenizer if getattr(tokenizer, "is_fast", False) else None
        if backend is None or backend.pre_tokenizer is None:
            return
        kinds = _kinds(backend.normalizer) | _kinds(backend.pre_tokenizer)
        added = _added_tokens(backend)
        if kinds <= LOCAL and not any(re.search(r"\s", token) for token in added):
            self.backend = copy.deepcopy(backend)
            self.backend.no_padding()
            self.backend.no_truncation()
            self.unsettled = BESIDE + max(map(len, added), default=0)
            self.runs = _runs(backend, added)

    def __call__(self, text: Text) -> Text:
        """The text, or the part of it; of a pair, a part of each."""
        if self.backend is None:
            return text
        return self._cut(text, self.max_length) if isinstance(text, str) else self._cut_pair(*text)

    def _cut_pair(self, first: str, second: str) -> tuple[str, str]:
        """Parts of both texts, of which the first has more tokens if and only if it had before.

        The tokenizer drops tokens of the longer one first, and if it keeps an odd number of two long ones, that one has one
        more. Of two texts of ``COUNTED * max_length`` tokens or more, that with more characters counts as longer.
        """
        if max(len(first), len(second)) <= 2 * CHARACTERS * self.max_length:
            return first, second
        most = COUNTED * self.max_length
        counts = [min(most, self._tokens(self._cut(text, most))) for text in (first, second)]
        swapped = len(first) <= len(second) if min(counts) == most else counts[0] <= counts[1]
        longer, other = (second, first) if swapped else (first, second)
        part = self._cut(other, self.max_length)
        tokens = self._tokens(part)
        long_part = self._cut(longer, max(tokens, self.max_length) + 1)
        if self._tokens(long_part) <= tokens:  # words at the cut have more tokens than what they are the beginning of
            part = other
        return (part, long_part) if swapped else (long_part, part)

    def _cut(self, text: str, needed: int) -> str:
        """A part with this many tokens that are the same in the whole text, or the text."""
        room = first = CHARACTERS * needed
        if len(text) <= 2 * room:
            return text
        while room < len(text):
            part = self._part(text, room)
            if len(part) < len(text) and self._settled(part) >= needed:
                return part
            if room == first:
                for run, kept in self.runs:
                    text = run.sub(kept, text)
            room = 2 * max(room, len(part))
        return text

    def _tokens(self, text: str) -> int:
        return len(self.backend.encode(text, add_special_tokens=False).ids)

    def _part(self, text: str, room: int) -> str:
        """About ``room`` characters at the end that is kept; one at the end of the text begins with a blank.

        Within a word that looks like several added tokens, as ``ababab`` does if ``ab`` and ``ba`` are such, all of them go
        by its beginning.
        """
        return text[max(0, text.rfind(" ", 0, len(text) - room)) :] if self.at_end else text[:room]

    def _settled(self, part: str) -> int:
        """Number of a part's tokens that are the same in the whole text."""
        words = self.backend.encode(part, add_special_tokens=False).word_ids
        if not words:
            return 0
        if self.at_end:
            return sum(word > words[0] + self.unsettled for word in words)
        return sum(word < words[-1] - self.unsettled for word in words)


def _kinds(part: Any) -> set[str]:
    """The names of a normalizer or of a pre-tokenizer, or of those that it is a sequence of."""
    if part is None:
        return set()
    return _kinds_in(json.loads(part.__getstate__()))


def _kinds_in(state: dict[str, Any]) -> set[str]:
    if state["type"] != "Sequence":
        return {state["type"]}
    parts = state.get("normalizers", state.get("pretokenizers", []))
    return {kind for part in parts for kind in _kinds_in(part)}


def _added_tokens(backend: Any) -> list[str]:
    """Tokens that are found before words are, as they are written and as the normalizer leaves them."""
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    return added if backend.normalizer is None else added + [backend.normalizer.normalize_str(token) for token in added]


def _runs(backend: Any, added: list[str]) -> list[tuple[re.Pattern[str], str]]:
    """Runs of characters that may be shortened without a change of any token, each with what is kept of it.

    Under BERT's rules a word of more characters than the model looks at is one unknown token, blanks only separate, and
    NULs are removed.
    """
    if _kinds(backend.normalizer) != {"BertNormalizer"} or _kinds(backend.pre_tokenizer) != {"BertPreTokenizer"}:
        return []
    longest = getattr(backend.model, "max_input_chars_per_word", None)
    # No run has a part of an added token that is written like "[MASK]".
    apart = all(re.fullmatch(r"[^\w\s\x00]([^\s\x00]*[^\w\s\x00])?", token) for token in added)
    if longest is None or not backend.normalizer.clean_text or not apart or longest < max(map(len, added), default=0):
        return []
    long_word = rf"({LETTER}{{{longest + 1}}}){LETTER}+"
    return [(re.compile(long_word), r"\1"), (re.compile(r"[ \t\r\n]{2,}"), " "), (re.compile(r"\x00{2,}"), "\x00")]

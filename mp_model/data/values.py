"""The rule of what is a text and what is a label, for all formats and data sets."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from .batches import Text

SINGLE, PAIR, LABEL, LABELS = ("text",), ("text_a", "text_b"), "label", "labels"
INTEGRAL = re.compile(r"(-?(?:0|[1-9][0-9]{0,17}))\.0+")


Labels = str | tuple[str, ...]  # the name of a text's one label, or those of all of its labels


class TableError(ValueError):
    """A file that cannot be read as texts; the message says where and what was expected.

    Attributes:
        row: the row that is wrong, from 1, where a header and lines that are no rows do not count; None: the whole file.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


class RowError(ValueError):
    """A row that cannot be read; the message goes on after "row 3"."""


def text_columns(names: Collection[str]) -> tuple[str, ...]:
    """The columns that hold the text or the pair: ``SINGLE`` or ``PAIR``.

    Raises:
        RowError: neither is there, or both.
    """
    single, pair = "text" in names, [name for name in PAIR if name in names]
    if single and pair:
        raise RowError(f"has both 'text' and {pair[0]!r}; expected a single text, or a pair in 'text_a' and 'text_b'")
    if single:
        return SINGLE
    if len(pair) == 2:
        return PAIR
    raise RowError(f"has no text; expected a column 'text', or 'text_a' and 'text_b'; got {listed(names) or 'nothing'}")


def text_of_row(row: Mapping[str, Any], columns: Iterable[str]) -> Text:
    """The text of a row's only text column, or the pair of its two.

    Raises:
        RowError: a value that is no text.
    """
    first, *second = (text_of(row[column], column) for column in columns)
    return (first, second[0]) if second else first


def text_of(value: Any, column: str) -> str:
    """A value that is a text: a string of characters, the empty one too.

    Raises:
        RowError: anything else; numbers are refused as well, because only their writer knows how they read as texts.
    """
    if not isinstance(value, str):
        raise RowError(f"has no text; expected a string in its column {column!r}; got {described(value)}")
    return characters_of(value, column)


def label_columns(names: Collection[str], marks: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns that hold the labels: ``label`` if it is there, else ``labels``, else all of ``marks``.

    marks: names of labels, each of which may have a column of 0 and 1.

    Raises:
        RowError: none of them is there.
    """
    found = next((column for column in (LABEL, LABELS) if column in names), None)
    if found is not None:
        return (found,)
    if marks and set(marks) <= set(names):
        return tuple(marks)
    columns = f", or columns of 0 and 1 for {listed(marks)}" if marks else ""
    raise RowError(f"has no label; expected a column 'label', or 'labels' with several{columns}; got {listed(names)}")


def labels_of_row(row: Mapping[str, Any], columns: Sequence[str]) -> Labels:
    """The label of a row, or its labels, in columns that :func:`label_columns` found.

    One label is the value of a column ``label``. Several are a list there; a list, or names with commas between them, in a
    column ``labels``; or the columns that have a 1.

    Raises:
        RowError: a value that names no class, or is neither 0 nor 1.
    """
    if tuple(columns) == (LABEL,):
        value = row[LABEL]
        return labels_of(value, LABEL) if isinstance(value, list | tuple) else label_of(value)
    if tuple(columns) == (LABELS,):
        return labels_of(row[LABELS], LABELS)
    return tuple(column for column in columns if is_marked(row[column], column))


def labels_of(value: Any, column: str) -> tuple[str, ...]:
    """The names of the labels that a list is, or a string of names with commas between them; there may be none.

    Raises:
        RowError: anything else, or a value in it that names no class.
    """
    if isinstance(value, str):
        value = [name for name in value.split(",") if name.strip()]
    if not isinstance(value, list | tuple):
        raise RowError(f"has no labels; expected a list of names in its column {column!r}; got {described(value)}")
    return tuple(dict.fromkeys(label_of(name, column) for name in value))


def is_marked(value: Any, column: str) -> bool:
    """Whether a label's column says that a text has the label.

    Raises:
        RowError: the value is neither 0 nor 1.
    """
    number = normal_label(value) if isinstance(value, str) else value
    if number in (0, 1, "0", "1"):  # False and True too
        return number in (1, "1")
    raise RowError(f"does not say whether it has the label {column!r}; expected 0 or 1; got {described(value)}")


def label_of(value: Any, column: str = LABEL) -> str:
    """The name of the label that a value is; 3, 3.0, ``"3"`` and ``" 3.0 "`` are the same label, ``"3"``.

    Raises:
        RowError: a value that names no class.
    """
    if type(value) is int or (type(value) is float and value.is_integer()):
        return str(int(value))
    if isinstance(value, list | tuple):
        raise RowError(f"has a list in a list as its {column!r}; expected a list of names")
    if not isinstance(value, str) or not value.strip():
        raise RowError(
            f"has no label; expected a name or a whole number in its column {column!r}; got {described(value)}"
        )
    return normal_label(characters_of(value, column))


def normal_label(name: str) -> str:
    """A label's name without blanks around it, and without the zeros that make a whole number a float."""
    name = name.strip()
    integral = INTEGRAL.fullmatch(name)
    return str(int(integral[1])) if integral else name


def characters_of(value: str, column: str) -> str:
    """A string that is made of characters, which half of a surrogate pair is not.

    Raises:
        RowError: it has such a half, which no file in UTF-8 could hold.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(value[error.start]):04X}"
        raise RowError(
            f"has half of a surrogate pair, {half}, in its column {column!r}; remove it or complete it"
        ) from None
    return value


def described(value: Any) -> str:
    """A value in a few words, for messages."""
    if value is None:
        return "null"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    kinds = {bool: "boolean", int: "number", float: "number", str: "string"}
    return f"the {kinds.get(type(value), type(value).__name__)} {shortened(repr(value))}"


def listed(names: Iterable[Any], at_most: int = 30) -> str:
    """Names with commas between them, for messages, of which there may be very many or very long ones."""
    names = list(names)
    shown = ", ".join(shortened(repr(name)) for name in names[:at_most])
    return shown + (f" and {len(names) - at_most:,} more" if len(names) > at_most else "")


def shortened(words: str, at_most: int = 60) -> str:
    """Words that are cut in the middle where there are too many."""
    return words if len(words) <= at_most else f"{words[: at_most // 2]}…{words[-at_most // 4 :]}"

"""Reading texts from files, a row at a time: tsv, csv, jsonl, json, parquet, or plain text with one text a line."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar, overload

from .batches import Text
from .rows import FORMATS, Row, rows_of, rows_of_stream
from .values import SINGLE, Labels, RowError, TableError, label_columns, labels_of_row, text_columns, text_of_row

__all__ = ["FORMATS", "TableError", "format_of", "read_labelled", "read_lines", "read_texts"]

T = TypeVar("T")


def format_of(path: Path) -> str:
    """The format that a file's ending names."""
    ending = path.suffix.lower().lstrip(".")
    ending = "parquet" if ending == "pq" else ending
    if ending not in FORMATS:
        raise TableError(
            f"{path}: cannot tell the format by the ending {path.suffix!r}; expected one of {', '.join(FORMATS)}"
            + ("; unpack it first" if ending in ("gz", "bz2", "xz", "zst", "zip") else "")
        )
    return ending


@overload
def read_texts(
    path: Path, file_format: str | None = None, *, bad_rows: Literal["raise"] = "raise"
) -> Iterator[Text]: ...
@overload
def read_texts(path: Path, file_format: str | None = None, *, bad_rows: str) -> Iterator[Text | TableError]: ...
def read_texts(path: Path, file_format: str | None = None, *, bad_rows: str = "raise") -> Iterator[Text | TableError]:
    """The texts of a file: its column ``text``, its pairs of ``text_a`` and ``text_b``, or the lines of a txt file.

    Lines end with a line feed, a carriage return, or both. In tsv files a quotation mark is an ordinary character; csv
    files are quoted as usual. An empty line is an empty text in a txt file and in a table of one column, and no row in
    jsonl and in a table of several. All rows of a file are single texts, or all are pairs.

    Args:
        path: the file.
        file_format: one of ``FORMATS``; None: by the ending. A json file has lines, as a jsonl file, or one array.
        bad_rows: what becomes of a row that holds no text: ``"raise"``, or ``"yield"``: the error comes in its place,
            and reading goes on.

    Raises:
        TableError: a missing file, an unknown format, missing columns, a file that is damaged; a row that holds no
            text, unless ``bad_rows`` is ``"yield"``.
    """
    rows = _rows(path, file_format, None)
    return _given(_read(str(path), rows, _text_reader()), bad_rows)


@overload
def read_lines(
    lines: TextIO, file_format: str, name: str, *, bad_rows: Literal["raise"] = "raise"
) -> Iterator[Text]: ...
@overload
def read_lines(lines: TextIO, file_format: str, name: str, *, bad_rows: str) -> Iterator[Text | TableError]: ...
def read_lines(lines: TextIO, file_format: str, name: str, *, bad_rows: str = "raise") -> Iterator[Text | TableError]:
    """The texts of a stream of lines, as :func:`read_texts` reads them from a file; also whatever the locale.

    Args:
        lines: the stream, of which nothing has been read.
        file_format: ``"txt"`` or ``"jsonl"``.
        name: name of the stream, for messages.
        bad_rows: as for :func:`read_texts`.

    Raises:
        TableError: as for :func:`read_texts`.
    """
    rows = _rows_of_lines(lines, file_format, name)
    return _given(_read(name, rows, _text_reader()), bad_rows)


def read_labelled(
    path: Path, file_format: str | None = None, marks: Sequence[str] = ()
) -> Iterator[tuple[Text, Labels]]:
    """The texts of a file as :func:`read_texts` gives them, each with its label, or all of its labels.

    A text's one label stands in the column ``label``. Several stand there as a list; in the column ``labels``, as a list or
    as names with commas between them; or they are the columns out of ``marks`` that have a 1. All texts of a file have one
    label, or all have any number of them.

    Args:
        path, file_format: as for :func:`read_texts`.
        marks: names of labels, which are read from columns of 0 and 1 where there is neither ``label`` nor ``labels``.

    Raises:
        TableError: as for :func:`read_texts`; a row without a label, or of another kind than those before.
    """
    read_text, read_labels = _text_reader(), _labels_reader(marks)
    rows = _rows(path, file_format, marks)
    return _raised(_read(str(path), rows, lambda row: (read_text(row), read_labels(row))))


def _rows(path: Path, file_format: str | None, marks: Sequence[str] | None) -> Iterator[Row]:
    if path.is_dir():
        raise TableError(f"{path}: a folder; expected a file")
    if not path.exists():
        raise TableError(f"{path}: no such file")
    file_format = file_format or format_of(path)
    if file_format not in FORMATS:
        raise TableError(f"{path}: the format {file_format!r} is unknown; expected one of {', '.join(FORMATS)}")
    if marks is not None and file_format == "txt":
        raise TableError(f"{path}: a txt file has no column 'label'; expected one of {', '.join(FORMATS[:-1])}")
    yield from rows_of(path, file_format, marks)


def _rows_of_lines(lines: TextIO, file_format: str, name: str) -> Iterator[Row]:
    if file_format not in ("txt", "jsonl"):
        raise TableError(f"{name}: a stream is read as txt or jsonl; got {file_format!r}")
    if isinstance(lines, io.TextIOWrapper):
        lines.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
    yield from rows_of_stream(lines, file_format, name, None)


def _read(name: str, rows: Iterable[Row], read: Callable[[dict[str, Any]], T]) -> Iterator[T | TableError]:
    """The item that is read of each row, or in its place the error that names the row."""
    try:
        for number, row in enumerate(rows, 1):
            item: T | TableError
            try:
                if isinstance(row, RowError):
                    raise row
                item = read(row)
            except RowError as error:
                item = TableError(f"{name}: row {number} {error}", number)
            yield item
    except OSError as error:
        raise TableError(f"{name}: cannot be read ({error.strerror or error})") from error


def _text_reader() -> Callable[[dict[str, Any]], Text]:
    """A function that reads the texts of a file's rows, which must all be single or all be pairs."""
    first: tuple[str, ...] = ()

    def read(row: dict[str, Any]) -> Text:
        nonlocal first
        columns = text_columns(row)
        if first and columns != first:
            kinds = ("a pair", "single texts") if first == SINGLE else ("a single text", "pairs")
            raise RowError(f"is {kinds[0]} after {kinds[1]}; expected a file to hold one or the other")
        text = text_of_row(row, columns)
        first = columns
        return text

    return read


def _labels_reader(marks: Sequence[str]) -> Callable[[dict[str, Any]], Labels]:
    """A function that reads the labels of a file's rows, which must all have one, or all any number."""
    first: type | None = None

    def read(row: dict[str, Any]) -> Labels:
        nonlocal first
        labels = labels_of_row(row, label_columns(row, marks))
        if first not in (None, type(labels)):
            kinds = ("a list of labels", "a single one") if first is str else ("a single label", "lists of them")
            raise RowError(f"has {kinds[0]} after {kinds[1]}; expected a file to hold one or the other")
        first = type(labels)
        return labels

    return read


def _given(items: Iterator[T | TableError], bad_rows: str) -> Iterator[T | TableError]:
    if bad_rows not in ("raise", "yield"):
        raise ValueError(f"bad_rows must be 'raise' or 'yield'; got {bad_rows!r}")
    return _raised(items) if bad_rows == "raise" else items


def _raised(items: Iterable[T | TableError]) -> Iterator[T]:
    for item in items:
        if isinstance(item, TableError):
            raise item
        yield item

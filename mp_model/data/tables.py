"""Reading texts from files, a row at a time: tsv, csv, jsonl, parquet, or plain text with one text a line."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from .batches import Text

FORMATS = ("tsv", "csv", "jsonl", "parquet", "txt")
COLUMNS = ("text", "text_a", "text_b")


class TableError(ValueError):
    """A file that cannot be read as texts; the message says where and what was expected."""


def format_of(path: Path) -> str:
    """The format that a file's ending names."""
    ending = path.suffix.lower().lstrip(".")
    ending = {"json": "jsonl", "pq": "parquet"}.get(ending, ending)
    if ending not in FORMATS:
        raise TableError(
            f"{path}: cannot tell the format by the ending {path.suffix!r}; expected one of {', '.join(FORMATS)}"
        )
    return ending


def read_texts(path: Path, file_format: str | None = None) -> Iterator[Text]:
    """The texts of a file: its column ``text``, its pairs of ``text_a`` and ``text_b``, or the lines of a txt file.

    In tsv files a quotation mark is an ordinary character; csv files are quoted as usual.

    Args:
        path: the file.
        file_format: one of ``FORMATS``; None: by the ending.

    Raises:
        TableError: a missing file, an unknown format, missing columns, a row that does not fit.
    """
    if not path.is_file():
        raise TableError(f"{path}: no such file")
    file_format = file_format or format_of(path)
    if file_format in ("txt", "jsonl"):
        with path.open(encoding="utf-8-sig") as lines:
            yield from read_lines(lines, file_format, str(path))
    else:
        yield from _texts_of_rows(str(path), _rows_of(path, file_format, COLUMNS))


def read_labelled(path: Path, file_format: str | None = None) -> Iterator[tuple[Text, str]]:
    """The texts of a file as :func:`read_texts` gives them, each with the value of its column ``label``.

    Raises:
        TableError: as for :func:`read_texts`; a row without a label.
    """
    if not path.is_file():
        raise TableError(f"{path}: no such file")
    file_format = file_format or format_of(path)
    if file_format == "txt":
        raise TableError(f"{path}: a txt file has no column 'label'; expected tsv, csv, jsonl or parquet")
    with contextlib.closing(_rows_of(path, file_format, (*COLUMNS, "label"))) as rows:
        labels: list[str] = []
        texts = _texts_of_rows(str(path), _noting_labels(str(path), rows, labels))
        for text in texts:
            yield text, labels.pop()


def _noting_labels(name: str, rows: Iterable[dict[str, Any]], labels: list[str]) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(rows, 1):
        label = row.get("label")
        if label is None or str(label).strip() == "":
            raise TableError(
                f"{name}: row {number} has no label; expected a column 'label' with a value in every row; "
                f"got {', '.join(map(repr, row)) or 'nothing'}"
            )
        labels.append(str(label).strip())
        yield row


def _rows_of(path: Path, file_format: str, columns: tuple[str, ...]) -> Generator[dict[str, Any], None, None]:
    if file_format in ("tsv", "csv"):
        yield from _delimited_rows(path, "\t" if file_format == "tsv" else ",", columns)
    elif file_format == "parquet":
        yield from _parquet_rows(path, columns)
    else:
        with path.open(encoding="utf-8-sig") as lines:
            yield from _json_rows(lines, str(path))


def read_lines(lines: TextIO, file_format: str, name: str) -> Iterator[Text]:
    """The texts of a stream of lines.

    Args:
        lines: the stream.
        file_format: ``"txt"`` or ``"jsonl"``.
        name: name of the stream, for messages.
    """
    try:
        if file_format == "jsonl":
            yield from _texts_of_rows(name, _json_rows(lines, name))
        elif file_format == "txt":
            for line in lines:
                yield line.rstrip("\r\n")
        else:
            raise TableError(f"{name}: a stream is read as txt or jsonl; got {file_format!r}")
    except UnicodeDecodeError as error:
        raise TableError(f"{name}: expected UTF-8; {error}") from error


def _texts_of_rows(name: str, rows: Iterable[dict[str, Any]]) -> Iterator[Text]:
    for number, row in enumerate(rows, 1):
        if row.get("text") is not None:
            yield str(row["text"])
        elif row.get("text_a") is not None and row.get("text_b") is not None:
            yield str(row["text_a"]), str(row["text_b"])
        else:
            raise TableError(
                f"{name}: row {number} has no text; expected a column 'text', or 'text_a' and 'text_b'; "
                f"got {', '.join(map(repr, row)) or 'nothing'}"
            )


def _wanted(names: list[str], columns: tuple[str, ...]) -> list[str]:
    """The columns to read, if there are any, else all; in another column, values need not fit the type of its first."""
    return [name for name in columns if name in names] or names


def _delimited_rows(path: Path, delimiter: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import csv

    parse = csv.ParseOptions(
        delimiter=delimiter, quote_char=False if delimiter == "\t" else '"', newlines_in_values=delimiter == ","
    )
    in_turn = csv.ReadOptions(use_threads=False)  # so that errors can name the row
    try:
        with csv.open_csv(path, in_turn, parse) as reader:
            names = reader.schema.names
        wanted = _wanted(names, columns)
        strings = csv.ConvertOptions(
            strings_can_be_null=False, include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string())
        )
        with csv.open_csv(path, in_turn, parse, strings) as reader:
            for batch in reader:
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise TableError(f"{path}: {error}") from error


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=_wanted(file.schema_arrow.names, columns)):
                yield from batch.to_pylist()
    except pa.ArrowInvalid as error:
        raise TableError(f"{path}: {error}") from error


def _json_rows(lines: Iterable[str], name: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TableError(f"{name}: line {number} is not JSON ({error})") from error
        if not isinstance(row, dict):
            raise TableError(f"{name}: line {number} must be a JSON object with 'text'; got {type(row).__name__}")
        yield row

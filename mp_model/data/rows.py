"""Rows of tsv, csv, jsonl, json, parquet and txt files, one at a time; a row that is broken comes as such in its place."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from .values import RowError, TableError, described, label_columns, listed, text_columns

Row = dict[str, Any] | RowError

FORMATS = ("tsv", "csv", "jsonl", "json", "parquet", "txt")
LONGEST_FIELD = 1 << 26  # characters; a quotation mark that is never closed would take the rest of a csv file for one

ARRAY_OF_OBJECTS = re.compile(r"\s*\[\s*(\{|$)")
LEAST_HALVES = 4  # NULs by which a line is taken for UTF-16
UTF16 = "the file is UTF-16; convert it: iconv -f UTF-16 -t UTF-8"
BEGINNINGS = {  # of files that hold no text in UTF-8
    b"\xff\xfe\x00\x00": "the file is UTF-32; convert it: iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": UTF16,
    b"\xfe\xff": UTF16,
    b"\x1f\x8b": "the file is compressed; unpack it first: gunzip",
    b"PK\x03\x04": "the file is a zip archive or an Excel workbook; unpack it, or save its sheet as csv in UTF-8",
}


def rows_of(path: Path, file_format: str, marks: Sequence[str] | None) -> Iterator[Row]:
    """The rows of a file: the columns of texts, and of labels if asked for, with values as the format has them.

    marks: names of labels that may have columns of 0 and 1 (:func:`mp_model.data.values.label_columns`); None: no labels
    are asked for.

    Raises:
        OSError: the system cannot read the file.
        TableError: it is damaged, or lacks columns.
    """
    if file_format == "parquet":
        yield from _parquet_rows(path, marks)
        return
    newline = "" if file_format == "csv" else None  # line ends in quotation marks stay as they are
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline=newline) as stream:
        yield from rows_of_stream(stream, file_format, str(path), marks)


def rows_of_stream(stream: TextIO, file_format: str, name: str, marks: Sequence[str] | None) -> Iterator[Row]:
    """The rows of a stream of lines; bytes that are no UTF-8 are taken as ``surrogateescape`` decodes them.

    name: name of the stream, for messages; marks: as for :func:`rows_of`.
    """
    first = next(stream, "")
    for beginning, what in BEGINNINGS.items():
        if first.startswith(beginning.decode(errors="surrogateescape")):
            raise TableError(f"{name}: {what}")
    if order := _order_of_halves(first):
        raise TableError(f"{name}: the file is UTF-16; convert it: iconv -f UTF-16{order} -t UTF-8")
    lines = chain([first], stream) if first else iter(())
    if file_format == "txt":
        return _txt_rows(lines)
    if file_format == "tsv":
        return _delimited_rows(
            map(_tsv_fields, lines), name, marks, "a tab or line break in a text must be replaced by a blank"
        )
    if file_format == "csv":
        csv.field_size_limit(max(LONGEST_FIELD, csv.field_size_limit()))  # one limit for all readers of the process
        records = csv.reader(lines, strict=True)
        return _delimited_rows(
            records, name, marks, "a text with a comma or line break needs quotation marks around it"
        )
    return _document_rows(lines, name) if file_format == "json" else _json_rows(lines)


def _order_of_halves(line: str) -> str | None:
    """``"LE"`` or ``"BE"`` where a first line looks like UTF-16 without its mark: NUL in every second place; else None."""
    evens, odds = set(line[::2]), set(line.rstrip("\n")[1::2])
    if line.count("\0") < LEAST_HALVES or "\0" in evens & odds:
        return None
    return "LE" if odds == {"\0"} else "BE" if evens == {"\0"} else None


def _txt_rows(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        text = line.removesuffix("\n").removesuffix("\r")
        yield _not_utf8(text) or {"text": text}


def _tsv_fields(line: str) -> list[str]:
    line = line.removesuffix("\n").removesuffix("\r")
    return line.split("\t") if line else []


def _delimited_rows(records: Iterator[list[str]], name: str, marks: Sequence[str] | None, advice: str) -> Iterator[Row]:
    """Rows of records, the first of which has the names of the columns.

    A record without fields, an empty line, is the empty text where there is one column, and no row where there are
    several.
    """
    count = 0
    try:
        header = next(filter(None, records), None)
        if header is None:
            raise TableError(f"{name}: the file is empty; expected a first line with the names of columns, as 'text'")
        places = {column: header.index(column) for column in _wanted(header, name, marks)}
        for fields in records:
            if not fields and len(header) > 1:
                continue
            fields = fields or [""]
            count += 1
            if len(fields) == len(header):
                row = {column: fields[place] for column, place in places.items()}
                yield _not_utf8("".join(row.values())) or row
            else:
                yield RowError(
                    f"does not have {len(header)} fields, as the first line has, but {len(fields)}; {advice}"
                )
    except csv.Error as error:
        raise TableError(
            f"{name}: row {count + 1} has a quotation mark out of place (or more than {LONGEST_FIELD:,} characters in "
            f'a field); expected a quoted text to end with one, and one inside it to be written as ""',
            count + 1,
        ) from error


def _json_rows(lines: Iterable[str]) -> Iterator[Row]:
    """Rows of lines, each a JSON object; a line of blanks is no row."""
    for line in lines:
        if not _is_blank(line):
            yield _not_utf8(line) or _json_row(line.rstrip("\r\n"))


def _json_row(line: str) -> Row:
    if ARRAY_OF_OBJECTS.match(line):
        return RowError("begins a JSON array, where each line should be an object; rename a file of one array to .json")
    try:
        return _row_of(_parsed(line))
    except RowError as error:
        return error


def _document_rows(lines: Iterator[str], name: str) -> Iterator[Row]:
    """Rows of one JSON array of objects, or of lines."""
    first = next((line for line in lines if not _is_blank(line)), "")
    lines = chain([first], lines)
    if not first.lstrip().startswith("["):
        yield from _json_rows(lines)
        return
    document = []
    for number, line in enumerate(lines, 1):
        if wrong := _not_utf8(line):
            raise TableError(f"{name}: line {number} {wrong}")
        document.append(line)
    try:
        rows = _parsed("".join(document))
    except RowError as error:
        raise TableError(f"{name}: the file {error}") from error
    yield from map(_row_of, rows)


def _is_blank(line: str) -> bool:
    return not line.strip(" \t\r\n")


def _parsed(document: str) -> Any:
    try:
        return DECODER.decode(document)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in document else f"column {error.colno}"
        raise RowError(f"is not JSON (it goes wrong in {place})") from error
    except RecursionError as error:
        raise RowError("has too many brackets in each other") from error
    except ValueError as error:
        raise error if isinstance(error, RowError) else RowError("has a number of too many digits") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise RowError(f"has {listed(name for name in row if names.count(name) > 1)} twice in one object")
    return row


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _row_of(value: Any) -> Row:
    if isinstance(value, dict):
        return value
    return RowError(f"is no JSON object with 'text', but {described(value)}")


def _parquet_rows(path: Path, marks: Sequence[str] | None) -> Iterator[Row]:
    import pyarrow as pa
    from pyarrow import parquet

    count = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = _wanted(file.schema_arrow.names, str(path), marks)
            for batch in file.iter_batches(1024, columns=columns):
                for row in _rows_of_batch(batch):
                    count += 1
                    yield row
    except (pa.ArrowException, OSError) as error:
        whole = f"damaged or cut short after row {count}" if count else "no parquet file, or damaged"
        raise TableError(f"{path}: the file is {whole}") from error


def _rows_of_batch(batch: Any) -> list[Row]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [RowError(f"is not UTF-8 (byte {error.object[error.start]:#04x}); write the column anew")]
        half = batch.num_rows // 2
        return [*_rows_of_batch(batch[:half]), *_rows_of_batch(batch[half:])]


def _wanted(names: list[str], name: str, marks: Sequence[str] | None) -> list[str]:
    """The columns to read, of all the file has."""
    try:
        wanted = [*text_columns(names), *(() if marks is None else label_columns(names, marks))]
        if twice := [column for column in wanted if names.count(column) > 1]:
            raise RowError(f"has two columns {twice[0]!r}; expected one")
    except RowError as error:
        raise TableError(f"{name}: the file {error}") from None
    return wanted


def _not_utf8(text: str) -> RowError | None:
    """The error of a string in which ``surrogateescape`` had to keep bytes that are no UTF-8, or None."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) - 0xDC00
        if 0x80 <= byte <= 0xFF:
            return RowError(
                f"is not UTF-8 (byte {byte:#04x}); convert the file, for example with iconv -f CP1252 -t UTF-8"
            )
    return None

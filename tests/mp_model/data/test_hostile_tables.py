"""Tables with hostile texts come back whole: as they were written, and as Python's own readers read them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mp_model.data.batches import Text
from mp_model.data.tables import read_labelled, read_lines, read_texts
from support.situations import situation

# Characters that mean something to a format, or to somebody who splits lines or strips blanks.
HOSTILE = "\t\n\r\x0b\x0c\x1c\x85\u2028\u2029\0\ufeff\u00a0 \"',;|\\{}[]#é日🙂"
SPECIAL = [
    "",
    " ",
    "NA",
    "null",
    "NaN",
    "nan",
    "None",
    "true",
    "007",
    "1.50",
    '"',
    '""',
    "\\N",
    "\r\n",
    "[",
    "-",
    " x ",
]
# A text that no format may change, by the format; each takes characters of its own for its structure.
ILLEGAL = {"txt": "\n\r", "tsv": "\t\n\r", "csv": "", "jsonl": "", "json": "", "parquet": ""}
FORMATS = tuple(ILLEGAL)
LABELS = st.sampled_from(
    ["NA", "null", "nan", "true", "None", "é", 'said "no"', "a, b", "-1", "0", "10", "1.5", "LABEL_0"]
)
Rows = list[dict[str, str]]


def texts(file_format: str) -> st.SearchStrategy[str]:
    illegal = ILLEGAL[file_format]
    special = [text for text in SPECIAL if not set(text) & set(illegal)]
    hostile = [character for character in HOSTILE if character not in illegal]
    characters = st.sampled_from(hostile) | st.characters(exclude_categories=["Cs"], exclude_characters=illegal)
    return st.sampled_from(special) | st.text(characters, max_size=8)


@st.composite
def tables(draw: st.DrawFn, file_format: str) -> Rows:
    """Rows of one text or of a pair, labelled or not, among columns that nobody asked for, in any order."""
    names = ["text"]
    if file_format != "txt":
        names = draw(st.sampled_from([("text",), ("text_a", "text_b")]))
        names = draw(st.permutations([*names, *draw(st.sampled_from([(), ("label",), ("label", "id"), ("id",)]))]))
    columns = {name: LABELS if name == "label" else texts(file_format) for name in names}
    return draw(st.lists(st.fixed_dictionaries(columns), min_size=1, max_size=6))


def write(path: Path, rows: Rows, line_end: str) -> None:
    """Writes the rows with Python's own writer of the format; text begins with a mark of its byte order, to be ignored."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
        return
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, list(rows[0]))  # ends lines with both characters, so that it quotes either
            writer.writeheader()
            writer.writerows(rows)
        elif path.suffix == ".json":
            json.dump(rows, file, indent=1)
        elif path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + line_end for row in rows)
        elif path.suffix == ".tsv":
            names = list(rows[0])
            records = [names, *([row[name] for name in names] for row in rows)]
            file.writelines("\t".join(record) + line_end for record in records)
        else:
            file.writelines(row["text"] + line_end for row in rows)


def read_by_python(path: Path) -> Iterator[dict[str, Any]]:
    """The rows as Python's own reader of the format reads them."""
    if path.suffix == ".parquet":
        yield from parquet.read_table(path).to_pylist()
        return
    with path.open(encoding="utf-8-sig", newline="" if path.suffix == ".csv" else None) as file:
        if path.suffix == ".csv":
            header, *records = csv.reader(file, strict=True)
            yield from (dict(zip(header, record or [""], strict=True)) for record in records)
        elif path.suffix == ".json":
            yield from json.load(file)
        elif path.suffix == ".jsonl":
            yield from map(json.loads, file)
        elif path.suffix == ".tsv":
            header, *records = (line.rstrip("\n").split("\t") for line in file)
            yield from (dict(zip(header, record, strict=True)) for record in records)
        else:
            yield from ({"text": line.rstrip("\n")} for line in file)


def text_of(row: dict[str, str]) -> Text:
    return row["text"] if "text" in row else (row["text_a"], row["text_b"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@situation(
    "file",
    "quotation marks, line breaks, empty texts, `NA`, `null`, U+2028, NUL and the like in any format",
    "texts and labels come back as they were written, one for each row",
)
@pytest.mark.parametrize("file_format", FORMATS)
@given(line_end=st.sampled_from(["\n", "\r\n", "\r"]), data=st.data())
def test_tables_come_back(folder: Path, file_format: str, line_end: str, data: st.DataObject) -> None:
    rows = data.draw(tables(file_format))
    path = folder / f"table.{file_format}"
    write(path, rows, line_end)
    expected = [text_of(row) for row in rows]
    assert [text_of(row) for row in read_by_python(path)] == expected
    assert list(read_texts(path)) == expected
    assert list(read_texts(path, bad_rows="yield")) == expected
    if "label" in rows[0]:
        assert list(read_labelled(path)) == [(text_of(row), row["label"]) for row in rows]
    if file_format in ("txt", "jsonl"):
        with path.open(encoding="latin-1") as lines:  # a locale that is not UTF-8
            assert list(read_lines(lines, file_format, "standard input")) == expected


@situation(
    "file",
    "labels 3, 3.0 and `3`, in columns of integers, floats or strings",
    "one label, `3`, in every format",
)
@pytest.mark.parametrize("file_format", FORMATS[1:])
@given(numbers=st.lists(st.integers(-(2**53), 2**53), min_size=1, max_size=6))
def test_integers_and_integral_floats_are_one_label(folder: Path, file_format: str, numbers: list[int]) -> None:
    path = folder / f"numbers.{file_format}"
    kinds: tuple[Callable[[int], Any], ...] = (int, float, str, lambda number: f" {number}.0 ")
    for kind in kinds:
        values = [kind(number) for number in numbers]
        if file_format in ("tsv", "csv"):
            values = [f"{value:.1f}" if isinstance(value, float) else str(value) for value in values]
        write(path, [{"text": "a", "label": value} for value in values], "\n")
        assert list(read_labelled(path)) == [("a", str(number)) for number in numbers]

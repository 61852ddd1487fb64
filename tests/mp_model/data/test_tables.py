"""Texts from files: what each format takes as it stands, and errors that say where and what was expected."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from mp_model.data.batches import Text
from mp_model.data.tables import TableError, read_lines, read_texts

Write = Callable[[str, str | bytes], Path]
TABLES = ("tsv", "csv", "jsonl", "parquet")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def read(path: Path, file_format: str | None = None) -> list[Text]:
    return list(read_texts(path, file_format))


def table(folder: Path, ending: str, rows: list[dict[str, Any]]) -> Path:
    """The rows as a file; nothing in them may need quotation."""
    path = folder / f"table.{ending}"
    if ending == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        delimiter = "\t" if ending == "tsv" else ","
        lines: Iterable[Iterable[Any]] = [rows[0], *(row.values() for row in rows)]
        path.write_text("".join(delimiter.join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
    return path


# Formats


def test_quotation_marks_in_tsv_are_ordinary(write: Write) -> None:
    path = write("a.tsv", 'text\tlabel\nShe said "no"\t1\n"Open\t0\n5" nails, 2"\t1\n')
    assert read(path) == ['She said "no"', '"Open', '5" nails, 2"']


def test_quoted_csv(write: Write) -> None:
    path = write("a.csv", 'label,text\n1,"one, two"\n0,"first line\nsecond line"\n1,"say ""hi"""\n0,bare\n')
    assert read(path) == ["one, two", "first line\nsecond line", 'say "hi"', "bare"]


@pytest.mark.parametrize("ending", ["jsonl", "json", "JSONL"])
def test_jsonl_skips_blank_lines(write: Write, ending: str) -> None:
    path = write(f"a.{ending}", '{"text": "one"}\n\n  \n{"text": "two\\nlines", "label": 1}\n\n')
    assert read(path) == ["one", "two\nlines"]


def test_parquet(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": ["one", "two\nlines"], "label": [0, 1]}), tmp_path / "a.pq")
    assert read(tmp_path / "a.pq") == ["one", "two\nlines"]


def test_txt_is_a_text_a_line(write: Write) -> None:
    """An empty line is an empty text, so that answers stay beside their lines."""
    assert read(write("a.txt", 'one\ttab\r\n\n "three" \nlast')) == ["one\ttab", "", ' "three" ', "last"]


def test_a_named_format_goes_before_the_ending(write: Write) -> None:
    assert read(write("a.txt", '{"text": "one"}\n'), "jsonl") == ["one"]


@pytest.mark.parametrize("ending", TABLES)
def test_pairs(tmp_path: Path, ending: str) -> None:
    path = table(
        tmp_path, ending, [{"text_b": "b", "label": 0, "text_a": "a"}, {"text_b": "d", "label": 1, "text_a": "c"}]
    )
    assert read(path) == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize("ending", TABLES)
def test_utf8(tmp_path: Path, ending: str) -> None:
    texts = ["Grüße und né en été", "日本語の文", "🙂 ok"]
    assert read(table(tmp_path, ending, [{"text": text, "label": 0} for text in texts])) == texts


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", "é\n"), ("a.jsonl", '{"text": "é"}\n'), ("a.tsv", "text\né\n"), ("a.csv", "text\né\n")],
)
def test_a_byte_order_mark_is_no_text(write: Write, name: str, content: str) -> None:
    assert read(write(name, "\ufeff" + content)) == ["é"]


@pytest.mark.parametrize("ending", ["tsv", "csv"])
def test_texts_that_look_like_something_else(tmp_path: Path, ending: str) -> None:
    texts = ["007", "1.50", "NA", "null", "true", "", "2020-01-01"]
    assert read(table(tmp_path, ending, [{"text": text, "label": 0} for text in texts])) == texts


@pytest.mark.parametrize("ending", TABLES)
def test_no_rows(tmp_path: Path, ending: str) -> None:
    path = table(tmp_path, ending, [{"text": "one"}])
    if ending == "parquet":
        parquet.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    else:
        path.write_text("text\n" if ending != "jsonl" else "")
    assert read(path) == []


@pytest.mark.parametrize("ending", ["tsv", "csv"])
def test_labels_are_ignored(tmp_path: Path, ending: str) -> None:
    """Also where their type seems another at first: after megabytes of numbers come words."""
    rows = [{"text": "word " * 20, "label": i} for i in range(30_000)] + [{"text": "last", "label": "neutral"}]
    texts = read(table(tmp_path, ending, rows))
    assert len(texts) == 30_001
    assert texts[-1] == "last"


# Streams


def test_lines_of_a_stream() -> None:
    assert list(read_lines(io.StringIO("one\ntwo\n"), "txt", "standard input")) == ["one", "two"]
    assert list(read_lines(io.StringIO('{"text": "one"}\n'), "jsonl", "standard input")) == ["one"]
    with pytest.raises(TableError, match="standard input: a stream is read as txt or jsonl; got 'csv'"):
        list(read_lines(io.StringIO("text\none\n"), "csv", "standard input"))


LARGE = 60_000
WIDE = "word " * 20


@pytest.mark.parametrize(
    ("name", "head", "row", "broken", "message"),
    [
        ("a.jsonl", "", json.dumps({"text": WIDE}), '{"text": ', f"a.jsonl: row {LARGE + 1} is not JSON"),
        (
            "a.csv",
            "text,label\n",
            f"{WIDE},1",
            "one,two,three",
            f"a.csv: row {LARGE + 1} does not have 2 fields, as the first line has, but 3",
        ),
        (
            "a.tsv",
            "text\tlabel\n",
            f"{WIDE}\t1",
            "alone",
            f"a.tsv: row {LARGE + 1} does not have 2 fields, as the first line has, but 1",
        ),
    ],
)
def test_large_files_are_streamed(write: Write, name: str, head: str, row: str, broken: str, message: str) -> None:
    """An error at the end of a file is noticed only there."""
    texts = read_texts(write(name, head + f"{row}\n" * LARGE + broken + "\n"))
    assert list(islice(texts, 1000)) == [WIDE] * 1000
    with pytest.raises(TableError, match=message):
        list(texts)


def test_large_parquet_files_are_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = ["one"] * LARGE * 2 + [None]
    parquet.write_table(pa.table({"text": pa.array(texts, pa.string())}), path)
    stream = read_texts(path)
    assert list(islice(stream, 1000)) == ["one"] * 1000
    with pytest.raises(TableError, match=f"a.parquet: row {LARGE * 2 + 1} has no text"):
        list(stream)


# Errors

NO_TEXT = "expected a column 'text', or 'text_a' and 'text_b'; got "
WRONG = {
    "unknown ending": (
        "a.xlsx",
        "",
        "a.xlsx: cannot tell the format by the ending '.xlsx'; expected one of tsv, csv, ",
    ),
    "no ending": ("a", "", "a: cannot tell the format by the ending ''; expected one of tsv, csv, "),
    "tsv without text": (
        "a.tsv",
        "sentence\tlabel\none\t1\n",
        f"a.tsv: the file has no text; {NO_TEXT}'sentence', 'label'",
    ),
    "csv without text": (
        "a.csv",
        "sentence,label\none,1\n",
        f"a.csv: the file has no text; {NO_TEXT}'sentence', 'label'",
    ),
    "half a pair": ("a.tsv", "text_a\tlabel\none\t1\n", f"a.tsv: the file has no text; {NO_TEXT}'text_a', 'label'"),
    "object without text": (
        "a.jsonl",
        '{"text": "a"}\n{"label": 1}\n',
        f"a.jsonl: row 2 has no text; {NO_TEXT}'label'",
    ),
    "object with nothing": ("a.jsonl", "{}\n", f"a.jsonl: row 1 has no text; {NO_TEXT}nothing"),
    "object without a value": (
        "a.jsonl",
        '{"text": null}\n',
        "a.jsonl: row 1 has no text; expected a string in its column 'text'; got null",
    ),
    "not JSON": ("a.jsonl", '{"text": "a"}\n\n{"text": \n', r"a.jsonl: row 2 is not JSON \(.*column"),
    "a list": ("a.jsonl", '["a"]\n', "a.jsonl: row 1 is no JSON object with 'text', but a list"),
    "a string": ("a.jsonl", '{"text": "a"}\n"b"\n', "a.jsonl: row 2 is no JSON object with 'text', but the string 'b'"),
    "columns too many": (
        "a.csv",
        "text,label\na,1\nb,c,2\n",
        "a.csv: row 2 does not have 2 fields, as the first line has, but 3; .* needs quotation marks",
    ),
    "columns too few": (
        "a.tsv",
        "text\tlabel\na\t1\nb\n",
        "a.tsv: row 2 does not have 2 fields, as the first line has, but 1; .* must be replaced",
    ),
    "empty tsv": ("a.tsv", "", "a.tsv: the file is empty; expected a first line"),
    "empty csv": ("a.csv", "", "a.csv: the file is empty; expected a first line"),
    "empty parquet": ("a.parquet", "", "a.parquet: the file is no parquet file"),
    "not parquet": ("a.parquet", "text\n" * 10, "a.parquet: the file is no parquet file"),
    "txt in Latin-1": (
        "a.txt",
        "é".encode("latin-1"),
        r"a.txt: row 1 is not UTF-8 \(byte 0xe9\); convert the file, as by: iconv",
    ),
    "jsonl in Latin-1": ("a.jsonl", '{"text": "é"}'.encode("latin-1"), r"a.jsonl: row 1 is not UTF-8 \(byte 0xe9\)"),
    "tsv in Latin-1": ("a.tsv", "text\né\n".encode("latin-1"), r"a.tsv: row 1 is not UTF-8 \(byte 0xe9\)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files(write: Write, case: str) -> None:
    name, content, message = WRONG[case]
    with pytest.raises(TableError, match=message):
        read(write(name, content))


def test_parquet_without_text(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"sentence": ["one"]}), tmp_path / "a.parquet")
    with pytest.raises(TableError, match=f"a.parquet: the file has no text; {NO_TEXT}'sentence'"):
        read(tmp_path / "a.parquet")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"nowhere\.tsv: no such file"):
        read(tmp_path / "nowhere.tsv")
    with pytest.raises(TableError, match="a folder; expected a file"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_an_empty_file_holds_no_texts(write: Write, name: str) -> None:
    assert read(write(name, "")) == []

"""Texts from files: what each format takes as it stands, and errors that say where and what was expected."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import threading
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mp_model.data import rows
from mp_model.data.batches import Text
from mp_model.data.labels import is_file_name
from mp_model.data.tables import TableError, read_labelled, read_lines, read_texts
from support.situations import situation

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
    elif ending == "json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    elif ending == "txt":
        path.write_text("".join(f"{row['text']}\n" for row in rows), encoding="utf-8")
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


@situation("file", "empty lines in a txt file, or in a csv or tsv file of one column", "empty texts: no row is lost")
@pytest.mark.parametrize("ending", ["csv", "tsv", "txt"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_empty_lines_are_texts(write: Write, ending: str, line_end: str) -> None:
    header = [] if ending == "txt" else ["text"]
    path = write(f"a.{ending}", "".join(line + line_end for line in [*header, "", "one", "", "two", ""]))
    assert read(path) == ["", "one", "", "two", ""]


@situation("file", "empty lines in a csv or tsv file of several columns, or in a jsonl file", "no rows")
@pytest.mark.parametrize(
    ("ending", "lines"),
    [
        ("csv", ["", "text,label", "", "one,1", ",0", "", ""]),
        ("tsv", ["", "text\tlabel", "", "one\t1", "\t0", "", ""]),
        ("jsonl", ["", '{"text": "one", "label": 1}', "  ", '{"text": "", "label": 0}', "", ""]),
    ],
)
def test_empty_lines_that_are_no_rows(write: Write, ending: str, lines: list[str]) -> None:
    path = write(f"a.{ending}", "\r\n".join(lines))
    assert read(path) == ["one", ""]
    assert list(read_labelled(path)) == [("one", "1"), ("", "0")]


def test_line_breaks_in_quotation_marks_stay_as_they_are(write: Write) -> None:
    assert read(write("a.csv", 'text,label\r\n"a\r\nb\rc\nd",1\r\n')) == ["a\r\nb\rc\nd"]


def test_quoted_csv(write: Write) -> None:
    path = write("a.csv", 'label,text\n1,"one, two"\n0,"first line\nsecond line"\n1,"say ""hi"""\n0,bare\n')
    assert read(path) == ["one, two", "first line\nsecond line", 'say "hi"', "bare"]


@pytest.mark.parametrize("ending", ["jsonl", "json", "JSONL"])
def test_jsonl(write: Write, ending: str) -> None:
    path = write(f"a.{ending}", '{"text": "one"}\n{"text": "two\\nlines", "label": 1}')
    assert read(path) == ["one", "two\nlines"]


@situation("file", "a JSON array in a .json file", "its objects are the rows")
@pytest.mark.parametrize(
    "content", ['[{"text": "one"}, {"text": "two"}]', '\n [\n{"text": "one"},\n{"text": "two"}]\n']
)
def test_json_array(write: Write, content: str) -> None:
    assert read(write("a.json", content)) == ["one", "two"]
    assert read(write("a.txt", content), "json") == ["one", "two"]


@situation("file", "a JSON array in a .jsonl file", "one line: rename it to .json")
@pytest.mark.parametrize(
    "content", ['[{"text": "one"}, {"text": "two"}]', '\n [\n{"text": "one"},\n{"text": "two"}]\n']
)
def test_json_array_among_lines(write: Write, content: str) -> None:
    with pytest.raises(
        TableError, match=r"row 1 begins a JSON array, where each .* rename a file of one array to \.json"
    ):
        read(write("a.jsonl", content))


@pytest.mark.parametrize("content", ["[]", "", " \n"])
def test_json_without_rows(write: Write, content: str) -> None:
    assert read(write("a.json", content)) == []


def test_parquet(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"text": ["one", "two\nlines"], "label": [0, 1]}), tmp_path / "a.pq")
    assert read(tmp_path / "a.pq") == ["one", "two\nlines"]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
def test_parquet_strings_of_all_kinds(tmp_path: Path, kind: pa.DataType) -> None:
    texts, labels = pa.array(["b", "", "b"]), pa.array(["x", "y", "x"])
    parquet.write_table(pa.table({"text": texts.cast(kind), "label": labels.cast(kind)}), tmp_path / "a.parquet")
    assert list(read_labelled(tmp_path / "a.parquet")) == [("b", "x"), ("", "y"), ("b", "x")]


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


def test_a_pipe_is_read_like_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert is_file_name(pipe)
    # It waits until somebody opens the other end; a daemon, so that nothing waits for it if nobody does.
    writer = threading.Thread(target=pipe.write_text, args=["text,label\none,1\ntwo,1\n"], daemon=True)
    writer.start()
    assert list(read_texts(pipe, "csv")) == ["one", "two"]
    writer.join()


def test_lines_of_a_stream() -> None:
    assert list(read_lines(io.StringIO("one\ntwo\n"), "txt", "standard input")) == ["one", "two"]
    assert list(read_lines(io.StringIO('{"text": "one"}\n'), "jsonl", "standard input")) == ["one"]
    with pytest.raises(TableError, match="standard input: a stream is read as txt or jsonl; got 'csv'"):
        list(read_lines(io.StringIO("text\none\n"), "csv", "standard input"))


@pytest.mark.parametrize("locale", ["latin-1", "ascii"])
def test_a_stream_is_utf8_whatever_the_locale(locale: str) -> None:
    def stream() -> io.TextIOWrapper:
        return io.TextIOWrapper(io.BytesIO("é\n".encode() + b"\xe9\n" + "日\n".encode()), encoding=locale)

    first, second, third = read_lines(stream(), "txt", "standard input", bad_rows="yield")
    assert (first, third) == ("é", "日")
    assert "standard input: row 2 is not UTF-8 (byte 0xe9)" in str(second)
    with pytest.raises(TableError, match="standard input: row 2 is not UTF-8"):
        list(read_lines(stream(), "txt", "standard input"))


@situation("file", "a text of 20 MB, in any format", "read as it stands")
@pytest.mark.parametrize("ending", [*TABLES, "json", "txt"])
def test_a_very_long_text(tmp_path: Path, ending: str) -> None:
    text = "word " * 4_000_000
    path = table(tmp_path, ending, [{"text": text, "label": 1}, {"text": "b", "label": 0}])
    assert read(path) == [text, "b"]


LARGE = 60_000
WIDE = "word " * 20


@pytest.mark.parametrize(
    ("name", "head", "row", "broken", "message"),
    [
        ("a.jsonl", "", json.dumps({"text": WIDE}), '{"text": ', f"a.jsonl: row {LARGE + 1} is not JSON"),
        ("a.json", "", json.dumps({"text": WIDE}), '{"text": ', f"a.json: row {LARGE + 1} is not JSON"),
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
    "array that is broken": ("a.json", '[{"text": "a"},\n]', r"a.json: the file is not JSON \(.* line 2, column 1\)"),
    "array of something else": (
        "a.json",
        '[{"text": "a"}, 3]',
        "a.json: row 2 is no JSON object with 'text', but the number 3",
    ),
    "array in lines": ("a.jsonl", '[{"text": "a"}]', "a.jsonl: row 1 begins a JSON array"),
    "object over several lines": (
        "a.json",
        '{\n"text": "a"}',
        r"a.json: row 1 is not JSON \(it goes wrong in column 2\)",
    ),
    "brackets": ("a.jsonl", "[" * 100_000, "a.jsonl: row 1 has too many brackets"),
    "digits": ("a.jsonl", '{"text": "a", "n": ' + "1" * 5000 + "}", "a.jsonl: row 1 has a number of too many digits"),
    "name twice": ("a.jsonl", '{"text": "a", "text": "b"}', "a.jsonl: row 1 has 'text' twice in one object"),
    "column twice": ("a.csv", "text,text\na,b\n", "a.csv: the file has two columns 'text'; expected one"),
    "single and pair": (
        "a.tsv",
        "text\ttext_a\na\tb\n",
        "a.tsv: the file has both 'text' and 'text_a'; expected a single",
    ),
    "pair after singles": (
        "a.jsonl",
        '{"text": "a"}\n{"text_a": "a", "text_b": "b"}\n',
        "a.jsonl: row 2 is a pair after single texts; expected a file to hold one or the other",
    ),
    "single after pairs": (
        "a.jsonl",
        '{"text_a": "a", "text_b": "b"}\n{"text": "a"}\n',
        "a.jsonl: row 2 is a single text after pairs",
    ),
    "quotation mark left open": (
        "a.csv",
        'text,label\na,1\n"b,1\nc,0\n',
        "a.csv: row 2 has a quotation mark out of place",
    ),
    "quotation mark inside": (
        "a.csv",
        'text,label\n"a "b" c",1\n',
        'a.csv: row 1 .* one inside it to be written as ""',
    ),
    "many columns": ("a.csv", ",".join(f"c{n}" for n in range(1000)), "got 'c0', .* 'c29' and 970 more$"),
    "UTF-16": ("a.txt", "one\n".encode("utf-16"), "a.txt: the file is UTF-16; convert it: iconv -f UTF-16 -t UTF-8"),
    "UTF-16, big end first": ("a.csv", b"\xfe\xff" + "text\n".encode("utf-16-be"), "a.csv: the file is UTF-16"),
    "UTF-16 without its mark": (
        "a.txt",
        "texts\n".encode("utf-16-le"),
        "a.txt: .* convert it: iconv -f UTF-16LE -t UTF-8",
    ),
    "and big end first": ("a.csv", "text\r\né\r\n".encode("utf-16-be"), "a.csv: .* iconv -f UTF-16BE -t UTF-8"),
    "UTF-32": ("a.txt", "one\n".encode("utf-32"), "a.txt: the file is UTF-32; convert it: iconv -f UTF-32 -t UTF-8"),
    "compressed": ("a.csv", gzip.compress(b"text\na\n"), "a.csv: the file is compressed; unpack it first: gunzip"),
    "compressed by its ending": (
        "a.csv.gz",
        gzip.compress(b"text\na\n"),
        "a.csv.gz: .* ending '.gz'; .*; unpack it first",
    ),
    "Excel": ("a.csv", b"PK\x03\x04\x14", "a.csv: the file is a zip archive or an Excel workbook"),
    "parquet cut short": ("a.parquet", b"PAR1\x15\x04", "a.parquet: the file is no parquet file, or damaged"),
    "array in Latin-1": ("a.json", '[\n{"text": "é"}]'.encode("latin-1"), r"a.json: line 2 is not UTF-8 \(byte 0xe9\)"),
    "txt in Latin-1": (
        "a.txt",
        "é".encode("latin-1"),
        r"a.txt: row 1 is not UTF-8 \(byte 0xe9\); convert the file, for example with iconv",
    ),
    "jsonl in Latin-1": ("a.jsonl", '{"text": "é"}'.encode("latin-1"), r"a.jsonl: row 1 is not UTF-8 \(byte 0xe9\)"),
    "tsv in Latin-1": ("a.tsv", "text\né\n".encode("latin-1"), r"a.tsv: row 1 is not UTF-8 \(byte 0xe9\)"),
}


@situation(
    "file",
    "a file in UTF-16, compressed, cut short, with an open quotation mark, without the columns that are needed",
    "an error that names the file, the row where there is one, and the way out",
)
@pytest.mark.parametrize("case", WRONG)
def test_wrong_files(write: Write, case: str) -> None:
    name, content, message = WRONG[case]
    with pytest.raises(TableError, match=message):
        read(write(name, content))


def test_parquet_without_text(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"sentence": ["one"]}), tmp_path / "a.parquet")
    with pytest.raises(TableError, match=f"a.parquet: the file has no text; {NO_TEXT}'sentence'"):
        read(tmp_path / "a.parquet")


# What cannot be read in a row, and what makes the file as a whole unreadable.
BROKEN_ROWS = {
    "csv": ("text,label\na,1\nb\nc,1,2\nd,1\n", ["a", 2, 3, "d"]),
    "tsv": ("text\tlabel\na\t1\nb\nc\t1\t2\nd\t1\n", ["a", 2, 3, "d"]),
    "jsonl": ('{"text": "a"}\n\nb\n{"text": null}\n{"text": "d"}\n', ["a", 2, 3, "d"]),
    "json": ('[{"text": "a"}, "b", {"text": null}, {"text": "d"}]', ["a", 2, 3, "d"]),
}


@pytest.mark.parametrize("ending", BROKEN_ROWS)
def test_broken_rows_come_in_their_places(write: Write, ending: str) -> None:
    content, expected = BROKEN_ROWS[ending]
    items = list(read_texts(write(f"a.{ending}", content), bad_rows="yield"))
    assert [item.row if isinstance(item, TableError) else item for item in items] == expected
    assert all(f"a.{ending}: row {item.row} " in str(item) for item in items if isinstance(item, TableError))


def test_a_broken_row_does_not_say_whether_texts_are_pairs(write: Write) -> None:
    path = write("a.jsonl", '{"text": null}\n{"text_a": "a", "text_b": "b"}\n{"text": "c"}\n')
    items = list(read_texts(path, bad_rows="yield"))
    assert [item.row if isinstance(item, TableError) else item for item in items] == [1, ("a", "b"), 3]


@situation("file", "a file in Windows-1252", "an error with the first such row, and how to convert the file")
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "txt"])
def test_bytes_that_are_no_utf8(tmp_path: Path, ending: str) -> None:
    path = table(tmp_path, ending, [{"text": text, "label": 1} for text in ("plain", "café", "plain")])
    path.write_bytes(path.read_text(encoding="utf-8").encode("cp1252"))
    first, second, third = read_texts(path, bad_rows="yield")
    assert (first, third) == ("plain", "plain")
    assert isinstance(second, TableError)
    assert second.row == 2
    assert str(second).endswith(
        "row 2 is not UTF-8 (byte 0xe9); convert the file, for example with iconv -f CP1252 -t UTF-8"
    )


def test_bytes_that_are_no_utf8_in_parquet(tmp_path: Path) -> None:
    ends = np.array([0, 1, 2, 3], np.int32)
    texts = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(b"a\xe9b")])
    parquet.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    first, second, third = read_texts(tmp_path / "a.parquet", bad_rows="yield")
    assert (first, third) == ("a", "b")
    assert "row 2 is not UTF-8 (byte 0xe9)" in str(second)


@pytest.mark.parametrize("case", ["quotation mark left open", "column twice", "UTF-16", "array that is broken"])
def test_errors_of_the_whole_file_are_raised(write: Write, case: str) -> None:
    name, content, message = WRONG[case]
    with pytest.raises(TableError, match=message):
        list(read_texts(write(name, content), bad_rows="yield"))


def test_a_quotation_mark_left_open_does_not_take_all_memory(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    before = csv.field_size_limit(1000)
    monkeypatch.setattr(rows, "LONGEST_FIELD", 1000)
    try:
        texts = read_texts(write("a.csv", 'text,label\na,1\n"b,1\n' + "c,1\n" * 1000))
        assert next(texts) == "a"
        with pytest.raises(TableError, match="row 2 has a quotation mark out of place"):
            next(texts)
    finally:
        csv.field_size_limit(before)


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {n}" for n in range(3000)]
    parquet.write_table(pa.table({"text": texts}), path, row_group_size=1000, use_dictionary=False)
    page = parquet.read_metadata(path).row_group(2).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[page : page + 64] = bytes(64)
    path.write_bytes(content)
    stream = read_texts(path)
    assert list(islice(stream, 1024)) == texts[:1024]
    with pytest.raises(TableError, match=r"a.parquet: the file is damaged or cut short after row 1024"):
        next(stream)


def test_a_file_that_the_system_cannot_read() -> None:
    with pytest.raises(TableError, match=r"/proc/self/mem: cannot be read \(Input/output error\)"):
        read(Path("/proc/self/mem"), "txt")
    with Path("/proc/self/mem").open() as lines, pytest.raises(TableError, match="standard input: cannot be read"):
        list(read_lines(lines, "txt", "standard input"))


def test_names_that_are_unknown(write: Write) -> None:
    path = write("a.txt", "one\n")
    with pytest.raises(TableError, match="the format 'xml' is unknown; expected one of tsv, csv, "):
        read(path, "xml")
    with pytest.raises(ValueError, match="bad_rows must be 'raise' or 'yield'; got 'skip'"):
        read_texts(path, bad_rows="skip")
    with pytest.raises(TableError, match="a txt file has no column 'label'"):
        list(read_labelled(path))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"nowhere\.tsv: no such file"):
        read(tmp_path / "nowhere.tsv")
    with pytest.raises(TableError, match="a folder; expected a file"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_an_empty_file_holds_no_texts(write: Write, name: str) -> None:
    assert read(write(name, "")) == []

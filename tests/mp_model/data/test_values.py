"""The rule of what is a text and what is a label, in every format that can hold the value, and in data sets."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from pyarrow import parquet

from mp_model.data.labels import read_rows
from mp_model.data.tables import TableError, read_labelled, read_texts
from mp_model.data.values import RowError, described, label_of, listed, text_of
from support.situations import situation

# Values that are neither texts nor labels, with what a message calls them.
NEITHER = {
    "null": (None, "null"),
    "boolean": (True, "the boolean True"),
    "NaN": (math.nan, "the number nan"),
    "infinite": (math.inf, "the number inf"),
    "fraction": (2.5, "the number 2.5"),
    "object": ({"a": "b"}, "an object"),
    "bytes": (b"hi", "the bytes b'hi'"),
    "date": (datetime.date(2020, 1, 2), "the date datetime.date(2020, 1, 2)"),
}
JSON = tuple(kind for kind in NEITHER if kind not in ("bytes", "date"))
CASES = [("parquet", kind) for kind in NEITHER] + [(ending, kind) for ending in ("jsonl", "json") for kind in JSON]


def write(folder: Path, ending: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"train.{ending}"
    if ending == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@situation(
    "file",
    "null, NaN, a number, a boolean, bytes, a date or an object where a text should be",
    "an error with the row and the column, never the value's name as a text",
)
@pytest.mark.parametrize(("ending", "kind"), CASES)
@pytest.mark.parametrize("column", ["text", "text_a", "text_b"])
def test_no_text(tmp_path: Path, ending: str, kind: str, column: str) -> None:
    value, called = NEITHER[kind]
    row = dict.fromkeys(["text"] if column == "text" else ["text_a", "text_b"], "ok") | {column: value}
    path = write(tmp_path, ending, [row])
    message = f"train.{ending}: row 1 has no text; expected a string in its column {column!r}; got {called}"
    with pytest.raises(TableError) as raised:
        list(read_texts(path))
    assert message in str(raised.value)
    assert raised.value.row == 1
    (error,) = read_texts(path, bad_rows="yield")
    assert str(error) == str(raised.value)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_numbers_are_no_texts(tmp_path: Path, ending: str) -> None:
    with pytest.raises(TableError, match=r"row 1 has no text; .* got the number 7"):
        list(read_texts(write(tmp_path, ending, [{"text": 7}])))


@situation(
    "file",
    "null, NaN, a fraction, a boolean, bytes, a date or an object where a label should be",
    "an error with the row; no class of such a name",
)
@pytest.mark.parametrize(("ending", "kind"), CASES)
def test_no_label(tmp_path: Path, ending: str, kind: str) -> None:
    value, called = NEITHER[kind]
    path = write(tmp_path, ending, [{"text": "a", "label": value}])
    message = "row 1 has no label; expected a name or a whole number in its column 'label'; got"
    with pytest.raises(TableError) as raised:
        list(read_labelled(path))
    assert f"train.{ending}: {message} {called}" in str(raised.value)
    assert raised.value.row == 1


@pytest.mark.parametrize("label", ["", "  ", "\t"])
def test_blank_labels(label: str) -> None:
    with pytest.raises(RowError, match="has no label"):
        label_of(label)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (3, "3"),
        (3.0, "3"),
        ("3", "3"),
        (" 3.00 ", "3"),
        (-0.0, "0"),
        ("-0.0", "0"),
        (-1.0, "-1"),
        (1e20, "100000000000000000000"),
        ("007", "007"),
        ("1.5", "1.5"),
        ("1.0.0", "1.0.0"),
        ("nan", "nan"),
        (" two words ", "two words"),
    ],
)
def test_names_of_labels(value: Any, name: str) -> None:
    assert label_of(value) == name


@situation("file", "half of a surrogate pair, `\\ud800`, in a JSON file", "an error with the row and the column")
@pytest.mark.parametrize("code", [0xD800, 0xDFFF, 0xDCE9])  # the last is what a wrong byte is decoded to
def test_halves_of_surrogate_pairs(tmp_path: Path, code: int) -> None:
    half = f"a{chr(code)}b"
    path = write(tmp_path, "jsonl", [{"text": "🙂"}, {"text": half}, {"text": "b"}])
    first, second, third = read_texts(path, bad_rows="yield")
    assert (first, third) == ("🙂", "b")
    assert f"train.jsonl: row 2 has half of a surrogate pair, U+{code:04X}, in its column 'text'" in str(second)
    with pytest.raises(RowError, match="in its column 'label'"):
        label_of(half)


# Data sets


def data_set(folder: Path, features: datasets.Features, **columns: list[Any]) -> str:
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / "data" / "train.parquet")
    return str(folder / "data")


@situation("file", "the same values in a data set of the `datasets` library", "refused by the same rule, with the row")
@pytest.mark.parametrize(
    ("text", "label", "message"),
    [
        (("string", None), ("int64", 1), "row 2 has no text; expected a string in its column 'sentence'; got null"),
        (("float64", math.nan), ("int64", 1), "row 1 has no text; .* got the number 1.0"),
        (("string", "a"), ("float64", math.nan), "row 2 has no label; .* got the number nan"),
        (("string", "a"), ("float64", 0.5), "row 2 has no label; .* got the number 0.5"),
        (("string", "a"), ("bool", True), "row 1 has no label; .* got the boolean"),
        (("string", "a"), ("string", " "), "row 2 has no label; .* got the string ' '"),
        (("string", "a"), ("int64", None), "row 2 has no label; its labels may be hidden"),
    ],
)
def test_values_of_data_sets(tmp_path: Path, text: tuple, label: tuple, message: str) -> None:
    good = {"string": "a", "float64": 1.0, "int64": 1, "bool": False}
    features = datasets.Features({"sentence": datasets.Value(text[0]), "label": datasets.Value(label[0])})
    name = data_set(tmp_path, features, sentence=[good[text[0]], text[1]], label=[good[label[0]], label[1]])
    with pytest.raises(TableError, match=f"data set '.*', train: {message}"):
        read_rows(name, ("train",))


def test_integral_floats_of_data_sets(tmp_path: Path) -> None:
    features = datasets.Features({"sentence": datasets.Value("string"), "label": datasets.Value("float64")})
    name = data_set(tmp_path, features, sentence=["a", ""], label=[3.0, 0.0])
    assert read_rows(name, ("train",)) == [("a", "3"), ("", "0")]


# Words for messages


def test_messages_stay_short() -> None:
    assert described("x" * 100_000).startswith("the string 'xxx")
    assert len(described("x" * 100_000)) < 80
    assert len(described(int("9" * 4000))) < 80
    assert listed(["a", "b"]) == "'a', 'b'"
    assert listed(range(10_000), at_most=3) == "0, 1, 2 and 9,997 more"
    with pytest.raises(RowError) as raised:
        text_of(b"x" * 100_000, "text")
    assert len(str(raised.value)) < 200

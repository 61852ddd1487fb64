"""Texts with any number of labels: lists, names between commas, and columns of 0 and 1, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from mp_model.data.labels import TEST, LabelledTexts, load_split, numbered, read_rows
from mp_model.data.tables import TableError, read_labelled
from mp_model.training import load_task
from mp_model.training.identity import texts_identity
from support.situations import situation

WANTED = [("a", ("joy", "fear")), ("b", ()), ("c", ("fear",))]


def write(folder: Path, ending: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"train.{ending}"
    if ending == "parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "json":
        path.write_text(json.dumps(rows))
    elif ending == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = {"tsv": "\t", "csv": ","}[ending]
        quoted = [[f'"{value}"' if ending == "csv" else str(value) for value in row.values()] for row in rows]
        path.write_text("\n".join(map(mark.join, [list(rows[0]), *quoted])) + "\n")
    return path


@situation("file", "a list of labels for each text, in `label` or in `labels`", "all of them are the text's")
@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize("column", ["label", "labels"])
def test_lists(tmp_path: Path, ending: str, column: str) -> None:
    path = write(tmp_path, ending, [{"text": text, column: list(labels)} for text, labels in WANTED])
    assert list(read_labelled(path)) == WANTED


@situation(
    "file", "names with commas between them in a column `labels`, as in go_emotions", "all of them are the text's"
)
@pytest.mark.parametrize("ending", ["tsv", "csv", "jsonl", "json", "parquet"])
def test_names_between_commas(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path, ending, [{"labels": ", ".join(labels), "text": text} for text, labels in WANTED])
    assert list(read_labelled(path)) == WANTED


@situation("file", "a column of 0 and 1 for each label", "the labels whose columns have a 1, where they are named")
@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        *((ending, kind) for ending in ("tsv", "csv", "jsonl", "json", "parquet") for kind in (int, float, str)),
        *((ending, bool) for ending in ("jsonl", "json", "parquet")),
    ],
)
def test_columns_of_0_and_1(tmp_path: Path, ending: str, kind: type) -> None:
    marks = ("joy", "fear")
    rows = [
        {"text": text, "id": 7, **{mark: kind(int(mark in labels)) for mark in marks}, "sad": 3}
        for text, labels in WANTED
    ]
    path = write(tmp_path, ending, rows)
    assert list(read_labelled(path, marks=marks)) == WANTED
    with pytest.raises(TableError, match="has no label; expected a column 'label', or 'labels' with several; got"):
        list(read_labelled(path))
    with pytest.raises(TableError, match="'labels' with several, or columns of 0 and 1 for 'joy', 'rage'; got"):
        list(read_labelled(path, marks=("joy", "rage")))
    with pytest.raises(TableError, match="row 1 does not say whether it has the label 'sad'; expected 0 or 1; got the"):
        list(read_labelled(path, marks=("joy", "sad")))


def test_one_column_of_one_label_is_as_before(tmp_path: Path) -> None:
    """Commas in a column ``label`` are part of a name, and other columns beside it do not count."""
    path = write(tmp_path, "csv", [{"label": "joy,fear", "text": "a", "labels": "x", "joy": 1}])
    assert list(read_labelled(path, marks=("joy",))) == [("a", "joy,fear")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"text": "a", "label": ["x"]}, {"text": "b", "label": "x"}],
            "row 2 has a single label after lists of them; expected a file to hold one or the other",
        ),
        (
            [{"text": "a", "label": "x"}, {"text": "b", "labels": ["x"]}],
            "row 2 has a list of labels after a single one; expected a file to hold one or the other",
        ),
        ([{"text": "a", "label": [["x"]]}], "row 1 has a list in a list as its 'label'; expected a list of names"),
        ([{"text": "a", "label": ["x", None]}], "row 1 has no label; .* got null"),
        (
            [{"text": "a", "labels": None}],
            "row 1 has no labels; expected a list of names in its column 'labels'; got null",
        ),
        ([{"text": "a", "labels": 3}], "row 1 has no labels; expected a list .* got the number 3"),
    ],
)
def test_refused_rows(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(TableError, match=message):
        list(read_labelled(write(tmp_path, "jsonl", rows)))


def test_a_label_given_twice_counts_once(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"text": "a", "labels": ["x", 3, "x", "3.0", " x "]}])
    assert list(read_labelled(path)) == [("a", ("x", "3"))]


@situation("file", "a data set with lists of labels, or with columns of 0 and 1", "read in the same way")
def test_data_sets(tmp_path: Path) -> None:
    emotions = datasets.ClassLabel(names=["joy", "fear"])
    features = datasets.Features({"text": datasets.Value("string"), "labels": datasets.List(emotions)})
    columns = {"text": ["a", "b", "c"], "labels": [[0, 1], [], [1]]}
    datasets.DatasetDict({"test": datasets.Dataset.from_dict(columns, features=features)}).save_to_disk(
        tmp_path / "own"
    )
    (tmp_path / "lists").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "lists" / "test.parquet")
    assert read_rows(str(tmp_path / "lists"), TEST) == WANTED
    marked = {"text": ["a", "b", "c"], "joy": [1, 0, 0], "fear": [1, 0, 1]}
    (tmp_path / "marks").mkdir()
    datasets.Dataset.from_dict(marked).to_parquet(tmp_path / "marks" / "test.parquet")
    assert read_rows(str(tmp_path / "marks"), TEST, ("joy", "fear")) == WANTED
    with pytest.raises(TableError, match="expected a label and a text"):
        read_rows(str(tmp_path / "marks"), TEST)


# Numbers


def test_numbers_and_targets(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl", [{"text": text, "labels": list(labels)} for text, labels in WANTED])
    data = load_split(path, ["fear", "rage", "joy"])
    assert (data.labels, data.among) == ([(0, 2), (), (0,)], 3)
    assert data.targets.tolist() == [[True, False, True], [False] * 3, [True, False, False]]
    one = LabelledTexts(["a", "b"], [1, 0])
    assert one.targets.tolist() == [1, 0]
    assert one.targets.dtype == torch.int64
    with pytest.raises(TableError, match="row 1 has the label 'joy', which the classifier was not trained for"):
        load_split(path, ["fear", "rage"])


def test_rows_for_a_task_of_another_kind() -> None:
    """One label is a set of one; a set is no label."""
    single = [("a", "joy"), ("b", "fear")]
    assert numbered(single, ["fear", "joy"], "rows", several=True).labels == [(1,), (0,)]
    with pytest.raises(TableError, match="rows: the texts have lists of labels; expected one label for each"):
        numbered(WANTED, ["fear", "joy"], "rows", several=False)


def test_identities_tell_sets_apart() -> None:
    sets = [LabelledTexts(["a", "b"], labels, among=2) for labels in ([(0,), (1,)], [(0, 1), (1,)], [(0,), ()])]
    single = LabelledTexts(["a", "b"], [0, 1])
    hashes = [texts_identity(data, ["x", "y"])["sha256"] for data in (*sets, single)]
    assert len(set(hashes)) == 4


# Tasks


def test_tasks(tmp_path: Path) -> None:
    train = write(tmp_path, "jsonl", [{"text": text, "labels": list(labels)} for text, labels in WANTED * 10])
    task = load_task(train)
    assert task.several
    assert task.label_names == ["fear", "joy"]
    assert (len(task.train), len(task.validation)) == (27, 3)
    turned = task.in_the_order_of(["joy", "fear"])
    assert [set(x) for x in turned.train.labels] == [{1 - n for n in x} for x in task.train.labels]
    (tmp_path / "validation").mkdir()
    validation = write(tmp_path / "validation", "tsv", [{"label": "joy", "text": "d"}])
    assert load_task(train, validation).validation.labels == [(1,)]
    one = write(tmp_path / "validation", "csv", [{"label": label, "text": "a"} for label in ("joy", "fear")])
    with pytest.raises(TableError, match="the texts have lists of labels; expected one label for each"):
        load_task(one, train)


def test_columns_are_named_by_the_labels_of_a_task(tmp_path: Path) -> None:
    train = write(tmp_path, "tsv", [{"text": f"t{n}", "b": n % 2, "a": int(n % 3 == 0)} for n in range(40)])
    task = load_task(train, labels=["b", "a"])
    assert (task.label_names, task.ordered, task.several) == (["b", "a"], True, True)
    expected = {f"t{n}": tuple(k for k, has in enumerate((n % 2, n % 3 == 0)) if has) for n in range(40)}
    for data in (task.train, task.validation):
        assert dict(zip(data.texts, data.labels, strict=True)).items() <= expected.items()


def test_texts_are_held_out_by_their_rarest_label(tmp_path: Path) -> None:
    """A tenth of the texts of every label, and the last text of none."""
    rows = [{"text": f"t{n}", "labels": ["common", *(["rare"] if n % 10 == 0 else [])]} for n in range(200)]
    task = load_task(write(tmp_path, "jsonl", [*rows, {"text": "t", "labels": ["common", "single"]}]))
    counts = {name: sum(k in labels for labels in task.validation.labels) for k, name in enumerate(task.label_names)}
    assert counts == {"common": 20, "rare": 2, "single": 0}


def test_texts_without_any_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="expected labels; none of the 2 rows has one"):
        load_task(write(tmp_path, "jsonl", [{"text": "a", "labels": []}, {"text": "b", "labels": []}]))

"""Labelled texts of files and of data sets, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mp_model.data.labels import TEST, in_order, is_file_name, load_split, match_labels, read_rows
from mp_model.data.tables import TableError
from mp_model.training import load_task
from support.situations import situation


def write_data_set(folder: Path, rows: dict[str, list[dict]]) -> str:
    """A folder that the ``datasets`` library reads like a data set of a hub, by its path."""
    folder.mkdir()
    for split, members in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in members))
    return str(folder)


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def test_sources() -> None:
    for name in ("a.tsv", "folder/b.CSV", "c.jsonl", "d.parquet"):
        assert is_file_name(name)
    for name in ("ag_news", "nyu-mll/glue:mrpc", "folder"):
        assert not is_file_name(name)
    assert is_file_name(__file__)
    assert in_order({"10", "9", "b", "-1", "a", "1" * 5000}) == ["-1", "9", "10", "1" * 5000, "a", "b"]


# A model's labels and a file's


def table(folder: Path, *labels: object) -> Path:
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps({"text": "a", "label": label}) + "\n" for label in labels))
    return path


@situation(
    "file",
    "the labels of a model in another order than the file's, which sort otherwise",
    "each label keeps the model's number",
)
def test_the_models_order_stays(tmp_path: Path) -> None:
    data = load_split(table(tmp_path, "negative", "positive", "negative"), ["positive", "negative"])
    assert (data.labels, data.note) == ([1, 0, 1], None)


@situation(
    "file", "names of labels with blanks around them, or 3.0 for 3, in the file or in the model", "the same labels"
)
def test_labels_that_differ_by_blanks_or_zeros(tmp_path: Path) -> None:
    data = load_split(table(tmp_path, 2, "good", 3.0, " 10 "), ["3.0", " good ", "2", "10"])
    assert (data.labels, data.note) == ([2, 1, 0, 3], None)


@situation(
    "file",
    "labels 0, 1, … for a model whose labels have no names but LABEL_0, LABEL_1, …",
    "matched by number, and said",
)
@pytest.mark.parametrize("names", [["LABEL_0", "LABEL_1", "LABEL_2"], ["LABEL_2", "LABEL_0", "LABEL_1"]])
def test_labels_by_number(tmp_path: Path, names: list[str]) -> None:
    path = table(tmp_path, 2, "0", 2.0)
    data = load_split(path, names)
    assert [names[label] for label in data.labels] == ["LABEL_2", "LABEL_0", "LABEL_2"]
    assert data.note == f"{path}: 0 to 2 are taken as LABEL_0 to LABEL_2"


@situation("file", "a label that the model has not", "an error that lists the file's labels and the model's")
@pytest.mark.parametrize(
    ("labels", "names", "row", "label"),
    [
        (("no", "maybe", "yes"), ["no", "yes"], 2, "'maybe'"),
        ((0, 3), ["LABEL_0", "LABEL_1", "LABEL_2"], 1, "'0'"),
        ((1, "LABEL_0"), ["LABEL_0", "LABEL_1"], 1, "'1'"),
        ((0, 1), ["no", "yes"], 1, "'0'"),
        ((1, 0), ["LABEL_1", "LABEL_2"], 1, "'1'"),
    ],
)
def test_labels_that_the_model_has_not(tmp_path: Path, labels: tuple, names: list[str], row: int, label: str) -> None:
    with pytest.raises(TableError) as raised:
        load_split(table(tmp_path, *labels), names)
    assert raised.value.row == row
    message = str(raised.value)
    assert f"test.jsonl: row {row} has the label {label}, which the classifier was not trained for; " in message
    assert f"expected one of {', '.join(map(repr, names))}; " in message
    assert f"got {', '.join(repr(str(label)) for label in in_order(map(str, labels)))} over all rows; " in message


def test_long_lists_of_labels_are_cut() -> None:
    few, many = [[f"label {n}" for n in range(count)] for count in (28, 10_000)]
    with pytest.raises(TableError, match=r"expected one of 'label 0', .* 'label 27'; got 'else' over"):
        match_labels(["else"], few, "a.tsv")
    with pytest.raises(TableError, match=r"expected one of 'label 0', .* and 9,970 more; got 'else' over") as raised:
        match_labels(["else"], many, "a.tsv")
    assert len(str(raised.value)) < 1000
    with pytest.raises(TableError) as raised:
        match_labels(many, few, "a.tsv")
    assert len(str(raised.value)) < 2000


def test_two_labels_of_one_name() -> None:
    with pytest.raises(TableError, match="the classifier has two labels of one name; got 'a', ' a', 'b'"):
        match_labels(["a"], ["a", " a", "b"], "a.tsv")


# Data sets


def test_pairs_of_a_data_set(tmp_path: Path) -> None:
    row = {"sentence1": "a", "sentence2": "b", "idx": 7}
    name = write_data_set(
        tmp_path / "pairs",
        {"train": [{**row, "label": n % 2} for n in range(20)], "validation": [{**row, "label": 1}]},
    )
    task = load_task(name, name)
    assert task.label_names == ["0", "1"]
    assert (len(task.train), len(task.validation), task.held_out) == (20, 1, False)
    assert task.train.texts[0] == ("a", "b")
    assert task.validation.labels == [1]
    held_out = load_task(name)
    assert (len(held_out.train), len(held_out.validation)) == (18, 2)
    assert load_split(name, task.label_names).labels == [1]  # it has no test


def test_names_of_labels_are_the_data_sets(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"content": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = datasets.Dataset.from_dict({"content": ["x", "y"], "label": [1, 0]}, features=features)
    (tmp_path / "named").mkdir()
    rows.to_parquet(tmp_path / "named" / "test.parquet")
    data = load_split(str(tmp_path / "named"), ["no", "yes"])
    assert (data.texts, data.labels) == (["x", "y"], [1, 0])
    with pytest.raises(TableError, match="row 1 has the label 'yes', which the classifier was not trained for"):
        load_split(str(tmp_path / "named"), ["no", "maybe"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"train": [{"text": "a", "label": 0}]}, "has the splits 'train'; expected test or validation"),
        ({"test": [{"words": "a", "label": 0}]}, "has the columns 'words', 'label'; expected a label and a text"),
        ({"test": [{"text": "a", "label": -1}]}, "test: row 1 has no label; its labels may be hidden"),
    ],
)
def test_refused_data_sets(rows: dict, message: str, tmp_path: Path) -> None:
    name = write_data_set(tmp_path / "data", rows)
    with pytest.raises(TableError, match=message):
        load_split(name, ["0", "1"])


def test_a_data_set_is_read_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Bars are for terminals, and standard error is none here."""
    import datasets

    datasets.enable_progress_bars()
    name = write_data_set(tmp_path / "data", {"test": [{"text": "a", "label": 1}]})
    assert read_rows(name, TEST) == [("a", "1")]
    assert capfd.readouterr().err == ""


def test_what_is_neither_file_nor_data_set(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no such file"):
        load_split(tmp_path / "missing.tsv", ["0", "1"])
    with pytest.raises(TableError, match="is no file, and cannot be read as a data set"):
        load_split(str(tmp_path / "missing"), ["0", "1"])


def test_a_folder_that_is_no_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = write_data_set(tmp_path / "data", {"test": [{"text": "a", "label": 1}]})
    (tmp_path / "data" / "test.jsonl").write_text('{"text": ')
    with pytest.raises(TableError, match="cannot be read as a data set: its files cannot be read as one table"):
        load_split(name, ["0", "1"])
    assert not caplog.records


def test_numbers_without_a_name_in_a_data_set(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}, features=features)
    rows = datasets.Dataset(rows.data.table.set_column(1, rows.data.table.schema.field(1), [[1, 2]]))
    (tmp_path / "named").mkdir()
    rows.to_parquet(tmp_path / "named" / "test.parquet")
    with pytest.raises(TableError, match="row 2 has the label 2; expected the number of one of the data set's 2 names"):
        load_split(str(tmp_path / "named"), ["no", "yes"])

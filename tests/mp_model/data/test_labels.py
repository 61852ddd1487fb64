"""Labelled texts of files and of data sets, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mp_model.data.labels import in_order, is_file_name, load_split
from mp_model.data.tables import TableError
from mp_model.training import load_task


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
    assert in_order({"10", "9", "b", "a"}) == ["9", "10", "a", "b"]


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


def test_what_is_neither_file_nor_data_set(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no such file"):
        load_split(tmp_path / "missing.tsv", ["0", "1"])
    with pytest.raises(TableError, match="is no file, and cannot be read as a data set"):
        load_split(str(tmp_path / "missing"), ["0", "1"])

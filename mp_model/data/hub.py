"""Labelled texts from a data set of the ``datasets`` library, on a hub or in a folder that it can read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .batches import Text
from .tables import TableError

# Names of the text columns in the usual data sets.
PAIRS = (
    ("text_a", "text_b"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("text1", "text2"),
)
SINGLES = ("text", "sentence", "content", "review")
LABELS = ("label", "labels", "label-coarse")


def read_data_set(name: str, splits: Sequence[str]) -> Iterator[tuple[Text, str]]:
    """The texts of a data set, each with its label's name.

    Args:
        name: name of the data set, with its configuration after a colon if it has several: ``nyu-mll/glue:mrpc``.
        splits: names of splits, of which the first that the data set has is read.

    Raises:
        ModuleNotFoundError: ``datasets`` is not installed.
        TableError: no such data set, none of the splits, columns of other names, a row without a label.
    """
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name!r} is no file, and reading a data set of that name needs `pip install datasets`"
        ) from error
    path, _, configuration = name.partition(":")
    try:
        found = load_dataset(path, configuration or None)
    except Exception as error:  # whatever the hub, the network or the files make it raise
        raise TableError(f"{name!r} is no file, and cannot be read as a data set: {error}") from error
    split = next((split for split in splits if split in found), None)
    if split is None:
        raise TableError(f"data set {name!r} has the splits {', '.join(found)}; expected {' or '.join(splits)}")
    rows = found[split]
    columns = rows.column_names
    candidates: list[tuple[str, ...]] = [*PAIRS, *((column,) for column in SINGLES)]
    texts = next((candidate for candidate in candidates if set(candidate) <= set(columns)), None)
    label = next((column for column in LABELS if column in columns), None)
    if texts is None or label is None:
        raise TableError(
            f"data set {name!r} has the columns {', '.join(columns)}; expected a label and a text, or a pair of texts"
        )
    names = getattr(rows.features[label], "names", None)
    for number, row in enumerate(rows, 1):
        yield _text_of(row, texts), _label_of(row[label], names, f"data set {name!r}, {split}: row {number}")


def _text_of(row: dict[str, Any], columns: Sequence[str]) -> Text:
    first, *second = (str(row[column]) for column in columns)
    return (first, second[0]) if second else first


def _label_of(value: Any, names: Sequence[str] | None, where: str) -> str:
    if value is None or value == -1:  # how hidden labels are written
        raise TableError(f"{where} has no label; its labels may be hidden, take another split")
    return str(value) if names is None else names[value]

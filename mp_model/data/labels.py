"""Labelled texts from a file or a data set, read whole and checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .batches import Text
from .hub import read_data_set
from .tables import FORMATS, TableError, read_labelled

# Names of the splits to measure on and to choose thresholds on; GLUE hides the labels of its tests.
TEST = ("test", "validation", "validation_matched")
VALIDATION = ("validation", "validation_matched", "dev", "test")


@dataclass
class LabelledTexts:
    """Texts, each with its label's number."""

    texts: list[Text]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.texts)


def is_file_name(source: str | Path) -> bool:
    """Whether a source is a file, existing or not, rather than a data set's name."""
    path = Path(source)
    return path.is_file() or path.suffix.lower().lstrip(".") in (*FORMATS, "json", "pq")


def read_rows(source: str | Path, splits: Sequence[str]) -> list[tuple[Text, str]]:
    """All texts of a source, with the names of their labels.

    Args:
        source: a file, or a data set's name.
        splits: names of splits, of which the first that the data set has is read.

    Raises:
        TableError: a source that cannot be read, or has no rows.
    """
    rows = list(read_labelled(Path(source)) if is_file_name(source) else read_data_set(str(source), splits))
    if not rows:
        raise TableError(f"{source}: no rows; expected labelled texts")
    return rows


def load_split(source: str | Path, label_names: Sequence[str], splits: Sequence[str] = TEST) -> LabelledTexts:
    """All texts of a source, with the numbers of their labels.

    Args:
        source: a file, or a data set's name.
        label_names: names of the task's labels, in the order of their numbers.
        splits: names of splits, of which the first that the data set has is read.

    Raises:
        TableError: a source that cannot be read, or has no rows; a label that the task has not.
    """
    return numbered(read_rows(source, splits), label_names, source)


def numbered(rows: Sequence[tuple[Text, str]], label_names: Sequence[str], source: str | Path) -> LabelledTexts:
    """The rows of a source, with each label's place among the names for its number.

    source: name of the source, for messages.
    """
    numbers = {name: number for number, name in enumerate(label_names)}
    for number, (_, label) in enumerate(rows, 1):
        if label not in numbers:
            raise TableError(
                f"{source}: row {number} has the label {label!r}, which the classifier was not trained for; "
                f"expected one of {', '.join(map(repr, label_names))}"
            )
    return LabelledTexts([text for text, _ in rows], [numbers[label] for _, label in rows])


def in_order(labels: Iterable[str]) -> list[str]:
    """Labels in order: numbers by value, then all others by name."""
    return sorted(labels, key=lambda label: (0, int(label), label) if label.isdecimal() else (1, 0, label))

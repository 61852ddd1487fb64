"""Labelled texts from a file or a data set, read whole and checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .batches import Text
from .hub import read_data_set
from .tables import FORMATS, TableError, read_labelled

# The names that data sets give to what is measured on; GLUE hides the labels of its tests.
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
    """Whether a source is a file, there or not, and no data set's name."""
    path = Path(source)
    return path.is_file() or path.suffix.lower().lstrip(".") in (*FORMATS, "json", "pq")


def read_rows(source: str | Path, splits: Sequence[str]) -> list[tuple[Text, str]]:
    """All texts with the names of their labels, of a file or of the first of the splits that a data set has.

    Raises:
        TableError: what cannot be read, or has no rows.
    """
    rows = list(read_labelled(Path(source)) if is_file_name(source) else read_data_set(str(source), splits))
    if not rows:
        raise TableError(f"{source}: no rows; expected labelled texts")
    return rows


def load_split(source: str | Path, label_names: Sequence[str], splits: Sequence[str] = TEST) -> LabelledTexts:
    """Texts with the numbers of a task's labels.

    Raises:
        TableError: what cannot be read, or has no rows; a label that is none of the task's.
    """
    return numbered(read_rows(source, splits), label_names, source)


def numbered(rows: Sequence[tuple[Text, str]], label_names: Sequence[str], source: str | Path) -> LabelledTexts:
    """The rows of a source with numbers for labels: their places among the names."""
    numbers = {name: number for number, name in enumerate(label_names)}
    for number, (_, label) in enumerate(rows, 1):
        if label not in numbers:
            raise TableError(
                f"{source}: row {number} has the label {label!r}, which the classifier was not trained for; "
                f"expected one of {', '.join(map(repr, label_names))}"
            )
    return LabelledTexts([text for text, _ in rows], [numbers[label] for _, label in rows])


def in_order(labels: Iterable[str]) -> list[str]:
    """Numbers by value, everything else by name."""
    return sorted(labels, key=lambda label: (0, int(label), label) if label.isdecimal() else (1, 0, label))

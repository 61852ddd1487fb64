"""Labelled texts from a file or a data set, read whole and checked."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .batches import Text
from .hub import read_data_set
from .tables import FORMATS, TableError, read_labelled
from .values import Labels, listed, normal_label, shortened

Row = tuple[Text, Labels]
WHOLE = re.compile(r"-?[0-9]{1,18}")

# Names of the splits to measure on and to choose thresholds on; GLUE hides the labels of its tests.
TEST = ("test", "validation", "validation_matched")
VALIDATION = ("validation", "validation_matched", "dev", "test")


@dataclass
class LabelledTexts:
    """Texts, each with its label's number, or with the numbers of all of its labels.

    Attributes:
        texts: the texts.
        labels: a number for each text; where a text may have several labels, a tuple of numbers.
        note: a sentence for the user where labels were matched by something else than their names.
        among: number of labels of which a text may have any; None: a text has one label.
    """

    texts: list[Text]
    labels: list[Any]
    note: str | None = None
    among: int | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, places: Sequence[int]) -> LabelledTexts:
        """The texts at some places, in their order."""
        return replace(
            self, texts=[self.texts[place] for place in places], labels=[self.labels[place] for place in places]
        )

    @property
    def targets(self) -> Tensor:
        """The labels as a model learns them: int64 ``[texts]``, or bool ``[texts, labels]``."""
        if self.among is None:
            return torch.tensor(self.labels, dtype=torch.int64)
        targets = torch.zeros(len(self), self.among, dtype=torch.bool)
        for row, numbers in zip(targets, self.labels, strict=True):
            row[list(numbers)] = True
        return targets


def is_file_name(source: str | Path) -> bool:
    """Whether a source is a file, existing or not, rather than a data set's name."""
    path = Path(source)
    return (path.exists() and not path.is_dir()) or path.suffix.lower().lstrip(".") in (*FORMATS, "pq")


def read_rows(source: str | Path, splits: Sequence[str], marks: Sequence[str] = ()) -> list[Row]:
    """All texts of a source, with the names of their labels.

    Args:
        source: a file, or a data set's name.
        splits: names of splits, of which the first that the data set has is read.
        marks: names of labels, which are read from columns of 0 and 1 where there is no column of labels.

    Raises:
        TableError: a source that cannot be read, or has no rows.
    """
    in_file = is_file_name(source)
    rows = list(read_labelled(Path(source), marks=marks) if in_file else read_data_set(str(source), splits, marks))
    if not rows:
        raise TableError(f"{source}: no rows; expected labelled texts")
    return rows


def names_in(labels: Labels) -> tuple[str, ...]:
    """The names of a text's labels."""
    return (labels,) if isinstance(labels, str) else labels


def have_several(rows: Sequence[Row]) -> bool:
    """Whether the texts of a source may have any number of labels."""
    return any(not isinstance(labels, str) for _, labels in rows)


def load_split(source: str | Path, label_names: Sequence[str], splits: Sequence[str] = TEST) -> LabelledTexts:
    """All texts of a source, with the numbers of their labels.

    Args:
        source: a file, or a data set's name.
        label_names: names of the task's labels, in the order of their numbers.
        splits: names of splits, of which the first that the data set has is read.

    Raises:
        TableError: a source that cannot be read, or has no rows; a label that the task has not.
    """
    return numbered(read_rows(source, splits, label_names), label_names, source)


def numbered(
    rows: Sequence[Row], label_names: Sequence[str], source: str | Path, several: bool | None = None
) -> LabelledTexts:
    """The rows of a source, with the numbers that :func:`match_labels` gives their labels.

    Args:
        rows: the texts, each with the names of its labels.
        label_names: names of the task's labels, in the order of their numbers.
        source: name of the source, for messages.
        several: whether the task's texts may have any number of labels, among them one; None: as the rows have it.

    Raises:
        TableError: a label that the task has not; lists of labels for a task of one label a text.
    """
    if several is False and have_several(rows):
        raise TableError(f"{source}: the texts have lists of labels; expected one label for each, in a column 'label'")
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    numbers, note = match_labels(labels, label_names, source)
    if several or have_several(rows):
        sets = [tuple(sorted(numbers[name] for name in names_in(label))) for label in labels]
        return LabelledTexts(texts, sets, note, len(label_names))
    return LabelledTexts(texts, [numbers[label] for label in labels if isinstance(label, str)], note)


def is_nameless(label_names: Sequence[str]) -> bool:
    """Whether a model's labels have no names but ``LABEL_0``, ``LABEL_1`` and so on, in any order."""
    return {normal_label(name) for name in label_names} == {f"LABEL_{number}" for number in range(len(label_names))}


def numbers_of(labels: Collection[str], label_names: Sequence[str]) -> dict[str, int] | None:
    """The model's number for each label; None: it has not all of them.

    A label has the number of its name, blanks around which do not count, nor does what makes 3.0 of 3. Where the model's
    labels are nameless, ``3`` stands for ``LABEL_3``.

    Args:
        labels: labels as :mod:`mp_model.data.tables` reads them.
        label_names: the model's names, in the order of their numbers.
    """
    own = [normal_label(name) for name in label_names]
    for names in (own, [name.removeprefix("LABEL_") for name in own] if is_nameless(own) else own):
        if set(labels) <= set(names):
            return {label: names.index(label) for label in labels}
    return None


def match_labels(
    labels: Sequence[Labels], label_names: Sequence[str], source: str | Path
) -> tuple[dict[str, int], str | None]:
    """The model's number for each label of a source, as :func:`numbers_of` finds it; and a sentence for the user, or None.

    Args:
        labels: labels of the source's rows, as :mod:`mp_model.data.tables` reads them.
        label_names: the model's names, in the order of their numbers.
        source: name of the source, for messages.

    Raises:
        TableError: a label that the model has not; the message names its row and lists both sets.
    """
    names = {normal_label(name) for name in label_names}
    if len(names) < len(label_names):
        raise TableError(f"the classifier has two labels of one name; got {listed(label_names)}")
    found = set(chain.from_iterable(map(names_in, labels)))
    numbers = numbers_of(found, label_names)
    if numbers is not None:
        last = len(label_names) - 1
        by_number = f"{source}: 0 to {last} are taken as LABEL_0 to LABEL_{last}"
        return numbers, None if found <= names else by_number
    each = ((row, name) for row, of_text in enumerate(labels, 1) for name in names_in(of_text))
    row, label = next((row, name) for row, name in each if name not in names)
    raise TableError(
        f"{source}: row {row} has the label {shortened(repr(label))}, which the classifier was not trained for; "
        f"expected one of {listed(label_names)}; got {listed(in_order(found))} over all rows; "
        "if these are other names of the same labels, rename them in the file, or in id2label in the model's config.json",
        row,
    )


def in_order(labels: Iterable[str]) -> list[str]:
    """Labels in order: whole numbers by value, then all others by name."""
    return sorted(labels, key=lambda label: (0, int(label), label) if WHOLE.fullmatch(label) else (1, 0, label))

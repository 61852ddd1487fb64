"""Tasks: labelled texts, read, checked, split and turned into token ids before anything is trained."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ..data.batches import encode
from ..data.labels import VALIDATION, LabelledTexts, in_order, load_split, numbered, read_rows
from ..data.tables import TableError

HELD_OUT = 0.1  # share of the training texts, where no validation texts are given


@dataclass
class Task:
    """Labels and the texts to learn them from.

    Attributes:
        label_names: labels as they stand in the files; a label's number is its place here.
        train: texts to learn from.
        validation: texts to choose thresholds on.
        held_out: whether ``validation`` was taken from the training file.
    """

    label_names: list[str]
    train: LabelledTexts
    validation: LabelledTexts
    held_out: bool


def load_task(train: str | Path, validation: str | Path | None = None, seed: int = 0) -> Task:
    """Reads the training texts and the validation texts.

    Args:
        train: a file, or a data set's name.
        validation: a file, or a data set's name; None: a tenth of the training texts is held out.
        seed: random seed of the texts that are held out.

    Raises:
        TableError: a source that cannot be read or is empty; fewer than two labels; a label that no training text has.
    """
    rows = read_rows(train, ("train",))
    names = in_order({label for _, label in rows})
    if len(names) < 2:
        raise TableError(f"{train}: expected two labels or more; all {len(rows)} rows have {names[0]!r}")
    if validation is not None:
        return Task(names, numbered(rows, names, train), load_split(validation, names, VALIDATION), held_out=False)
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    count = max(1, round(HELD_OUT * len(rows)))
    if len(rows) < 2:
        raise TableError(f"{train}: one row is too few to hold one out for validation; give --validation")
    parts = ([rows[place] for place in places] for places in (sorted(order[count:]), sorted(order[:count])))
    learn, choose = (numbered(part, names, train) for part in parts)
    return Task(names, learn, choose, held_out=True)


class EncodedTexts(Dataset[dict[str, Any]]):
    """Texts as token ids, for ``transformers.Trainer``.

    Attributes:
        rows: token ids and types of each text.
        labels: the number of each text's label.
        truncated: number of texts that were longer than ``max_length`` tokens.
    """

    def __init__(self, tokenizer: Any, data: LabelledTexts, max_length: int) -> None:
        self.rows = encode(tokenizer, data.texts, max_length)
        self.labels = data.labels
        full = [row for row in self.rows if len(row["input_ids"]) == max_length]
        longer = encode(tokenizer, data.texts, max_length + 1) if full else []
        self.truncated = sum(len(row["input_ids"]) > max_length for row in longer)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {**self.rows[place], "labels": self.labels[place], "place": place}

"""Tasks: labelled texts, read, checked, split and turned into token ids before anything is trained."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ..data.batches import encode
from ..data.labels import VALIDATION, LabelledTexts, Row, have_several, in_order, names_in, numbered, read_rows
from ..data.tables import TableError
from ..data.tokens import Tokeniser
from ..data.values import listed, normal_label

HELD_OUT = 0.1  # share of the training texts, where no validation texts are given
COUNTED = 16  # times as many tokens as are kept are counted; a text may have millions


@dataclass(frozen=True)
class Task:
    """Labels and the texts to learn them from.

    Attributes:
        label_names: labels as they stand in the files; a label's number is its place here.
        train: texts to learn from.
        validation: texts to choose thresholds on.
        held_out: whether ``validation`` was taken from the training file.
        ordered: whether somebody gave the labels in the order of a checkpoint's numbers.
    """

    label_names: list[str]
    train: LabelledTexts
    validation: LabelledTexts
    held_out: bool
    ordered: bool = False

    @property
    def several(self) -> bool:
        """Whether a text may have any number of labels."""
        return self.train.among is not None

    def in_the_order_of(self, label_names: Sequence[str]) -> Task:
        """The same task with its labels numbered by their places among ``label_names``, which has all of them."""
        numbers = [label_names.index(name) for name in self.label_names]

        def renumbered(data: LabelledTexts) -> LabelledTexts:
            if data.among is None:
                return replace(data, labels=[numbers[label] for label in data.labels])
            sets = [tuple(sorted(numbers[label] for label in labels)) for labels in data.labels]
            return replace(data, labels=sets, among=len(label_names))

        return replace(
            self,
            label_names=list(label_names),
            train=renumbered(self.train),
            validation=renumbered(self.validation),
        )


def load_task(
    train: str | Path,
    validation: str | Path | None = None,
    seed: int = 0,
    labels: Sequence[str] | None = None,
) -> Task:
    """Reads the training texts and the validation texts.

    A label that only validation texts have is one of the task's, though nothing teaches it.

    Args:
        train: a file, or a data set's name.
        validation: a file, or a data set's name; None: a tenth of the training texts is held out, of each label alike.
        seed: random seed of the texts that are held out.
        labels: names of all labels, in the order of a checkpoint's numbers; None: those of the texts, in order. They are
            read from columns of 0 and 1 of their names where there is no column of labels.

    Raises:
        TableError: a source that cannot be read or is empty; training texts of fewer than two labels, or of none where texts
            may have several; a text whose label is not among ``labels``; validation texts with lists of labels where
            training texts have one; no text that could be held out.
        ValueError: ``labels`` has a name twice.
    """
    marks = [] if labels is None else [normal_label(name) for name in labels]
    rows = read_rows(train, ("train",), marks)
    several, taught = have_several(rows), in_order(_names_in(rows))
    if several and not taught:
        raise TableError(f"{train}: expected labels; none of the {len(rows)} rows has one")
    if not several and len(taught) < 2:
        raise TableError(f"{train}: expected two labels or more; all {len(rows)} rows have {taught[0]!r}")
    others = [] if validation is None else read_rows(validation, VALIDATION, marks or taught)
    ordered = labels is not None
    if labels is None:
        names = in_order(_names_in(chain(rows, others)))
    else:
        names = marks
        if len(set(names)) < len(names):
            raise ValueError(f"labels must be the names of different labels; got {', '.join(names)}")
        _check_labels(rows, names, train)
        _check_labels(others, names, validation)
    if validation is not None:
        learn, choose = numbered(rows, names, train), numbered(others, names, validation, several)
        return Task(names, learn, choose, held_out=False, ordered=ordered)
    chosen = held_out_places(_rarest(rows), seed)
    if not chosen:
        raise TableError(f"{train}: every label has a single text, so none can be held out; give --validation")
    rest = sorted(set(range(len(rows))) - set(chosen))
    learn, choose = (numbered([rows[place] for place in places], names, train, several) for places in (rest, chosen))
    return Task(names, learn, choose, held_out=True, ordered=ordered)


def _names_in(rows: Iterable[Row]) -> set[str]:
    """The names of all labels of rows."""
    return {name for _, labels in rows for name in names_in(labels)}


def _rarest(rows: Sequence[Row]) -> list[str]:
    """For each row the one of its labels that the fewest rows have, or no name if it has none."""
    counts = Counter(name for _, labels in rows for name in names_in(labels))
    return [min(names_in(labels), key=lambda name: (counts[name], name), default="") for _, labels in rows]


def _check_labels(rows: Sequence[Row], names: Sequence[str], source: str | Path | None) -> None:
    """Raises TableError for labels that are not among those that somebody gave."""
    unknown = in_order(_names_in(rows).difference(names))
    if unknown:
        raise TableError(
            f"{source}: labels that --labels does not name: {listed(unknown)}; name them too, or take them out"
        )


def held_out_places(labels: Sequence[str], seed: int) -> list[int]:
    """Places of the tenth that is held out, rising: of each label's texts about a tenth, never the last one.

    A label's texts come up for it in a random order at the shares 1/2n, 3/2n, 5/2n, … of its n texts; those that come up
    first, over all labels, are taken (Webster's method of apportionment).
    """
    order = list(range(len(labels)))
    random.Random(seed).shuffle(order)
    sizes, seen = Counter(labels), Counter[str]()
    shares = {}
    for place in order:
        label = labels[place]
        if seen[label] < sizes[label] - 1:
            shares[place] = (seen[label] + 0.5) / sizes[label]
        seen[label] += 1
    count = max(1, round(HELD_OUT * len(labels)))
    return sorted(sorted(shares, key=lambda place: shares[place])[:count])


FEWEST_FOR_CONFIDENCE = 20


def apart_for_confidence(data: LabelledTexts, seed: int) -> tuple[LabelledTexts, LabelledTexts]:
    """Training texts without a tenth, and the tenth, for confidence heads, which judge exits by texts new to them.

    seed: random seed of the texts that are taken.

    Raises:
        ValueError: the tenth is too small.
    """
    chosen = held_out_places([str(label) for label in data.labels], seed)
    if len(chosen) < FEWEST_FOR_CONFIDENCE:
        raise ValueError(
            f"confidence heads learn from a tenth of the training texts, and {len(chosen)} are too few; give "
            f"{10 * FEWEST_FOR_CONFIDENCE} texts or more, or leave out --exit-uncertainty and the stage confidence"
        )
    taken = set(chosen)
    rest = [place for place in range(len(data)) if place not in taken]
    return data.select(rest), data.select(chosen)


class EncodedTexts(Dataset[dict[str, Any]]):
    """Texts as token ids, for ``transformers.Trainer``.

    Attributes:
        rows: token ids and types of each text.
        labels: the number of each text's label, or the numbers of its labels.
        targets: the labels as the model learns them, int64 ``[texts]`` or bool ``[texts, labels]``.
        lengths: tokens of each text before it was cut, counted up to :attr:`most`.
        most: ``COUNTED`` times ``max_length``.
        truncated: number of texts that were longer than ``max_length`` tokens.
    """

    def __init__(self, tokenizer: Any, data: LabelledTexts, max_length: int) -> None:
        self.rows = encode(tokenizer, data.texts, max_length)
        self.labels, self.targets = data.labels, data.targets
        self.lengths = [len(row["input_ids"]) for row in self.rows]
        self.most = COUNTED * max_length
        full = [place for place, length in enumerate(self.lengths) if length == max_length]
        if full:
            whole = Tokeniser(tokenizer, self.most)([data.texts[place] for place in full])
            for place, length in zip(full, whole.lengths.tolist(), strict=True):
                self.lengths[place] = length
        self.truncated = sum(length > max_length for length in self.lengths)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {**self.rows[place], "labels": self.targets[place].tolist(), "place": place}

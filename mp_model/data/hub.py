"""Labelled texts from a data set of the ``datasets`` library, on a hub or in a folder that it can read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .batches import Text
from .values import Labels, RowError, TableError, is_marked, label_of, labels_of, listed, text_of_row

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


def read_data_set(name: str, splits: Sequence[str], marks: Sequence[str] = ()) -> Iterator[tuple[Text, Labels]]:
    """The texts of a data set, each with its label's name, or where that is a list with the names of all of its labels.

    Args:
        name: name of the data set, with its configuration after a colon if it has several: ``nyu-mll/glue:mrpc``.
        splits: names of splits, of which the first that the data set has is read.
        marks: names of labels, which are read from columns of 0 and 1 where there is no column of labels.

    Raises:
        ModuleNotFoundError: ``datasets`` is not installed.
        TableError: no such data set, none of the splits, columns of other names, a row without a label.
    """
    found = _loaded(name)
    split = next((split for split in splits if split in found), None)
    if split is None:
        raise TableError(f"data set {name!r} has the splits {listed(found)}; expected {' or '.join(splits)}")
    columns = found[split].column_names
    candidates: list[tuple[str, ...]] = [*PAIRS, *((column,) for column in SINGLES)]
    texts = next((candidate for candidate in candidates if set(candidate) <= set(columns)), None)
    label = next((column for column in LABELS if column in columns), None)
    marked = label is None and bool(marks) and set(marks) <= set(columns)
    if texts is None or (label is None and not marked):
        raise TableError(
            f"data set {name!r} has the columns {listed(columns)}; expected a label and a text, or a pair of texts"
        )
    rows = found[split].select_columns([*texts, *(marks if label is None else [label])])
    feature = None if label is None else rows.features[label]
    names = getattr(getattr(feature, "feature", feature), "names", None)
    for number, row in enumerate(rows, 1):
        try:
            labels: Labels
            if label is None:
                labels = tuple(mark for mark in marks if is_marked(row[mark], mark))
            elif isinstance(row[label], list):
                labels = labels_of([_label_of(value, label, names) for value in row[label]], label)
            else:
                labels = _label_of(row[label], label, names)
            labelled = text_of_row(row, texts), labels
        except RowError as error:
            raise TableError(f"data set {name!r}, {split}: row {number} {error}", number) from None
        yield labelled


def _loaded(name: str) -> Any:
    """The splits of a data set by their names; no code of the data set's own is run."""
    try:
        from datasets import load_dataset
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name!r} is no file, and reading a data set of that name needs `pip install datasets`"
        ) from error
    path, _, configuration = name.partition(":")
    try:
        with _own_words():
            return load_dataset(path, configuration or None, trust_remote_code=False)
    except Exception as error:  # whatever the hub, the network or the files make it raise
        reasons = (
            (FileNotFoundError, "there is none of this name, or none that may be read"),
            (ConnectionError, "the hub cannot be reached"),
            (ValueError, "its configuration is missing or unknown; name one after a colon, as in nyu-mll/glue:mrpc"),
            (Exception, f"its files cannot be read as one table ({type(error).__name__})"),
        )
        reason = next(words for kind, words in reasons if isinstance(error, kind))
        raise TableError(f"{name!r} is no file, and cannot be read as a data set: {reason}") from error


@contextmanager
def _own_words() -> Iterator[None]:
    """Leaves out what the libraries log, since an error is told in one line, here; and their bars, but on a terminal."""
    from datasets import disable_progress_bars, enable_progress_bars, is_progress_bar_enabled, logging
    from huggingface_hub.utils import logging as hub_logging

    verbosities = [(library, library.get_verbosity()) for library in (logging, hub_logging)]
    hidden = is_progress_bar_enabled() and not (sys.stderr is not None and sys.stderr.isatty())
    for library, _ in verbosities:
        library.set_verbosity(logging.CRITICAL)
    if hidden:
        disable_progress_bars()
    try:
        yield
    finally:
        for library, verbosity in verbosities:
            library.set_verbosity(verbosity)
        if hidden:
            enable_progress_bars()


def _label_of(value: Any, column: str, names: Sequence[str] | None) -> str:
    if value is None or value == -1:  # how hidden labels are written
        raise RowError("has no label; its labels may be hidden, take another split")
    if names is None:
        return label_of(value, column)
    if value not in range(len(names)):
        raise RowError(f"has the label {value}; expected the number of one of the data set's {len(names)} names")
    return label_of(names[value], column)

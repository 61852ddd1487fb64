"""Steps that several commands begin with: a saved classifier, labelled texts for it, and the answers of all its exits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

    from ..data.batches import Text, TextBatch
    from ..data.labels import LabelledTexts, Row
    from ..measuring.all_exits import AllExits
    from ..modelling import PyramidForSequenceClassification
    from ..serving.classifier import Classifier

Number = TypeVar("Number", int, float)


def check_model_folder(folder: Path) -> None:
    """Refuses what cannot hold a model, before anything heavy is imported."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"--model must be a folder of a saved model, with config.json; got {folder}")


def for_the_model(
    rows: Sequence[Row], source: str, classifier: Classifier, batch_size: int
) -> tuple[LabelledTexts, list[TextBatch]]:
    """Labelled texts with the numbers of the model's labels, and batches of similar length of them, on its device.

    A line on standard error says where labels were not matched by name.

    Args:
        rows: the texts, each with the name of its label, or the names of its labels.
        source: the file or the data set that they come from.
        classifier: the model and its tokenizer.
        batch_size: texts in a batch.

    Raises:
        ValueError: a model whose answers are values, or that has not all of the labels; lists of labels for a model that
            chooses one for a text.
    """
    from ..checkpoints.tokenizers import max_length_of
    from ..data.batches import are_pairs, encode, length_sorted_batches
    from ..data.labels import numbered
    from ..inputs import ONE_TEXT

    config = classifier.model.config
    data = numbered(rows, config.label_names, source, config.choice.several)
    if data.note is not None:
        typer.echo(data.note, err=True)
    if classifier.reads_pairs and not are_pairs(data.texts):
        raise ValueError(f"{source} holds single texts: {ONE_TEXT}, in columns 'text_a' and 'text_b'")
    encoded = encode(classifier.tokenizer, data.texts, max_length_of(classifier.tokenizer, config))
    batches = length_sorted_batches(encoded, batch_size, config.pad_token_id or 0)
    return data, [batch.to(classifier.model.device) for batch in batches]


@dataclass(frozen=True)
class InWindows:
    """Labelled texts as the windows that a model reads them in.

    Attributes:
        batches: windows of similar length, numbered text after text.
        labels: int64 ``[windows]``, the label's number of each window's text; or bool ``[windows, labels]``.
        text_of: int64 ``[windows]``, the number of each window's text.
    """

    batches: list[TextBatch]
    labels: Tensor
    text_of: Tensor


def in_windows(data: LabelledTexts, classifier: Classifier, batch_size: int) -> InWindows:
    """Labelled texts in a classifier's windows, in batches on its device."""
    import torch

    from ..data.batches import length_sorted_batches

    assert classifier.windows is not None
    rows, numbers = [], []
    for number, text in enumerate(data.texts):
        for window in classifier.windows.of(text):
            rows.append({"input_ids": window.ids, "token_type_ids": window.types})
            numbers.append(number)
    text_of = torch.tensor(numbers)
    batches = length_sorted_batches(rows, batch_size, classifier.model.config.pad_token_id or 0)
    return InWindows([batch.to(classifier.model.device) for batch in batches], data.targets[text_of], text_of)


def said_of_long_texts(classifier: Classifier, batches: Sequence[TextBatch], texts: Sequence[Text]) -> str | None:
    """A sentence on the texts of batches that are longer than the model takes; None: none is."""
    most = classifier.tokenise.max_length
    full = [
        place
        for batch in batches
        for place, length in zip(batch.places, batch.inputs["attention_mask"].sum(1).tolist(), strict=True)
        if length == most
    ]
    cut = classifier.tokenise([texts[place] for place in full]).cut if full else None
    if cut is None:
        return None
    became = "cut" if classifier.windows is None else "read in windows until certain"
    return f"{cut.sum()} of {len(texts)} texts were longer than {most} tokens, and {became}"


def read_exits(
    model: PyramidForSequenceClassification,
    batches: Sequence[TextBatch],
    labels: Sequence[int] | Tensor,
    console: Console,
    doing: str = "Read all texts",
    prune_thresholds: Sequence[float] | None = None,
) -> AllExits:
    """The answers of all exits, read with a progress bar.

    Args:
        model, batches, labels, prune_thresholds: as for :func:`mp_model.measuring.all_exits.read_all_exits`.
        console: console of the progress bar.
        doing: words beside it.
    """
    from rich.progress import track

    from ..measuring.all_exits import read_all_exits

    watched = track(batches, doing, console=console, transient=True, disable=not console.is_terminal)
    return read_all_exits(model, watched, labels, prune_thresholds)


def numbers_of(option: str, value: str, kind: type[Number]) -> list[Number]:
    """Numbers that were given with commas between them."""
    try:
        return [kind(part) for part in value.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} must be numbers with commas between them; got {value!r}") from error

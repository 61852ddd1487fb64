"""What several commands load: a saved classifier, and labelled texts for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from ..data.batches import TextBatch
    from ..data.labels import LabelledTexts
    from ..measuring.all_exits import AllExits
    from ..modelling import PyramidBertForSequenceClassification


def check_model_folder(folder: Path) -> None:
    """Refuses what cannot hold a model, before anything heavy is imported."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"--model must be a folder of a saved model, with config.json; got {folder}")


def load_classifier(
    folder: Path, device: str = "cpu", threads: int | None = None
) -> tuple[PyramidBertForSequenceClassification, Any]:
    """A saved model in eval mode on a device, and its tokenizer."""
    import torch
    from transformers import AutoTokenizer
    from transformers.utils import logging as transformers_logging

    from mp_model import PyramidBertForSequenceClassification

    transformers_logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    model = PyramidBertForSequenceClassification.from_pretrained(folder).eval()
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # what PyTorch raises for a device that it does not know or have
        raise ValueError(f"--device {device!r} cannot be used here: {error}") from error
    return model, AutoTokenizer.from_pretrained(folder)


def load_labelled(
    source: str, model: PyramidBertForSequenceClassification, tokenizer: Any, splits: Sequence[str], batch_size: int
) -> tuple[LabelledTexts, list[TextBatch]]:
    """Labelled texts with the numbers of the model's labels, and batches of similar length of them."""
    from ..data.batches import encode, length_sorted_batches
    from ..data.labels import load_split

    names = [model.config.id2label[number] for number in range(model.config.num_labels)]
    data = load_split(source, names, splits)
    rows = encode(tokenizer, data.texts, model.config.max_position_embeddings)
    batches = list(length_sorted_batches(rows, batch_size, model.config.pad_token_id or 0))
    for batch in batches:
        batch.inputs = {name: x.to(model.device) for name, x in batch.inputs.items()}
    return data, batches


def read_exits(
    model: PyramidBertForSequenceClassification,
    batches: Sequence[TextBatch],
    labels: Sequence[int],
    console: Console,
    what: str = "Read all texts",
) -> AllExits:
    """What every exit answers, with a progress bar."""
    from rich.progress import track

    from ..measuring.all_exits import read_all_exits

    watched: Iterable[TextBatch] = track(
        batches, what, console=console, transient=True, disable=not console.is_terminal
    )
    return read_all_exits(model, watched, labels)


def numbers_of(option: str, value: str, kind: type = float) -> list[Any]:
    """Numbers that were given with commas between them."""
    try:
        return [kind(part) for part in value.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} must be numbers with commas between them; got {value!r}") from error

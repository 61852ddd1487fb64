"""A fitted pyramid through ``Classifier``, from texts to answers, beside other engines on its own backbone and last head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mp_model import Classifier
from mp_model.checkpoints.tokenizers import load_tokenizer, max_length_of
from mp_model.data.batches import Text, TextBatch, encode, in_input_order, length_sorted_batches
from mp_model.data.labels import numbered, read_rows
from mp_model.data.tokens import Tokeniser, Tokens

from .answers import AGREEMENT_WANTED
from .document import Document, left_out
from .files import files_of_fitted
from .measuring import pin_to, prepare, ready, take_turns
from .plan import Budget
from .ways import REFERENCE, Loaded, load

FITTED = "ours fitted"
PEERS = (REFERENCE, "ONNX Runtime, int8", "OpenVINO, int8", "ours, float32", "ours, bfloat16", "ours, int8")
BATCH_SIZE = 32
TEXTS = 1024


class Runs(NamedTuple):
    """A way from tokens to answers, and from texts to answers; each returns the labels' numbers in the texts' order."""

    apart: Callable[[], list[int]]
    included: Callable[[], list[int]]


class Remembering:
    """A tokeniser that does its work for the same texts once.

    Args:
        tokenise: the tokeniser.
    """

    def __init__(self, tokenise: Tokeniser) -> None:
        self.tokenise, self.max_length = tokenise, tokenise.max_length
        self.known: dict[tuple[Text, ...], Tokens] = {}

    def __call__(self, texts: Sequence[Text]) -> Tokens:
        """Tokens of the texts."""
        key = tuple(texts)
        if key not in self.known:
            self.known[key] = self.tokenise(texts)
        return self.known[key]


def runs_of_peer(loaded: Loaded, texts: Sequence[Text], tokenizer: Any, max_length: int) -> Runs:
    """Another engine on batches of similar length."""

    def batches() -> list[TextBatch]:
        rows = encode(tokenizer, texts, max_length)
        return list(length_sorted_batches(rows, BATCH_SIZE, tokenizer.pad_token_id))

    def classify(some: Sequence[TextBatch]) -> list[int]:
        found = [loaded.classify(batch.inputs).argmax(-1) for batch in some]
        return in_input_order(found, [place for batch in some for place in batch.places]).tolist()

    prepared = batches()
    return Runs(lambda: classify(prepared), lambda: classify(batches()))


def runs_of(classifier: Classifier, texts: Sequence[Text]) -> Runs:
    """The fitted pyramid; it tokenises in a thread beside the model."""
    numbers = {name: number for number, name in enumerate(classifier.model.config.label_names)}
    tokenise = classifier.tokenise
    remembering = Remembering(tokenise)

    def classify(with_tokeniser: Any) -> list[int]:
        classifier.tokenise = with_tokeniser
        return [numbers[answer.label] for answer in classifier(texts)]

    return Runs(lambda: classify(remembering), lambda: classify(tokenise))


def compared(found: Sequence[int], true: Sequence[int], labels: Sequence[int]) -> dict[str, Any]:
    """``agreement`` with the reference and ``accuracy``, and ``left out`` where too few answers agree."""
    agreement = sum(a == b for a, b in zip(found, true, strict=True)) / len(true)
    accuracy = sum(a == b for a, b in zip(found, labels, strict=True)) / len(labels)
    figure: dict[str, Any] = {"agreement": agreement, "accuracy": accuracy}
    if agreement < AGREEMENT_WANTED:
        figure |= left_out(f"answers differ: {agreement:.1%} agree, at least {AGREEMENT_WANTED:.0%} wanted")
    return figure


def name_of(folder: Path, threads: int) -> str:
    """Name of a part in the document."""
    return f"{folder.name}, threads {threads}"


def measure_fitted(
    document: Document,
    folder: Path,
    texts_file: Path,
    work: Path,
    names: Sequence[str],
    threads: int,
    budget: Budget,
) -> None:
    """Measures a fitted folder in the precision that it was tuned in, and keeps the figures.

    Args:
        document: place for the figures.
        folder: the fitted folder.
        texts_file: labelled texts, of which the first :data:`TEXTS` are taken.
        work: folder for the peers' files.
        names: the ways beside it.
        threads: number of threads.
        budget: the rounds.
    """
    files = files_of_fitted(folder, work)
    prepare(files, names)
    classifier = Classifier.load(folder, "auto", threads=threads)
    data = numbered(read_rows(texts_file, ()), classifier.model.config.label_names, texts_file)
    texts, labels = data.texts[:TEXTS], data.labels[:TEXTS]
    tokenizer, precision = load_tokenizer(folder), classifier.precision
    max_length = max_length_of(tokenizer, classifier.model.config)
    warm = next(
        length_sorted_batches(encode(tokenizer, texts[:BATCH_SIZE], max_length), BATCH_SIZE, tokenizer.pad_token_id)
    )
    with torch.inference_mode():
        loaded, out = ready(names, lambda way: load(way, files, threads), [warm.inputs])
        runs = {name: runs_of_peer(x, texts, tokenizer, max_length) for name, x in loaded.items()}
        mine = f"{FITTED}, {precision.name}"
        runs[mine] = runs_of(classifier, texts)
        pin_to(threads)
        answers = {name: way.apart() for name, way in runs.items()}
        figures = {name: compared(found, answers[REFERENCE], labels) for name, found in answers.items()}
        counted = [name for name in runs if "left out" not in figures[name]]
        for kind in Runs._fields:
            seconds = take_turns({name: getattr(runs[name], kind) for name in counted}, budget.rounds)
            for name, taken in seconds.items():
                figures[name][kind] = taken
    document.keep(
        "fitted",
        name_of(folder, threads),
        {
            "texts": len(texts),
            "threads": threads,
            "precision": precision.name,
            "why": precision.why,
            "ways": {**out, **figures},
        },
    )
    print(f"{name_of(folder, threads)}: {len(texts)} texts", flush=True)

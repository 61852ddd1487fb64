"""Classifying a stream of texts with a saved model, in input order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch

from ..data.batches import Text, encode, length_sorted_batches
from ..modelling import PyramidBertForSequenceClassification


@dataclass
class Answer:
    """One text's answer.

    Attributes:
        label: name of the label.
        score: its probability.
        exit_layer: layer that answered, 0 to L.
        uncertainty: normalised entropy of the answer, 0 to 1.
        tokens: tokens of the text, after truncation.
        flops: executed work, 2 x multiply-accumulates.
    """

    label: str
    score: float
    exit_layer: int
    uncertainty: float
    tokens: int
    flops: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def classify_stream(
    model: PyramidBertForSequenceClassification,
    tokenizer: Any,
    texts: Iterable[Text],
    *,
    batch_size: int = 32,
    window: int = 1024,
    exit_threshold: float | Sequence[float] | None = None,
) -> Iterator[Answer]:
    """Answers in the order of the texts, which may be endless: only ``window`` of them are held at a time.

    Within a window, texts of similar length share a batch; a larger window batches better and answers later.
    """
    if batch_size < 1 or window < 1:
        raise ValueError(f"batch_size and window must be at least 1; got {batch_size} and {window}")
    source = iter(texts)
    while chunk := list(islice(source, window)):
        yield from _classify_window(model, tokenizer, chunk, batch_size, exit_threshold)


@torch.inference_mode()
def _classify_window(
    model: PyramidBertForSequenceClassification,
    tokenizer: Any,
    texts: Sequence[Text],
    batch_size: int,
    exit_threshold: float | Sequence[float] | None,
) -> list[Answer]:
    encoded = encode(tokenizer, texts, model.config.max_position_embeddings)
    answers: list[Answer | None] = [None] * len(texts)
    for batch in length_sorted_batches(encoded, batch_size, model.config.pad_token_id or 0):
        inputs = {name: x.to(model.device) for name, x in batch.inputs.items()}
        out = model(**inputs, exit_threshold=exit_threshold)
        scores, labels = out.logits.float().softmax(-1).max(-1)
        columns = (scores, labels, out.exit_layer, out.uncertainty, out.executed_flops)
        rows = zip(batch.places, *(column.tolist() for column in columns), strict=True)
        for place, score, label, exit_layer, uncertainty, flops in rows:
            answers[place] = Answer(
                label=model.config.id2label[label],
                score=score,
                exit_layer=exit_layer,
                uncertainty=uncertainty,
                tokens=len(encoded[place]["input_ids"]),
                flops=flops,
            )
    return answers

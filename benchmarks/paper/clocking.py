"""The wall-clock time of the systems at their operating points, beside transformers' padded BERT, in one run."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from mp_model import PyramidConfig, PyramidForSequenceClassification
from mp_model.checkpoints.tokenizers import load_tokenizer, max_length_of
from mp_model.data.batches import Text, TextBatch, encode, length_sorted_batches
from mp_model.measuring.timing import Way, one_by_one, padded_gflops, padded_twin, time_ways, way_at

from .plan import CORPORA, Backbone, Job, first_job
from .results import DROPS, TRAINED
from .rivals import LAYER_0, SMALLER, TFIDF, BagOfWords
from .training import task_of, test_texts
from .ways import Inputs, cascade_way, first_exit, translated

TOKENS, MOST_TEXTS, BATCH_SIZE, ROUNDS = 16_000, 256, 32, 3
PADDED = "transformers, padded"
ORDERS = ("sorted", "as they come")
Reader = Callable[[Sequence[Text]], list[TextBatch]]  # batches of texts of similar length


def settings_of(result: dict[str, Any], system: str) -> dict[str, Any]:
    """The exit thresholds to time a system at, by name.

    They were chosen on validation texts, by the counted loss (``mp@0.5``) or carefully (``mp@careful 0.5``), or on the test
    curve (``mp@test 0.5``).
    """
    offered = result.get("careful", {}).get(system, {})
    careful = {f"{system}@careful {drop}": x["exit_threshold"] for drop, x in offered.items()}
    chosen = {f"{system}@{drop}": result["systems"][system][f"{drop}"]["exit_threshold"] for drop in DROPS}
    reached = {loss: x for loss, x in result["on_test"][system].items() if x["executed_gflops"] is not None}
    return {**chosen, **careful, **{f"{system}@test {loss}": x["exit_threshold"] for loss, x in reached.items()}}


@dataclass
class Timed:
    """The texts that are timed, as batches in one order of the texts.

    Attributes:
        batches: their batches, as the backbone's tokenizer makes them.
        texts: the texts of each batch.
    """

    batches: list[TextBatch]
    texts: list[list[Text]]

    def as_read(self, read: Reader) -> dict[int, Inputs]:
        """The inputs that another tokenizer makes of each batch's texts, by the ``id`` of its inputs."""
        return self.by_inputs(lambda texts: read(texts)[0].inputs)

    def by_inputs(self, each: Callable[[list[Text]], Any]) -> dict[int, Any]:
        """Something made of each batch's texts, by the ``id`` of its inputs."""
        return {id(batch.inputs): each(texts) for batch, texts in zip(self.batches, self.texts, strict=True)}


def batches_of(texts: list[Text], reader: Reader, parts: int) -> Timed:
    """Texts in batches of similar length; parts: number of texts that are sorted by length together."""
    timed = Timed([], [])
    for begin in range(0, len(texts), parts):
        part = texts[begin : begin + parts]
        for batch in reader(part):
            timed.batches.append(batch)
            timed.texts.append([part[place] for place in batch.places])
    return timed


def reader_of(folder: Path, config: PyramidConfig) -> Reader:
    """The maker of batches of texts for a trained model."""
    tokenizer = load_tokenizer(folder)
    most = max_length_of(tokenizer, config)
    return lambda texts: list(length_sorted_batches(encode(tokenizer, texts, most), BATCH_SIZE, tokenizer.pad_token_id))


def clock(
    result: dict[str, Any], backbone: Backbone, runs: Path, corpora: Path | None, console: Console
) -> dict[str, Any]:
    """Milliseconds for a text: for each system, and for each of its exit thresholds.

    They are taken for texts sorted by length (batches need next to no padding), and as they come, in a random order.
    """
    corpus = CORPORA[result["name"]]
    folders = {
        system: first_job(runs, backbone, corpus, system).model for system in TRAINED if system in result["systems"]
    }
    systems = {x: PyramidForSequenceClassification.from_pretrained(folder).eval() for x, folder in folders.items()}
    bert = systems["bert"]
    task = task_of(corpora, corpus, 0).in_the_order_of(bert.config.label_names)
    readers = {system: reader_of(folder, systems[system].config) for system, folder in folders.items()}
    texts = shortened(test_texts(corpora, corpus, task).texts, readers["bert"])
    twin = padded_twin(bert)
    padded: dict[str, Way] = {PADDED: one_by_one(lambda inputs: twin(**inputs))}
    words = BagOfWords(task.train, len(task.label_names)) if TFIDF in result["systems"] else None
    smaller = first_job(runs, backbone, corpus, "bert").of_smaller()
    times: dict[str, Any] = {"texts": len(texts), "threads": torch.get_num_threads(), "batch_size": BATCH_SIZE}
    for order, parts in zip(ORDERS, (len(texts), BATCH_SIZE), strict=True):
        timed = batches_of(texts, readers["bert"], parts)
        # Only where exits compare two texts does every tokenizer tell these apart, so each model has inputs of its own.
        inputs_of = {system: timed.as_read(read) for system, read in readers.items()}
        ways = {**padded, **system_ways(result, systems, inputs_of)}
        ways.update(rival_ways(result, systems, inputs_of, words, smaller, timed))
        seconds = time_ways(ways, timed.batches, ROUNDS)
        milliseconds = {way: 1e3 * x for way, x in seconds.items()}
        times[order] = {"milliseconds": milliseconds, "padded_gflops": padded_gflops(bert, timed.batches)}
        console.print(f"{corpus.title}, {order}: " + ", ".join(f"{way} {x:.2f} ms" for way, x in milliseconds.items()))
    return times


def shortened(texts: list[Text], read: Reader) -> list[Text]:
    """Texts in a random order, as many as there is time for."""
    texts = random.Random(0).sample(texts, len(texts))[:MOST_TEXTS]
    lengths = torch.zeros(len(texts), dtype=torch.int64)
    for batch in read(texts):
        lengths[batch.places] = batch.inputs["attention_mask"].sum(1)
    return texts[: int((lengths.cumsum(0) <= TOKENS).sum())]


def system_ways(
    result: dict[str, Any],
    systems: dict[str, PyramidForSequenceClassification],
    inputs_of: dict[str, dict[int, Inputs]],
) -> dict[str, Way]:
    """The ways of the trained systems, at each of their settings; inputs_of: each one's inputs."""
    ways: dict[str, Way] = {}
    for system, model in systems.items():
        settings = settings_of(result, system) if model.config.resolved_exit_layers() else {system: None}
        for way, threshold in settings.items():
            ways[way] = translated(way_at(model, threshold), inputs_of[system])
    return ways


def rival_ways(
    result: dict[str, Any],
    systems: dict[str, PyramidForSequenceClassification],
    inputs_of: dict[str, dict[int, Inputs]],
    words: BagOfWords | None,
    smaller: Job | None,
    timed: Timed,
) -> dict[str, Way]:
    """The ways of the rivals that were measured, at each of their settings.

    Args:
        result: the figures of the set.
        systems: the trained systems.
        inputs_of: the inputs of each.
        words: logistic regression on TF-IDF; None: it was not measured.
        smaller: the BERT of fewer layers; None: there is none.
        timed: the batches that will be timed.
    """
    bert, choice = systems["bert"], systems["bert"].config.choice
    first: dict[str, Callable[[Inputs], Tensor]] = {}
    if LAYER_0 in result["systems"]:
        ask_pyramid, as_pyramid = first_exit(systems["pyramid"]), inputs_of["pyramid"]
        first[LAYER_0] = lambda inputs: ask_pyramid(as_pyramid[id(inputs)])
    if words is not None:
        texts_of, reading = timed.by_inputs(lambda texts: texts), words
        first[TFIDF] = lambda inputs: reading.logits(texts_of[id(inputs)])
    whole = way_at(bert, None)
    ways = {
        way: cascade_way(ask, whole, choice, threshold)
        for rival, ask in first.items()
        for way, threshold in settings_of(result, rival).items()
    }
    if SMALLER in result["systems"] and smaller is not None:
        model = PyramidForSequenceClassification.from_pretrained(smaller.model).eval()
        read = reader_of(smaller.model, model.config)
        ways[SMALLER] = translated(way_at(model, None), timed.as_read(read))
    return ways

"""The wall-clock time of the systems at their operating points, beside transformers' padded BERT, in one run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from mp_model import PyramidForSequenceClassification
from mp_model.checkpoints.tokenizers import load_tokenizer, max_length_of
from mp_model.data.batches import encode, length_sorted_batches
from mp_model.measuring.timing import Way, one_by_one, padded_gflops, padded_twin, time_ways, way_at

from .plan import CORPORA, Backbone, first_job
from .results import DROPS, SYSTEMS
from .training import task_of, test_texts

TOKENS, MOST_TEXTS, BATCH_SIZE, ROUNDS = 32_000, 512, 32, 3
PADDED = "transformers, padded"
ORDERS = ("sorted", "as they come")


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


def clock(
    result: dict[str, Any], backbone: Backbone, runs: Path, corpora: Path | None, console: Console
) -> dict[str, Any]:
    """Milliseconds for a text: for each system, and for each of its exit thresholds.

    They are taken for texts sorted by length (batches need next to no padding), and as they come, in a random order.
    """
    corpus = CORPORA[result["name"]]
    folders = {
        system: first_job(runs, backbone, corpus, system).model for system in SYSTEMS if system in result["systems"]
    }
    tokenizer = load_tokenizer(folders["bert"])
    texts = test_texts(corpora, corpus, task_of(corpora, corpus, 0)).texts
    systems = {x: PyramidForSequenceClassification.from_pretrained(folder).eval() for x, folder in folders.items()}
    bert = systems["bert"]
    twin = padded_twin(bert)
    ways: dict[str, Way] = {PADDED: one_by_one(lambda inputs: twin(**inputs))}
    for system, model in systems.items():
        settings = settings_of(result, system) if model.config.resolved_exit_layers() else {system: None}
        ways.update({way: way_at(model, threshold) for way, threshold in settings.items()})
    rows = encode(tokenizer, texts, max_length_of(tokenizer, bert.config))
    random.Random(0).shuffle(rows)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    rows = rows[: min(MOST_TEXTS, int((lengths.cumsum(0) <= TOKENS).sum()))]
    times: dict[str, Any] = {"texts": len(rows), "threads": torch.get_num_threads(), "batch_size": BATCH_SIZE}
    by_length = list(length_sorted_batches(rows, BATCH_SIZE, tokenizer.pad_token_id))
    as_they_come = (rows[begin : begin + BATCH_SIZE] for begin in range(0, len(rows), BATCH_SIZE))
    unsorted = [
        batch for part in as_they_come for batch in length_sorted_batches(part, BATCH_SIZE, tokenizer.pad_token_id)
    ]
    for order, batches in zip(ORDERS, (by_length, unsorted), strict=True):
        seconds = time_ways(ways, batches, ROUNDS)
        milliseconds = {way: 1e3 * x for way, x in seconds.items()}
        times[order] = {"milliseconds": milliseconds, "padded_gflops": padded_gflops(bert, batches)}
        console.print(f"{corpus.title}, {order}: " + ", ".join(f"{way} {x:.2f} ms" for way, x in milliseconds.items()))
    return times

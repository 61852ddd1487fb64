"""The wall-clock time of the systems at their operating points, beside transformers' padded BERT, in one run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer

from mp_model import PyramidBertForSequenceClassification
from mp_model.data.batches import encode, length_sorted_batches
from mp_model.flops import paper_flops
from mp_model.measuring.timing import Way, padded_twin, time_ways

from .plan import CORPORA
from .results import DROPS, SYSTEMS, job_of
from .training import task_of, test_texts

TOKENS, MOST_TEXTS, BATCH_SIZE, ROUNDS = 32_000, 512, 32, 3
PADDED = "transformers, padded"
ORDERS = ("sorted", "as they come")


def _way(model: torch.nn.Module, exit_threshold: Any = None) -> Way:
    options = {} if exit_threshold is None else {"exit_threshold": exit_threshold}
    return lambda inputs: model(**inputs, **options)


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


def clock(result: dict[str, Any], runs: Path, corpora: Path | None, console: Console) -> dict[str, Any]:
    """Milliseconds for a text: for each system, and for each of its exit thresholds.

    They are taken for texts sorted by length (batches need next to no padding), and as they come, in a random order.
    """
    name = result["name"]
    tokenizer = AutoTokenizer.from_pretrained(job_of(name, "bert", runs).model)
    corpus = CORPORA[name]
    texts = test_texts(corpora, corpus, task_of(corpora, corpus, 0)).texts
    ways: dict[str, Way] = {}
    config = None
    for system in SYSTEMS:
        if system not in result["systems"]:
            continue
        model = PyramidBertForSequenceClassification.from_pretrained(job_of(name, system, runs).model).eval()
        model.config.exit_threshold = None
        if system == "bert":
            config = model.config
            ways[PADDED] = _way(padded_twin(model))
        if not model.config.resolved_exit_layers():
            ways[system] = _way(model)
            continue
        ways.update({way: _way(model, threshold) for way, threshold in settings_of(result, system).items()})
    rows = encode(tokenizer, texts, config.max_position_embeddings)
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
        widths = torch.tensor([batch.inputs["input_ids"].shape[1] for batch in batches for _ in batch.places])
        layers = torch.full_like(widths, config.num_hidden_layers)
        tokens = widths.unsqueeze(1).expand(-1, config.num_hidden_layers)
        padded = paper_flops(config, tokens, widths, layers).double().mean().item() / 1e9
        times[order] = {"milliseconds": {way: 1e3 * x for way, x in seconds.items()}, "padded_gflops": padded}
        console.print(f"{corpus.title}, {order}: " + ", ".join(f"{way} {1e3 * x:.2f} ms" for way, x in seconds.items()))
    return times

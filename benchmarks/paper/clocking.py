"""Wall-clock time of the systems at their operating points, beside transformers' padded BERT, in one run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer

from mp_model import PyramidBertForSequenceClassification
from mp_model.batching import encode, length_sorted_batches
from mp_model.flops import paper_flops
from mp_model.timing import Way, padded_twin, time_ways

from .plan import CORPORA
from .results import DROPS, SYSTEMS, job_of
from .training import task_of, test_texts

TOKENS, MOST_TEXTS, BATCH_SIZE, ROUNDS = 32_000, 512, 32, 3
PADDED = "transformers, padded"


def _way(model: torch.nn.Module, exit_threshold: Any = None) -> Way:
    options = {} if exit_threshold is None else {"exit_threshold": exit_threshold}
    return lambda inputs: model(**inputs, **options)


def clock(name: str, systems: dict[str, Any], runs: Path, corpora: Path | None, console: Console) -> dict[str, Any]:
    """Milliseconds for a text, of each system; of those with exits at the thresholds chosen for each drop, ``mp@0.5``.

    Texts in the order in which they come (a random one, batches need padding), and sorted by length (next to none).
    """
    tokenizer = AutoTokenizer.from_pretrained(job_of(name, "bert", runs).model)
    corpus = CORPORA[name]
    texts = test_texts(corpora, corpus, task_of(corpora, corpus, 0)).texts
    ways: dict[str, Way] = {}
    config = None
    for system in SYSTEMS:
        if system not in systems:
            continue
        model = PyramidBertForSequenceClassification.from_pretrained(job_of(name, system, runs).model).eval()
        model.config.exit_threshold = None
        if system == "bert":
            config = model.config
            ways[PADDED] = _way(padded_twin(model))
        if not model.config.resolved_exit_layers():
            ways[system] = _way(model)
            continue
        for drop in DROPS:
            ways[f"{system}@{drop}"] = _way(model, systems[system][f"{drop}"]["exit_threshold"])
    rows = encode(tokenizer, texts, config.max_position_embeddings)
    random.Random(0).shuffle(rows)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    rows = rows[: min(MOST_TEXTS, int((lengths.cumsum(0) <= TOKENS).sum()))]
    result: dict[str, Any] = {"texts": len(rows), "threads": torch.get_num_threads(), "batch_size": BATCH_SIZE}
    orders = {"sorted": list(length_sorted_batches(rows, BATCH_SIZE, tokenizer.pad_token_id))}
    as_they_come = (rows[begin : begin + BATCH_SIZE] for begin in range(0, len(rows), BATCH_SIZE))
    orders["as they come"] = [
        batch for part in as_they_come for batch in length_sorted_batches(part, BATCH_SIZE, tokenizer.pad_token_id)
    ]
    for order, batches in orders.items():
        seconds = time_ways(ways, batches, ROUNDS)
        widths = torch.tensor([batch.inputs["input_ids"].shape[1] for batch in batches for _ in batch.places])
        layers = torch.full_like(widths, config.num_hidden_layers)
        tokens = widths.unsqueeze(1).expand(-1, config.num_hidden_layers)
        padded = paper_flops(config, tokens, widths, layers).double().mean().item() / 1e9
        result[order] = {"milliseconds": {way: 1e3 * x for way, x in seconds.items()}, "padded_gflops": padded}
        console.print(f"{corpus.title}, {order}: " + ", ".join(f"{way} {1e3 * x:.2f} ms" for way, x in seconds.items()))
    return result

"""The demo's work: MiniLM weights, BBC News articles, heads on a frozen backbone, four classifiers timed in one run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from .data.batches import TextBatch, encode, length_sorted_batches
from .data.samples import bbc_news, minilm
from .flops import entering_tokens, paper_flops
from .measuring.all_exits import AllExits, read_all_exits
from .measuring.timing import padded_twin
from .measuring.tuning import largest_threshold, outcome_of, outcomes_of_one_threshold, right_without_exits
from .modelling import PyramidBertForSequenceClassification
from .reporting.shading import ShadedText, shade
from .training.features import collect_features, train_all_heads

TRAIN, VALIDATION, TEST = 400, 200, 160
BATCH_SIZE = 32
# Pruning strengths to try, strongest first: layer L's threshold, in units of the median article's mean importance.
STRENGTHS = (0.8, 0.5, 0.3)


@dataclass
class Row:
    """One way to classify the test articles.

    Attributes:
        name: which.
        accuracy: share of right answers.
        tokens_kept: tokens that enter the layers that were run, as a share of all tokens in them without pruning.
        mean_exit_layer: mean layer of the answer.
        gflops, executed_gflops: mean work for a text, by the paper's count and as executed (padding included for the
            padded model).
        seconds: time for all test articles, tokenisation apart.
        speed_up: the padded model's time over this one's.
    """

    name: str
    accuracy: float
    tokens_kept: float
    mean_exit_layer: float
    gflops: float
    executed_gflops: float
    seconds: float
    speed_up: float


@dataclass
class Demonstration:
    """What the demo found out."""

    rows: list[Row]
    test_texts: int
    threads: int
    prune_thresholds: list[float]
    exit_threshold: float
    validation_accuracy: float
    validation_harm: float
    shaded: list[ShadedText]
    model: Any
    tokenizer: Any


@dataclass
class _Split:
    texts: list[str]
    labels: list[int]
    encoded: list[dict[str, list[int]]]

    def batches(self) -> list[TextBatch]:
        return list(length_sorted_batches(self.encoded, BATCH_SIZE, pad_token_id=0))

    def mean(self, values: Tensor) -> float:
        return values.double().mean().item()


def run_demonstration(console: Console, max_harm: float, own_texts: Sequence[str] | None = None) -> Demonstration:
    """Trains, tunes and measures; progress goes to ``console``.

    Args:
        console: where the progress bars go.
        max_harm: share of the validation articles that may be answered wrongly where the whole model is right.
        own_texts: texts to shade; None: two of the test articles.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    weights = minilm()
    articles, labels, topics = bbc_news()
    tokenizer = AutoTokenizer.from_pretrained(weights)
    model = PyramidBertForSequenceClassification.from_pretrained(
        weights, id2label=dict(enumerate(topics)), label2id={t: i for i, t in enumerate(topics)}, exit_head="pooled",
        exit_layers=list(range(6)),
    ).eval()  # fmt: skip
    bounds = (0, TRAIN, TRAIN + VALIDATION, TRAIN + VALIDATION + TEST)
    train, validation, test = (
        _Split(articles[a:b], labels[a:b], encode(tokenizer, articles[a:b], model.config.max_position_embeddings))
        for a, b in itertools.pairwise(bounds)
    )

    def watched(split: _Split, what: str) -> Iterable[TextBatch]:
        return track(split.batches(), what, console=console, transient=True)

    def read(what: str) -> AllExits:
        return read_all_exits(model, watched(validation, what), validation.labels)

    train_all_heads(
        model, collect_features(model, watched(train, f"Read {TRAIN} training articles once"), train.labels)
    )
    whole = read(f"Read {VALIDATION} validation articles")
    right_before = right_without_exits(whole)
    thresholds, pruned = _tune_pruning(
        model, validation, right_before, max_harm, lambda strength: read(f"Prune them, strength {strength}")
    )
    exits = pruned or whole
    chosen = largest_threshold(outcomes_of_one_threshold(exits, right_before), max_harm)
    chosen = chosen or outcome_of(exits, right_before, 0.0)

    rows, answers = _measure(model, test, thresholds, chosen.exit_threshold, console)
    model.config.prune_thresholds, model.config.exit_threshold = thresholds, chosen.exit_threshold
    texts = own_texts or _furthest_and_first(test, answers["exit_layer"])
    return Demonstration(
        rows=rows,
        test_texts=len(test.texts),
        threads=torch.get_num_threads(),
        prune_thresholds=thresholds,
        exit_threshold=chosen.exit_threshold,
        validation_accuracy=chosen.accuracy,
        validation_harm=chosen.harm,
        shaded=[_shade(model, tokenizer, topics, text) for text in texts],
        model=model,
        tokenizer=tokenizer,
    )


def _tune_pruning(
    model: PyramidBertForSequenceClassification,
    validation: _Split,
    right_before: Tensor,
    max_harm: float,
    read: Callable[[float], AllExits],
) -> tuple[list[float], AllExits | None]:
    """The strongest pruning that harms few enough answers of layer L, and the predictions of all exits under it.

    Without one that does: thresholds of 0, and None.
    """
    layers = model.config.num_hidden_layers
    lengths = sorted(len(row["input_ids"]) for row in validation.encoded)
    median = lengths[len(lengths) // 2]
    for strength in STRENGTHS:
        thresholds = [strength / median * layer / layers for layer in range(1, layers + 1)]
        model.config.prune_thresholds = thresholds
        exits = read(strength)
        if outcome_of(exits, right_before, None).harm <= max_harm:
            return thresholds, exits
    return [0.0] * layers, None


def _measure(
    model: PyramidBertForSequenceClassification,
    test: _Split,
    thresholds: list[float],
    exit_threshold: float,
    console: Console,
) -> tuple[list[Row], dict[str, Tensor]]:
    """Times the test articles through transformers' BERT and three settings of the pyramid."""
    batches = test.batches()
    labels = torch.tensor(test.labels)
    stock = padded_twin(model)
    lengths = torch.tensor([len(row["input_ids"]) for row in test.encoded])
    layers = model.config.num_hidden_layers

    def timed(name: str, run: Callable[[dict[str, Tensor]], Any]) -> tuple[list[Any], float]:
        run(batches[len(batches) // 2].inputs)  # the first call sets up threads and memory
        outputs, seconds = [], 0.0
        for batch in track(batches, name, console=console, transient=True):
            begin = time.perf_counter()
            outputs.append(run(batch.inputs))
            seconds += time.perf_counter() - begin
        return outputs, seconds

    def in_order(pieces: Sequence[Tensor]) -> Tensor:
        places = torch.tensor([place for batch in batches for place in batch.places])
        return torch.cat(list(pieces))[places.argsort()]

    rows: list[Row] = []
    answers: dict[str, Tensor] = {}
    with torch.inference_mode():
        outputs, baseline = timed("BERT (transformers)", lambda x: stock(**x))
        right = in_order([o.logits for o in outputs]).argmax(-1) == labels
        padded = in_order([torch.full((len(b.places),), b.inputs["input_ids"].shape[1]) for b in batches])
        everybody_last = torch.full_like(lengths, layers)
        work = [
            paper_flops(model.config, n.unsqueeze(1).expand(-1, layers), n, everybody_last) for n in (lengths, padded)
        ]
        gflops, executed = (test.mean(x) / 1e9 for x in work)
        rows.append(Row("BERT (transformers)", test.mean(right), 1.0, layers, gflops, executed, baseline, 1.0))
        for name, prune, threshold in (
            ("dense (ours)", None, None),
            ("+ tokens pruned", thresholds, None),
            ("+ exits", thresholds, exit_threshold),
        ):
            model.config.prune_thresholds, model.config.exit_threshold = prune, threshold
            outputs, seconds = timed(name, lambda x: model(**x))
            fields = ("logits", "exit_layer", "tokens_per_layer", "flops", "executed_flops")
            answers = {field: in_order([getattr(o, field) for o in outputs]) for field in fields}
            right = answers["logits"].argmax(-1) == labels
            kept = _tokens_kept(answers["tokens_per_layer"], lengths, answers["exit_layer"])
            rows.append(
                Row(
                    name,
                    accuracy=test.mean(right),
                    tokens_kept=kept,
                    mean_exit_layer=test.mean(answers["exit_layer"]),
                    gflops=test.mean(answers["flops"]) / 1e9,
                    executed_gflops=test.mean(answers["executed_flops"]) / 1e9,
                    seconds=seconds,
                    speed_up=baseline / seconds,
                )
            )
    return rows, answers


def _tokens_kept(tokens_per_layer: Tensor, lengths: Tensor, exit_layer: Tensor) -> float:
    """Tokens that entered the layers that were run, as a share of what would have without pruning."""
    visited = torch.arange(1, tokens_per_layer.shape[1] + 1) <= exit_layer.unsqueeze(1)
    entered = (entering_tokens(tokens_per_layer, lengths) * visited).sum()
    return (entered / (lengths.unsqueeze(1) * visited).sum().clamp(min=1)).item()


def _furthest_and_first(test: _Split, exit_layer: Tensor) -> list[str]:
    """The test article that went furthest, and the longest of those that left first."""
    lengths = torch.tensor([len(row["input_ids"]) for row in test.encoded])
    by_layer = exit_layer * 10_000  # more than any length
    return [test.texts[int((by_layer + lengths).argmax())], test.texts[int((lengths - by_layer).argmax())]]


@torch.inference_mode()
def _shade(model: PyramidBertForSequenceClassification, tokenizer: Any, topics: Sequence[str], text: str) -> ShadedText:
    """Takes one text through the pyramid and notes how far each word went."""
    longest, layers = model.config.max_position_embeddings, model.config.num_hidden_layers
    out = model(torch.tensor([encode(tokenizer, [text], longest)[0]["input_ids"]]), follow_tokens=True)
    layer = int(out.exit_layer)
    where = "at the embeddings, before any layer" if layer == 0 else f"by layer {layer} of {layers}"
    caption = f"{topics[int(out.logits.argmax())]}: answered {where}, uncertainty {float(out.uncertainty):.3f}"
    return shade(tokenizer, text, out.pruned_by[0].tolist(), layer, layers, caption, longest)

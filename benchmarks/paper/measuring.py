"""The exits of every trained model, read once on the validation and the test texts and kept."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file

from mp_model import PyramidConfig, PyramidForSequenceClassification
from mp_model.checkpoints.configurations import read_config
from mp_model.checkpoints.tokenizers import load_tokenizer, max_length_of
from mp_model.data.batches import encode, length_sorted_batches
from mp_model.data.labels import LabelledTexts
from mp_model.measuring.all_exits import AllExits, read_all_exits
from mp_model.measuring.record import Threshold
from mp_model.measuring.tuning import TradeOff, trade_off

from .plan import Job
from .training import task_of, test_texts

BATCH_SIZE = 32
SPLITS = ("validation", "test")
STEPS = 200  # of one threshold for all layers


@dataclass
class Reading:
    """A trained model's exits on the texts that thresholds are chosen on, and on those that it is measured on."""

    validation: AllExits
    test: AllExits

    @cached_property
    def offers(self) -> TradeOff:
        """All settings of one threshold for all layers, on the validation texts."""
        return trade_off({1.0: self.validation}, layered=False, steps=STEPS)

    def threshold(self, drop: float, *, counted: bool = False) -> Threshold:
        """The exit threshold that ``tune`` sets on the validation texts; None for a model without exits.

        Args:
            drop: points of validation accuracy that exits may cost.
            counted: whether the loss is counted alone, as with ``tune --counted``.
        """
        if len(self.test.layers) == 1:
            return None
        return self.offers.fastest(drop / 100, counted=counted).exit_threshold


def _tensors(exits: AllExits) -> dict[str, torch.Tensor]:
    by_layer = {f"logits.{layer}": x for layer, x in exits.logits.items()}
    return {"labels": exits.labels, "lengths": exits.lengths, "survivors": exits.survivors, **by_layer}


def keep(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Writes tensors to a file that is either whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished)
    unfinished.replace(path)


def _load(path: Path, config: PyramidConfig) -> AllExits:
    tensors = load_file(path)
    logits = {int(name.split(".")[1]): x for name, x in tensors.items() if name.startswith("logits.")}
    return AllExits(config, tensors["labels"], tensors["lengths"], tensors["survivors"], logits)


def read_texts(model_folder: Path, data: LabelledTexts, what: str, console: Console) -> AllExits:
    """The exits of a trained model on labelled texts, in one run."""
    model = PyramidForSequenceClassification.from_pretrained(model_folder).eval()
    tokenizer = load_tokenizer(model_folder)
    rows = encode(tokenizer, data.texts, max_length_of(tokenizer, model.config))
    batches = list(length_sorted_batches(rows, BATCH_SIZE, tokenizer.pad_token_id))
    watched = track(batches, what, console=console, transient=True, disable=not console.is_terminal)
    return read_all_exits(model, watched, data.targets)


def read_job(job: Job, corpora: Path | None, console: Console) -> Reading:
    """The exits of a finished job's model; from disk if they were read before."""
    config = read_config(job.model)
    task = None
    readings = []
    for split in SPLITS:
        path = job.folder / f"{split}.safetensors"
        if not path.exists():
            task = task or task_of(corpora, job.corpus, job.seed).in_the_order_of(config.label_names)
            data = task.validation if split == "validation" else test_texts(corpora, job.corpus, task)
            begin = time.monotonic()
            what = f"{job}, {split}"
            exits = read_texts(job.model, data, what, console)
            console.print(f"{what}: {len(exits)} texts in {time.monotonic() - begin:.0f} s")
            keep(_tensors(exits), path)
        readings.append(_load(path, config))
    return Reading(*readings)


def training_of(finished: Iterable[Job]) -> dict[str, float]:
    """``seconds``: the time that all stages of these jobs took; ``threads``: the most threads that a stage had."""
    facts = [json.loads(path.read_text()) for job in finished for path in job.folder.glob("stages/*/facts.json")]
    return {"seconds": sum(x["seconds"] for x in facts), "threads": max(x["threads"] for x in facts)}

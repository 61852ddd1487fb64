"""The fine-tuned, unpruned model's logits for the training texts: computed once, kept, and learned in joint training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from ..data.batches import in_input_order, length_sorted_batches
from ..data.files import whole_file
from ..modelling import PyramidForSequenceClassification
from ..pruning import Pruning
from ..schedule import run_batch
from .folder import processes
from .tasks import EncodedTexts

SHARE = 0.5  # of the teacher in what main head and exits learn; the rest is the label
PRUNING = ("soft", "hard", "joint")  # the model before the first of these stages is the teacher


class Taught(Dataset[dict[str, Any]]):
    """Texts as token ids, each with the teacher's logits; logits: ``[texts, labels]``."""

    def __init__(self, texts: EncodedTexts, logits: Tensor) -> None:
        self.texts, self.logits = texts, logits

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {**self.texts[place], "teacher": self.logits[place].tolist()}


@torch.inference_mode()
def unpruned_logits(
    model: PyramidForSequenceClassification, texts: EncodedTexts, batch_size: int, pad_token_id: int
) -> Tensor:
    """float32 ``[texts, labels]``, what a model answers if it prunes nothing and nobody leaves."""
    model.to(processes().device).eval()
    pyramid = model.with_pruning(Pruning(None, None, model.config.importance_normalizer))
    places: list[int] = []
    logits: list[Tensor] = []
    for batch in length_sorted_batches(texts.rows, batch_size, pad_token_id):
        packed = model.base_model.pack(**batch.to(model.device).inputs)
        logits.append(run_batch(pyramid, packed, model.num_labels).logits.float().cpu())
        places += batch.places
    return in_input_order(logits, places)


def kept_logits(
    path: Path, model: PyramidForSequenceClassification, texts: EncodedTexts, batch_size: int, pad_token_id: int
) -> tuple[Tensor, float]:
    """The logits of :func:`unpruned_logits` and the seconds that they took, out of a file that keeps both.

    One process makes the file where it is missing or damaged, while the others wait.
    """
    with processes().main_process_first():
        kept = _read(path)
        if kept is None:
            begin = time.monotonic()
            logits = unpruned_logits(model, texts, batch_size, pad_token_id)
            kept = logits, time.monotonic() - begin
            if processes().is_main_process:
                with whole_file(path, "wb") as stream:
                    stream.write(safetensors.torch.save({"logits": logits}, {"seconds": str(kept[1])}))
    return kept


def _read(path: Path) -> tuple[Tensor, float] | None:
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("logits"), float(file.metadata()["seconds"])
    except (FileNotFoundError, SafetensorError):
        return None

"""The fine-tuned, unpruned model's logits for the training texts: computed once, kept, and learned in joint training."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from ..checkpoints.configurations import read_config
from ..checkpoints.files import hashes_of
from ..checkpoints.tokenizers import TYPES, load_tokenizer
from ..data.batches import in_input_order, length_sorted_batches
from ..data.files import whole_file
from ..data.values import listed
from ..modelling import PyramidForSequenceClassification
from ..pruning import Pruning
from ..schedule import run_batch
from .folder import processes
from .recipes import TEACHERS
from .tasks import EncodedTexts, Task

SHARE = 0.5  # of the teacher in what main head and exits learn; the rest is the label
PRUNING = ("soft", "hard", "joint")  # the model before the first of these stages is the teacher


def check_teacher(teacher: str | None, task: Task, tokenizer: Any) -> None:
    """Raises ValueError for what is neither one of ``TEACHERS`` nor the folder of a classifier for these texts.

    Args:
        teacher: the name, or the folder; None: the recipe's, which is good.
        task: the texts, with the numbers that the labels will have.
        tokenizer: the tokenizer of the model that is taught.
    """
    if teacher is None or teacher in TEACHERS:
        return
    if not (Path(teacher) / "config.json").is_file():
        raise ValueError(f"teacher must be {' or '.join(TEACHERS)}, or the folder of a classifier; got {teacher!r}")
    config = read_config(Path(teacher))
    if config.label_names != task.label_names or config.choice.several != task.several:
        raise ValueError(
            f"a teacher must answer as its pupil does, with the labels {listed(task.label_names)} in this order; {teacher} "
            f"has {listed(config.label_names)}, and its problem_type is {config.task!r}"
        )
    if load_tokenizer(teacher).get_vocab() != tokenizer.get_vocab():
        raise ValueError(f"a teacher must read the same tokens as its pupil; {teacher} has another vocabulary")


def identity_of(teacher: str) -> str:
    """The teacher's name, or a hash of the files in its folder."""
    if teacher in TEACHERS:
        return teacher
    files = json.dumps(hashes_of(Path(teacher)), sort_keys=True)
    return f"the classifier {hashlib.sha256(files.encode()).hexdigest()[:16]}"


class Taught(Dataset[dict[str, Any]]):
    """Texts as token ids, each with the teacher's logits; logits: ``[texts, labels]``."""

    def __init__(self, texts: EncodedTexts, logits: Tensor) -> None:
        self.texts, self.logits = texts, logits

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {**self.texts[place], "teacher": self.logits[place].tolist()}


@torch.no_grad()  # inference mode would leave weights that cannot be trained
def unpruned_logits(
    model: PyramidForSequenceClassification, texts: EncodedTexts, batch_size: int, pad_token_id: int
) -> Tensor:
    """float32 ``[texts, labels]``, what a model answers if it prunes nothing and nobody leaves."""
    model.to(processes().device).eval()
    pyramid = model.with_pruning(Pruning(None, None, model.config.importance_normalizer))
    places: list[int] = []
    logits: list[Tensor] = []
    for batch in length_sorted_batches(texts.rows, batch_size, pad_token_id):
        inputs = batch.to(model.device).inputs
        if model.config.token_types == 1:  # its pupil may tell the texts of a pair apart where it does not
            inputs.pop(TYPES, None)
        packed = model.base_model.pack(**inputs)
        logits.append(run_batch(pyramid, packed, model.num_labels).logits.float().cpu())
        places += batch.places
    return in_input_order(logits, places)


def kept_logits(
    path: Path,
    load: Callable[[], PyramidForSequenceClassification],
    texts: EncodedTexts,
    batch_size: int,
    pad_token_id: int,
) -> tuple[Tensor, float]:
    """The logits of :func:`unpruned_logits` and the seconds that they took, out of a file that keeps both.

    One process makes the file where it is missing or damaged, while the others wait.
    """
    with processes().main_process_first():
        kept = _read(path)
        if kept is None:
            begin = time.monotonic()
            logits = unpruned_logits(load(), texts, batch_size, pad_token_id)
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

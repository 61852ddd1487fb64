"""Running one stage with ``transformers.Trainer``: resumable after a kill, stopped at a loss that is not finite."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


class LossNotFiniteError(ValueError):
    """Training has diverged; the message says at which step and batch."""


class StageTrainer(Trainer):
    """Trains a module of :mod:`mp_model.training.objectives`.

    Args:
        stage: its name, for messages.
        groups: parameters by learning rate.
    """

    def __init__(self, stage: str, groups: list[dict[str, Any]], **options: Any) -> None:
        super().__init__(**options)
        self.stage = stage
        self.groups = groups
        self.model_accepts_loss_kwargs = False  # a loss is the mean over its batch

    def create_optimizer(self, *_: Any) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.groups, fused=True)
        return self.optimizer

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        inputs = dict(inputs)
        places = inputs.pop("place")
        outputs = model(**inputs)
        loss = outputs["loss"]
        if not torch.isfinite(loss):
            raise LossNotFiniteError(
                f"the loss is {loss.item()} at step {self.state.global_step} of stage {self.stage!r}; the batch is training "
                f"texts {places.tolist()} (counted from 0). Lower the learning rate, or look at these texts"
            )
        return (loss, outputs) if return_outputs else loss


class Stopwatch(TrainerCallback, ExportableState):
    """Seconds of a stage, with those of earlier runs up to the checkpoint that this one goes on from.

    Each checkpoint keeps what was read when it was written.

    Args:
        seconds: time of the earlier runs.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.begin = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begin

    def state(self) -> dict[str, dict[str, float]]:
        return {"args": {"seconds": self.seconds}, "attributes": {}}

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> Stopwatch:
        """Goes on from what a checkpoint kept."""
        kept = json.loads((checkpoint / "trainer_state.json").read_text())["stateful_callbacks"]
        return cls.from_state(kept[cls.__name__])


def parameter_groups(
    module: nn.Module,
    learning_rate: float,
    threshold_learning_rate: float,
    exit_learning_rate: float,
    head_learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """Weights with decay, biases and norms without; thresholds and exit heads, which begin at nothing, at own rates.

    head_learning_rate: the rate of the model's own head; None: that of the weights.
    """
    rates = {"thresholds": threshold_learning_rate, "exits": exit_learning_rate, "model": learning_rate}
    own_head: tuple[str, ...] = ()
    if head_learning_rate is not None:
        model: Any = getattr(module, "model", None)  # of a stage that trains heads alone there is none
        own_head = () if model is None else tuple(f"model.{name}" for name in model.backbone.own_head)
        rates["head"] = head_learning_rate
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_head = name.startswith(("heads.", "model.exits."))
            of_weights = "head" if name.startswith(own_head) else "model"
            kind = "thresholds" if name == "thresholds" else "exits" if is_head else of_weights
            groups.setdefault((kind, parameter.dim() > 1), []).append(parameter)
    return [
        {"params": members, "lr": rates[kind], "weight_decay": 0.01 if decays else 0.0}
        for (kind, decays), members in groups.items()
    ]


def complete_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end; later ones, cut off by a kill, are removed."""
    found = sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: -int(path.name.split("-")[-1]))
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text())  # Trainer writes it last
            return path
        except (OSError, ValueError):
            shutil.rmtree(path)
    return None


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a stage whose model is saved: each takes three times the model's room."""
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(path)


def run_stage(
    stage: str,
    module: nn.Module,
    data: Dataset[Any],
    collator: Callable[..., Any],
    folder: Path,
    *,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    threshold_learning_rate: float,
    exit_learning_rate: float,
    head_learning_rate: float | None,
    bfloat16: bool,
    seed: int,
    quiet: bool,
) -> dict[str, float]:
    """Trains ``module`` in place, from the last complete checkpoint in ``folder`` if there is one.

    bfloat16: whether products are in bfloat16 on a CPU, weights staying float32; CUDA devices that can always do so.

    Returns:
        ``steps`` and ``seconds``, also of runs that this one goes on from; ``loss`` (mean over the run), ``threads`` of the
        processor.

    Raises:
        LossNotFiniteError: training has diverged.
    """
    on_cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=0.1,
        max_grad_norm=1.0,
        seed=seed,
        data_seed=seed,
        use_cpu=not torch.accelerator.is_available(),
        bf16=torch.cuda.is_bf16_supported() if on_cuda else bfloat16,
        save_strategy="steps",
        save_steps=0.1,
        save_total_limit=2,
        logging_steps=0.02,
        report_to="none",
        disable_tqdm=quiet,
        remove_unused_columns=False,
        dataloader_pin_memory=on_cuda,
    )
    checkpoint = complete_checkpoint(folder)
    stopwatch = Stopwatch() if checkpoint is None else Stopwatch.of_checkpoint(checkpoint)
    trainer = StageTrainer(
        stage,
        parameter_groups(module, learning_rate, threshold_learning_rate, exit_learning_rate, head_learning_rate),
        model=module,
        args=arguments,
        train_dataset=data,
        data_collator=collator,
        callbacks=[stopwatch],
    )
    trainer.remove_callback(PrinterCallback)  # standard output belongs to the command
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return {
        "steps": result.global_step,
        "seconds": stopwatch.seconds,
        "loss": result.training_loss,
        "threads": torch.get_num_threads(),
    }

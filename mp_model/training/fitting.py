"""Fits: a checkpoint and labelled texts become a tuned pyramid, by the stages of a recipe, one after the other.

Everything is kept under the output folder: ``stages/`` with each stage's checkpoints and its finished model,
``settings.json`` with the arguments of the run, and at the end ``model/`` and ``summary.json``. A finished stage is not
run again, so the same call after a kill goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data.batches import length_sorted_batches
from ..data.files import whole_file
from ..measuring.all_exits import AllExits, read_all_exits
from ..measuring.tuning import Outcome, trade_off
from .recipes import RECIPES, Settings
from .stages import Trained, processes, save_whole, train_stages
from .tasks import Task


@dataclass
class Summary:
    """The course and the outcome of a fit.

    Attributes:
        recipe: name of the recipe.
        settings: settings of the stages.
        label_names: labels in the order of their numbers.
        train_texts: number of training texts.
        validation_texts: number of validation texts.
        truncated_texts: number of texts that were cut, since they were longer than the model's positions.
        stages: for each stage its steps and seconds (over all runs of it), and its mean loss (in the one that finished it).
        prune_thresholds: thresholds of pruning that the model got, one a layer.
        exit_threshold: exit threshold that the model got.
        validation_accuracy: accuracy of the whole model, without exits, on the validation texts.
        exits_accuracy: accuracy with exits, where there are any.
        seconds: time of this call.
    """

    recipe: str
    settings: dict[str, Any]
    label_names: list[str]
    train_texts: int
    validation_texts: int
    truncated_texts: int
    stages: dict[str, dict[str, float]]
    prune_thresholds: list[float] | None
    exit_threshold: Any
    validation_accuracy: float
    exits_accuracy: float | None
    seconds: float


def fit(
    checkpoint: str,
    task: Task,
    output: Path,
    recipe_name: str = "pyramid",
    settings: Settings | None = None,
    *,
    stages: Sequence[str] | None = None,
    exit_training: str | None = None,
    freeze_backbone: bool = False,
    max_drop: float = 0.005,
    quiet: bool = False,
) -> Summary:
    """Trains a classifier by a recipe, and chooses its exit thresholds on the validation texts.

    Args:
        checkpoint: a BERT checkpoint, its folder or its name on a hub; or a pyramid, to go on from.
        task: the texts.
        output: the folder to keep everything in; called again with the same arguments, a fit that was cut off goes on.
        recipe_name: one of ``RECIPES``.
        settings: settings of the stages; None: the usual ones.
        stages: names of stages to run instead of the recipe's, in their order.
        exit_training: ``"joint"`` with the backbone or ``"frozen"`` under it; None: the recipe's.
        freeze_backbone: whether to learn thresholds and heads alone: exit heads for a classifier that is finished, the main
            head too for a checkpoint without a classifier.
        max_drop: accuracy on the validation texts that exits may cost, as a share.
        quiet: whether to show no progress bars.

    Raises:
        ValueError: ``output`` holds a fit with other settings; stages that the recipe has no use for.
        LossNotFiniteError: training has diverged.
    """
    begin = time.monotonic()
    settings = (settings or Settings()).for_texts(len(task.train))
    recipe = RECIPES[recipe_name]
    if stages is not None and (exit_training is not None or freeze_backbone):
        raise ValueError("give the stages themselves, or how exits are trained and what is frozen; not both")
    planned = recipe.planned_stages(exit_training, freeze_backbone) if stages is None else stages
    trained = train_stages(
        checkpoint, task, output, recipe_name, settings, stages=planned, freeze_backbone=freeze_backbone, quiet=quiet
    )
    whole, chosen = _tune(trained, max_drop)
    summary = Summary(
        recipe=recipe_name,
        settings=asdict(settings),
        label_names=task.label_names,
        train_texts=len(task.train),
        validation_texts=len(task.validation),
        truncated_texts=trained.train.truncated + trained.validation.truncated,
        stages=trained.stages,
        prune_thresholds=trained.model.config.prune_thresholds,
        exit_threshold=trained.model.config.exit_threshold,
        validation_accuracy=whole.accuracy,
        exits_accuracy=None if chosen is None else chosen.accuracy,
        seconds=time.monotonic() - begin,
    )
    with processes().main_process_first():
        if processes().is_main_process:
            save_whole(trained.model, output / "model", trained.tokenizer)
            with whole_file(output / "summary.json") as stream:
                json.dump(asdict(summary), stream, indent=1)
    return summary


def read_validation(trained: Trained) -> AllExits:
    """The answers that every exit would give to the validation texts."""
    batches = length_sorted_batches(trained.validation.rows, 32, trained.tokenizer.pad_token_id)
    return read_all_exits(trained.model, batches, trained.validation.labels)


def _tune(trained: Trained, max_drop: float) -> tuple[Outcome, Outcome | None]:
    """Writes an exit threshold into the configuration; returns the outcome without exits, and with them if there are any."""
    offers = trade_off({1.0: read_validation(trained)}, layered=False)
    if not trained.model.config.resolved_exit_layers():
        return offers.reference, None
    chosen = offers.fastest(max_drop)
    trained.model.config.exit_threshold = chosen.exit_threshold
    return offers.reference, chosen

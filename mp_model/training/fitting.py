"""Fits: a checkpoint and labelled texts become a tuned pyramid, by the stages of a recipe, one after the other.

Everything is kept under the output folder: ``stages/`` with each stage's checkpoints and its finished model,
``settings.json`` with the arguments of the run, and at the end ``model/`` and ``summary.json``. A finished stage is not
run again, so the same call after a kill goes on where it was.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..backbones.int8 import to_int8
from ..checkpoints.precisions import check_precision
from ..checkpoints.saving import save_whole
from ..checkpoints.tuned_for import record_of
from ..data.batches import length_sorted_batches
from ..data.files import whole_file
from ..data.values import listed
from ..exits import AUTO, DISAGREEMENT
from ..measuring.all_exits import read_all_exits
from ..measuring.levels import priced_levels
from ..measuring.tuning import Outcome, check_exit_uncertainty, kinds_of_uncertainty, least_work, trade_off
from ..modelling import PyramidForSequenceClassification
from .folder import processes
from .preparing import Prepared, prepare
from .recipes import Settings
from .stages import Trained, claimed_for, run_stages
from .tasks import Task


@dataclass
class Summary:
    """The course and the outcome of a fit.

    Attributes:
        recipe: name of the recipe.
        teacher: whom exits and backbone learned from in joint training (:class:`mp_model.training.recipes.Recipe`).
        settings: settings of the stages.
        label_names: labels in the order of their numbers.
        train_texts: number of training texts.
        validation_texts: number of validation texts.
        truncated_texts: number of texts that were cut, since they were longer than the model's positions.
        stages: for each stage its steps and seconds (over all runs of it), and its mean loss (in the one that finished it).
        prune_thresholds: thresholds of pruning that the model got, one a layer.
        exit_threshold: exit threshold that the model got.
        exit_uncertainty: kind of uncertainty that it is a threshold of.
        precision: precision in which it was chosen, and accuracies were measured.
        validation_accuracy: accuracy of the whole model, without exits, on the validation texts.
        exits_accuracy: accuracy with exits, where there are any.
        work: ``"accuracy"`` on the validation texts, executed ``"gflops"`` for one of them, and ``"speed_up"``, dense
            work over that: of ``"whole"``, without exits, and of ``"exits"``, where there are any.
        already_done: names of the stages that an earlier call had finished.
        notes: what the checkpoint and the texts do not agree on or lack, and the labels that nobody got, a line each.
        seconds: time of this call, once all was read.
    """

    recipe: str
    teacher: str
    settings: dict[str, Any]
    label_names: list[str]
    train_texts: int
    validation_texts: int
    truncated_texts: int
    stages: dict[str, dict[str, float]]
    prune_thresholds: list[float] | None
    exit_threshold: Any
    exit_uncertainty: str
    precision: str
    validation_accuracy: float
    exits_accuracy: float | None
    work: dict[str, dict[str, float]]
    already_done: list[str]
    notes: list[str]
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
    train_head: bool = False,
    exit_uncertainty: str | None = None,
    teacher: str | None = None,
    max_drop: float = 0.005,
    precision: str = "float32",
    quiet: bool = False,
) -> Summary:
    """Trains a classifier by a recipe, and chooses its exit thresholds on the validation texts.

    Args:
        checkpoint: a checkpoint, its folder or its name on a hub; or a pyramid, to go on from.
        task: the texts.
        output: the folder to keep everything in; called again with the same arguments, a fit that was cut off goes on.
        recipe_name: one of ``RECIPES``.
        settings: settings of the stages; None: the usual ones.
        stages: names of stages to run instead of the recipe's, in their order.
        exit_training: ``"joint"`` with the backbone or ``"frozen"`` under it; None: the recipe's.
        freeze_backbone: whether to learn thresholds and exit heads alone, for a classifier that is finished.
        train_head: whether to train the model's own head first, on the frozen backbone, such as for a checkpoint without a
            classifier.
        exit_uncertainty: kind of uncertainty by which samples leave: ``"entropy"``; ``"disagreement"``, for which confidence
            heads are learned at the end, from a tenth of the training texts that nothing else learns from; or ``"auto"``:
            they are learned, and whichever saves more work at ``max_drop`` is taken, entropy if both save as much. None:
            that one of what there is, without learning any.
        teacher: whom main head and exits learn from in the stage ``"joint"``, half from it and half from the label:
            ``"fine-tuned"``, the model before anything was pruned, whose answers are computed once, or a classifier's
            folder; ``"none"``: the main head learns from the label alone, and teaches the exits. None: the recipe's.
        max_drop: accuracy on the validation texts that exits may cost, as a share.
        precision: precision that the model will be used in, and in which its exit thresholds are chosen: ``"float32"``,
            ``"bfloat16"`` or ``"int8"``. Weights are trained and saved in float32.
        quiet: whether to show no progress bars.

    Raises:
        ValueError: ``output`` holds a fit of something else, or another is running there; stages that the recipe has no use
            for; labels that the checkpoint's classifier has not, where no new one is trained; a teacher that there is not;
            a precision that this processor has no use for.
        OSError: ``output`` cannot be written to, or has no room.
        LossNotFiniteError: training has diverged.
    """
    check_precision(precision, "cpu")
    if exit_uncertainty is not None:
        check_exit_uncertainty(exit_uncertainty)
    prepared = prepare(
        checkpoint,
        task,
        output,
        recipe_name,
        settings or Settings(),
        stages=stages,
        exit_training=exit_training,
        freeze_backbone=freeze_backbone,
        train_head=train_head,
        confidence=exit_uncertainty in (AUTO, DISAGREEMENT),
        teacher=teacher,
        quiet=quiet,
    )
    return run_fit(prepared, max_drop, precision, exit_uncertainty)


def run_fit(prepared: Prepared, max_drop: float, precision: str, exit_uncertainty: str | None = None) -> Summary:
    """The part of :func:`fit` after :func:`mp_model.training.preparing.prepare`; see there for the arguments and errors."""
    begin = time.monotonic()
    with claimed_for(prepared):
        trained = run_stages(prepared)
        whole, chosen, notes = _tune(trained, prepared, max_drop, precision, exit_uncertainty)
        config = trained.model.config
        summary = Summary(
            recipe=prepared.recipe_name,
            teacher=prepared.teacher,
            settings=asdict(prepared.settings),
            label_names=prepared.task.label_names,
            train_texts=len(trained.train),
            validation_texts=len(trained.validation),
            truncated_texts=trained.train.truncated + trained.validation.truncated,
            stages=trained.stages,
            prune_thresholds=config.prune_thresholds,
            exit_threshold=config.exit_threshold,
            exit_uncertainty=config.exit_uncertainty,
            precision=precision,
            validation_accuracy=whole.accuracy,
            exits_accuracy=None if chosen is None else chosen.accuracy,
            work={
                name: {"accuracy": outcome.accuracy, "gflops": outcome.executed_gflops, "speed_up": outcome.speed_up}
                for name, outcome in (("whole", whole), ("exits", chosen))
                if outcome is not None
            },
            already_done=trained.already_done,
            notes=[*prepared.notes, *notes],
            seconds=time.monotonic() - begin,
        )
        with processes().main_process_first():
            if processes().is_main_process:
                save_whole(trained.model, prepared.output / "model", trained.tokenizer)
                with whole_file(prepared.output / "summary.json") as stream:
                    json.dump(asdict(summary), stream, indent=1)
    return summary


def in_precision(model: PyramidForSequenceClassification, precision: str) -> PyramidForSequenceClassification:
    """A float32 model as it is loaded in a precision: itself, or a copy."""
    if precision == "float32":
        return model
    model = copy.deepcopy(model)
    if precision == "int8":
        to_int8(model)
    else:
        model.to(getattr(torch, precision))
    return model


def _tune(
    trained: Trained, prepared: Prepared, max_drop: float, precision: str, exit_uncertainty: str | None
) -> tuple[Outcome, Outcome | None, list[str]]:
    """Writes exit threshold and kind of uncertainty, and what they were tuned for, into the configuration.

    Returns:
        The outcome without exits; the outcome with them, if there are any; a line for the labels that no text got.
    """
    config, model = trained.model.config, in_precision(trained.model, precision)
    batches = length_sorted_batches(trained.validation.rows, 32, trained.tokenizer.pad_token_id)
    exits = read_all_exits(model, batches, trained.validation.targets)
    names, choice = prepared.task.label_names, config.choice
    there, given = (choice.has(x, len(names)).any(0).tolist() for x in (exits.labels, exits.predictions[-1]))
    never = [name for name, has, gets in zip(names, there, given, strict=True) if has and not gets]
    notes = [f"labels that validation texts have and the model gave to none: {listed(never)}"] if never else []
    kinds = kinds_of_uncertainty(config, exit_uncertainty or AUTO)
    by_kind = {kind: trade_off({1.0: exits.by(kind)}, layered=False) for kind in kinds}
    whole = by_kind[kinds[0]].reference
    if not config.resolved_exit_layers() or config.why_untrained() is not None:
        return whole, None, notes
    chosen = least_work(offers.fastest(max_drop) for offers in by_kind.values())
    config.exit_uncertainty = model.config.exit_uncertainty = chosen.exit_uncertainty
    config.exit_threshold = model.config.exit_threshold = chosen.exit_threshold
    goal = {"max_drop": round(100 * max_drop, 6)}
    record = record_of(model, prepared.max_length, len(exits), goal)
    levels = priced_levels(exits.by(config.exit_uncertainty), config.exit_threshold)
    config.tuned_for = {**record, "levels": [x.as_json() for x in levels]}
    return whole, chosen, notes

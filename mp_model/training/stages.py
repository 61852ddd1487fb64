"""The stages of a recipe, one after the other, each kept whole on disk when it is finished.

A finished stage is not run again, and one that was cut off goes on from its last checkpoint, so the same call after a kill
leaves the same model.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, set_seed

from ..checkpoints.reading import read_classifier
from ..checkpoints.saving import save_whole
from ..data.batches import length_sorted_batches
from ..data.files import whole_file
from ..exits import EXIT_HEADS
from ..registration import PyramidForSequenceClassification
from . import objectives
from .confidences import learn_confidences
from .features import Features, collect_features, read_standardised, standardise, unstandardise
from .folder import claimed, processes
from .preparing import Prepared, prepare
from .recipes import CONFIDENCE, FINE_TUNED, NO_TEACHER, STAGES, Settings
from .running import remove_checkpoints, run_stage
from .tasks import EncodedTexts, Task
from .teacher import PRUNING, SHARE, Taught, kept_logits


@dataclass
class Trained:
    """The outcome of the stages.

    Attributes:
        model, tokenizer: the classifier, in eval mode, its exits not tuned.
        train, validation: the texts as the model reads them.
        stages: for each stage its steps and seconds (over all runs of it), and its mean loss (in the one that finished it).
        already_done: names of the stages that an earlier call had finished.
    """

    model: PyramidForSequenceClassification
    tokenizer: Any
    train: EncodedTexts
    validation: EncodedTexts
    stages: dict[str, dict[str, float]]
    already_done: list[str]


def train_stages(
    checkpoint: str | Path,
    task: Task,
    output: Path,
    recipe_name: str,
    settings: Settings,
    *,
    stages: Sequence[str] | None = None,
    teacher: str | None = None,
    quiet: bool = False,
) -> Trained:
    """Trains a classifier by a recipe, without choosing its exit thresholds.

    Args:
        checkpoint: a checkpoint, its folder or its name on a hub. Thresholds and exit heads that it has are taken over;
            weights are trained in float32, whatever it stores.
        task: the texts. Its labels get the numbers that the checkpoint's classifier has for them.
        output: the folder to keep everything in; called again with the same arguments, what was cut off goes on.
        recipe_name: one of ``RECIPES``.
        settings: settings of the stages.
        stages: names of the stages, in their order; None: the recipe's.
        teacher: whom the stage ``"joint"`` learns from; None: the recipe's.
        quiet: whether to show no progress bars.

    Raises:
        ValueError: ``output`` holds something else, or another fit is running there; a stage that does not exist, or that
            the recipe has no use for; labels that the checkpoint's classifier has not, where no new one is trained.
        OSError: ``output`` cannot be written to, or has no room.
        LossNotFiniteError: training has diverged.
    """
    prepared = prepare(checkpoint, task, output, recipe_name, settings, stages=stages, teacher=teacher, quiet=quiet)
    with claimed_for(prepared):
        return run_stages(prepared)


def claimed_for(prepared: Prepared) -> AbstractContextManager[None]:
    """Holds a fit's folder (:func:`mp_model.training.folder.claimed`), with the room that its stages still need."""
    size = sum(weight.numel() * weight.element_size() for weight in prepared.model.parameters())
    left = sum(not (folder / "model").is_dir() for _, folder in _folders(prepared))
    # A model for each stage, one at the end, and of each stage two checkpoints and a third that is being written, which
    # hold two moments for each weight.
    room = size * (left + 1 + 9 * min(left, 1)) if left else 0
    return claimed(prepared.output, prepared.identity, room)


def _folders(prepared: Prepared) -> list[tuple[str, Path]]:
    """The stages, each with its folder."""
    stages = prepared.output / "stages"
    return [(stage, stages / f"{number}-{stage}") for number, stage in enumerate(prepared.stages, 1)]


def run_stages(prepared: Prepared) -> Trained:
    """Runs the stages that are not finished, in a folder that is held for them.

    Raises:
        LossNotFiniteError: training has diverged.
    """
    model, facts, already_done = prepared.model, {}, []
    logits: tuple[Tensor, float] | None = None
    for stage, folder in _folders(prepared):
        if stage in PRUNING and logits is None and _needs_teacher(prepared):
            kept = _teacher_file(prepared), functools.partial(_teacher, prepared, model), prepared.train
            logits = kept_logits(*kept, prepared.settings.batch_size, prepared.tokenizer.pad_token_id)
        if (folder / "model").is_dir():
            already_done.append(stage)
        else:
            set_seed(prepared.settings.seed + 1 + STAGES.index(stage))
            model, did = _run(stage, prepared, model, folder, logits if stage == "joint" else None)
            with processes().main_process_first():
                if processes().is_main_process:
                    with whole_file(folder / "facts.json") as stream:
                        json.dump(did, stream)
                    save_whole(model, folder / "model", prepared.tokenizer)
                    remove_checkpoints(folder)
                    if stage == "joint":
                        _teacher_file(prepared).unlink(missing_ok=True)
        model = PyramidForSequenceClassification.from_pretrained(folder / "model")
        facts[stage] = json.loads((folder / "facts.json").read_text())
    return Trained(model.eval(), prepared.tokenizer, prepared.train, prepared.validation, facts, already_done)


def _teacher_file(prepared: Prepared) -> Path:
    """The file that keeps the teacher's logits until the stage that learns from them is finished."""
    return prepared.output / "stages" / "teacher.safetensors"


def _needs_teacher(prepared: Prepared) -> bool:
    """Whether there is a stage yet to be run that has a teacher."""
    joint = [folder for stage, folder in _folders(prepared) if stage == "joint"]
    return prepared.teacher != NO_TEACHER and not all((folder / "model").is_dir() for folder in joint)


def _teacher(prepared: Prepared, tuned: PyramidForSequenceClassification) -> PyramidForSequenceClassification:
    """The model that teaches; tuned: the one that nothing is pruned of yet."""
    return tuned if prepared.teacher == FINE_TUNED else read_classifier(prepared.teacher).model


def _run(
    stage: str,
    prepared: Prepared,
    model: PyramidForSequenceClassification,
    folder: Path,
    teacher: tuple[Tensor, float] | None,
) -> tuple[PyramidForSequenceClassification, dict[str, float]]:
    """Trains one stage; returns the model that it leaves, and what it did.

    teacher: the logits of the stage's teacher for the training texts, and the seconds that they took; None: it has none.
    """
    begin = time.monotonic()
    if stage == CONFIDENCE:
        assert prepared.held is not None
        rows, padding = prepared.held.rows, prepared.tokenizer.pad_token_id
        loss = learn_confidences(model.eval(), length_sorted_batches(rows, prepared.settings.batch_size, padding))
        facts = {"steps": 1, "seconds": time.monotonic() - begin, "loss": loss, "threads": torch.get_num_threads()}
        return model, facts
    train, recipe, settings, tokenizer = prepared.train, prepared.recipe, prepared.settings, prepared.tokenizer
    pruning = {name: getattr(model.config, name) for name in ("top_k", "prune_thresholds")}
    data: Dataset[dict[str, Any]] = train
    collator: Any = DataCollatorWithPadding(tokenizer)
    finish: Callable[[], None] | None = None
    if stage in ("fine-tune", "head"):  # before anything is pruned
        model.config.top_k = model.config.prune_thresholds = None
    if stage == "distil":
        whole, model = model, objectives.half_of(model)
        module: nn.Module = objectives.Distillation(model, whole)
    elif stage == "soft":
        how = settings.temperature, settings.penalty, settings.final_threshold
        module = objectives.SoftPruningObjective(model, *how, prepared.freeze_backbone, settings.pruned_layers)
        finish = module.harden
    elif stage == "joint":
        module = objectives.JointExits(
            model, settings.exit_weight, recipe.share_of_teacher if teacher is None else SHARE
        )
        if teacher is not None:
            data, begin = Taught(train, teacher[0]), begin - teacher[1]
    elif stage == "exits":
        if EXIT_HEADS[model.config.exit_head].reads_survivors:
            module = objectives.FrozenExits(model, settings.reverse_kl)
        else:
            trained = [layer for layer in model.exits if int(layer) not in (model.config.untrained_exits or ())]
            data, finish = _features_of(model, model.exits, train, tokenizer, settings.batch_size, trained)
            collator = torch.utils.data.default_collate
            targets = recipe.share_of_teacher, settings.reverse_kl, model.config.choice
            module = objectives.HeadsOnFeatures(model.exits, *targets)
    elif stage == "head":
        own = nn.ModuleDict({str(model.config.num_hidden_layers): OwnHead(model)})
        data, finish = _features_of(model, own, train, tokenizer, settings.batch_size)
        collator = torch.utils.data.default_collate
        module = objectives.HeadsOnFeatures(own, share_of_teacher=0.0, problem=model.config.choice)
    else:
        module = objectives.FineTuning(model)
    before = time.monotonic() - begin
    facts = run_stage(
        stage,
        module,
        data,
        collator,
        folder,
        epochs=settings.epochs_of(stage),
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        threshold_learning_rate=settings.threshold_learning_rate,
        exit_learning_rate=settings.exit_learning_rate,
        head_learning_rate=settings.head_learning_rate,
        bfloat16=settings.bfloat16,
        seed=settings.seed,
        quiet=prepared.quiet,
    )
    if finish is not None:
        finish()
    if stage in ("joint", "exits") and facts["steps"]:
        model.config.untrained_exits = None
    if stage in ("fine-tune", "head"):
        for name, value in pruning.items():
            setattr(model.config, name, value)
    return model.eval(), {**facts, "seconds": before + facts["seconds"]}


class FeatureRows(Dataset[dict[str, Any]]):
    """Features of :class:`mp_model.training.features.Features` and the main head's logits, a text a row."""

    def __init__(self, features: Features, teacher: Tensor, layers: list[int]) -> None:
        self.features, self.teacher, self.layers = features, teacher, layers

    def __len__(self) -> int:
        return self.teacher.shape[0]

    def __getitem__(self, place: int) -> dict[str, Any]:
        row = {f"layer_{layer}": self.features.layers[layer][place] for layer in self.layers}
        return {
            **row,
            "teacher": self.teacher[place],
            "labels": self.features.labels[place],
            "place": torch.tensor(place),
        }


class OwnHead(nn.Module):
    """The model's own head, without the model: logits ``[batch, labels]`` from its features ``[batch, hidden]``."""

    def __init__(self, model: PyramidForSequenceClassification) -> None:
        super().__init__()
        self.frozen = [
            model.eval()
        ]  # in a list, so that its weights are neither trained nor saved with each checkpoint
        parts = {name: x for name, x in model.named_modules() if f"{name}.".startswith(model.backbone.own_head)}
        owners = {name: x for name, x in parts.items() if next(x.parameters(recurse=False), None) is not None}
        self.parts = nn.ModuleDict({name.replace(".", "_"): x for name, x in owners.items()})

    @property
    def dense(self) -> Any:
        """The linear layer that reads the features."""
        return next(part for part in self.parts.values() if isinstance(part, nn.Linear))

    def forward(self, features: Tensor) -> Tensor:
        (model,) = self.frozen
        return model.final_head(features)


def _features_of(
    model: PyramidForSequenceClassification,
    heads: nn.ModuleDict,
    data: EncodedTexts,
    tokenizer: Any,
    batch_size: int,
    trained: Sequence[str] = (),
) -> tuple[FeatureRows, Callable[[], None]]:
    """Standardised features of the training texts, and a function that makes the trained heads read plain ones.

    heads: heads that begin with a linear layer ``dense``, by the number of the layer that they read.
    trained: the numbers of those that go on from what they learned of plain features.
    """
    model.eval()
    batches = length_sorted_batches(data.rows, batch_size, tokenizer.pad_token_id)
    features = collect_features(model, batches, data.targets)
    with torch.no_grad():
        teacher = OwnHead(model)(features.layers[-1])
    dense: dict[int, Any] = {int(layer): head.dense for layer, head in heads.items()}
    scales = {}
    for layer in dense:
        features.layers[layer], *scales[layer] = standardise(
            features.layers[layer], centred=dense[layer].bias is not None
        )
        if str(layer) in trained:
            read_standardised(dense[layer], *scales[layer])

    def finish() -> None:
        for layer, reading in dense.items():
            unstandardise(reading, *scales[layer])

    return FeatureRows(features, teacher, list(dense)), finish

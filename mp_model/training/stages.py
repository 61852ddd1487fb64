"""The stages of a recipe, one after the other, each kept whole on disk when it is finished.

A finished stage is not run again, and one that was cut off goes on from its last checkpoint, so the same call after a kill
leaves the same model.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import DataCollatorWithPadding, set_seed

from ..checkpoints.tokenizers import load_tokenizer
from ..data.batches import length_sorted_batches
from ..data.files import whole_file
from ..exits import EXIT_HEADS
from ..registration import PyramidBertConfig, PyramidBertForSequenceClassification
from . import objectives
from .features import Features, collect_features, standardise, unstandardise
from .recipes import RECIPES, STAGES, Recipe, Settings, model_settings
from .running import run_stage
from .tasks import EncodedTexts, Task


@dataclass
class Trained:
    """The outcome of the stages.

    Attributes:
        model, tokenizer: the classifier, in eval mode, its exits not tuned.
        train, validation: the texts as the model reads them.
        stages: for each stage its steps and seconds (over all runs of it), and its mean loss (in the one that finished it).
    """

    model: PyramidBertForSequenceClassification
    tokenizer: Any
    train: EncodedTexts
    validation: EncodedTexts
    stages: dict[str, dict[str, float]]


def train_stages(
    checkpoint: str | Path,
    task: Task,
    output: Path,
    recipe_name: str,
    settings: Settings,
    *,
    stages: Sequence[str] | None = None,
    freeze_backbone: bool = False,
    quiet: bool = False,
) -> Trained:
    """Trains a classifier by a recipe, without choosing its exit thresholds.

    Args:
        checkpoint: a BERT checkpoint, its folder or its name on a hub. Thresholds and exit heads that it has are taken over.
        task: the texts.
        output: the folder to keep everything in; called again with the same arguments, what was cut off goes on.
        recipe_name: one of ``RECIPES``.
        settings: settings of the stages.
        stages: names of the stages, in their order; None: the recipe's.
        freeze_backbone: whether the stage ``"soft"`` learns the thresholds alone; a checkpoint without a classifier for the
            labels then gets one first, in the stage ``"head"``.
        quiet: whether to show no progress bars.

    Raises:
        ValueError: ``output`` holds something else; a stage that does not exist, or that the recipe has no use for.
        LossNotFiniteError: training has diverged.
    """
    recipe = RECIPES[recipe_name]
    stages = recipe.planned_stages(freeze_backbone=freeze_backbone) if stages is None else tuple(stages)
    _check_stages(stages, recipe, recipe_name)
    settings = settings.for_texts(len(task.train))
    asked = {
        "checkpoint": str(checkpoint),
        "recipe": recipe_name,
        "stages": list(stages),
        "freeze_backbone": freeze_backbone,
        "settings": asdict(settings),
        "train_texts": len(task.train),
        "label_names": task.label_names,
    }
    with processes().main_process_first():
        _claim(output, asked)
    set_seed(settings.seed)
    tokenizer = load_tokenizer(checkpoint)
    model, head_is_new = _load(checkpoint, recipe, settings, task)
    if freeze_backbone and head_is_new and "head" not in stages:
        stages = ("head", *stages)
    positions = model.config.max_position_embeddings
    max_length = min(settings.max_length or positions, positions)
    train, validation = (EncodedTexts(tokenizer, data, max_length) for data in (task.train, task.validation))
    facts: dict[str, dict[str, float]] = {}
    for number, stage in enumerate(stages, 1):
        folder = output / "stages" / f"{number}-{stage}"
        if not (folder / "model").is_dir():
            set_seed(settings.seed + 1 + STAGES.index(stage))
            model, did = _run(stage, model, train, folder, recipe, settings, tokenizer, freeze_backbone, quiet)
            with processes().main_process_first():
                if processes().is_main_process:
                    with whole_file(folder / "facts.json") as stream:
                        json.dump(did, stream)
                    save_whole(model, folder / "model", tokenizer)
        model = PyramidBertForSequenceClassification.from_pretrained(folder / "model")
        facts[stage] = json.loads((folder / "facts.json").read_text())
    return Trained(model.eval(), tokenizer, train, validation, facts)


def processes() -> PartialState:
    """The training processes, as ``torchrun`` and ``accelerate launch`` start them: one writes, the others wait for it."""
    return PartialState(cpu=not torch.accelerator.is_available())


def _check_stages(stages: Sequence[str], recipe: Recipe, name: str) -> None:
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise ValueError(f"stages must be out of {', '.join(STAGES)}; got {', '.join(unknown) or 'none'}")
    without_exits = recipe.config["exit_layers"] == []
    misplaced = [stage for stage in stages if stage in ("joint", "exits") and without_exits]
    if "joint" in stages and not recipe.has_exits_on_features:
        misplaced.append("joint")
    if misplaced:
        raise ValueError(f"the recipe {name!r} has no exits that the stage {misplaced[0]!r} could train")


def _claim(output: Path, asked: dict[str, Any]) -> None:
    path = output / "settings.json"
    if path.exists():
        before = json.loads(path.read_text())
        changed = sorted(key for key in asked if before.get(key) != json.loads(json.dumps(asked[key])))
        if changed:
            raise ValueError(
                f"{output} holds a fit with other values of {', '.join(changed)}; "
                "go on with the same ones, or choose another folder"
            )
        return
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty and holds no fit to go on with; choose another folder")
    with whole_file(path) as stream:
        json.dump(asked, stream, indent=1)


def _load(
    checkpoint: str | Path, recipe: Recipe, settings: Settings, task: Task
) -> tuple[PyramidBertForSequenceClassification, bool]:
    """The model, and whether its own head is new, since the checkpoint has none for as many labels."""
    layers = PyramidBertConfig.from_pretrained(checkpoint).num_hidden_layers
    names = dict(enumerate(task.label_names))
    found: Any = PyramidBertForSequenceClassification.from_pretrained(
        checkpoint,
        id2label=names,
        label2id={name: number for number, name in names.items()},
        ignore_mismatched_sizes=True,  # a classifier for other labels gives its backbone, and gets a new head
        output_loading_info=True,
        **model_settings(recipe, settings, layers),
    )
    model, loaded = found
    mismatched = {name for name, *_ in loaded["mismatched_keys"]}
    return model, "classifier.weight" in mismatched | set(loaded["missing_keys"])


def save_whole(model: PyramidBertForSequenceClassification, folder: Path, tokenizer: Any) -> None:
    """A folder with model and tokenizer that is there whole or not at all."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(unfinished, folder)


def _run(
    stage: str,
    model: PyramidBertForSequenceClassification,
    train: EncodedTexts,
    folder: Path,
    recipe: Recipe,
    settings: Settings,
    tokenizer: Any,
    freeze_backbone: bool,
    quiet: bool,
) -> tuple[PyramidBertForSequenceClassification, dict[str, float]]:
    """Trains one stage; returns the model that it leaves, and what it did."""
    begin = time.monotonic()
    pruning = {name: getattr(model.config, name) for name in ("top_k", "prune_thresholds")}
    data: Dataset[dict[str, Any]] = train
    collator: Any = DataCollatorWithPadding(tokenizer)
    finish: Callable[[], None] | None = None
    if stage in ("fine-tune", "head"):  # before anything is pruned
        model.config.top_k = model.config.prune_thresholds = None
    if stage == "distil":
        teacher, model = model, objectives.half_of(model)
        module: nn.Module = objectives.Distillation(model, teacher)
    elif stage == "soft":
        module = objectives.SoftPruningObjective(
            model, settings.temperature, settings.penalty, settings.final_threshold, freeze_backbone
        )
        finish = module.harden
    elif stage == "joint":
        module = objectives.JointExits(model, settings.exit_weight, recipe.share_of_teacher)
    elif stage == "exits":
        if EXIT_HEADS[model.config.exit_head].reads_survivors:
            module = objectives.FrozenExits(model, settings.reverse_kl)
        else:
            data, finish = _features_of(model, model.exits, train, tokenizer, settings.batch_size)
            collator = torch.utils.data.default_collate
            module = objectives.HeadsOnFeatures(model.exits, recipe.share_of_teacher, settings.reverse_kl)
    elif stage == "head":
        own = nn.ModuleDict({str(model.config.num_hidden_layers): OwnHead(model)})
        data, finish = _features_of(model, own, train, tokenizer, settings.batch_size)
        collator = torch.utils.data.default_collate
        module = objectives.HeadsOnFeatures(own, share_of_teacher=0.0)
    else:
        module = objectives.FineTuning(model)
    prepared = time.monotonic() - begin
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
        seed=settings.seed,
        quiet=quiet,
    )
    if finish is not None:
        finish()
    if stage in ("fine-tune", "head"):
        for name, value in pruning.items():
            setattr(model.config, name, value)
    return model.eval(), {**facts, "seconds": prepared + facts["seconds"]}


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
    """The model's own head, without the model: logits ``[batch, labels]`` from layer L's [CLS] ``[batch, hidden]``."""

    def __init__(self, model: PyramidBertForSequenceClassification) -> None:
        super().__init__()
        assert model.bert.pooler is not None
        self.dense, self.classifier = model.bert.pooler.dense, model.classifier

    def forward(self, first: Tensor) -> Tensor:
        return self.classifier(torch.tanh(self.dense(first)))


def _features_of(
    model: PyramidBertForSequenceClassification,
    heads: nn.ModuleDict,
    data: EncodedTexts,
    tokenizer: Any,
    batch_size: int,
) -> tuple[FeatureRows, Callable[[], None]]:
    """Standardised features of the training texts, and a function that makes the trained heads read plain ones.

    heads: heads that begin with a linear layer ``dense``, by the number of the layer that they read.
    """
    model.eval()
    batches = length_sorted_batches(data.rows, batch_size, tokenizer.pad_token_id)
    features = collect_features(model, batches, data.labels)
    with torch.no_grad():
        teacher = OwnHead(model)(features.layers[-1])
    dense: dict[int, Any] = {int(layer): head.dense for layer, head in heads.items()}
    scales = {}
    for layer in dense:
        features.layers[layer], *scales[layer] = standardise(features.layers[layer])

    def finish() -> None:
        for layer, reading in dense.items():
            unstandardise(reading, *scales[layer])

    return FeatureRows(features, teacher, list(dense)), finish

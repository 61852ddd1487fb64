"""From a checkpoint and labelled texts to a tuned pyramid: the stages of a recipe, one after the other.

Everything is kept under the output folder: ``stages/`` with each stage's checkpoints and its finished model,
``settings.json`` with what the run was asked for, and at the end ``model/`` and ``summary.json``. A finished stage is not
run again, so the same call after a kill goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoTokenizer, set_seed

from ..batching import length_sorted_batches
from ..exit_training import Features, collect_features, predict_at_all_exits, standardise, unstandardise
from ..files import whole_file
from ..modelling import PyramidBertForSequenceClassification
from ..tuning import choose_exit_threshold
from . import objectives
from .data import Collator, EncodedTexts, LabelledTexts, Task
from .recipes import RECIPES, Recipe, Settings, model_settings
from .running import run_stage


@dataclass
class Summary:
    """What a fit did.

    Attributes:
        recipe, settings: what was asked for.
        label_names: in the order of their numbers.
        train_texts, validation_texts, truncated_texts: how many; truncated: longer than the model's positions.
        stages: for each stage its steps, seconds and mean loss (of the run that finished it).
        prune_thresholds, exit_threshold: what the model was given.
        validation_accuracy: of the whole model, without exits; exits_accuracy: with them.
        seconds: of this call.
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


class FeatureRows(Dataset):
    """Features of :class:`mp_model.exit_training.Features` and the main head's logits, a text a row."""

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


def fit(
    checkpoint: str,
    task: Task,
    output: Path,
    recipe_name: str = "pyramid",
    settings: Settings | None = None,
    *,
    max_harm: float = 0.005,
    quiet: bool = False,
) -> Summary:
    """Trains a classifier by a recipe.

    Args:
        checkpoint: a BERT checkpoint, its folder or its name on a hub.
        task: the texts.
        output: the folder to keep everything in; called again with the same arguments, a fit that was cut off goes on.
        recipe_name: one of ``RECIPES``.
        settings: of the stages.
        max_harm: share of validation texts that the exits may answer wrongly where the whole model is right.
        quiet: whether to show no progress bars.

    Raises:
        ValueError: ``output`` holds a fit that was asked for something else.
        LossNotFiniteError: training has diverged.
    """
    begin = time.monotonic()
    settings = settings or Settings()
    recipe = RECIPES[recipe_name]
    asked = {"checkpoint": str(checkpoint), "recipe": recipe_name, "max_harm": max_harm, "settings": asdict(settings)}
    asked["train_texts"], asked["label_names"] = len(task.train), task.label_names
    _claim(output, asked)
    set_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = _load(checkpoint, recipe, settings, task)
    max_length = min(settings.max_length or model.config.max_position_embeddings, model.config.max_position_embeddings)
    train, validation = (EncodedTexts(tokenizer, data, max_length) for data in (task.train, task.validation))

    stages: dict[str, dict[str, float]] = {}
    for number, stage in enumerate(recipe.stages, 1):
        folder = output / "stages" / f"{number}-{stage}"
        if not (folder / "model").is_dir():
            set_seed(settings.seed + number)
            model, facts = _run(stage, model, train, folder, recipe, settings, tokenizer, quiet)
            with whole_file(folder / "facts.json") as stream:
                json.dump(facts, stream)
            _save_whole(model, folder / "model")
        model = PyramidBertForSequenceClassification.from_pretrained(folder / "model")
        stages[stage] = json.loads((folder / "facts.json").read_text())

    accuracy, exits_accuracy = _set_exits(model, validation, task.validation, tokenizer, max_harm)
    summary = Summary(
        recipe_name,
        asdict(settings),
        task.label_names,
        len(task.train),
        len(task.validation),
        train.truncated + validation.truncated,
        stages,
        model.config.prune_thresholds,
        model.config.exit_threshold,
        accuracy,
        exits_accuracy,
        time.monotonic() - begin,
    )
    _save_whole(model, output / "model", tokenizer)
    with whole_file(output / "summary.json") as stream:
        json.dump(dataclasses.asdict(summary), stream, indent=1)
    return summary


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


def _load(checkpoint: str, recipe: Recipe, settings: Settings, task: Task) -> PyramidBertForSequenceClassification:
    layers = AutoConfig.from_pretrained(checkpoint).num_hidden_layers
    names = dict(enumerate(task.label_names))
    return PyramidBertForSequenceClassification.from_pretrained(
        checkpoint,
        num_labels=len(names),
        id2label=names,
        label2id={name: number for number, name in names.items()},
        ignore_mismatched_sizes=True,  # a classifier for other labels gives its backbone, and gets a new head
        **model_settings(recipe, settings, layers),
    )


def _save_whole(model: PyramidBertForSequenceClassification, folder: Path, tokenizer: Any = None) -> None:
    """A folder that is there whole or not at all."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    if tokenizer is not None:
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
    quiet: bool,
) -> tuple[PyramidBertForSequenceClassification, dict[str, float]]:
    """Trains one stage; returns the model that it leaves, and what it did."""
    pruning = {name: getattr(model.config, name) for name in ("top_k", "prune_thresholds")}
    data: Dataset = train
    collator: Any = Collator(tokenizer.pad_token_id)
    rate = settings.learning_rate
    finish = None
    if stage == "distil":
        teacher, model = model, objectives.half_of(model)
        module: nn.Module = objectives.Distillation(model, teacher)
    elif stage == "soft":
        module = objectives.SoftPruningObjective(
            model, settings.temperature, settings.penalty, settings.final_threshold
        )
        finish = module.harden
    elif stage == "joint":
        module = objectives.JointExits(model, settings.exit_weight, recipe.share_of_teacher)
    elif stage == "exits":
        rate = settings.exit_learning_rate
        if model.config.exit_head == "fastbert":
            module = objectives.FrozenExits(model, settings.reverse_kl)
        else:
            data, finish = _features_of(model, train, tokenizer, settings.batch_size)
            collator = torch.utils.data.default_collate
            module = objectives.HeadsOnFeatures(model.exits, recipe.share_of_teacher, settings.reverse_kl)
    else:
        if stage == "fine-tune":  # before anything is pruned
            model.config.top_k = model.config.prune_thresholds = None
        module = objectives.FineTuning(model)
    facts = run_stage(
        stage,
        module,
        data,
        collator,
        folder,
        epochs=settings.epochs_of(stage),
        batch_size=settings.batch_size,
        learning_rate=rate,
        threshold_learning_rate=settings.threshold_learning_rate,
        seed=settings.seed,
        quiet=quiet,
    )
    if finish is not None:
        finish()
    if stage == "fine-tune":
        for name, value in pruning.items():
            setattr(model.config, name, value)
    return model.eval(), facts


def _batches(data: EncodedTexts, tokenizer: Any, batch_size: int) -> list[Any]:
    return list(length_sorted_batches(data.rows, batch_size, tokenizer.pad_token_id))


def _features_of(
    model: PyramidBertForSequenceClassification, data: EncodedTexts, tokenizer: Any, batch_size: int
) -> tuple[FeatureRows, Any]:
    """Standardised features of the training texts, and what makes the trained heads read plain ones."""
    model.eval()
    features = collect_features(model, _batches(data, tokenizer, batch_size), data.labels)
    layers = model.config.resolved_exit_layers()
    with torch.no_grad():
        teacher = model.classifier(torch.tanh(model.bert.pooler.dense(features.layers[-1])))
    scales = {}
    for layer in layers:
        features.layers[layer], *scales[layer] = standardise(features.layers[layer])

    def finish() -> None:
        for layer in layers:
            unstandardise(model.exits[str(layer)].dense, *scales[layer])

    return FeatureRows(features, teacher, layers), finish


def _set_exits(
    model: PyramidBertForSequenceClassification,
    validation: EncodedTexts,
    data: LabelledTexts,
    tokenizer: Any,
    max_harm: float,
) -> tuple[float, float | None]:
    """Chooses the exit threshold; returns the accuracy of the whole model and with exits."""
    model.eval()
    if not model.config.resolved_exit_layers() or model.config.exit_head == "fastbert":
        right = [
            (output.logits.argmax(-1) == torch.tensor([data.labels[place] for place in batch.places]))
            for batch in _batches(validation, tokenizer, 32)
            for output in [_answers(model, batch)]
        ]
        return torch.cat(right).double().mean().item(), None
    features = collect_features(model, _batches(validation, tokenizer, 32), data.labels)
    logits = predict_at_all_exits(model, features)
    right = logits[model.config.num_hidden_layers].argmax(-1) == features.labels
    chosen = choose_exit_threshold(logits, features.labels, right, max_harm)
    model.config.exit_threshold = chosen.exit_threshold
    return right.double().mean().item(), chosen.accuracy


@torch.no_grad()
def _answers(model: PyramidBertForSequenceClassification, batch: Any) -> Any:
    return model(**batch.inputs, exit_threshold=None)

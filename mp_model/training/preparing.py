"""A fit before it begins: what is asked for and what it is made from, read and checked, while nothing is written yet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from ..checkpoints.configurations import read_config
from ..checkpoints.precisions import why_unfit
from ..checkpoints.reading import read_classifier
from ..checkpoints.tokenizers import load_tokenizer, max_length_of, say_types
from ..data.batches import are_pairs
from ..data.files import check_folder
from ..data.labels import LabelledTexts
from ..data.values import listed
from ..problems import ONE_LABEL, SEVERAL_LABELS
from ..registration import PyramidForSequenceClassification
from .agreement import Agreement, agree
from .identity import checkpoint_identity, texts_identity
from .recipes import CONFIDENCE, FINE_TUNED, NO_TEACHER, RECIPES, STAGES, Recipe, Settings, model_settings
from .tasks import EncodedTexts, Task, apart_for_confidence
from .teacher import PRUNING, check_teacher, identity_of

# First stages under which a new classifier learns the labels; the others go by the classifier that there is, and so does
# "soft" with a frozen backbone.
TEACH_THE_HEAD = ("fine-tune", "head", "soft", "hard", "joint")


@dataclass
class Prepared:
    """A fit that can begin.

    Attributes:
        output: the folder to keep everything in.
        recipe_name: one of ``RECIPES``.
        settings: settings of the stages, passes included.
        stages: names of the stages, in their order.
        freeze_backbone: whether the stage ``"soft"`` learns thresholds alone.
        teacher: one of ``TEACHERS``, or a classifier's folder, whom the stage ``"joint"`` learns from, if there is one.
        quiet: whether to show no progress bars.
        model, tokenizer: the checkpoint's, in float32, for the task's labels.
        task: the texts, with the numbers of the model's labels.
        train, validation: the texts as the model reads them.
        held: texts for the stage ``"confidence"``; None: there is no such stage.
        max_length: tokens that they are cut to.
        notes: what the checkpoint and the texts do not agree on or lack, a line each.
        identity: all that the fit is made from, as hashes and settings.
    """

    output: Path
    recipe_name: str
    settings: Settings
    stages: tuple[str, ...]
    freeze_backbone: bool
    teacher: str
    quiet: bool
    model: PyramidForSequenceClassification
    tokenizer: Any
    task: Task
    train: EncodedTexts
    validation: EncodedTexts
    held: EncodedTexts | None
    max_length: int
    notes: list[str]
    identity: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        """The recipe that heads and targets come from."""
        return RECIPES[self.recipe_name]


def prepare(
    checkpoint: str | Path,
    task: Task,
    output: Path,
    recipe_name: str,
    settings: Settings,
    *,
    stages: Sequence[str] | None = None,
    exit_training: str | None = None,
    freeze_backbone: bool = False,
    train_head: bool = False,
    confidence: bool = False,
    teacher: str | None = None,
    quiet: bool = False,
) -> Prepared:
    """Reads and checks what a fit is made from, and writes nothing.

    Args:
        confidence: whether to give the exits confidence heads at the end; all else as for
            :func:`mp_model.training.fitting.fit`.

    Raises:
        ValueError: no such recipe or stage, or a stage that the recipe has no use for; stages given twice over; labels that
            the checkpoint's classifier has not, where no new one is to be trained; a teacher that there is not; texts longer
            than the model's positions asked for; weights for inference alone; bfloat16 where the processor is slow in it.
        OSError: ``output`` cannot be written to.
    """
    check_folder(output)
    if recipe_name not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}; got {recipe_name!r}")
    recipe = RECIPES[recipe_name]
    if stages is None:
        stages = recipe.planned_stages(exit_training, freeze_backbone, train_head, confidence)
    elif exit_training is not None or freeze_backbone or train_head:
        raise ValueError("give the stages themselves, or how exits are trained and what is frozen; not both")
    elif confidence and CONFIDENCE not in stages:
        raise ValueError("confidence heads are learned by the stage confidence; add it as the last one")
    _check_stages(stages, recipe, recipe_name)
    settings = settings.for_texts(len(task.train))
    tokenizer = load_tokenizer(checkpoint)
    model, agreement, notes = _load(checkpoint, recipe, settings, task, stages, freeze_backbone)
    say_types(tokenizer, model.config)
    whole = task.in_the_order_of(agreement.label_names)
    task, held = _held_apart(whole, stages, settings, model.config)
    check_teacher(teacher, task, tokenizer)
    teacher, said = _teacher(teacher, recipe, stages, agreement.keeps_head)
    _check_settings(settings, model.config)
    max_length = settings.max_length or max_length_of(tokenizer, model.config)
    tokenizer.model_max_length = max_length  # saved with it, and followed by whoever loads it
    train, validation = (EncodedTexts(tokenizer, data, max_length) for data in (task.train, task.validation))
    apart = train if held is task.train else None if held is None else EncodedTexts(tokenizer, held, max_length)
    return Prepared(
        output=output,
        recipe_name=recipe_name,
        settings=settings,
        stages=tuple(stages),
        freeze_backbone=freeze_backbone,
        teacher=teacher,
        quiet=quiet,
        model=model,
        tokenizer=tokenizer,
        task=task,
        train=train,
        validation=validation,
        held=apart,
        max_length=max_length,
        notes=[*notes, *said, *_notes_on(task)],
        identity={
            "checkpoint": checkpoint_identity(checkpoint, getattr(model.config, "_commit_hash", None)),
            "recipe": recipe_name,
            "stages": list(stages),
            "freeze_backbone": freeze_backbone,
            "teacher": identity_of(teacher),
            "settings": asdict(settings),
            "label_names": task.label_names,
            **({"exit_head": model.config.exit_head} if model.config.reads_pairs else {}),
            "training texts": texts_identity(whole.train, task.label_names),
            "validation texts": texts_identity(task.validation, task.label_names),
        },
    )


def why_untrainable_in_bfloat16() -> str | None:
    """The reason why training in bfloat16 would be slower than in float32 on this machine; None: it is faster."""
    return None if torch.accelerator.is_available() else why_unfit("bfloat16", "cpu")


def _held_apart(
    task: Task, stages: Sequence[str], settings: Settings, config: Any
) -> tuple[Task, LabelledTexts | None]:
    """The task of all other stages, and the texts that confidence heads learn from; None: there are none."""
    if CONFIDENCE not in stages:
        return task, None
    if len(stages) > 1:
        rest, held = apart_for_confidence(task.train, settings.seed)
        return replace(task, train=rest), held
    if config.why_untrained() is not None:
        raise ValueError(config.why_untrained())
    return task, task.train


def _check_settings(settings: Settings, config: Any) -> None:
    if settings.bfloat16 and (unfit := why_untrainable_in_bfloat16()) is not None:
        raise ValueError(f"bfloat16 is refused: {unfit}; train in float32, without --bfloat16")
    if (settings.max_length or 0) > config.positions:
        raise ValueError(
            f"max_length must not exceed the model's {config.positions} positions; got {settings.max_length}"
        )
    if (settings.pruned_layers or 0) > config.num_hidden_layers:
        raise ValueError(
            f"pruned_layers must not exceed the model's {config.num_hidden_layers} layers; got {settings.pruned_layers}"
        )


def _check_stages(stages: Sequence[str], recipe: Recipe, name: str) -> None:
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise ValueError(f"stages must be out of {', '.join(STAGES)}; got {', '.join(unknown) or 'none'}")
    without_exits = recipe.config["exit_layers"] == []
    misplaced = [stage for stage in stages if stage in ("joint", "exits", CONFIDENCE) and without_exits]
    if "joint" in stages and not recipe.has_exits_on_features:
        misplaced.append("joint")
    if misplaced:
        raise ValueError(f"the recipe {name!r} has no exits that the stage {misplaced[0]!r} could train")
    if CONFIDENCE in stages[:-1]:
        raise ValueError("the stage confidence judges finished exits; give it once, as the last one")


def _teacher(asked: str | None, recipe: Recipe, stages: Sequence[str], has_head: bool) -> tuple[str, list[str]]:
    """The teacher of the stage ``"joint"``, and a line where the recipe's own cannot teach.

    has_head: whether the checkpoint's classifier has learned the labels.
    """
    if "joint" not in stages:
        if asked not in (None, NO_TEACHER):
            raise ValueError("the stage 'joint' alone has a teacher, and this fit is without it; leave --teacher out")
        return NO_TEACHER, []
    before = stages[: next(place for place, stage in enumerate(stages) if stage in PRUNING)]
    teacher = asked or recipe.teacher
    if teacher != FINE_TUNED or has_head or {"fine-tune", "head"}.intersection(before):
        return teacher, []
    if asked is not None:
        raise ValueError(
            "no model is fine-tuned before tokens are pruned, so none can teach; begin with the stage fine-tune, or give "
            "--teacher none"
        )
    return NO_TEACHER, ["no model is fine-tuned before tokens are pruned: the main head teaches the exits"]


def _load(
    checkpoint: str | Path,
    recipe: Recipe,
    settings: Settings,
    task: Task,
    stages: Sequence[str],
    freeze_backbone: bool,
) -> tuple[PyramidForSequenceClassification, Agreement, list[str]]:
    """The model with the recipe's exits and the task's labels, what was agreed about these, and lines about both."""
    kept = read_config(checkpoint).precision
    if kept != "float":
        raise ValueError(
            f"{checkpoint} has {kept} weights for inference alone, which cannot be trained; give the checkpoint that it was "
            "made from"
        )
    found = read_classifier(checkpoint, needs_head=False, exit_layers=[], exit_threshold=None, depth=None)
    config = found.model.config
    agreement = agree(
        task,
        None if found.is_bare else config.label_names,
        new_head=stages[0] in TEACH_THE_HEAD and not (freeze_backbone and stages[0] == "soft"),
    )
    notes = [] if agreement.said is None else [agreement.said]
    problem_type, kind = (SEVERAL_LABELS, "any number of labels") if task.several else (ONE_LABEL, "one label")
    if config.task != problem_type and not (found.is_bare and task.several):
        if task.several and agreement.keeps_head and (freeze_backbone or stages[0] not in TEACH_THE_HEAD):
            raise ValueError(
                "the texts may have several labels, and the checkpoint's classifier chooses one for a text (its "
                f"problem_type is {config.task!r}); fine-tune, without --freeze-backbone, which trains it anew"
            )
        notes.append(f"a fit teaches {kind} a text: the checkpoint's problem_type, {config.task!r}, is given up")
    names = dict(enumerate(agreement.label_names))
    set_seed(settings.seed)  # of the heads that the checkpoint lacks
    model = read_classifier(
        checkpoint,
        needs_head=False,
        problem_type=problem_type,
        id2label=names,
        label2id={name: number for number, name in names.items()},
        **model_settings(recipe, settings, config.num_hidden_layers, are_pairs(task.train.texts)),
    ).model
    if not agreement.keeps_head:
        _reset_heads(model, task.in_the_order_of(agreement.label_names).train)
    return model, agreement, notes


@torch.no_grad()
def _reset_heads(model: PyramidForSequenceClassification, texts: LabelledTexts) -> None:
    """Draws the classifier and the exit heads anew: those that the checkpoint has are for other labels.

    Where texts may have several labels, most labels are rare. So that training does not begin by learning that, the heads'
    biases give each label the chance that it has among the training texts.
    """
    model.config.untrained_exits = model.config.resolved_exit_layers() or None
    own: Any = model.classifier
    for head in (*own.modules(), *model.exits.modules()):
        if isinstance(head, nn.Linear):
            nn.init.normal_(head.weight, std=model.config.initializer_range)
            nn.init.zeros_(head.bias)
            if texts.among is not None and head.out_features == texts.among:
                chance = (texts.targets.sum(0) + 0.5) / (len(texts) + 1)
                head.bias.copy_(torch.logit(chance))


def _notes_on(task: Task) -> list[str]:
    """A line for labels that were not matched by name, and for those that no training or no validation text has."""
    notes = []
    numbers = [
        [labels if isinstance(labels, tuple) else (labels,) for labels in x.labels]
        for x in (task.train, task.validation)
    ]
    there = [set(itertools.chain.from_iterable(rows)) for rows in numbers]
    for kind, data, found in zip(("training", "validation"), (task.train, task.validation), there, strict=True):
        if data.note is not None:
            notes.append(data.note)
        missing = [name for number, name in enumerate(task.label_names) if number not in found]
        if missing:
            notes.append(f"labels without a {kind} text: {listed(missing)}")
    untaught = sum(not there[0].issuperset(row) for row in numbers[1])
    if untaught:
        notes.append(
            f"{untaught} of {len(task.validation)} validation texts have a label that no training text teaches; they count "
            "in the accuracy all the same"
        )
    return notes

"""Recipes: which stages make which classifier, and the settings that they share."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

STAGES = ("fine-tune", "distil", "soft", "hard", "joint", "exits")


@dataclass(frozen=True)
class Recipe:
    """How one kind of classifier is made.

    Attributes:
        about: one line for people.
        stages: in their order, out of ``STAGES``.
        config: settings of :class:`mp_model.PyramidBertConfig`; those of a checkpoint's exits do not count.
        share_of_teacher: how much of an exit's target is the main head's prediction; the rest is the label.
    """

    about: str
    stages: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    share_of_teacher: float = 1.0

    def planned_stages(self, exit_training: str | None = None, freeze_backbone: bool = False) -> tuple[str, ...]:
        """The stages, where the recipe has exits with them trained ``"joint"`` or ``"frozen"``.

        freeze_backbone: without any stage that changes the backbone; thresholds and heads are learned alone.

        Raises:
            ValueError: the recipe has no exits, or nothing else but the backbone.
        """
        stages = self.stages
        if exit_training is not None:
            if exit_training not in ("joint", "frozen"):
                raise ValueError(f"exit training must be 'joint' or 'frozen'; got {exit_training!r}")
            if self.config["exit_layers"] == [] or self.config["exit_head"] == "fastbert":
                raise ValueError("exit training can be chosen where there are 'cls' or 'pooled' exits, as in 'mp'")
            before = tuple(stage for stage in stages if stage in ("fine-tune", "soft"))
            stages = (*before, "joint" if exit_training == "joint" else "hard", "exits")
        if freeze_backbone:
            if exit_training == "joint":
                raise ValueError("exits that are trained jointly with the backbone do not leave it frozen")
            exits = ("exits",) if self.config["exit_layers"] != [] else ()
            stages = (*(stage for stage in stages if stage == "soft"), *exits)
            if not stages:
                raise ValueError("this recipe trains nothing but the backbone, which is to be frozen")
        return stages


NO_EXITS = {"exit_head": "cls", "exit_layers": [], "top_k": None}

RECIPES = {
    "pyramid": Recipe(
        "tokens pruned, and pooled exits from before layer 1 on, trained with the backbone and then by themselves",
        ("fine-tune", "soft", "joint", "exits"),
        {"exit_head": "pooled", "exit_layers": "all", "top_k": None},
        share_of_teacher=0.5,
    ),
    "mp": Recipe(
        "Magic Pyramid to the letter: learned token pruning, then exits under a frozen backbone",
        ("fine-tune", "soft", "hard", "exits"),
        {"exit_head": "cls", "exit_layers": None, "top_k": None},
    ),
    "bert": Recipe("fine-tuning alone", ("fine-tune",), NO_EXITS | {"prune_thresholds": None}),
    "distilbert": Recipe(
        "half the layers, taught by the fine-tuned model",
        ("fine-tune", "distil"),
        NO_EXITS | {"prune_thresholds": None},
    ),
    "ltp": Recipe("learned token pruning alone", ("fine-tune", "soft", "hard"), NO_EXITS),
    "fastbert": Recipe(
        "exits alone, with FastBERT's heads, taught by the main head",
        ("fine-tune", "exits"),
        {"exit_head": "fastbert", "exit_layers": None, "top_k": None, "prune_thresholds": None},
    ),
    "power": Recipe(
        "the most important tokens by a fixed schedule",
        ("fine-tune", "hard"),
        NO_EXITS | {"top_k": "falling", "prune_thresholds": None},
    ),
}


PASSES = ("epochs", "soft_epochs", "hard_epochs", "joint_epochs", "exit_epochs")
# Sets of at most so many texts: a few thousand texts are noisy and cheap, and many say in one pass what few say in two.
PASSES_BY_SIZE = (
    (5_000, (4.0, 2.0, 1.0, 2.0, 10.0)),
    (100_000, (3.0, 1.0, 1.0, 2.0, 10.0)),
    (math.inf, (3.0, 1.0, 1.0, 1.0, 3.0)),
)


@dataclass(frozen=True)
class Settings:
    """What is common to all stages; see ``magic-pyramid fit --help`` for the ranges of the papers.

    Attributes:
        epochs: of fine-tuning and distillation; soft_epochs, hard_epochs, joint_epochs, exit_epochs: of the other stages.
        batch_size: texts a step.
        learning_rate: of the weights; threshold_learning_rate: of the thresholds in the soft stage; exit_learning_rate: of
            exit heads, with the backbone or under it.
        temperature, penalty, final_threshold: of the soft stage (:class:`SoftPruningObjective`).
        exit_weight: of an exit's loss beside the main head's, trained jointly.
        reverse_kl: KL(student || teacher), Eq. 1's direction, instead of KL(teacher || student).
        keep: share of the tokens that layer L keeps, under ``top_k``.
        max_length: tokens of a text, at most; None: the model's positions.
        importance_normalizer: as in :class:`mp_model.PyramidBertConfig`.
        seed: of everything drawn.
    """

    epochs: float = 4.0
    soft_epochs: float = 2.0
    hard_epochs: float = 1.0
    joint_epochs: float = 2.0
    exit_epochs: float = 10.0
    batch_size: int = 32
    learning_rate: float = 5e-5
    threshold_learning_rate: float = 1e-3
    exit_learning_rate: float = 1e-3
    temperature: float = 1e-3
    penalty: float = 0.1
    final_threshold: float = 0.01
    exit_weight: float = 0.3
    reverse_kl: bool = False
    keep: float = 0.3
    max_length: int | None = None
    importance_normalizer: Any = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (*PASSES, "penalty", "exit_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more; got {getattr(self, name)}")
        for name in ("learning_rate", "threshold_learning_rate", "exit_learning_rate", "temperature", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be a share in (0, 1]; got {self.keep}")
        if self.max_length is not None and self.max_length < 3:
            raise ValueError(f"max_length must leave room for [CLS], a word and [SEP], 3; got {self.max_length}")

    @classmethod
    def for_texts(cls, count: int, **changes: Any) -> Settings:
        """Settings for that many training texts: the larger the set, the fewer passes over it.

        changes: values of attributes; passes among them go before those for the count.
        """
        by_size = next(passes for most, passes in PASSES_BY_SIZE if count <= most)
        return cls(**{**dict(zip(PASSES, by_size, strict=True)), **changes})

    def epochs_of(self, stage: str) -> float:
        """Passes over the training texts in a stage."""
        by_stage = {
            "soft": self.soft_epochs,
            "hard": self.hard_epochs,
            "joint": self.joint_epochs,
            "exits": self.exit_epochs,
        }
        return by_stage.get(stage, self.epochs)


def model_settings(recipe: Recipe, settings: Settings, layers: int) -> dict[str, Any]:
    """The recipe's settings of the model, for a backbone of so many layers."""
    config = {"importance_normalizer": settings.importance_normalizer, "exit_threshold": None, **recipe.config}
    if config.get("exit_layers") == "all":
        config["exit_layers"] = list(range(layers))
    if config.get("top_k") == "falling":
        config["top_k"] = falling_shares(settings.keep, layers)
    return config


def falling_shares(keep: float, layers: int) -> list[float]:
    """For each layer the share of the tokens entering it that stays, so that of all tokens the share left after layer l
    falls evenly from 1 to ``keep``."""
    left = [1 + (keep - 1) * layer / layers for layer in range(layers + 1)]
    return [after / before for before, after in itertools.pairwise(left)]

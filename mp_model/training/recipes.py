"""Recipes, the stages of each, and the settings that stages share."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

CONFIDENCE = "confidence"
STAGES = ("fine-tune", "distil", "soft", "hard", "joint", "exits", "head", CONFIDENCE)
FINE_TUNED, NO_TEACHER = TEACHERS = ("fine-tuned", "none")  # of the stage "joint"


@dataclass(frozen=True)
class Recipe:
    """The making of one kind of classifier.

    Attributes:
        about: one line for people.
        stages: names out of ``STAGES``, in their order.
        config: settings of :class:`mp_model.PyramidConfig`, instead of the checkpoint's.
        share_of_teacher: share of the main head's prediction in an exit's target; the rest is the label.
        teacher: one of ``TEACHERS``, whom main head and exits learn from in the stage ``"joint"``, half from it and half
            from the label. ``"fine-tuned"``: the model before anything was pruned. ``"none"``: the main head learns from
            the label alone, and teaches the exits.
        for_pairs: settings that are others where texts come in pairs.
    """

    about: str
    stages: tuple[str, ...]
    config: dict[str, Any] = field(default_factory=dict)
    share_of_teacher: float = 1.0
    teacher: str = NO_TEACHER
    for_pairs: dict[str, Any] = field(default_factory=dict)

    @property
    def has_exits_on_features(self) -> bool:
        """Whether there are exits that read features of a fixed size, which can be learned with the backbone."""
        from ..exits import EXIT_HEADS  # brings PyTorch, which nobody needs before a fit is planned

        return self.config["exit_layers"] != [] and not EXIT_HEADS[self.config["exit_head"]].reads_survivors

    def planned_stages(
        self,
        exit_training: str | None = None,
        freeze_backbone: bool = False,
        train_head: bool = False,
        confidence: bool = False,
    ) -> tuple[str, ...]:
        """The stages of a fit.

        Args:
            exit_training: ``"joint"`` with the backbone or ``"frozen"`` under it; None: the recipe's way.
            freeze_backbone: whether to leave out every stage that changes the backbone.
            train_head: whether to train the model's own head first, on the frozen backbone.
            confidence: whether to give the exits confidence heads at the end.

        Raises:
            ValueError: the recipe has no exits to be trained so, or to have confidence heads, or trains nothing but the
                backbone; a head is to be trained on a backbone that is not frozen.
        """
        stages = self.stages
        if exit_training is not None:
            if exit_training not in ("joint", "frozen"):
                raise ValueError(f"exit training must be 'joint' or 'frozen'; got {exit_training!r}")
            if not self.has_exits_on_features:
                raise ValueError(
                    "exit training can be chosen where there are 'cls', 'pooled' or 'pair' exits, as in 'mp'"
                )
            before = tuple(stage for stage in stages if stage in ("fine-tune", "soft"))
            stages = (*before, "joint" if exit_training == "joint" else "hard", "exits")
        if freeze_backbone:
            if exit_training == "joint":
                raise ValueError("exits that are trained jointly with the backbone do not leave it frozen")
            head = ("head",) if train_head else ()
            exits = ("exits",) if self.config["exit_layers"] != [] else ()
            stages = (*head, *(stage for stage in stages if stage == "soft"), *exits)
            if not stages:
                raise ValueError("this recipe trains nothing but the backbone, which is to be frozen")
        elif train_head:
            raise ValueError(
                "a head by itself is trained on a frozen backbone; give --freeze-backbone too, or leave --train-head out: "
                "fine-tuning trains both"
            )
        if confidence and self.config["exit_layers"] == []:
            raise ValueError("this recipe has no exits, whose uncertainty could be learned; take 'pyramid' or 'mp'")
        return (*stages, CONFIDENCE) if confidence else stages


NO_EXITS: dict[str, Any] = {"exit_head": "cls", "exit_layers": [], "top_k": None}

RECIPES = {
    "pyramid": Recipe(
        "tokens pruned, and exits from before layer 1 on that also read means of tokens, taught with the backbone by the "
        "fine-tuned model, then by themselves",
        ("fine-tune", "soft", "joint", "exits"),
        {"exit_head": "pooled", "exit_layers": "all", "top_k": None},
        share_of_teacher=0.5,
        teacher=FINE_TUNED,
        for_pairs={"exit_head": "pair"},
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
# Passes over sets of at most so many texts: a few thousand texts are noisy and cheap, and many say in one pass what few say
# in two.
PASSES_BY_SIZE = (
    (5_000, (4.0, 2.0, 1.0, 2.0, 10.0)),
    (100_000, (3.0, 1.0, 1.0, 2.0, 10.0)),
    (math.inf, (3.0, 1.0, 1.0, 1.0, 3.0)),
)


@dataclass(frozen=True)
class Settings:
    """Settings that the stages share, each with the help that ``magic-pyramid fit`` shows for it.

    Passes that are None follow the number of training texts (:meth:`for_texts`).
    """

    epochs: Annotated[float | None, "Passes over the texts in fine-tuning, and in distillation."] = None
    soft_epochs: Annotated[float | None, "Passes in soft pruning; 0 leaves thresholds where they start."] = None
    hard_epochs: Annotated[float | None, "Passes in hard pruning."] = None
    joint_epochs: Annotated[float | None, "Passes in training exits and backbone together."] = None
    exit_epochs: Annotated[float | None, "Passes in training heads on a frozen backbone."] = None
    batch_size: Annotated[int, "Texts a step."] = 32
    learning_rate: Annotated[float, "Learning rate of the weights."] = 5e-5
    head_learning_rate: Annotated[
        float | None, "Learning rate of the model's own head; that of the weights if left out."
    ] = None
    threshold_learning_rate: Annotated[float, "Learning rate of the pruning thresholds, in soft pruning."] = 1e-3
    exit_learning_rate: Annotated[float, "Learning rate of exit heads."] = 1e-3
    temperature: Annotated[float, "Temperature of soft pruning; LTP searched 1e-4 to 2e-3."] = 1e-3
    penalty: Annotated[float, "Price of a token that stays; LTP found 0.01 to 0.2 useful."] = 0.1
    final_threshold: Annotated[float, "Pruning threshold of layer L before soft pruning; lower layers' rise to it."] = (
        0.01
    )
    pruned_layers: Annotated[
        int | None,
        "Layers, from the first on, whose thresholds are learned; those above prune nothing. All if left out.",
    ] = None
    exit_weight: Annotated[float, "Weight of each exit's loss, where the main head's is 1, in joint training."] = 0.3
    reverse_kl: Annotated[bool, "Distil exits by KL(student, teacher), as in Eq. 1."] = False
    keep: Annotated[float, "Share of the tokens that layer L keeps, in the recipe power."] = 0.3
    max_length: Annotated[int | None, "Longest text, in tokens; the model's positions if left out."] = None
    importance_normalizer: Annotated[str | float, "Divisor of importance: alive, input, or a number."] = 128
    bfloat16: Annotated[
        bool, "Multiply in bfloat16 while training, which processors with AMX or AVX-512 BF16 do about twice as fast."
    ] = False
    seed: Annotated[int, "Random seed."] = 0

    def __post_init__(self) -> None:
        for name in (*PASSES, "penalty", "exit_weight"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must be 0 or more; got {value}")
        for name in ("learning_rate", "threshold_learning_rate", "exit_learning_rate", "temperature", "batch_size"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive; got {getattr(self, name)}")
        if self.head_learning_rate is not None and not self.head_learning_rate > 0:
            raise ValueError(f"head_learning_rate must be positive; got {self.head_learning_rate}")
        if self.pruned_layers is not None and self.pruned_layers < 1:
            raise ValueError(f"pruned_layers must be 1 or more; got {self.pruned_layers}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be a share in (0, 1]; got {self.keep}")
        if self.max_length is not None and self.max_length < 3:
            raise ValueError(f"max_length must leave room for [CLS], a word and [SEP], 3; got {self.max_length}")
        if self.importance_normalizer not in ("alive", "input"):
            object.__setattr__(self, "importance_normalizer", _number(self.importance_normalizer))

    def for_texts(self, count: int) -> Settings:
        """The same settings, with the passes that are None chosen for that many training texts: fewer for larger sets."""
        by_size = next(passes for most, passes in PASSES_BY_SIZE if count <= most)
        changes: dict[str, Any] = {
            name: passes for name, passes in zip(PASSES, by_size, strict=True) if getattr(self, name) is None
        }
        return replace(self, **changes)

    def epochs_of(self, stage: str) -> float:
        """Passes over the training texts in a stage."""
        by_stage = {
            "soft": self.soft_epochs,
            "hard": self.hard_epochs,
            "joint": self.joint_epochs,
            "exits": self.exit_epochs,
            "head": self.exit_epochs,
        }
        passes = by_stage.get(stage, self.epochs)
        if passes is None:
            raise ValueError(
                f"the passes of stage {stage!r} follow the number of texts; take settings.for_texts(count)"
            )
        return passes


def _number(normalizer: str | float) -> float:
    try:
        return float(normalizer)
    except ValueError:
        raise ValueError(f"importance_normalizer must be alive, input or a number; got {normalizer!r}") from None


def model_settings(recipe: Recipe, settings: Settings, layers: int, pairs: bool = False) -> dict[str, Any]:
    """Settings of :class:`mp_model.PyramidConfig` by a recipe, for a backbone of that many layers.

    pairs: whether it will read pairs of texts.
    """
    config = {
        "importance_normalizer": settings.importance_normalizer,
        "exit_threshold": None,
        "depth": None,
        "exit_uncertainty": "entropy",
        "confidence_heads": False,
        "tuned_for": None,
        **recipe.config,
        **(recipe.for_pairs if pairs else {}),
    }
    if config.get("exit_layers") == "all":
        config["exit_layers"] = list(range(layers))
    if config.get("top_k") == "falling":
        config["top_k"] = falling_shares(settings.keep, layers)
    return config


def falling_shares(keep: float, layers: int) -> list[float]:
    """For each layer the share of its entering tokens that survive it.

    The share of the input's tokens that are alive after layer l then falls evenly from 1 to ``keep``.
    """
    left = [1 + (keep - 1) * layer / layers for layer in range(layers + 1)]
    return [after / before for before, after in itertools.pairwise(left)]

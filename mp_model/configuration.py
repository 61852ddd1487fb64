"""Configuration of a pyramid: its backbone's own, and where tokens are pruned and samples exit."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .backbones import BACKBONES, Backbone, backbone_of
from .backbones.table import PREFIX
from .exits import DISAGREEMENT, ENTROPY, EXIT_HEADS, UNCERTAINTIES, Uncertainty
from .problems import ONE_LABEL, PROBLEMS, SEVERAL_LABELS, VALUES, Choice, Problem

NEVER = "never"  # the exit threshold that closes all exits for a call


class PyramidConfig(PreTrainedConfig):
    """Settings of a pyramid, beside those of its backbone.

    Each backbone has a class of its own that takes both, such as ``PyramidBertConfig``; this one finds it by the type that
    a checkpoint states: ``PyramidConfig.from_pretrained(checkpoint)``.

    Args:
        prune_thresholds: one threshold a layer: a token survives layer ``l`` iff its importance is at least
            ``prune_thresholds[l - 1]``. None prunes nothing.
        top_k: one number a layer, instead of thresholds: the tokens that survive it, [CLS] among them. An int counts
            tokens; a float in (0, 1] is a share of the tokens that enter the layer, rounded up.
        exit_threshold: a sample exits where its uncertainty is at most this: one number in [0, 1], or one for each exit
            layer. None: nobody exits early.
        exit_head: kind of the exit heads: ``"cls"`` (Magic Pyramid's), ``"pooled"``, ``"pair"`` (for two texts) or
            ``"fastbert"``.
        exit_layers: layers whose output has an exit head, rising; 0 (the embeddings, ``"pooled"`` and ``"pair"`` only) to
            L - 1. None: 1 to L - 1.
        exit_uncertainty: kind of uncertainty by which samples leave: ``"entropy"`` (Magic Pyramid's), of the exit's own
            answer; or ``"disagreement"``, the probability, by the exit's confidence head, that layer L answers otherwise.
        confidence_heads: whether every exit has a confidence head (:class:`mp_model.confidence.Confidence`).
        depth: an exit layer by which everybody leaves, with the answer of its head, however uncertain; layers above it are
            not run, and :class:`mp_model.Classifier` does not load them. None: layer L, by the model's own head.
        importance_normalizer: divisor of importance: ``"alive"`` (tokens entering the layer), ``"input"`` (tokens
            the sample came with), or a number (LTP's released code: its padded width).
        precision: form of the weights of layers and word embeddings: ``"float"``, of the checkpoint's dtype; for inference
            alone ``"bfloat16"``, or ``"int8"`` (:func:`mp_model.backbones.int8.to_int8`).
        int8_kept_columns: inputs of a layer with int8 weights that are multiplied as floats.
        untrained_exits: exit layers whose heads are as they were drawn. Loading adds those that the checkpoint has no
            weights for, and it is saved with the model; whoever trains heads takes them out again. None: all are trained.
        tuned_for: the record of what ``exit_threshold`` was tuned for (:mod:`mp_model.checkpoints.tuned_for`); None: nobody
            tuned it.

    Attributes:
        backbone: the kind of encoder.
    """

    backbone: ClassVar[Backbone]

    prune_thresholds: Any = None
    top_k: Any = None
    exit_threshold: Any = None
    exit_head: str = "cls"
    exit_layers: Any = None
    exit_uncertainty: str = ENTROPY
    confidence_heads: bool = False
    depth: Any = None
    importance_normalizer: Any = "alive"
    precision: str = "float"
    int8_kept_columns: int = 0
    untrained_exits: Any = None
    tuned_for: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is not None:
            names = _label_names(self.id2label)
            if set(names.values()) != set(self.id2label.values()):
                self.label2id = {name: number for number, name in names.items()}
            self.id2label = names
        super().__post_init__(**kwargs)
        self.keys_to_ignore_at_inference = [
            "exit_layer",
            "uncertainty",
            "tokens_per_layer",
            "flops",
            "executed_flops",
        ]
        self.check()

    def check(self) -> None:
        """Raises ValueError or TypeError for settings of the pyramid that cannot be followed."""
        self.resolved_thresholds()
        self.resolved_top_k()
        self.resolved_exit_layers()
        self.resolved_exit_threshold()
        if self.depth is not None and (isinstance(self.depth, bool) or self.depth not in self.resolved_exit_layers()):
            raise ValueError(
                f"depth must be one of exit_layers, {self.resolved_exit_layers()}, or None; got {self.depth!r}"
            )
        if self.exit_uncertainty not in UNCERTAINTIES:
            raise ValueError(
                f"exit_uncertainty must be one of {', '.join(map(repr, UNCERTAINTIES))}; got {self.exit_uncertainty!r}"
            )
        if self.exit_uncertainty == DISAGREEMENT and not self.confidence_heads:
            raise ValueError(
                "exit_uncertainty='disagreement' needs confidence heads, and this model has none; train them: "
                "magic-pyramid fit --stages confidence"
            )
        if self.untrained_exits is not None and not _are_numbers(self.untrained_exits):
            raise TypeError(f"untrained_exits must be a list of layer numbers or None; got {self.untrained_exits!r}")
        if not isinstance(self.tuned_for, dict | None):
            raise TypeError(
                f"tuned_for must be a record that `magic-pyramid tune` wrote, or None; got {self.tuned_for!r}"
            )
        if self.prune_thresholds is not None and self.top_k is not None:
            raise ValueError("prune_thresholds and top_k are two ways to prune; set one of them to None")
        if self.precision not in ("float", "bfloat16", "int8"):
            raise ValueError(f"precision must be 'float', 'bfloat16' or 'int8'; got {self.precision!r}")
        kept = self.int8_kept_columns
        if isinstance(kept, bool) or not isinstance(kept, int) or kept < 0:
            raise ValueError(f"int8_kept_columns must be an integer from 0 on; got {kept!r}")
        normalizer = self.importance_normalizer
        if normalizer not in ("alive", "input") and not (_is_number(normalizer) and 0 < normalizer < math.inf):
            raise ValueError(f"importance_normalizer must be 'alive', 'input' or a positive number; got {normalizer!r}")

    @property
    def positions(self) -> int:
        """Number of tokens that a text may have."""
        return self.max_position_embeddings - self.backbone.first_position(self)

    @property
    def reads_pairs(self) -> bool:
        """Whether there are exits that compare two texts."""
        return EXIT_HEADS[self.exit_head].reads_pairs and self.resolved_exit_layers() != []

    @property
    def reached_layers(self) -> int:
        """Number of layers that a text can reach."""
        return self.num_hidden_layers if self.depth is None else self.depth

    @property
    def token_types(self) -> int:
        """Number of token types that inputs may have; exits that compare two texts tell them apart by their types."""
        return max(self.backbone.token_types(self), 2 if self.reads_pairs else 1)

    @property
    def label_names(self) -> list[str]:
        """Names of the labels, by their numbers."""
        names: Any = self.id2label
        return [names[number] for number in sorted(names)]

    @property
    def task(self) -> str:
        """``problem_type``, or where that is not set what BERT takes it for: a single label is a value."""
        return self.problem_type or (VALUES if self.num_labels == 1 else ONE_LABEL)

    @property
    def problem(self) -> Problem:
        """The kind of problem that :attr:`task` names."""
        return PROBLEMS[self.task]

    @property
    def uncertainty(self) -> Uncertainty:
        """The kind of uncertainty that answers have, by which samples leave."""
        return UNCERTAINTIES[self.exit_uncertainty](self.problem)

    @property
    def uncertainties(self) -> list[str]:
        """The values that ``exit_uncertainty`` can have."""
        return [ENTROPY, DISAGREEMENT] if self.confidence_heads else [ENTROPY]

    @property
    def choice(self) -> Choice:
        """The kind of problem, where labels are chosen for a text.

        Raises:
            ValueError: the answers are values.
        """
        problem = self.problem
        if not isinstance(problem, Choice):
            raise ValueError(
                "accuracy and exits are measured of models that choose labels for a text, and this one's problem_type is "
                f"{self.task!r}; `magic-pyramid classify` and Classifier give its answers"
            )
        return problem

    @property
    def lacks_uncertainty(self) -> bool:
        """Whether a prediction has no uncertainty to exit by: there is a single label, and no text without it."""
        return self.num_labels == 1 and self.task != SEVERAL_LABELS

    def resolved_thresholds(self, override: Any = None) -> list[float] | None:
        """The thresholds of pruning as L floats: ``override`` if given, else ``prune_thresholds``."""
        wanted = self.prune_thresholds if override is None else override
        if wanted is None:
            return None
        thresholds = _numbers("prune_thresholds", wanted, self.num_hidden_layers, "layer")
        for number, threshold in enumerate(thresholds, 1):
            if math.isnan(threshold):
                raise ValueError(f"prune_thresholds must be numbers; the one of layer {number} is NaN")
        return thresholds

    def resolved_top_k(self) -> list[int | float] | None:
        """``top_k`` as L numbers."""
        if self.top_k is None:
            return None
        _numbers("top_k", self.top_k, self.num_hidden_layers, "layer")
        for number, k in enumerate(self.top_k, 1):
            if isinstance(k, int) and k < 1:
                raise ValueError(f"top_k must keep at least 1 token, [CLS]; layer {number} has {k}")
            if isinstance(k, float) and not 0 < k <= 1:
                raise ValueError(f"a float in top_k is a share in (0, 1]; layer {number} has {k}")
        return list(self.top_k)

    def resolved_exit_layers(self) -> list[int]:
        """``exit_layers`` as a list; empty for a single label without exits (there is no uncertainty to exit by)."""
        if self.exit_head not in EXIT_HEADS:
            raise ValueError(f"exit_head must be one of {', '.join(map(repr, EXIT_HEADS))}; got {self.exit_head!r}")
        if self.exit_layers is None:
            return list(range(1, self.num_hidden_layers)) if not self.lacks_uncertainty else []
        if isinstance(self.exit_layers, str) or not isinstance(self.exit_layers, Sequence):
            raise TypeError(f"exit_layers must be a list of layer numbers; got {self.exit_layers!r}")
        layers = list(self.exit_layers)
        lowest, highest = EXIT_HEADS[self.exit_head].lowest_layer, self.num_hidden_layers - 1
        for layer in layers:
            if not isinstance(layer, int) or isinstance(layer, bool) or not lowest <= layer <= highest:
                why = "; layer 0 needs exit_head='pooled', or 'pair' for two texts" if layer == 0 else ""
                raise ValueError(f"exit_layers must lie in {lowest}..{highest}{why}; got {layer!r}")
        if layers != sorted(set(layers)):
            raise ValueError(f"exit_layers must rise; got {layers}")
        if layers and self.lacks_uncertainty:
            raise ValueError("exit_layers needs 2 labels or more: with num_labels=1 a prediction has no uncertainty")
        return layers

    def resolved_exit_threshold(self, override: Any = None) -> list[float] | None:
        """The exit threshold as one float an exit layer: ``override`` if given, else ``exit_threshold``.

        None, where exits are closed: nothing is set, or ``override`` is ``"never"``.
        """
        wanted = self.exit_threshold if override is None else override
        if wanted is None or (isinstance(wanted, str) and wanted == NEVER):
            return None
        if self.lacks_uncertainty:
            raise ValueError("exit_threshold needs 2 labels or more: with num_labels=1 a prediction has no uncertainty")
        if self.task not in (ONE_LABEL, SEVERAL_LABELS):
            raise ValueError(
                "exit_threshold is for models that choose labels for a text, and this one's problem_type is "
                f"{self.task!r}; leave its exits closed, with None or {NEVER!r}"
            )
        count = len(self.resolved_exit_layers())
        if not _is_number(wanted) and (isinstance(wanted, bool | str) or not isinstance(wanted, Sequence)):
            raise TypeError(
                f"exit_threshold must be a number in [0, 1], a list with one for each exit layer, {NEVER!r} or None; "
                f"got {wanted!r}"
            )
        given = [float(wanted)] if _is_number(wanted) else _numbers("exit_threshold", wanted, count, "exit layer")
        for threshold in given:
            if not 0 <= threshold <= 1:
                raise ValueError(f"exit_threshold must lie in [0, 1], the range of the uncertainty; got {threshold}")
        return given * count if _is_number(wanted) else given

    def why_untrained(self) -> str | None:
        """A sentence on exits whose heads nobody has trained; None: there are none that a text can reach."""
        untrained = self.untrained_exits
        if not untrained:
            return None
        layers = [x for x in self.resolved_exit_layers() if x in untrained and x <= self.reached_layers]
        if not layers:
            return None
        where = f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
        return f"this checkpoint has no trained exits at {where}; train them: magic-pyramid fit --freeze-backbone"

    def uses_untrained(self, exit_threshold: Any) -> bool:
        """Whether an exit threshold, or the depth, opens exits of which nobody has trained some."""
        if self.why_untrained() is None:
            return False
        return self.depth in (self.untrained_exits or ()) or self.resolved_exit_threshold(exit_threshold) is not None

    def check_exits(self, exit_threshold: Any) -> None:
        """Raises ValueError for an exit threshold, or a depth, that opens exits whose heads nobody has trained."""
        if self.uses_untrained(exit_threshold):
            raise ValueError(self.why_untrained())

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *arguments: Any, **settings: Any) -> Any:
        if cls is PyramidConfig:
            found, _ = cls.get_config_dict(pretrained_model_name_or_path, **settings)
            own: Any = config_class(backbone_of(found.get("model_type")))
            return own.from_pretrained(pretrained_model_name_or_path, *arguments, **settings)
        return super().from_pretrained(pretrained_model_name_or_path, *arguments, **settings)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        found, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not found or cls is PyramidConfig:
            return found, kwargs
        try:
            stated = backbone_of(found.get("model_type"))
        except ValueError as error:
            raise ValueError(f"{pretrained_model_name_or_path}: {error}") from None
        if stated is not cls.backbone:
            raise ValueError(
                f"{pretrained_model_name_or_path} holds a model of type {found['model_type']!r}, and this class is for "
                f"{cls.backbone.model_type!r}; PyramidForSequenceClassification and PyramidModel take both"
            )
        return {**found, "model_type": cls.model_type}, kwargs


@functools.cache
def config_class(backbone: Backbone) -> type[PyramidConfig]:
    """The configuration of pyramids on a backbone: ``Pyramid...Config``."""
    made: Any = type(
        f"Pyramid{backbone.name}Config",
        (PyramidConfig, backbone.config),
        {
            "__module__": __name__,
            "__doc__": f"Settings of a pyramid on {backbone.model_type}; see :class:`PyramidConfig`.",
            "model_type": PREFIX + backbone.model_type,
            "attribute_map": {**backbone.config.attribute_map, **backbone.settings},
            "backbone": backbone,
        },
    )
    return strict(made)


# Under their own names, by which they are found again where they were pickled.
globals().update({made.__name__: made for made in map(config_class, BACKBONES.values())})


def as_pyramid(config: PreTrainedConfig) -> PyramidConfig:
    """A pyramid's configuration: the given one, or a stock one with nothing pruned and the usual exits.

    Raises:
        ValueError: a configuration of no backbone that there is.
    """
    if isinstance(config, PyramidConfig):
        return config
    settings = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    return config_class(backbone_of(config.model_type))(**settings)


def _label_names(given: Any) -> dict[int, str]:
    """Names of labels by their numbers: numbers as words, without the spaces around them, as labels in files are read.

    Raises:
        ValueError: numbers that are not 0 to N - 1; names that are neither words nor numbers, or the same twice.
    """
    try:
        names = {int(number): name for number, name in given.items()}
    except (AttributeError, TypeError, ValueError):
        names = {}
    if sorted(names) != list(range(len(names))) or not names:
        raise ValueError(f"id2label must name the labels 0 to N - 1, each once; got {given!r}")
    for number, name in names.items():
        if not isinstance(name, str) and not _is_number(name):
            raise ValueError(f"a name in id2label must be a word or a number; label {number} has {name!r}")
        names[number] = str(name).strip()
    twice = sorted({name for name in names.values() if list(names.values()).count(name) > 1})
    if twice:
        raise ValueError(
            f"id2label must have a name of its own for each label; got {', '.join(map(repr, twice))} twice"
        )
    return names


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _are_numbers(values: Any) -> bool:
    return not isinstance(values, str) and isinstance(values, Sequence) and all(_is_number(v) for v in values)


def _numbers(name: str, values: Any, count: int, of: str) -> list[float]:
    if not _are_numbers(values):
        raise TypeError(f"{name} must be a list of numbers, one for each {of}; got {values!r}")
    if len(values) != count:
        raise ValueError(f"{name} must have one number for each {of}, {count}; got {len(values)}")
    return [float(v) for v in values]

"""The settings of a call, resolved once for as long as the configuration stays as it is.

Every attribute of a transformers configuration that is read goes through two functions of Python, and a call reads eighty:
as long as a layer takes for a short text.
"""

from __future__ import annotations

import marshal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .configuration import PyramidConfig
from .exits import Uncertainty
from .pruning import Pruning

WITHOUT_REFERENCES = 2  # the version of marshal's format in which equal values are equal bytes


@dataclass(frozen=True)
class Settings:
    """The settings that a configuration and a call's own arguments ask for.

    Attributes:
        pruning: the rule of each layer.
        exit_layers: the layers that have an exit.
        exit_thresholds: one an exit layer; None: exits are closed.
        depth: the layer by whose exit everybody leaves; None: layer L answers.
        uncertainty: the kind of uncertainty that answers have.
        uses_untrained: whether exits are open that nobody has trained.
    """

    pruning: Pruning
    exit_layers: Sequence[int]
    exit_thresholds: Sequence[float] | None
    depth: int | None
    uncertainty: Uncertainty
    uses_untrained: bool

    @classmethod
    def of(cls, config: PyramidConfig, prune_thresholds: Any = None, exit_threshold: Any = None) -> Settings:
        """The settings of a call; see :meth:`PyramidForSequenceClassification.forward` for its arguments.

        Raises:
            ValueError, TypeError: settings that cannot be followed.
        """
        return cls(
            exit_thresholds=config.resolved_exit_threshold(exit_threshold),
            exit_layers=config.resolved_exit_layers(),
            pruning=Pruning.of(config, prune_thresholds),
            depth=config.depth,
            uncertainty=config.uncertainty,
            uses_untrained=config.uses_untrained(exit_threshold),
        )


class LastSettings:
    """The settings of the last call, which serve the next one if it asks for the same of the same configuration."""

    def __init__(self) -> None:
        self._last: tuple[bytes, Settings] | None = None

    def of(self, config: PyramidConfig, prune_thresholds: Any = None, exit_threshold: Any = None) -> Settings:
        """As :meth:`Settings.of`."""
        if torch.compiler.is_compiling():
            return Settings.of(config, prune_thresholds, exit_threshold)
        said = {**vars(config), "dtype": None}  # torch's dtypes are objects, and no setting depends on them
        try:
            asked = marshal.dumps((prune_thresholds, exit_threshold, said), WITHOUT_REFERENCES)
        except ValueError:  # an object, which may change in ways that nobody sees
            return Settings.of(config, prune_thresholds, exit_threshold)
        last = self._last
        if last is None or last[0] != asked:
            last = self._last = asked, Settings.of(config, prune_thresholds, exit_threshold)
        return last[1]

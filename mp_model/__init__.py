"""BERT classifiers that prune tokens and let samples exit: configuration, models, engine, command line.

The models are imported on first use, so that the command line answers at once.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration import PyramidBertConfig
    from .modelling import PyramidBert, PyramidBertForSequenceClassification, PyramidOutput

__all__ = ["PyramidBert", "PyramidBertConfig", "PyramidBertForSequenceClassification", "PyramidOutput"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import registration

    return getattr(registration, name)

"""BERT classifiers that prune tokens and let samples exit: configuration, models, engine, command line.

The models are imported on first use, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .registration import (
        PyramidBert,
        PyramidBertConfig,
        PyramidBertForSequenceClassification,
        PyramidOutput,
    )
    from .serving.classifier import Answer, Classifier

__all__ = [
    "Answer",
    "Classifier",
    "PyramidBert",
    "PyramidBertConfig",
    "PyramidBertForSequenceClassification",
    "PyramidOutput",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = ".serving.classifier" if name in ("Answer", "Classifier") else ".registration"
    return getattr(import_module(home, __name__), name)


def __dir__() -> list[str]:
    return __all__

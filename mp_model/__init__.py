"""Classifiers that prune tokens and let samples exit: configuration, models, engine, command line.

The models are imported on first use, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .configuration import PyramidConfig
    from .modelling import PyramidForSequenceClassification, PyramidModel, PyramidOutput
    from .serving.classifier import Answer, Classifier

__all__ = [
    "Answer",
    "Classifier",
    "PyramidBert",
    "PyramidBertConfig",
    "PyramidBertForSequenceClassification",
    "PyramidConfig",
    "PyramidForSequenceClassification",
    "PyramidModel",
    "PyramidOutput",
]


def __getattr__(name: str) -> Any:
    if name in ("Answer", "Classifier"):
        return getattr(import_module(".serving.classifier", __name__), name)
    if name.startswith("Pyramid"):  # also those of the other backbones, such as PyramidRobertaModel
        import_module(".registration", __name__)
        for home in ("families", "configuration", "modelling"):
            found = getattr(import_module(f".{home}", __name__), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

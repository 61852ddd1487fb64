"""Training a pyramid: tasks, stages and recipes. Not imported at inference.

What needs PyTorch is imported on first use, so that the command line can say what there is to set at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .recipes import RECIPES, Recipe, Settings

if TYPE_CHECKING:
    from ..data.labels import LabelledTexts
    from .fitting import Summary, fit
    from .stages import Trained, train_stages
    from .tasks import Task, load_task

_HOMES = {
    "LabelledTexts": "..data.labels",
    "Summary": ".fitting",
    "Task": ".tasks",
    "Trained": ".stages",
    "fit": ".fitting",
    "load_task": ".tasks",
    "train_stages": ".stages",
}

__all__ = [
    "RECIPES",
    "LabelledTexts",
    "Recipe",
    "Settings",
    "Summary",
    "Task",
    "Trained",
    "fit",
    "load_task",
    "train_stages",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return __all__

"""Training a pyramid: data, stages and recipes. Not imported at inference."""

from ..data.labels import LabelledTexts
from .fitting import Summary, fit
from .recipes import RECIPES, Recipe, Settings
from .stages import Trained, train_stages
from .tasks import Task, load_task

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

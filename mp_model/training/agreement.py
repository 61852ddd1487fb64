"""The agreement of a checkpoint's classifier and labelled texts on the names of the labels, and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.labels import numbers_of
from ..data.values import listed, normal_label
from .tasks import Task

TRAIN_ONE = (
    "train one: with --train-head on the frozen backbone, or without --freeze-backbone; where --stages are given, begin "
    "with fine-tune or head"
)


@dataclass(frozen=True)
class Agreement:
    """The labels of a fit.

    Attributes:
        label_names: labels in the order of their numbers.
        keeps_head: whether the checkpoint's classifier answers these labels; else there is a new one to be trained.
        said: one line for people, where the checkpoint does not say the same as the texts.
    """

    label_names: list[str]
    keeps_head: bool
    said: str | None = None


def agree(task: Task, classifier: Sequence[str] | None, *, new_head: bool) -> Agreement:
    """The labels of a fit, in the order in which the checkpoint's classifier has them.

    Args:
        task: the texts, with the names of their labels.
        classifier: names of the labels of the checkpoint's classifier, by number; None: it has no classifier.
        new_head: whether the fit begins by training a classifier, and can do so with a new one.

    Raises:
        ValueError: there is no classifier, or its labels are others, and no new one is to be trained, so that exits would
            learn from a random one; the message lists both sets of labels.
    """
    wanted = task.label_names
    if classifier is None:
        if not new_head:
            raise ValueError(f"the checkpoint has no classifier, and exits would learn from a random one; {TRAIN_ONE}")
        return Agreement(wanted, False, f"the checkpoint has no classifier: a new one learns {listed(wanted)}")
    classifier = [normal_label(name) for name in classifier]
    if task.ordered and len(wanted) == len(classifier):
        said = f"the classifier's labels {listed(classifier)} are named {listed(wanted)}, in this order"
        return Agreement(wanted, True, None if classifier == wanted else said)
    numbers = None if task.ordered else numbers_of(wanted, classifier)
    if numbers is not None and len(wanted) == len(classifier):
        names = sorted(numbers, key=lambda name: numbers[name])
        said = f"the classifier's labels {listed(classifier)} are matched by number: {listed(names)}"
        return Agreement(names, True, None if names == classifier else said)
    difference = f"the checkpoint's classifier has the labels {listed(classifier)}; the texts have {listed(wanted)}"
    if not new_head:
        raise ValueError(
            f"{difference}. Give --labels with the names of the classifier's {len(classifier)} labels in the order of their "
            f"numbers; or, for a new classifier, {TRAIN_ONE}"
        )
    return Agreement(wanted, False, f"{difference}: a new classifier is trained")

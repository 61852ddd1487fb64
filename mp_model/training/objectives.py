"""The objective of each stage: a module whose forward pass takes a batch and returns its loss.

A stage is a module around the model, not a function beside it, so that whatever wraps modules (mixed precision, several
devices) sees one forward pass a step. Each lets that learn which has a part in its loss, and freezes the rest: several
devices wait for the gradients of all that learns, and weight decay shrinks it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .. import engine
from ..modelling import PyramidForSequenceClassification
from ..problems import ONE, Choice
from ..pruning import Pruning
from ..schedule import run_batch
from .soft_pruning import SoftPruning, rising_thresholds

Loss = dict[str, Tensor]


def distillation_loss(teacher: Tensor, student: Tensor, reverse: bool = False, problem: Choice = ONE) -> Tensor:
    """KL(teacher || student) of the predictions, a mean over the batch; ``reverse``: KL(student || teacher), Eq. 1.

    teacher, student: logits ``[batch, labels]``; no gradient reaches the teacher.
    """
    teacher = teacher.detach()
    return problem.divergence(student, teacher) if reverse else problem.divergence(teacher, student)


def mixed_target_loss(
    logits: Tensor,
    labels: Tensor,
    teacher: Tensor,
    share_of_teacher: float,
    reverse: bool = False,
    problem: Choice = ONE,
) -> Tensor:
    """Part teacher (:func:`distillation_loss`), part label (cross entropy)."""
    loss = logits.new_zeros(())
    if share_of_teacher > 0:
        loss = loss + share_of_teacher * distillation_loss(teacher, logits, reverse, problem)
    if share_of_teacher < 1:
        loss = loss + (1 - share_of_teacher) * problem.loss(logits, labels)
    return loss


def all_but_exits(model: PyramidForSequenceClassification) -> PyramidForSequenceClassification:
    """The model, of which everything learns but the exit heads."""
    model.requires_grad_(True)
    model.exits.requires_grad_(False)
    return model


class FineTuning(nn.Module):
    """Cross entropy of the model's own head; with pruning as the model's configuration says (plain, or hard pruning)."""

    def __init__(self, model: PyramidForSequenceClassification) -> None:
        super().__init__()
        self.model = all_but_exits(model)

    def forward(self, labels: Tensor, **inputs: Tensor) -> Loss:
        logits = self.model(**inputs).logits
        return {"loss": self.model.config.choice.loss(logits, labels), "logits": logits}


class SoftPruningObjective(nn.Module):
    """Cross entropy with tokens fading out, plus ``penalty * mean of the masks``; learns weights and thresholds.

    Args:
        model: the classifier.
        temperature, penalty: the step's width, and the price of a token that stays.
        final_threshold: where layer L's threshold starts; layer l's starts at the share l / L of it.
        freeze_backbone: whether the thresholds are learned alone, without dropout.
        pruned_layers: number of layers, from the first on, that have a threshold; None: all.
    """

    def __init__(
        self,
        model: PyramidForSequenceClassification,
        temperature: float,
        penalty: float,
        final_threshold: float,
        freeze_backbone: bool = False,
        pruned_layers: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False) if freeze_backbone else all_but_exits(model)
        self.frozen = freeze_backbone
        self.temperature, self.penalty = temperature, penalty
        thresholds = rising_thresholds(final_threshold, model.config.num_hidden_layers)
        self.thresholds = nn.Parameter(thresholds[:pruned_layers])

    def forward(self, labels: Tensor, **inputs: Tensor) -> Loss:
        model = self.model.eval() if self.frozen else self.model
        packed = model.base_model.pack(**inputs)
        soft = SoftPruning(self.thresholds, self.temperature, model.config.importance_normalizer)
        pyramid = model.with_pruning(soft)
        run = run_batch(pyramid, packed, model.num_labels)
        loss = model.config.choice.loss(run.logits, labels) + self.penalty * soft.penalty()
        return {"loss": loss, "logits": run.logits}

    def harden(self) -> None:
        """Writes the learned thresholds into the model's configuration, from where they prune for real; 0 for the rest."""
        config = self.model.config
        unpruned = [0.0] * (config.num_hidden_layers - len(self.thresholds))
        config.prune_thresholds = self.thresholds.detach().float().cpu().tolist() + unpruned
        self.model.requires_grad_(True)


class JointExits(nn.Module):
    """The main head first, every exit beside it at a lower weight (deep supervision); tokens pruned for real.

    Where batches bring the logits of a teacher, main head and exits learn from it; else the main head learns from labels
    alone, and teaches the exits.

    Args:
        model: the classifier, with ``"cls"``, ``"pooled"`` or ``"pair"`` heads.
        exit_weight: weight of each exit's loss, where the main head's is 1.
        share_of_teacher: share of the teacher's prediction in a head's target; the rest is the label.
    """

    def __init__(self, model: PyramidForSequenceClassification, exit_weight: float, share_of_teacher: float) -> None:
        super().__init__()
        self.model = model.requires_grad_(True)
        self.exit_weight, self.share_of_teacher = exit_weight, share_of_teacher

    def forward(self, labels: Tensor, teacher: Tensor | None = None, **inputs: Tensor) -> Loss:
        model, share, problem = self.model, self.share_of_teacher, self.model.config.choice
        pyramid = model.with_pruning(Pruning.of(model.config))
        features = engine.run_features(pyramid, model.base_model.embed(**inputs), model.config.exit_head)
        logits = model.final_head(features[-1])
        if teacher is None:
            loss, teacher = problem.loss(logits, labels), logits
        else:
            loss = mixed_target_loss(logits, labels, teacher, share, problem=problem)
        for layer, head in model.exits.items():
            exit_logits = head(features[int(layer)])
            loss = loss + self.exit_weight * mixed_target_loss(exit_logits, labels, teacher, share, problem=problem)
        return {"loss": loss, "logits": logits}


class FrozenExits(nn.Module):
    """Exit heads that read all tokens (``"fastbert"``), under a frozen backbone: KL from the main head's prediction."""

    def __init__(self, model: PyramidForSequenceClassification, reverse: bool = False) -> None:
        super().__init__()
        self.heads = model.exits.requires_grad_(True)
        self.frozen = [model]  # in a list, so that its weights are neither trained nor saved with each checkpoint
        self.reverse = reverse

    def forward(self, labels: Tensor, **inputs: Tensor) -> Loss:
        (model,) = self.frozen
        model.eval()
        with torch.no_grad():
            pyramid = model.with_pruning(Pruning.of(model.config))
            outputs = engine.run_layers(pyramid, model.base_model.embed(**inputs))
            teacher = model.final_head(pyramid.final_features(outputs[-1]))
        losses = [
            distillation_loss(teacher, head(outputs[int(layer)]), self.reverse, model.config.choice)
            for layer, head in self.heads.items()
        ]
        return {"loss": torch.stack(losses).mean(), "logits": teacher}


class HeadsOnFeatures(nn.Module):
    """Exit heads on features that were computed once (:func:`mp_model.training.features.collect_features`).

    Args:
        heads: the exit heads by their layer's number.
        share_of_teacher: share of the main head's prediction in a head's target; the rest is the label.
        reverse: the direction of the KL divergence.
        problem: the kind of problem.
    """

    def __init__(
        self, heads: nn.ModuleDict, share_of_teacher: float, reverse: bool = False, problem: Choice = ONE
    ) -> None:
        super().__init__()
        self.heads = heads.requires_grad_(True)
        self.share_of_teacher, self.reverse, self.problem = share_of_teacher, reverse, problem

    def forward(self, labels: Tensor, teacher: Tensor, **features: Tensor) -> Loss:
        how = self.share_of_teacher, self.reverse, self.problem
        losses = [
            mixed_target_loss(head(features[f"layer_{layer}"]), labels, teacher, *how)
            for layer, head in self.heads.items()
        ]
        return {"loss": torch.stack(losses).mean(), "logits": teacher}


class Distillation(nn.Module):
    """A smaller model learns from a larger one: half its predictions, half the labels (DistilBERT's recipe for a task)."""

    def __init__(self, student: PyramidForSequenceClassification, teacher: PyramidForSequenceClassification) -> None:
        super().__init__()
        self.model = all_but_exits(student)
        self.frozen = [teacher.eval()]

    def forward(self, labels: Tensor, **inputs: Tensor) -> Loss:
        (teacher,) = self.frozen
        with torch.no_grad():
            wanted = teacher.to(labels.device)(**inputs).logits
        logits = self.model(**inputs).logits
        loss = mixed_target_loss(logits, labels, wanted, 0.5, problem=self.model.config.choice)
        return {"loss": loss, "logits": logits}


def half_of(model: PyramidForSequenceClassification) -> PyramidForSequenceClassification:
    """A model of every second layer of this one, from the first on."""
    every_second = slice(None, None, 2)
    settings = model.backbone.settings_of_layers(model.config, every_second)
    student = type(model)(type(model.config).from_dict({**model.config.to_dict(), **settings}))
    layers = zip(student.base_model.stack, model.base_model.stack[every_second], strict=True)
    for mine, yours in (*layers, *_beside_layers(student, model)):
        mine.load_state_dict(yours.state_dict())
    return student


def _beside_layers(*models: PyramidForSequenceClassification) -> Iterator[tuple[nn.Module, ...]]:
    """The same module of each model, for every module that holds weights beside the layers and the exits."""
    within = [dict(model.named_modules()) for model in models]
    skipped = {f"{name}." for name, x in within[0].items() if x in set(models[0].base_model.stack) | {models[0].exits}}
    for name, module in within[0].items():
        if next(module.parameters(recurse=False), None) is not None and not f"{name}.".startswith(tuple(skipped)):
            yield tuple(modules[name] for modules in within)

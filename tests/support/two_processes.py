"""Training and answers of tiny models in two processes, and the same in one.

:func:`main` is for an interpreter started by ``torchrun``; a test compares what it keeps with what it computes itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mp_model import PyramidBertForSequenceClassification
from mp_model.training import objectives
from support import tiny

STEPS = 3
BATCH = tiny.samples()
LABELS = torch.arange(len(BATCH)) % 3


def half(number: int) -> dict[str, Tensor]:
    """The batch of one process."""
    order = range(number, len(BATCH), 2)
    return {**BATCH.select(order).padded(), "labels": LABELS[number::2]}


def classifier() -> PyramidBertForSequenceClassification:
    return tiny.classifier(prune_thresholds=[0.01, 0.02, 0.02, 0.02], exit_head="pooled").train()


OBJECTIVES: dict[str, Callable[[], nn.Module]] = {
    "fine-tuning": lambda: objectives.FineTuning(classifier()),
    "soft pruning": lambda: objectives.SoftPruningObjective(classifier(), 0.01, 0.1, 0.02),
    "thresholds alone": lambda: objectives.SoftPruningObjective(classifier(), 0.01, 0.1, 0.02, freeze_backbone=True),
    "joint exits": lambda: objectives.JointExits(classifier(), 0.3, 0.5),
    "frozen exits": lambda: objectives.FrozenExits(tiny.classifier(exit_head="fastbert")),
    "distillation": lambda: objectives.Distillation(classifier(), tiny.classifier(seed=9)),
}


def shard_layers(model: PyramidBertForSequenceClassification) -> nn.Module:
    for layer in model.bert.encoder.layer:
        fully_shard(layer)
    return fully_shard(model)


# All weights in each process; the weights spread over both, each layer's for itself and the rest, or all at once.
SPREADS: dict[str, Callable[[PyramidBertForSequenceClassification], nn.Module]] = {
    "copied": DistributedDataParallel,
    "layers sharded": shard_layers,
    "model sharded": fully_shard,
}


def steps(module: nn.Module, batches: list[dict[str, Tensor]]) -> Iterator[None]:
    """Steps on the mean of the batches' losses, with a stop before each.

    Plain descent amplifies no rounding; the weight decay shrinks whatever has a gradient, even where that is zero.
    """
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.05, weight_decay=0.1)
    for _ in range(STEPS):
        yield
        optimizer.zero_grad()
        for batch in batches:
            (module(**batch)["loss"] / len(batches)).backward()
        optimizer.step()


def train(module: nn.Module, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The weights after the steps."""
    for _ in steps(module, batches):
        pass
    return whole_weights(module)


def answer(model: nn.Module, batches: list[dict[str, Tensor]]) -> list[Tensor]:
    """Logits of each batch without gradients, after which the model trains on."""
    model.eval()
    # Not in inference mode, in which full sharding would gather weights that can never be trained, whatever the model.
    with torch.no_grad():
        logits = [model(**batch).logits for batch in batches]
    model.train()
    return logits


def answers_and_weights(
    model: nn.Module, module: nn.Module, batches: list[dict[str, Tensor]]
) -> tuple[list[list[Tensor]], dict[str, Tensor]]:
    """A model's answers to each batch before each step and after the last, and its weights then.

    module: the model, wrapped for training.
    """
    logits = [answer(model, batches) for _ in steps(module, batches)]
    return [*logits, answer(model, batches)], whole_weights(model)


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """All weights, gathered from the processes that they are spread over."""
    return {
        name: (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach()
        for name, weight in module.named_parameters()
    }


def main(folder: Path) -> None:
    """Runs every case in this process and keeps what came out in ``folder``, as ``rank{number}.pt``."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    rank = dist.get_rank()
    kept: dict[str, Any] = {}
    for name, make in OBJECTIVES.items():
        module = make()
        train(DistributedDataParallel(module), [half(rank)])
        kept[name] = whole_weights(module)
    for name, spread in SPREADS.items():
        model = classifier()
        answer(model, [half(rank)])  # in prepared form, which training then follows
        kept[name] = answers_and_weights(model, spread(model), [half(rank)])
    torch.save(kept, folder / f"rank{rank}.pt")
    dist.destroy_process_group()

"""Heads that answer a tiny task well, trained in a moment on the features of a frozen backbone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mp_model import PyramidBertForSequenceClassification
from mp_model.training.features import Features, standardise, unstandardise


def train_head(dense: nn.Module, classifier: nn.Module, features: Tensor, labels: Tensor) -> None:
    """Trains ``classifier(tanh(dense(features)))`` in place; features: ``[texts, features]``, labels: int64 ``[texts]``."""
    standardised, mean, scale = standardise(features)
    parameters = [*dense.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    with torch.enable_grad():
        for _ in range(300):
            loss = F.cross_entropy(classifier(torch.tanh(dense(standardised))), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    unstandardise(dense, mean, scale)


def train_all_heads(model: PyramidBertForSequenceClassification, features: Features) -> None:
    """Trains every exit head and the model's own head, pooler and classifier."""
    for layer in model.config.resolved_exit_layers():
        head = model.exits[str(layer)]
        train_head(head.dense, head.classifier, features.layers[layer], features.labels)
    train_head(model.bert.pooler.dense, model.classifier, features.layers[-1], features.labels)

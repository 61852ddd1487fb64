"""How well an uncertainty tells the answers that differ from the last layer's, against all pairs of texts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mp_model.measuring.all_exits import AllExits
from mp_model.measuring.failures import auroc, told_apart
from support import tiny


def of_all_pairs(scores: Tensor, positive: Tensor) -> float:
    """The definition: a pair of one and the other counts 1, 1/2 or 0."""
    found = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high in scores[positive].tolist()
        for low in scores[~positive].tolist()
    ]
    return sum(found) / len(found)


@pytest.mark.parametrize("values", [2, 5, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_auroc_is_that_of_all_pairs(values: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(values, (80,), generator=generator) / values
    positive = torch.rand(80, generator=generator) < 0.2 + 0.3 * scores
    assert auroc(scores, positive) == pytest.approx(of_all_pairs(scores, positive), abs=1e-12)


def test_auroc_of_known_orders() -> None:
    scores, positive = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([False, False, True, True])
    assert (auroc(scores, positive), auroc(-scores, positive), auroc(scores * 0, positive)) == (1, 0, 0.5)
    assert auroc(scores, torch.zeros(4, dtype=torch.bool)) is None
    assert auroc(scores, torch.ones(4, dtype=torch.bool)) is None


def test_every_exit_layer_is_judged_by_the_last() -> None:
    """At layer 1 the surest answer differs, by entropy; the confidence heads know it. At layer 2 none differs."""
    certain, unsure = [0.0, 9.0], [0.2, 0.0]
    logits = {
        1: torch.tensor([certain, unsure, unsure]),
        2: torch.tensor([unsure, unsure, unsure]),
        3: torch.tensor([[3.0, 0.0]] * 3),
    }
    config = tiny.config(num_hidden_layers=3, num_labels=2, exit_layers=[1, 2], confidence_heads=True)
    disagreement = {1: torch.tensor([0.9, 0.1, 0.1]), 2: torch.tensor([0.1, 0.2, 0.3])}
    lengths = torch.full((3,), 5)
    survivors = lengths.unsqueeze(1).repeat(1, 3)
    exits = AllExits(config, torch.tensor([0, 1, 1]), lengths, survivors, logits, disagreement=disagreement)
    first, second, mean = told_apart(exits)
    assert (first.layer, first.differing, first.auroc) == (1, pytest.approx(1 / 3), {"entropy": 0, "disagreement": 1})
    assert (second.layer, second.differing) == (2, 0)
    assert second.auroc == {"entropy": None, "disagreement": None}
    assert (mean.layer, mean.differing, mean.auroc) == (None, pytest.approx(1 / 6), first.auroc)
    config.confidence_heads = False
    assert [list(row.auroc) for row in told_apart(exits)] == [["entropy"]] * 3

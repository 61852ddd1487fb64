"""Losses have the errors of paired differences, and guarantees are tried as ``tune`` gives them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mp_model.measuring.all_exits import AllExits
from mp_model.measuring.evaluation import SeveralFigures
from mp_model.measuring.tuning import guaranteed, outcomes_of_one_threshold, right_without_exits, trade_off
from paper.guarantees import Population, certain, draw, guarantees, joined
from paper.losses import loss_of, losses, merits
from paper.measuring import Reading
from support import tiny

SEVERAL = "multi_label_classification"


def exits_of(texts: int, seed: int, problem: str | None = None, noise: float = 1.0) -> AllExits:
    """Two exits and a last layer of three labels, each layer less noisy than the one below."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(texts, 3, generator=generator)
    labels = draws > 0.6 if problem else draws.argmax(1)
    config = tiny.config(num_hidden_layers=3, num_labels=3, exit_layers=[1, 2], problem_type=problem)
    meant = (labels if problem else torch.nn.functional.one_hot(labels, 3)).float() * 6 - 3

    def logits(doubt: float) -> Tensor:
        return meant + noise * doubt * torch.randn(texts, 3, generator=generator)

    lengths = torch.randint(5, 30, (texts,), generator=generator)
    return AllExits(
        config, labels, lengths, lengths.unsqueeze(1).repeat(1, 3), {1: logits(5.0), 2: logits(4.0), 3: logits(3.0)}
    )


def test_differences_are_paired() -> None:
    found = loss_of(torch.tensor([1.0, 0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    assert found["lost"] == pytest.approx(12.5)
    # mean 1/8; squares 3 - 8/64 over 7, then over 8
    assert found["standard_error"] == pytest.approx(100 * ((3 - 1 / 8) / 7 / 8) ** 0.5)


def test_micro_f1_is_a_mean_over_texts_with_the_error_of_a_bootstrap() -> None:
    exits = exits_of(300, 0, SEVERAL)
    early, late = exits.answers(1.0), exits.answers(None)
    for answers in (early, late):
        figures = SeveralFigures.of(answers.predictions, exits.labels)
        assert merits(exits, answers).mean().item() == pytest.approx(figures.micro_f1)
    found = loss_of(merits(exits, late) - merits(exits, early))
    generator = torch.Generator().manual_seed(1)
    lost = []
    for _ in range(1000):
        rows = torch.randint(300, (300,), generator=generator)
        late_f1, early_f1 = (SeveralFigures.of(x.predictions[rows], exits.labels[rows]).micro_f1 for x in (late, early))
        lost.append(100 * (late_f1 - early_f1))
    assert found["standard_error"] == pytest.approx(torch.tensor(lost).std().item(), rel=0.1)


def test_losses_are_means_over_seeds() -> None:
    readings = {}
    for seed in range(2):
        exits = exits_of(200, seed)
        readings[seed, "pyramid"] = Reading(exits_of(150, 10 + seed), exits)
        config = type(exits.config).from_dict({**exits.config.to_dict(), "exit_layers": []})
        last = AllExits(config, exits.labels, exits.lengths, exits.survivors, {3: exits.logits[3]})
        readings[seed, "bert"] = Reading(last, last)
    found = losses(readings, ("bert", "mp", "pyramid"), (0.5,))
    assert list(found) == ["bert", "pyramid"]
    assert (found["bert"]["0.5"]["lost"], found["bert"]["0.5"]["standard_error"]) == (0, 0)
    pyramid = found["pyramid"]["0.5"]
    for row in pyramid["seeds"]:
        reading = readings[row["seed"], "pyramid"]
        assert row["exit_threshold"] == reading.offers.fastest(0.005).exit_threshold
        right = (reading.test.answers(row["exit_threshold"]).predictions == reading.test.labels).double().mean()
        assert row["score"] == pytest.approx(right.item())
        before = right_without_exits(reading.test).double().mean() - right
        assert row["lost"] == pytest.approx(100 * before.item())
    lost = [row["lost"] for row in pyramid["seeds"]]
    assert pyramid["lost"] == pytest.approx(sum(lost) / 2)
    assert pyramid["spread"] == pytest.approx(abs(lost[0] - lost[1]) / 2**0.5)


@pytest.mark.parametrize("problem", [None, SEVERAL])
def test_draws_are_tuned_as_tune_does_it(problem: str | None) -> None:
    exits = exits_of(300, 3, problem)
    drawn = draw(300, 120, 6)
    assert drawn.sum(0).tolist() == [120] * 6
    for sample, offers in enumerate(Population.of(exits, steps=40).offers(drawn)):
        rows = torch.repeat_interleave(torch.arange(300), drawn[:, sample].long())
        texts = exits.select(rows)
        real = trade_off({1.0: texts}, layered=False, steps=40)
        for drop in (0.0, 0.005, 0.02, 0.1):
            for counted in (False, True):
                mine, wanted = offers.fastest(drop, counted=counted), real.fastest(drop, counted=counted)
                assert mine.exit_threshold == wanted.exit_threshold
                assert mine.expected_accuracy == pytest.approx(wanted.expected_accuracy)
                assert (mine.accuracy, mine.harm) == pytest.approx((wanted.accuracy, wanted.harm))
        path = outcomes_of_one_threshold(texts, 40)
        for harm in (0.02, 0.1, 0.3):
            passed, given = certain(offers.one_threshold, harm), guaranteed({1.0: texts}, path, harm, 0.9)
            assert (passed and passed.exit_threshold) == (given and given.exit_threshold)
            assert (passed is None) == (given is None)


def test_shares_of_draws() -> None:
    """Noisy exits break what promises nothing, and not what is promised; an exit as good as the model loses nothing."""
    noisy = Reading(exits_of(300, 4, noise=0.5), exits_of(700, 5, noise=0.5))
    found = guarantees(noisy, (0.5,), draws=100, steps=50)
    assert found["draws"] == 100
    assert 0 < found["careful"]["0.5"]["exceeded"] < 1
    assert found["careful"]["0.5"]["deepest"] > 0.5
    assert [x["given"] for x in found["guaranteed"].values()] == [1.0, 1.0]
    assert all(x["exceeded"] <= found["promised"] for x in found["guaranteed"].values())
    sure = exits_of(300, 6, noise=0.0)
    found = guarantees(Reading(sure, sure), (0.5,), draws=20, steps=50)
    assert found["careful"]["0.5"] == {"exceeded": 0.0, "deepest": 0.0}
    assert found["guaranteed"]["1.0"] == {"exceeded": 0.0, "given": 1.0}
    assert len(joined(Reading(sure, sure))) == 600

"""Outcomes of exit thresholds by hand, the choice among them, and that a guarantee holds as often as it says."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mp_model.flops import paper_flops
from mp_model.measuring.all_exits import TEMPERATURES, AllExits, calibrated
from mp_model.measuring.tuning import (
    Outcome,
    TradeOff,
    binomial_tail,
    frontier,
    guaranteed,
    kinds_of_uncertainty,
    least_work,
    one_threshold_a_layer,
    outcome_of,
    outcomes_of_one_threshold,
    right_without_exits,
    texts_needed,
    trade_off,
)
from support import tiny


def logits_of(*probabilities: float) -> Tensor:
    """Logits of two labels from the probability of label 0."""
    return torch.tensor([[math.log(p), math.log1p(-p)] for p in probabilities])


def exits_of(logits: dict[int, Tensor], labels: Sequence[int]) -> AllExits:
    """Texts of ten tokens, none of which is pruned."""
    layers = max(logits)
    config = tiny.config(num_hidden_layers=layers, num_labels=2, exit_layers=sorted(logits)[:-1])
    lengths = torch.full((len(labels),), 10)
    return AllExits(config, torch.tensor(labels), lengths, lengths.unsqueeze(1).repeat(1, layers), logits)


# Uncertainties: 0.081 at 0.99 and 0.01, 0.286 at 0.05, 0.469 at 0.1 and 0.9, 0.722 at 0.8, 0.881 at 0.3, 0.971 at 0.6.
EXITS = exits_of(
    {
        1: logits_of(0.99, 0.1, 0.6, 0.1),
        2: logits_of(0.99, 0.99, 0.3, 0.6),
        3: logits_of(0.99, 0.99, 0.01, 0.9),  # the whole model is wrong in the last text
    },
    [0, 0, 1, 1],
)
RIGHT_BEFORE = torch.tensor([True, True, True, False])


@pytest.mark.parametrize(
    ("threshold", "accuracy", "harm", "exit_layers"),
    [
        (None, 0.75, 0.0, [3, 3, 3, 3]),
        (0.0, 0.75, 0.0, [3, 3, 3, 3]),
        (0.1, 0.75, 0.0, [1, 2, 3, 3]),
        (0.5, 0.75, 0.25, [1, 1, 3, 1]),  # text 1 leaves wrongly, text 3 rightly
        ([0.1, 1.0], 0.75, 0.0, [1, 2, 2, 2]),
        (0.9, 0.75, 0.25, [1, 1, 2, 1]),
        (1.0, 0.5, 0.5, [1, 1, 1, 1]),  # text 2 leaves wrongly, too
    ],
)
def test_outcome(threshold: float | list[float] | None, accuracy: float, harm: float, exit_layers: list[int]) -> None:
    outcome = outcome_of(EXITS, threshold, factor=2.0)
    assert (outcome.exit_threshold, outcome.accuracy, outcome.harm, outcome.factor) == (threshold, accuracy, harm, 2.0)
    assert outcome.mean_exit_layer == sum(exit_layers) / 4
    tokens = EXITS.survivors * (torch.arange(1, 4) <= torch.tensor(exit_layers).unsqueeze(1))
    paper = paper_flops(EXITS.config, tokens, EXITS.lengths, torch.tensor(exit_layers))
    assert outcome.gflops == pytest.approx(paper.double().mean().item() / 1e9)
    dense = EXITS.dense_flops.double().mean().item() / 1e9
    assert outcome.speed_up == pytest.approx(dense / outcome.executed_gflops)


def test_right_without_exits() -> None:
    assert torch.equal(right_without_exits(EXITS), RIGHT_BEFORE)


@pytest.mark.parametrize("steps", [10, 200])
def test_one_threshold_for_all_layers(steps: int) -> None:
    outcomes = outcomes_of_one_threshold(EXITS, steps)
    assert [x.exit_threshold for x in outcomes] == [None, *(step / steps for step in range(steps + 1))]
    assert outcomes[steps + 1] == outcome_of(EXITS, 1.0)


def test_a_larger_threshold_may_harm_less() -> None:
    """Above 0.722 the text leaves at layer 1, rightly, before layer 2 can answer wrongly."""
    exits = exits_of({1: logits_of(0.8), 2: logits_of(0.05), 3: logits_of(0.99)}, [0])
    assert [outcome_of(exits, x, before=exits.labels).harm for x in (0.2, 0.5, 0.8)] == [0, 1, 0]


def random_exits(texts: int, seed: int, layers: int = 5, noise: float = 1.5) -> AllExits:
    """Predictions that are the better and the surer the higher the layer, at a different rate in each."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (texts,), generator=generator)
    truth = torch.where(labels == 0, 1.0, -1.0)
    difficulty = torch.rand(texts, generator=generator) * 2
    logits = {}
    for layer in range(1, layers + 1):
        signal = truth * (0.5 + layer - difficulty) + noise * torch.randn(texts, generator=generator)
        confidence = 1.0 + (layer % 2)  # odd layers are overconfident, so that one threshold suits them badly
        logits[layer] = torch.stack([signal * confidence, -signal * confidence], dim=1)
    return exits_of(logits, labels.tolist())


@pytest.mark.parametrize("seed", range(5))
def test_one_threshold_a_layer_is_never_worse_than_one(seed: int) -> None:
    exits = random_exits(300, seed)
    offers = trade_off({1.0: exits}, layered=True, steps=20)
    assert offers.layered
    for single in offers.one_threshold:
        assert any(
            by_layer.accuracy >= single.accuracy and by_layer.executed_gflops <= single.executed_gflops
            for by_layer in offers.layered
        )
    alone = TradeOff(offers.reference, offers.one_threshold)
    for drop in (0.0, 0.01, 0.05):
        assert offers.fastest(drop, counted=True).executed_gflops < alone.fastest(drop, counted=True).executed_gflops
        assert offers.fastest(drop).executed_gflops <= alone.fastest(drop).executed_gflops


def test_thresholds_by_layer_use_what_one_cannot() -> None:
    """Layer 1 is always sure and often wrong, layer 2 less sure and right: only separate thresholds let texts leave."""
    exits = exits_of({1: logits_of(*[0.01] * 4), 2: logits_of(*[0.9] * 4), 3: logits_of(*[0.99] * 4)}, [0] * 4)
    start = outcome_of(exits, 0.0)
    found = one_threshold_a_layer(exits, start)
    assert found.accuracy == 1
    assert found.mean_exit_layer == 2
    assert found.exit_threshold[0] < 0.08 < 0.46 < found.exit_threshold[1] < 0.48
    nobody = outcome_of(exits, None)
    assert one_threshold_a_layer(exits, nobody) == found


def outcome(accuracy: float, executed: float, factor: float = 1.0, threshold: float = 0.5) -> Outcome:
    return Outcome(
        texts=10,
        accuracy=accuracy,
        mean_exit_layer=2.0,
        gflops=executed,
        executed_gflops=executed,
        dense_gflops=10.0,
        tokens_kept=[1.0, 1.0],
        exit_threshold=threshold,
        expected_accuracy=accuracy,
        harm=0.0,
        disagreement=0.0,
        factor=factor,
    )


def test_the_frontier_and_the_goals() -> None:
    points = [outcome(0.8, 2), outcome(0.9, 5), outcome(0.85, 6), outcome(0.88, 3), outcome(0.9, 4), outcome(0.7, 2)]
    assert [(x.accuracy, x.executed_gflops) for x in frontier(points)] == [(0.9, 4), (0.88, 3), (0.8, 2)]
    offers = TradeOff(outcome(0.9, 8), points)
    assert offers.fastest(0.0).executed_gflops == 4
    assert offers.fastest(0.02).executed_gflops == 3
    assert offers.fastest(0.5).executed_gflops == 2
    assert offers.most_accurate(3.0).accuracy == 0.88
    with pytest.raises(ValueError, match=r"the highest speed-up that this model reaches is 5.00; got 7"):
        offers.most_accurate(7)


def test_what_leaving_is_expected_to_cost() -> None:
    """By hand: where the answer changes, the difference of the two labels' calibrated probabilities."""
    exits = exits_of({1: logits_of(0.9, 0.2, 0.8, 0.6), 2: logits_of(0.7, 0.4, 0.2, 0.9)}, [0, 1, 0, 0])
    own = exits.logits[2].double()
    by_temperature = {t: F.cross_entropy(own / t, exits.labels).item() for t in TEMPERATURES}
    held = torch.softmax(own / min(by_temperature, key=by_temperature.get), -1)
    torch.testing.assert_close(calibrated(own, exits.labels).softmax(-1), held)
    cost = (held[2, 1] - held[2, 0]).item()
    assert cost > 0
    assert exits.expected_cost(exits.predictions[0]) == pytest.approx(cost / 4)
    assert exits.expected_cost(exits.predictions[1]) == 0
    found = outcome_of(exits, 1.0)
    assert (found.accuracy, found.expected_accuracy) == (1.0, pytest.approx(0.75 - cost / 4))
    assert found.smoothed_accuracy == pytest.approx((1.75 - cost / 4) / 2)
    nobody = outcome_of(exits, None)
    assert nobody.accuracy == nobody.expected_accuracy == 0.75


def test_a_calibrated_head_says_how_often_it_is_right() -> None:
    """Logits that are three times too sure get the probabilities that labels were drawn by."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 3, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator).squeeze(1)
    held = calibrated(3 * logits, labels).softmax(-1)
    torch.testing.assert_close(held, torch.softmax(logits, -1), atol=0.02, rtol=0)


def ambiguous_exits(texts: int) -> AllExits:
    """Texts whose labels are drawn, as likely as layer 4 thinks (only less sure); earlier layers know less."""
    generator = torch.Generator().manual_seed(0)
    score = 3 * torch.randn(texts, generator=generator)
    labels = (torch.rand(texts, generator=generator) < torch.sigmoid(score)).long()
    noise = {1: 1.0, 2: 0.7, 3: 0.4, 4: 0.0}
    logits = {layer: 2 * (score + x * torch.randn(texts, generator=generator)) for layer, x in noise.items()}
    return exits_of({layer: torch.stack([-x / 2, x / 2], dim=1) for layer, x in logits.items()}, labels.tolist())


def test_lucky_settings_are_passed_over() -> None:
    """The fastest setting by count loses more on other texts than it was to; the careful choice hardly does."""
    everything = ambiguous_exits(20_000)
    right_everywhere = right_without_exits(everything)
    losses: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(40):
        rows = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))[:1000]
        offers = trade_off({1.0: everything.select(rows)}, layered=False, steps=40)
        for counted, lost in losses.items():
            chosen = offers.fastest(0.005, counted=counted)
            assert chosen.accuracy >= offers.reference.accuracy - 0.005 - 1e-9
            there = outcome_of(everything, chosen.exit_threshold)
            lost.append(right_everywhere.double().mean().item() - there.accuracy)
    assert statistics.mean(losses[False]) < 0.0065 < 0.0075 < statistics.mean(losses[True])
    assert statistics.stdev(losses[False]) < statistics.stdev(losses[True])


def test_latency_is_met_by_what_was_measured() -> None:
    offers = TradeOff(outcome(0.95, 20), [outcome(0.7 + executed / 100, executed) for executed in range(1, 20)])
    measured = []

    def measure(candidate: Outcome) -> float:
        measured.append(candidate)
        return candidate.executed_gflops * 1e-3 + 1e-4

    chosen, seconds = offers.within_latency(0.0072, measure)
    assert (chosen.executed_gflops, seconds) == (7, pytest.approx(0.0071))
    assert len(measured) <= 5
    with pytest.raises(ValueError, match=r"the fastest setting of this model takes 1.10 ms a text here"):
        offers.within_latency(0.0001, measure)


def test_stronger_pruning_is_on_offer() -> None:
    """Losses are counted from the model's own pruning, whatever the factor."""
    own, strong = (random_exits(200, 0, noise=0.7) for _ in range(2))
    strong.survivors = strong.survivors // 2
    offers = trade_off({1.0: own, 2.0: strong}, layered=False, steps=10)
    assert offers.reference == outcome_of(own, None)
    assert {x.factor for x in offers.one_threshold} == {1.0, 2.0}
    assert offers.fastest(0.05).factor == 2.0


def test_a_model_without_exits_offers_itself() -> None:
    exits = exits_of({2: logits_of(0.9, 0.2)}, [0, 1])
    offers = trade_off({1.0: exits}, layered=True)
    assert [x.exit_threshold for x in offers.curve()] == [None]


@pytest.mark.parametrize(
    ("count", "texts", "probability", "expected"),
    [
        (0, 10, 0.1, 0.9**10),
        (1, 2, 0.5, 0.75),
        (3, 3, 0.2, 1.0),
        (0, 1, 0.25, 0.75),
        (2, 5, 0.0, 1.0),
        (2, 5, 1.0, 0.0),
    ],
)
def test_binomial_tail(count: int, texts: int, probability: float, expected: float) -> None:
    assert binomial_tail(count, texts, probability) == pytest.approx(expected)


def test_a_guarantee_holds_as_often_as_it_says() -> None:
    """Among texts of a kind whose true harm is known, at most one choice in ten may exceed what was promised."""
    everything = random_exits(40_000, 0, noise=0.7)
    path = [outcome(0.0, 1.0, threshold=step / 40) for step in range(41)]
    true_harm = [outcome_of(everything, x.exit_threshold).harm for x in path]
    broken = useful = 0
    trials = 100
    for seed in range(trials):
        rows = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))[:400]
        chosen = guaranteed({1.0: everything.select(rows)}, path, 0.05, 0.9)
        if chosen is not None:
            broken += true_harm[round(chosen.exit_threshold * 40)] > 0.05
            useful += chosen.exit_threshold > 0
    assert broken <= 17  # a tenth, and what a binomial of 100 exceeds once in a hundred times
    assert useful > trials / 2


def with_confidence(exits: AllExits, seed: int = 0) -> AllExits:
    """The same with confidence heads, which are right as often as they say: a layer's tell, with noise, who differs."""
    generator = torch.Generator().manual_seed(seed)
    told = {}
    for layer, differs in zip(exits.layers[:-1], exits.differs, strict=False):
        score = differs + 0.5 * torch.randn(len(exits), generator=generator)
        order, share = score.argsort().chunk(50), torch.empty(len(exits))
        for part in order:
            share[part] = differs[part].float().mean()
        told[layer] = share
    config = type(exits.config).from_dict({**exits.config.to_dict(), "confidence_heads": True})
    return AllExits(config, exits.labels, exits.lengths, exits.survivors, exits.logits, disagreement=told)


@pytest.mark.parametrize("kind", ["entropy", "disagreement"])
def test_disagreement_is_counted_against_the_last_layer(kind: str) -> None:
    """The same as text by text; a text that leaves with the last layer's wrong answer does not count."""
    exits = with_confidence(random_exits(200, 0, noise=0.7)).by(kind)
    for threshold in (None, 0.05, 0.2, [0.1] * (len(exits.layers) - 1), 1.0):
        found = outcome_of(exits, threshold)
        others = 0
        for text in range(200):
            place = len(exits.layers) - 1
            if threshold is not None:
                of_layers = threshold if isinstance(threshold, list) else [threshold] * place
                place = next((x for x in range(place) if exits.uncertainty[x, text] <= of_layers[x]), place)
            others += exits.predictions[place, text].item() != exits.predictions[-1, text].item()
        assert (found.disagreement, found.exit_uncertainty) == (others / 200, kind)
    counted = trade_off({1.0: exits}, layered=False, steps=20)
    within = [x for x in counted.outcomes() if x.disagreement <= 0.03]
    assert counted.agreeing(0.03) == min(within, key=lambda x: x.executed_gflops)


@pytest.mark.parametrize("kind", ["entropy", "disagreement"])
def test_a_bound_of_disagreement_holds_as_often_as_it_says(kind: str) -> None:
    everything = with_confidence(random_exits(40_000, 0, noise=0.7)).by(kind)
    path = outcomes_of_one_threshold(everything, 40)
    true = {x.exit_threshold: x.disagreement for x in path}
    broken = useful = 0
    trials = 100
    for seed in range(trials):
        rows = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))[:400]
        few = everything.select(rows)
        chosen = guaranteed({1.0: few}, path, 0.05, 0.9, "disagreement")
        if chosen is not None:
            broken += true[chosen.exit_threshold] > 0.05
            useful += bool(chosen.exit_threshold)
    assert broken <= 17  # a tenth, and what a binomial of 100 exceeds once in a hundred times
    assert useful > trials / 2


def test_kinds_of_uncertainty() -> None:
    plain, learned = tiny.config(), tiny.config(confidence_heads=True)
    assert [kinds_of_uncertainty(config, "auto") for config in (plain, learned)] == [
        ["entropy"],
        ["entropy", "disagreement"],
    ]
    assert kinds_of_uncertainty(learned, "disagreement") == ["disagreement"]
    with pytest.raises(
        ValueError, match="disagreement is told by confidence heads, and this model has none; train them"
    ):
        kinds_of_uncertainty(plain, "disagreement")
    with pytest.raises(ValueError, match="must be one of entropy, disagreement, auto; got 'margin'"):
        kinds_of_uncertainty(learned, "margin")
    first, second = outcome(0.8, 2.0, threshold=0.1), outcome(0.9, 2.0, threshold=0.2)
    assert least_work([first, second]) is first


def test_steps_are_closer_where_probabilities_are() -> None:
    entropy, disagreement = (
        tiny.config(confidence_heads=True, exit_uncertainty=x).uncertainty for x in ("entropy", "disagreement")
    )
    assert entropy.steps(4) == [0, 0.25, 0.5, 0.75, 1]
    assert disagreement.steps(4) == [0, 0.015625, 0.125, 0.421875, 1]


def test_what_cannot_be_guaranteed() -> None:
    few = random_exits(20, 0)
    path = outcomes_of_one_threshold(few, 10)
    assert guaranteed({1.0: few}, path, 0.01, 0.9) is None
    assert texts_needed(0.01, 0.9) == 230
    assert binomial_tail(0, 230, 0.01) <= 0.1 < binomial_tail(0, 229, 0.01)
    for wrong in ({"max_harm": 0.0, "confidence": 0.9}, {"max_harm": 0.1, "confidence": 1.0}):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            guaranteed({1.0: few}, path, **wrong)


# Depth


def test_a_depth_is_chosen_by_the_same_rule() -> None:
    """Layer 2 answers as rightly as layer 3, though it is never certain, so no threshold lets anybody leave there."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (400,), generator=draw)
    right = torch.where(torch.rand(400, generator=draw) < 0.9, labels, 1 - labels)
    unsure, sure = (torch.where(right == 0, p, 1 - p).tolist() for p in (torch.tensor(0.505), torch.tensor(0.9)))
    guess = torch.rand(400, generator=draw).clamp(0.2, 0.8).tolist()
    exits = exits_of({1: logits_of(*guess), 2: logits_of(*unsure), 3: logits_of(*sure)}, labels.tolist())
    steps = trade_off({1.0: exits}, layered=False)
    assert steps.fastest(0.005).exit_threshold is None
    offers = trade_off({1.0: exits}, layered=False, depths=True)
    chosen = offers.fastest(0.005)
    assert (chosen.depth, chosen.accuracy, chosen.harm) == (2, steps.reference.accuracy, 0.0)
    assert chosen.executed_gflops < steps.reference.executed_gflops
    assert offers.reference == steps.reference
    capped = outcome_of(exits.capped(2), chosen.exit_threshold)
    assert capped == chosen
    assert trade_off({1.0: exits}, layered=True, depths=True).fastest(0.005).executed_gflops <= chosen.executed_gflops
    path = [offers.reference, chosen]
    passed = guaranteed({1.0: exits}, path, 0.02, 0.9)
    assert passed is not None
    assert passed.depth == 2


def test_losses_by_a_depth_count_from_the_whole_model() -> None:
    """What layer 1 costs is judged by layer 3, which it disagrees with, and not by itself."""
    exits = exits_of(
        {1: logits_of(0.9, 0.1, 0.9, 0.1), 2: logits_of(0.9, 0.9, 0.9, 0.9), 3: logits_of(0.9, 0.9, 0.1, 0.1)},
        [0, 0, 1, 1],
    )
    outcome = outcome_of(exits.capped(1), None)
    assert (outcome.accuracy, outcome.harm, outcome.mean_exit_layer) == (0.5, 0.5, 1.0)
    assert outcome.expected_accuracy < 0.6
    alone = exits_of({1: logits_of(0.9, 0.1, 0.9, 0.1), 2: logits_of(0.9, 0.1, 0.9, 0.1)}, [0, 0, 1, 1])
    assert outcome_of(alone, 1.0).expected_accuracy == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_a_threshold_a_layer_under_a_depth_has_one_for_each_exit(seed: int) -> None:
    exits = random_exits(150, seed)
    for depth in exits.layers[:-1]:
        capped = exits.capped(depth)
        start = outcome_of(capped, 0.6)
        found = one_threshold_a_layer(capped, start)
        assert found.depth == depth
        assert found.accuracy >= start.accuracy
        assert found.executed_gflops <= start.executed_gflops
        if isinstance(found.exit_threshold, list):
            assert len(found.exit_threshold) == len(exits.layers) - 1

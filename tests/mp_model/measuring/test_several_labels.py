"""Figures of answers with any number of labels, by hand: right is a text of which all labels are right."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mp_model.data.batches import length_sorted_batches
from mp_model.measuring.all_exits import TEMPERATURES, AllExits, read_all_exits
from mp_model.measuring.evaluation import evaluate, f1_score
from mp_model.measuring.levels import priced_levels
from mp_model.measuring.tuning import guaranteed, outcome_of, outcomes_of_one_threshold, trade_off
from mp_model.measuring.windows import ExitsOfWindows
from mp_model.problems import SEVERAL
from mp_model.reporting.findings import Findings, by_label
from support import tiny

SETTINGS = {"problem_type": "multi_label_classification"}


def logits_of(*rows: tuple[float, float]) -> Tensor:
    """Logits of two labels from the probability of each."""
    return torch.tensor([[math.log(p) - math.log1p(-p) for p in row] for row in rows])


def entropy(p: float) -> float:
    return -(p * math.log2(p) + (1 - p) * math.log2(1 - p))


# Four texts of ten tokens, none of which is pruned, at exits of layers 1 and 2 and the last layer.
LABELS = torch.tensor([[1, 0], [1, 1], [0, 0], [1, 0]], dtype=torch.bool)
LOGITS = {
    1: logits_of((0.99, 0.01), (0.99, 0.4), (0.2, 0.1), (0.9, 0.9)),
    2: logits_of((0.99, 0.3), (0.99, 0.9), (0.95, 0.05), (0.1, 0.1)),
    3: logits_of((0.9, 0.2), (0.7, 0.8), (0.3, 0.1), (0.4, 0.3)),  # wrong in the last text
}
UNCERTAINTY = [
    [entropy(0.01), entropy(0.4), entropy(0.2), entropy(0.1)],
    [entropy(0.3), entropy(0.1), entropy(0.05), entropy(0.1)],
]


def exits_of(logits: dict[int, Tensor] = LOGITS, labels: Tensor = LABELS) -> AllExits:
    config = tiny.config(num_hidden_layers=3, num_labels=2, exit_layers=[1, 2], **SETTINGS)
    lengths = torch.full((len(labels),), 10)
    return AllExits(config, labels, lengths, lengths.unsqueeze(1).repeat(1, 3), logits)


def test_answers_and_uncertainty() -> None:
    exits = exits_of()
    torch.testing.assert_close(exits.uncertainty.double(), torch.tensor(UNCERTAINTY).double(), atol=1e-5, rtol=0)
    assert exits.predictions[0].int().tolist() == [[1, 0], [1, 0], [0, 0], [1, 1]]
    assert exits.right.int().tolist() == [[1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    answers = exits.answers(0.5)
    assert answers.exit_layer.tolist() == [1, 2, 2, 1]
    assert answers.predictions.int().tolist() == [[1, 0], [1, 1], [1, 0], [1, 1]]
    assert exits.answered(answers).tolist() == [LOGITS[layer][row].tolist() for row, layer in enumerate((1, 2, 2, 1))]


@pytest.mark.parametrize(
    ("threshold", "accuracy", "harm"),
    [(None, 0.75, 0.0), (0.5, 0.5, 0.25), (0.1, 0.75, 0.0), ([0.75, 0.0], 0.75, 0.0), (1.0, 0.5, 0.25)],
)
def test_harm_is_a_set_that_was_right(threshold: object, accuracy: float, harm: float) -> None:
    """What an exit answers where the last layer is wrong too is no harm."""
    exits = exits_of()
    outcome = outcome_of(exits, threshold)
    assert (outcome.accuracy, outcome.harm) == (accuracy, harm)


def test_what_leaving_is_expected_to_cost() -> None:
    """By hand: the calibrated last layer's probabilities of both sets, labels being independent."""
    exits = exits_of()
    own = LOGITS[3].double()

    def chance(logits: Tensor, row: Tensor) -> float:
        p = 1 / (1 + (-logits).exp())
        return math.prod(x if has else 1 - x for x, has in zip(p.tolist(), row.tolist(), strict=True))

    def loss(temperature: float) -> float:
        return -sum(math.log(chance(z / temperature, row)) for z, row in zip(own, LABELS, strict=True))

    best = min(TEMPERATURES, key=loss)
    answers = exits.answers(0.5).predictions
    lost = [
        chance(z / best, mine) - chance(z / best, given)
        for z, mine, given in zip(own, exits.predictions[-1], answers, strict=True)
    ]
    assert exits.expected_cost(answers) == pytest.approx(sum(lost) / 4)
    assert exits.expected_cost(exits.predictions[-1]) == 0


def test_the_choice_of_thresholds() -> None:
    """Wrong sets at low uncertainty keep exits closed; right ones open them; a guarantee counts sets."""
    torch.manual_seed(0)
    labels = torch.rand(400, 3) < 0.4
    sign = labels.float() * 2 - 1
    last = 4 * sign
    certain = torch.rand(400) < 0.5
    first = torch.where(certain.unsqueeze(1), 6 * sign, 0.3 * sign)
    first[~certain, 2] *= -1  # a third label is wrong wherever the exit is not certain
    config = tiny.config(num_hidden_layers=2, num_labels=3, exit_layers=[1], **SETTINGS)
    lengths = torch.full((400,), 10)
    exits = AllExits(config, labels, lengths, lengths.unsqueeze(1).repeat(1, 2), {1: first, 2: last})
    chosen = trade_off({1.0: exits}, layered=True).fastest(0.0)
    assert chosen.accuracy == 1.0
    assert exits.answers(chosen.exit_threshold).exit_layer.tolist() == [1 if sure else 2 for sure in certain]
    path = outcomes_of_one_threshold(exits)
    passed = guaranteed({1.0: exits}, path, 0.02, 0.95)
    assert passed is not None
    assert passed.harm == 0
    assert passed.mean_exit_layer == chosen.mean_exit_layer
    tuned, *_ = priced_levels(exits, 1.0)
    assert tuned.disagreement == pytest.approx((~certain).double().mean().item())


def test_figures() -> None:
    """As scikit-learn counts them: micro over all decisions, macro over labels, a label that nobody has or gets is 0."""
    labels = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0]], dtype=torch.bool)
    given = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]], dtype=torch.bool)
    exits = exits_of({1: given * 2.0 - 1, 2: given * 2.0 - 1, 3: given * 2.0 - 1}, labels)
    exits.config.id2label = {0: "a", 1: "b", 2: "c"}
    found = evaluate(exits, None)
    assert found.several is not None
    assert found.accuracy == found.several.exact_match == 0.5
    assert found.several.label_accuracy == pytest.approx(10 / 12)
    assert found.several.micro_f1 == pytest.approx(2 * 3 / (4 + 4))
    assert found.several.macro_f1 == found.f1 == pytest.approx((1 + 2 * 1 / (2 + 2) + 0) / 3)
    assert found.as_json()["several"]["micro_f1"] == found.several.micro_f1
    assert f1_score(given[:, :2], labels[:, :2], 2, SEVERAL) == pytest.approx((1 + 0.5) / 2)
    assert [bucket.accuracy for bucket in found.buckets] == [0.5]

    findings = Findings.of(exits, None)
    rows = [(x.name, x.texts, x.answered, x.right) for x in by_label(findings, "abc")]
    assert rows == [("a", 2, 2, 2), ("b", 2, 2, 1), ("c", 0, 0, 0)]
    assert findings.right.tolist() == [True, False, False, True]
    sure = 1 / (1 + math.exp(-1))
    assert findings.scores.tolist() == pytest.approx([sure**3] * 4)
    assert findings.confusions(5) == [((), (1,), 1), ((0, 1), (0,), 1)]


def test_read_from_a_model_and_in_windows() -> None:
    """The answers of all exits are the model's; a text's windows are read until all labels of their mean are certain."""
    batch = tiny.samples()
    rows = [
        {"input_ids": a.tolist(), "token_type_ids": b.tolist()} for a, b in zip(batch.ids, batch.types, strict=True)
    ]
    model = tiny.classifier(exit_head="pooled", exit_layers=[0, 1, 2, 3], **SETTINGS)
    labels = torch.rand(len(batch), 3) < 0.5
    exits = read_all_exits(model, length_sorted_batches(rows, 5, pad_token_id=0), labels)
    for threshold in (None, 0.9, [0.99, 0.9, 0.95, 0.8]):
        answers = exits.answers(threshold)
        with torch.no_grad():
            out = model(**batch.padded(), exit_threshold=threshold)
        assert answers.exit_layer.tolist() == out.exit_layer.tolist()
        assert torch.equal(answers.predictions, out.logits > 0)
    text_of = torch.tensor([n // 3 for n in range(len(batch))])
    windows = ExitsOfWindows(exits, text_of)
    assert torch.equal(windows.labels, labels[::3])
    found = windows.answers(0.97)
    each = exits.answers(0.97)
    logits = exits.answered(each)
    for text in range(4):
        means = [logits[3 * text : 3 * text + n].mean(0) for n in (1, 2, 3)]
        read = next((n for n, mean in enumerate(means) if max(entropy(float(p)) for p in mean.sigmoid()) <= 0.97), 2)
        torch.testing.assert_close(found.logits[text], means[read])
        assert torch.equal(found.predictions[text], means[read] > 0)
        assert found.exit_layer[text] == each.exit_layer[3 * text + read]

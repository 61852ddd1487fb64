"""Cascades are a whole BERT with one exit before its first layer, and bags of words learn what words say."""

from __future__ import annotations

import pytest
import torch

from mp_model.data.batches import TextBatch
from mp_model.data.labels import LabelledTexts
from mp_model.exits import EXIT_HEADS
from mp_model.flops import Shape
from mp_model.measuring.all_exits import AllExits, read_all_exits
from mp_model.problems import ONE
from paper.measuring import Reading
from paper.rivals import BagOfWords, cascade, check_same_texts, layer_0_cascade
from paper.ways import cascade_way, first_exit, translated
from support import tiny


def whole(labels: list[int], exit_layers: list[int], head: str = "cls") -> AllExits:
    """Answers of a model of two layers that is always right, with exits that say the opposite."""
    right = torch.nn.functional.one_hot(torch.tensor(labels), 2) * 4.0
    config = tiny.config(num_hidden_layers=2, num_labels=2, exit_layers=exit_layers, exit_head=head)
    lengths = torch.arange(5, 5 + len(labels))
    logits = {**dict.fromkeys(exit_layers, -right), 2: right}
    return AllExits(config, torch.tensor(labels), lengths, lengths.unsqueeze(1).repeat(1, 2), logits)


@pytest.mark.parametrize("head", ["pooled", "pair"])
def test_a_cascade_is_the_whole_model_for_those_that_are_not_certain(head: str) -> None:
    model = whole([0, 1, 0], [1])
    first = torch.tensor([[9.0, -9.0], [9.0, -9.0], [0.1, 0.0]])  # certain and right, certain and wrong, uncertain
    found = cascade(first, model, head)
    assert found.layers == [0, 2]
    closed = found.answers(None)
    assert torch.equal(closed.predictions, model.answers(None).predictions)
    assert torch.equal(closed.executed_flops, model.answers(None).executed_flops)
    answers = found.answers(0.5)
    assert answers.predictions.tolist() == [0, 0, 0]
    assert answers.exit_layer.tolist() == [0, 0, 2]
    asking = EXIT_HEADS[head].flops(Shape.of(found.config), torch.ones(1, dtype=torch.int64)).item()
    assert answers.executed_flops.tolist() == [asking, asking, asking + closed.executed_flops[2].item()]
    assert answers.flops.tolist() == [0, 0, model.dense_flops[2].item()]


def test_a_pyramids_first_head_then_another_model() -> None:
    bert, pyramid = whole([0, 1], []), whole([0, 1], [0, 1], "pair")
    found = layer_0_cascade(Reading(pyramid, pyramid), Reading(bert, bert))
    assert found is not None
    assert found.test.config.exit_head == "pair"
    assert found.test.answers(1.0).predictions.tolist() == [1, 0]
    assert found.test.answers(None).predictions.tolist() == [0, 1]
    assert layer_0_cascade(Reading(bert, bert), Reading(bert, bert)) is None
    other = whole([1, 0], [0, 1], "pair")
    with pytest.raises(ValueError, match="pyramid and bert were read on different texts"):
        layer_0_cascade(Reading(other, other), Reading(bert, bert))
    check_same_texts(bert, pyramid, "bert and pyramid")


def test_words_are_learned() -> None:
    texts = ["good film", "bad film", "good book", "bad book"] * 5
    train = LabelledTexts([*texts, *(("good", text) for text in texts[:1])], [0, 2, 0, 2] * 5 + [0])
    words = BagOfWords(train, 3)
    one, pairs = words.logits(["good day", "bad day"]), words.logits([("a", "bad film"), ("good", "film")])
    assert one.argmax(1).tolist() == [0, 2]
    assert pairs.argmax(1).tolist() == [2, 0]
    assert one.shape == (2, 3)
    assert (one.softmax(1)[:, 1] < 1e-6).all()  # nobody has label 1


def test_words_are_learned_for_several_labels() -> None:
    texts = ["good film", "bad film", "good book", "old bad book"] * 5
    train = LabelledTexts(texts, [(0, 2), (2,), (0,), (1,)] * 5, among=3)
    found = BagOfWords(train, 3).logits(["good film", "old bad book"])
    assert (found > 0).tolist() == [[True, False, True], [False, True, False]]


def test_the_whole_model_runs_for_those_that_stay_alone() -> None:
    ids, mask = torch.arange(12).reshape(3, 4), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    batch = {"input_ids": ids, "attention_mask": mask}
    asked: list[list[dict[str, torch.Tensor]]] = []
    first = torch.tensor([[9.0, -9.0], [0.1, 0.0], [0.0, 0.1]])
    cascade_way(lambda inputs: first[inputs["input_ids"][:, 0] // 4], asked.append, ONE, 0.5)([batch, batch])
    (group,) = asked
    assert [x["input_ids"].tolist() for x in group] == [[[4, 5, 6], [8, 9, 10]]] * 2
    assert group[0]["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    asked.clear()
    cascade_way(lambda inputs: first, asked.append, ONE, 1.0)([batch])
    assert asked == []
    cascade_way(lambda inputs: first, asked.append, ONE, None)([batch])
    assert asked == [[batch]]
    other = {"input_ids": ids[:, :2]}
    translated(asked.append, {id(batch): other})([batch])
    assert asked[-1] == [other]


def test_the_head_at_layer_0_alone() -> None:
    model = tiny.classifier(num_labels=2, exit_head="pooled", exit_layers=[0, 1]).eval()
    ids, mask = torch.arange(1, 19).reshape(2, 9), torch.ones(2, 9, dtype=torch.int64)
    mask[0, 5:] = 0
    inputs = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    batch = TextBatch([0, 1], inputs)
    with torch.inference_mode():
        found = first_exit(model)(batch.inputs)
    assert torch.allclose(found, read_all_exits(model, [batch], [0, 1]).logits[0])

"""Real weights: without pruning the encoder is transformers' BertModel, with it the definition's pyramid."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, BertModel, PreTrainedTokenizerBase

from mp_model import PyramidBert, PyramidBertForSequenceClassification
from support import definition, tiny

SENTENCES = [
    "The ferry to the island was cancelled because of the storm.",
    "Yes.",
    "Shares of the chip maker fell nine percent after it cut its forecast for the year, and analysts expect more.",
    "She poured the tea slowly, as if the cup might break.",
    "Is there a train before noon?",
    "Researchers found that the tiny crustaceans, long thought extinct, survive in three lakes north of the circle, "
    "where the water never warms above eight degrees and nothing else with a shell has been seen for decades.",
    "Goal!",
    "The court ruled that the two companies must pay back the money they had received from their customers.",
    "A dry, clever film whose second half forgets what the first half promised.",
    "To restart the device, hold the power button for ten seconds.",
    "He won the stage by forty seconds and still lost the race.",
    "Nobody at the ministry wanted to comment on the report, which was published on Friday and names eleven officials.",
]
PAIRS = list(zip(SENTENCES, SENTENCES[5:] + SENTENCES[:5], strict=True))


class Minilm(NamedTuple):
    tokenizer: PreTrainedTokenizerBase
    bert: BertModel
    pyramid: PyramidBert


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path) -> Minilm:
    return Minilm(
        AutoTokenizer.from_pretrained(minilm_folder),
        BertModel.from_pretrained(minilm_folder).eval(),
        PyramidBert.from_pretrained(minilm_folder).eval(),
    )


def tokenized(tokenizer: PreTrainedTokenizerBase, texts: list, side: str = "right", width: int | None = None) -> dict:
    texts = list(zip(*texts, strict=True)) if isinstance(texts[0], tuple) else [texts]
    padding = "longest" if width is None else "max_length"
    return dict(
        tokenizer(
            *(list(part) for part in texts),
            padding=padding,
            max_length=width,
            truncation=width is not None,
            padding_side=side,
            return_tensors="pt",
        )
    )


def positions_in_sample(attention_mask: Tensor) -> Tensor:
    """Position ids that count from each sample's first real token, as they have to be given to BertModel."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("texts", [SENTENCES, PAIRS], ids=["sentences", "pairs"])
def test_dense_pyramid_is_bert(minilm: Minilm, texts: list, side: str) -> None:
    inputs = tokenized(minilm.tokenizer, texts, side)
    positions = positions_in_sample(inputs["attention_mask"])
    assert inputs["token_type_ids"].any() == (texts is PAIRS)
    assert len(set(inputs["attention_mask"].sum(1).tolist())) > 6

    expected = minilm.bert(**inputs, position_ids=positions)
    real = inputs["attention_mask"].bool()
    for position_ids in (None, positions):
        output = minilm.pyramid(**inputs, position_ids=position_ids)
        torch.testing.assert_close(output.last_hidden_state[real], expected.last_hidden_state[real], atol=1e-5, rtol=0)
        # BertModel pools the first column, which is padding in a batch padded on the left.
        first = expected.last_hidden_state[torch.arange(len(real)), real.byte().argmax(1)]
        torch.testing.assert_close(output.pooler_output, minilm.bert.pooler(first[:, None]), atol=1e-5, rtol=0)
        if side == "right":
            torch.testing.assert_close(output.pooler_output, expected.pooler_output, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("texts", [SENTENCES, PAIRS], ids=["sentences", "pairs"])
def test_padding_changes_nothing(minilm: Minilm, texts: list) -> None:
    def states(**padding) -> tuple[Tensor, Tensor]:
        inputs = tokenized(minilm.tokenizer, texts, **padding)
        output = minilm.pyramid(**inputs)
        return output.last_hidden_state[inputs["attention_mask"].bool()], output.pooler_output

    plain = states()
    for padding in ({"side": "left"}, {"width": 128}, {"side": "left", "width": 160}):
        for x, y in zip(states(**padding), plain, strict=True):
            assert torch.equal(x, y)


@torch.no_grad()
def test_a_text_alone_is_the_text_in_a_batch(minilm: Minilm) -> None:
    batch = minilm.pyramid(**tokenized(minilm.tokenizer, SENTENCES)).pooler_output
    for sentence, pooled in zip(SENTENCES, batch, strict=True):
        alone = minilm.pyramid(**tokenized(minilm.tokenizer, [sentence])).pooler_output[0]
        torch.testing.assert_close(alone, pooled, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("head", "normalizer"), [("cls", "alive"), ("pooled", "input")])
def test_pruning_and_exits_are_the_definitions(minilm_folder: Path, minilm: Minilm, head: str, normalizer: str) -> None:
    model = PyramidBertForSequenceClassification.from_pretrained(
        minilm_folder,
        num_labels=4,
        exit_head=head,
        exit_layers=[0, 2, 3, 5] if head == "pooled" else None,
        importance_normalizer=normalizer,
    ).eval()
    model.config.untrained_exits = None  # drawn heads are as good as any here
    # Fresh heads predict nearly uniformly everywhere.
    for classifier in (model.classifier, *(exit_head.classifier for exit_head in model.exits.values())):
        classifier.weight *= 30
    inputs = tokenized(minilm.tokenizer, SENTENCES, "left")
    real = inputs["attention_mask"].bool()
    batch = tiny.Batch(
        *([row[keep] for row, keep in zip(inputs[name], real, strict=True)] for name in ("input_ids", "token_type_ids"))
    )
    tiny.calibrate_pruning(model, batch, share=0.2)
    thresholds = tiny.calibrate_exits(model, batch, share=0.25)
    answers = tiny.define(model, batch, dict(zip(model.config.resolved_exit_layers(), thresholds, strict=True)))

    output = model(**inputs, exit_threshold=thresholds)

    assert output.exit_layer.tolist() == [answer.exit_layer for answer in answers]
    assert output.tokens_per_layer.tolist() == [answer.tokens_per_layer for answer in answers]
    assert output.flops.tolist() == [answer.flops for answer in answers]
    assert output.executed_flops.tolist() == [answer.executed_flops for answer in answers]
    logits = torch.stack([answer.logits for answer in answers])
    torch.testing.assert_close(output.logits.double(), logits, atol=1e-5, rtol=1e-5)
    assert len(output.exit_layer.unique()) >= 4
    went_on = [answer for answer in answers if answer.exit_layer > 2]
    assert sum(answer.tokens_per_layer[0] for answer in went_on) < sum(len(a.last_hidden_state) for a in went_on)
    assert sum(answer.tokens_per_layer[1] for answer in went_on) < sum(a.tokens_per_layer[0] for a in went_on)


@torch.no_grad()
def test_encoder_with_pruning_is_the_definitions(minilm_folder: Path, minilm: Minilm) -> None:
    encoder = PyramidBert.from_pretrained(minilm_folder, top_k=[0.9, 0.8, 20, 0.5, 6, 3]).eval()
    inputs = tokenized(minilm.tokenizer, PAIRS)
    output = encoder(**inputs)
    weights = tiny.weights_of(encoder)
    for ids, types, keep, states in zip(
        inputs["input_ids"],
        inputs["token_type_ids"],
        inputs["attention_mask"].bool(),
        output.last_hidden_state,
        strict=True,
    ):
        answer = definition.run(weights, encoder.config, ids[keep], types[keep], classify=False)
        assert len(answer.survivors[-1]) <= 3 < len(answer.survivors[0])
        torch.testing.assert_close(states[keep].double(), answer.last_hidden_state, atol=1e-5, rtol=0)

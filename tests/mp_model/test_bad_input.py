"""Input that cannot be followed: the error names the argument, what it was and what it should be."""

from __future__ import annotations

import pytest
import torch

from mp_model import PyramidBertForSequenceClassification
from support import tiny
from support.situations import situation

IDS = torch.randint(1, 50, (2, 8), generator=torch.Generator().manual_seed(0))
NAN = float("nan")


@pytest.fixture(scope="module")
def model() -> PyramidBertForSequenceClassification:
    return tiny.classifier()


def with_value(value: int) -> torch.Tensor:
    ids = IDS.clone()
    ids[1, 5] = value
    return ids


INPUTS = {
    "ids as a list": ({"input_ids": IDS.tolist()}, "input_ids must be int64 or int32 .batch, width.; got list"),
    "ids floating": ({"input_ids": IDS.float()}, r"input_ids must be int64 or int32 .*got float32 \[2, 8\]"),
    "ids bool": ({"input_ids": IDS > 20}, r"input_ids must be int64 or int32 .*got bool \[2, 8\]"),
    "ids without a batch": ({"input_ids": IDS[0]}, r"input_ids must be .*\[batch, width\]; got int64 \[8\]"),
    "ids scalar": ({"input_ids": IDS[0, 0]}, r"input_ids must be .*\[batch, width\]; got int64 \[\]"),
    "ids of three dimensions": ({"input_ids": IDS[None]}, r"input_ids must be .*got int64 \[1, 2, 8\]"),
    "id negative": ({"input_ids": with_value(-1)}, r"input_ids must lie in 0..49; got -1; .*tokenizer"),
    "id too large": ({"input_ids": with_value(50)}, r"input_ids must lie in 0..49; got 50; .*tokenizer"),
    "nothing": ({}, "give either input_ids or inputs_embeds; got none"),
    "both": (
        {"input_ids": IDS, "inputs_embeds": torch.zeros(2, 8, 32)},
        "give either input_ids or inputs_embeds; got both",
    ),
    "embeddings integer": (
        {"inputs_embeds": torch.ones(2, 8, 32, dtype=torch.int64)},
        r"inputs_embeds must be float32 \[batch, width, 32\].*got int64",
    ),
    "embeddings of another dtype": (
        {"inputs_embeds": torch.zeros(2, 8, 32, dtype=torch.float64)},
        r"inputs_embeds must be float32 \[batch, width, 32\].*got float64",
    ),
    "embeddings too narrow": (
        {"inputs_embeds": torch.zeros(2, 8, 31)},
        r"inputs_embeds must be float32 \[batch, width, 32\].*got float32 \[2, 8, 31\]",
    ),
    "embeddings of two dimensions": ({"inputs_embeds": torch.zeros(8, 32)}, r"inputs_embeds must be .*got .*\[8, 32\]"),
    "type too large": (
        {"input_ids": IDS, "token_type_ids": torch.full((2, 8), 2)},
        r"token_type_ids must lie in 0..1; got 2",
    ),
    "type negative": (
        {"input_ids": IDS, "token_type_ids": torch.full((2, 8), -1)},
        r"token_type_ids must lie in 0..1; got -1",
    ),
    "types floating": (
        {"input_ids": IDS, "token_type_ids": torch.zeros(2, 8)},
        "token_type_ids must be int64 or int32; got float32",
    ),
    "types of another width": (
        {"input_ids": IDS, "token_type_ids": torch.zeros(2, 7, dtype=torch.int64)},
        r"token_type_ids must be \[batch, width\] like the input, \[2, 8\]; got int64 \[2, 7\]",
    ),
    "mask of another width": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 9)},
        r"attention_mask must be \[batch, width\] like the input, \[2, 8\]; got float32 \[2, 9\]",
    ),
    "mask without a batch": ({"input_ids": IDS, "attention_mask": torch.ones(8)}, r"attention_mask must .*got .*\[8\]"),
    "mask as a list": ({"input_ids": IDS, "attention_mask": [[1] * 8] * 2}, "attention_mask must be .*got list"),
    "no columns": ({"input_ids": IDS[:, :0]}, "attention_mask has no token in row 0"),
    "text too long": ({"input_ids": IDS.repeat(1, 9)}, r"position_ids must lie in 0..63; got 71; truncate the text"),
    "position too large": (
        {"input_ids": IDS, "position_ids": torch.full((1, 8), 64)},
        r"position_ids must lie in 0..63; got 64",
    ),
    "position negative": (
        {"input_ids": IDS, "position_ids": torch.full((2, 8), -1)},
        r"position_ids must lie in 0..63; got -1",
    ),
    "positions floating": (
        {"input_ids": IDS, "position_ids": torch.zeros(2, 8)},
        "position_ids must be int64 or int32; got float32",
    ),
}


@pytest.mark.parametrize(("inputs", "message"), INPUTS.values(), ids=INPUTS.keys())
def test_bad_inputs(model: PyramidBertForSequenceClassification, inputs: dict, message: str) -> None:
    for called in (model, model.bert):
        with pytest.raises(ValueError, match=message):
            called(**inputs)


def test_unknown_arguments(model: PyramidBertForSequenceClassification) -> None:
    for called in (model, model.bert):
        with pytest.raises(TypeError, match="unexpected argument 'tokens'"):
            called(IDS, tokens=None)


@situation(
    "drop-in",
    "`head_mask`, `cache_position`, `past_key_values`, `encoder_hidden_states`",
    "None is what it is for BERT, anything else is refused by name",
)
def test_arguments_of_bert_that_cannot_be_followed(model: PyramidBertForSequenceClassification) -> None:
    """None asks for nothing, and so does False."""
    for called in (model, model.bert):
        for name in ("head_mask", "cache_position", "encoder_hidden_states", "past_key_values"):
            with pytest.raises(ValueError, match=f"{name} is not supported"):
                called(IDS, **{name: torch.ones(4)})
            called(IDS, **{name: None})


@situation("drop-in", "`use_cache`", "nothing is kept, as by BERT's encoder")
def test_a_cache_is_not_kept_as_berts_encoder_keeps_none(model: PyramidBertForSequenceClassification) -> None:
    for called in (model, model.bert):
        expected = called(IDS)
        for use_cache in (None, False, True):
            got = called(IDS, use_cache=use_cache)
            assert got.keys() == expected.keys()
            assert torch.equal(got[0], expected[0])


@situation("drop-in", "an attention mask of four dimensions", "refused, with the shape that is wanted")
def test_masks_of_four_dimensions(model: PyramidBertForSequenceClassification) -> None:
    for called in (model, model.bert):
        for mask in (torch.ones(2, 1, 8, 8, dtype=torch.bool), torch.zeros(2, 1, 1, 8)):
            with pytest.raises(ValueError, match=r"attention_mask must be \[batch, width\] like the input, \[2, 8\]"):
                called(IDS, mask)


@situation("drop-in", "a row of the attention mask without a token", "refused, with the row; nothing is made up for it")
def test_rows_without_a_token(model: PyramidBertForSequenceClassification) -> None:
    for called in (model, model.bert):
        with pytest.raises(ValueError, match=r"attention_mask has no token in row 1; .* drop the row"):
            called(IDS, torch.tensor([[1] * 8, [0] * 8]))


def test_padding_may_hold_anything(model: PyramidBertForSequenceClassification) -> None:
    """Only real tokens are checked: some data sets pad ids and types with -1 or -100."""
    inputs = tiny.samples([3, 8]).padded(junk=-100)
    clean = tiny.samples([3, 8]).padded(junk=0)
    assert torch.equal(model(**inputs).logits, model(**clean).logits)


EXIT_THRESHOLDS = {
    "too large": (1.5, ValueError, r"exit_threshold must lie in \[0, 1\].*got 1.5"),
    "negative": (-0.5, ValueError, r"exit_threshold must lie in \[0, 1\].*got -0.5"),
    "NaN": (NAN, ValueError, r"exit_threshold must lie in \[0, 1\].*got nan"),
    "list too large": ([0.1, 0.2, 1.2], ValueError, r"exit_threshold must lie in \[0, 1\].*got 1.2"),
    "list too short": ([0.1, 0.2], ValueError, "exit_threshold must have one number for each exit layer, 3; got 2"),
    "list with None": ([0.1, None, 0.2], TypeError, r"exit_threshold must be a list of numbers.*got \[0.1, None"),
    "text": ("0.5", TypeError, "exit_threshold must be .*got '0.5'"),
    "tensor too large": (torch.tensor([0.1, 1.2]), ValueError, r"exit_threshold must lie in \[0, 1\].*1.2"),
    "tensor negative": (torch.tensor([-0.1, 0.2]), ValueError, r"exit_threshold must lie in \[0, 1\].*-0.1"),
    "tensor NaN": (torch.tensor([0.1, NAN]), ValueError, r"exit_threshold must lie in \[0, 1\].*nan"),
    "tensor for three": (torch.tensor([0.1] * 3), ValueError, r"exit_threshold has one entry .* \[2\]; got \[3\]"),
    "tensor of two dimensions": (torch.zeros(2, 1), ValueError, r"exit_threshold has one entry .*got \[2, 1\]"),
    "tensor scalar": (torch.tensor(0.5), ValueError, r"exit_threshold has one entry per sample, \[2\]; got \[\]"),
}


@pytest.mark.parametrize(("threshold", "error", "message"), EXIT_THRESHOLDS.values(), ids=EXIT_THRESHOLDS.keys())
def test_bad_exit_thresholds(
    model: PyramidBertForSequenceClassification, threshold: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model(IDS, exit_threshold=threshold)


@pytest.mark.parametrize("threshold", [0.5, torch.tensor([0.5, 0.5])], ids=["float", "tensor"])
def test_one_label_has_no_exits(threshold: object) -> None:
    model = tiny.classifier(num_labels=1)
    with pytest.raises(ValueError, match="exit_threshold needs 2 labels or more"):
        model(IDS, exit_threshold=threshold)
    output = model(IDS)
    assert output.logits.shape == (2, 1)
    assert output.uncertainty.isnan().all()
    assert output.exit_layer.eq(4).all()


@torch.no_grad()
@pytest.mark.parametrize("head", ["cls", "pooled", "pair", "fastbert"])
@pytest.mark.parametrize("threshold", [None, 0.5, torch.zeros(0)], ids=["never", "float", "tensor"])
@pytest.mark.parametrize("width", [0, 8])
def test_an_empty_batch_has_an_empty_answer(head: str, threshold: object, width: int) -> None:
    model = tiny.classifier(exit_head=head, prune_thresholds=[0.05] * 4)
    nothing = torch.zeros(0, width, dtype=torch.int64)
    output = model(nothing, token_type_ids=nothing, exit_threshold=threshold)
    assert output.logits.shape == (0, 3)
    assert output.tokens_per_layer.shape == (0, 4)
    for name in ("exit_layer", "uncertainty", "flops", "executed_flops"):
        assert getattr(output, name).shape == (0,)
    encoded = model.bert(nothing)
    assert encoded.last_hidden_state.shape == (0, width, 32)
    assert encoded.pooler_output.shape == (0, 32)


@torch.no_grad()
@pytest.mark.parametrize("pruning", [{}, {"prune_thresholds": [0.5] * 4}, {"top_k": [1, 0.5, 3, 1]}], ids=str)
@pytest.mark.parametrize("head", ["cls", "pooled", "pair", "fastbert"])
def test_samples_of_one_token(head: str, pruning: dict) -> None:
    model = tiny.classifier(exit_head=head, **pruning)
    batch = tiny.samples([1, 1, 1])
    answers = tiny.define(model, batch)
    output = model(**batch.padded(width=5))
    assert output.tokens_per_layer.eq(1).all()
    expected = torch.stack([answer.logits for answer in answers])
    torch.testing.assert_close(output.logits.double(), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_exits_that_compare_two_texts_refuse_a_single_one() -> None:
    model = tiny.classifier(exit_head="pair", exit_layers=[0, 2], exit_threshold=0.5)
    batch = tiny.samples([5, 9, 3])
    inputs = batch.padded()
    without = {name: x for name, x in inputs.items() if name != "token_type_ids"}
    with pytest.raises(ValueError, match=r"token_type_ids must tell two texts apart for exits .*; got none: .*'never'"):
        model(**without)
    single = {**inputs, "token_type_ids": inputs["token_type_ids"].clone()}
    single["token_type_ids"][1, :9] = 0  # the padding still holds ones
    for call in (model, model.bert.pack):
        with pytest.raises(
            ValueError, match="token_type_ids has no 1 in row 1, and exits with exit_head='pair' compare"
        ):
            call(**single)
    # Where nobody compares anything, a single text is answered.
    for inputs in (without, single):
        batch.types = [
            x[: len(y)] for x, y in zip(inputs.get("token_type_ids", torch.zeros(3, 9).long()), batch.ids, strict=True)
        ]
        expected = torch.stack([answer.logits for answer in tiny.define(model, batch)])
        closed = model(**inputs, exit_threshold="never")
        torch.testing.assert_close(closed.logits.double(), expected, atol=1e-5, rtol=0)
        assert model.bert(**inputs).last_hidden_state.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize(
    "pruning", [{"prune_thresholds": [0.0, 0.0, 0.1, 0.0]}, {"top_k": [1.0, 1.0, 5, 1.0]}], ids=str
)
def test_broken_weights_are_an_error_where_tokens_are_pruned(pruning: dict) -> None:
    model = tiny.classifier(**pruning)
    model.bert.encoder.layer[1].output.dense.weight[3, 3] = NAN
    for called in (model, model.bert):
        with pytest.raises(ValueError, match=r"importance is NaN at row 0: .*broken weights"):
            called(IDS)


@torch.no_grad()
def test_broken_weights_let_nobody_leave() -> None:
    """Without pruning a NaN goes through, as in any model, but it is never certain."""
    model = tiny.classifier()
    model.bert.encoder.layer[0].output.dense.weight[3, 3] = NAN
    output = model(IDS, exit_threshold=1.0)
    assert output.exit_layer.eq(4).all()
    assert output.logits.isnan().all()

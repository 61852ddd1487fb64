"""Int8 layers: their numbers, both forms, independence of companions, saving and loading."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from mp_kernels import extension, memory, products, reference
from mp_kernels import int8 as int8_functions
from mp_model import PyramidBert, PyramidBertForSequenceClassification
from mp_model.backbones import int8, why_layer_modules
from mp_model.backbones.forms import ModuleBlock, block_of
from mp_model.backbones.int8 import KEPT_COLUMNS, Int8Embedding, Int8Linear, pack_weights, to_int8
from mp_model.backbones.outliers import largest_columns
from mp_model.backbones.post_norm import Int8PostNormBlock
from mp_model.checkpoints.reading import read_in_precision
from support import tiny
from support.accuracy import assert_same_bits

SETTINGS = {"exit_head": "pooled", "exit_layers": [0, 1, 2, 3], "prune_thresholds": [0.02, 0.03, 0.04, 0.05]}


@pytest.fixture(scope="module")
def model() -> PyramidBertForSequenceClassification:
    made = tiny.classifier(exit_threshold=0.7, **SETTINGS)
    to_int8(made)
    return made


@pytest.fixture(scope="module")
def batch() -> tiny.Batch:
    return tiny.samples()


def answers(model: PyramidBertForSequenceClassification, inputs: dict[str, torch.Tensor], **settings) -> list:
    with torch.inference_mode():
        out = model(**inputs, **settings)
    return [out.logits, out.exit_layer, out.uncertainty, out.tokens_per_layer]


def test_a_linear_layer_multiplies_what_was_rounded() -> None:
    linear, x = torch.nn.Linear(40, 24), torch.randn(3, 5, 40)
    with torch.no_grad():
        got = Int8Linear.of(linear)(x)
        rows, scales = reference.quantize_rows(x.flatten(0, 1).double())
        weight, weight_scales = reference.quantize_rows(linear.weight.double())
        exact = (rows.double() * scales[:, None]) @ (weight.double() * weight_scales[:, None]).t() + linear.bias
    torch.testing.assert_close(got.flatten(0, 1).double(), exact, rtol=1e-5, atol=1e-5)


def test_layers_are_rounded_on_their_own_device() -> None:
    """A tensor that forgets its device would be made on another one here."""
    linear, x = torch.nn.Linear(12, 5, bias=False), torch.randn(3, 12)
    with torch.device("meta"):
        columns = [largest_columns(x, count) for count in (4, 12)]
        layer = Int8Linear.of(linear, columns[0])
    assert all(x.device.type == "cpu" for x in [*columns, *layer.parameters(), *layer.buffers()])


def test_a_table_looks_up_what_was_rounded() -> None:
    table = torch.nn.Embedding(9, 20)
    got = Int8Embedding.of(table)(torch.tensor([[8, 0], [3, 3]]))
    rows, scales = reference.quantize_rows(table.weight.detach())
    torch.testing.assert_close(got, (rows * scales[:, None])[torch.tensor([[8, 0], [3, 3]])])


def test_every_layer_is_int8_and_prepared(model: PyramidBertForSequenceClassification) -> None:
    with torch.inference_mode():
        assert model.backbone.why_embedding_modules(model.bert, model.device) is None
        for layer in model.bert.stack:
            assert why_layer_modules(layer, model.device) is None
            assert type(block_of(layer, model.device)) is Int8PostNormBlock
    kinds = {type(part) for part in model.bert.encoder.modules()}
    assert torch.nn.Linear not in kinds
    assert {p.dtype for p in model.bert.encoder.parameters()} == {torch.int8, torch.float32}


def test_both_forms_agree(model: PyramidBertForSequenceClassification, batch: tiny.Batch) -> None:
    """The module form rounds at the same places: what differs is the order of float additions."""
    prepared = answers(model, batch.padded(), exit_threshold="never", prune_thresholds=[0.0] * 4)
    hook = model.bert.encoder.register_forward_pre_hook(lambda *_: None)
    hooks = [layer.register_forward_pre_hook(lambda *_: None) for layer in model.bert.stack]
    with torch.inference_mode():
        assert {type(block_of(layer, model.device)) for layer in model.bert.stack} == {ModuleBlock}
    modules = answers(model, batch.padded(), exit_threshold="never", prune_thresholds=[0.0] * 4)
    for one in (hook, *hooks):
        one.remove()
    # A value near a half may be rounded otherwise after another order of additions: one step of one value.
    torch.testing.assert_close(prepared[0], modules[0], rtol=0, atol=0.02)


def test_answers_stay_close_to_float32(batch: tiny.Batch) -> None:
    exact = tiny.classifier(exit_threshold=None, **SETTINGS)
    rounded = copy.deepcopy(exact)
    to_int8(rounded)
    settings = {"prune_thresholds": [0.0] * 4}
    wanted, got = (answers(model, batch.padded(), **settings)[0] for model in (exact, rounded))
    assert 0 < (got - wanted).abs().max() < 0.1 * wanted.abs().max()


def with_outliers() -> PyramidBertForSequenceClassification:
    """A model with a channel, and a neuron of each layer, beside which the others of a row are a hundredth."""
    made = tiny.classifier(exit_threshold=None, exit_head="pooled", exit_layers=[0, 1, 2, 3])
    with torch.no_grad():
        for norm in (part for part in made.bert.modules() if isinstance(part, torch.nn.LayerNorm)):
            norm.weight[5] *= 100
        for layer in made.bert.stack:
            layer.intermediate.dense.bias[9] = 300
            for linear in (layer.attention.self.query, layer.attention.self.key, layer.attention.self.value):
                linear.weight[:, 5] /= 100
            layer.intermediate.dense.weight[:, 5] /= 100
            layer.output.dense.weight[:, 9] /= 300
    return made


def test_few_large_channels_leave_the_others_their_digits(batch: tiny.Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept as floats they leave less than a fifth of the error that rows rounded whole have."""
    errors = []
    for columns in (KEPT_COLUMNS, 0):
        monkeypatch.setattr(int8, "KEPT_COLUMNS", columns)
        exact = with_outliers()
        rounded = copy.deepcopy(exact)
        to_int8(rounded)
        assert rounded.config.int8_kept_columns == columns
        wanted, got = (answers(model, batch.padded(), prune_thresholds=[0.0] * 4)[0] for model in (exact, rounded))
        errors.append((got - wanted).square().mean().sqrt())
    assert errors[0] < errors[1] / 5


def test_models_of_before_columns_were_kept(batch: tiny.Batch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Their configuration does not name the columns, and their weights have none."""
    monkeypatch.setattr(int8, "KEPT_COLUMNS", 0)
    before = tiny.classifier(**SETTINGS)
    to_int8(before)
    before.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("int8_kept_columns", 0) == 0
    path.write_text(json.dumps(config))
    assert not any("kept" in name or "columns" in name for name in load_file(tmp_path / "model.safetensors"))
    again = PyramidBertForSequenceClassification.from_pretrained(tmp_path).eval()
    for got, wanted in zip(answers(again, batch.padded()), answers(before, batch.padded()), strict=True):
        assert_same_bits(got, wanted)


def test_the_largest_columns_are_found() -> None:
    x = torch.randn(50, 20)
    x[:, 7] *= 30
    x[:5, 3] *= 100
    assert largest_columns(x, 2).tolist() == [7, 3]
    assert largest_columns(torch.zeros(4, 3), 3).tolist() == [0, 1, 2]


@given(seed=st.integers(0, 10_000), side=st.sampled_from(["left", "right", "mixed"]))
def test_answers_do_not_depend_on_companions(
    model: PyramidBertForSequenceClassification, batch: tiny.Batch, seed: int, side: str
) -> None:
    """Bit by bit, with exits and pruning: each sample alone, and all in another order and padded otherwise."""
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(seed)).tolist()
    whole = answers(model, batch.padded())
    assert whole[1].unique().numel() > 1, "samples leave at different layers"
    for got, wanted in zip(answers(model, batch.select(order).padded(side)), whole, strict=True):
        assert_same_bits(got, wanted[order])
    one = order[0]
    for got, wanted in zip(answers(model, batch.select([one]).padded()), whole, strict=True):
        assert_same_bits(got, wanted[[one]])


def test_deciding_late_changes_no_bit(
    model: PyramidBertForSequenceClassification, batch: tiny.Batch, request: pytest.FixtureRequest
) -> None:
    first = answers(model, batch.padded())
    request.getfixturevalue("decided_late")
    for got, wanted in zip(answers(model, batch.padded()), first, strict=True):
        assert_same_bits(got, wanted)


def test_threads_change_no_bit(model: PyramidBertForSequenceClassification, batch: tiny.Batch) -> None:
    alone = answers(model, batch.padded())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for got, wanted in zip(answers(model, batch.padded()), alone, strict=True):
            assert_same_bits(got, wanted)
    finally:
        torch.set_num_threads(threads)


def test_saved_and_loaded(model: PyramidBertForSequenceClassification, batch: tiny.Batch, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    again = PyramidBertForSequenceClassification.from_pretrained(tmp_path).eval()
    for got, wanted in zip(answers(again, batch.padded()), answers(model, batch.padded()), strict=True):
        assert_same_bits(got, wanted)
    encoder = PyramidBert.from_pretrained(tmp_path)
    assert type(encoder.stack[0].intermediate.dense) is Int8Linear


def widened(**settings) -> PyramidBertForSequenceClassification:
    """A model with int8 weights of shapes that every processor's own products take."""
    made = tiny.classifier(hidden_size=64, intermediate_size=128, exit_threshold=0.7, **SETTINGS, **settings)
    to_int8(made)
    return made


def test_packed_weights_change_no_bit(batch: tiny.Batch, tmp_path: Path) -> None:
    """In either form; and whoever looks for weights in a dictionary, a copy or a file finds them as they are."""
    plain = widened()
    packed = copy.deepcopy(plain)
    pack_weights(packed)
    linears = [part for part in packed.modules() if isinstance(part, Int8Linear)]
    for linear in linears:
        assert (linear.weight.dim() == 4) == (extension.int8_group(linear.out_features, linear.in_features) > 0)

    def assert_same_answers(one: PyramidBertForSequenceClassification) -> None:
        for got, wanted in zip(answers(one, batch.padded()), answers(plain, batch.padded()), strict=True):
            assert_same_bits(got, wanted)

    assert_same_answers(packed)
    hooks = [layer.register_forward_pre_hook(lambda *_: None) for x in (plain, packed) for layer in x.bert.stack]
    assert_same_answers(packed)
    for hook in hooks:
        hook.remove()
    assert_same_answers(copy.deepcopy(packed))
    assert_same_answers(pickle.loads(pickle.dumps(packed)))

    weights = plain.state_dict()
    found = packed.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    packed.save_pretrained(tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(written[name], weights[name]) for name in written)


def test_other_weights_can_be_loaded_into_packed_ones(batch: tiny.Batch) -> None:
    packed, other = widened(seed=1), widened(seed=2)
    pack_weights(packed)
    answers(packed, batch.padded())
    packed.load_state_dict(other.state_dict())
    for got, wanted in zip(answers(packed, batch.padded()), answers(other, batch.padded()), strict=True):
        assert_same_bits(got, wanted)


def test_other_columns_take_effect(batch: tiny.Batch) -> None:
    model = widened()
    before = answers(model, batch.padded())
    grow = model.bert.stack[1].intermediate.dense
    grow.columns = (grow.columns + 1) % grow.in_features
    after, again = answers(model, batch.padded()), answers(copy.deepcopy(model), batch.padded())
    assert_same_bits(after[0], again[0])
    assert not torch.equal(after[0], before[0])


def test_weights_that_are_read_for_a_precision_are_packed(tmp_path: Path) -> None:
    widened().save_pretrained(tmp_path)
    found = read_in_precision(tmp_path, "int8")
    dims = {part.weight.dim() for part in found.modules() if isinstance(part, Int8Linear)}
    assert dims == {4 if extension.int8_group(64, 64) else 2}


def test_weights_take_a_quarter(tmp_path: Path) -> None:
    sizes = {}
    for precision in ("float", "int8"):
        made = tiny.classifier(hidden_size=128, intermediate_size=512, vocab_size=2000)
        if precision == "int8":
            to_int8(made)
        made.save_pretrained(tmp_path / precision)
        sizes[precision] = (tmp_path / precision / "model.safetensors").stat().st_size
    assert sizes["int8"] < 0.35 * sizes["float"]


def test_nothing_is_trained(model: PyramidBertForSequenceClassification, batch: tiny.Batch) -> None:
    out = model(**batch.padded(), exit_threshold="never")
    assert not out.logits.requires_grad


def test_an_empty_batch(model: PyramidBertForSequenceClassification) -> None:
    with torch.inference_mode():
        assert model(torch.zeros(0, 5, dtype=torch.int64)).logits.shape == (0, 3)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_feed_forwards_widen_as_many_rows_as_fit_the_cache(
    monkeypatch: pytest.MonkeyPatch, batch: tiny.Batch, precision: str, activation: str
) -> None:
    """Whatever the size of the batch, and with the same answers."""
    made = tiny.classifier(hidden_act=activation, exit_threshold="never")
    if precision == "int8":
        to_int8(made)
    whole = answers(made, batch.padded())
    asked = []

    def few_rows(x: torch.Tensor, bytes_per_row: int) -> Sequence[torch.Tensor]:
        asked.append(bytes_per_row)
        return x.split(7)

    monkeypatch.setattr(memory, "cache_blocks", few_rows)
    for module, name in ((products, "in_kernels"), (int8_functions, "_in_kernels")):  # which need no blocks
        monkeypatch.setattr(module, name, lambda *_: False)
    in_blocks = answers(made, batch.padded())
    assert asked == [64 * (1 if (precision, activation) == ("int8", "gelu") else 4)] * len(asked)
    assert len(asked) == made.config.num_hidden_layers
    torch.testing.assert_close(in_blocks, whole, rtol=0, atol=1e-5)

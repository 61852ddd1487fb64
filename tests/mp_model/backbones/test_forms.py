"""The module form: whatever was done to a model's modules takes effect, as in transformers' BERT."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mp_model.backbones import why_layer_modules
from mp_model.inputs import pack_tokens
from support import tiny
from support.forms import (
    BATCH,
    EMBEDDINGS,
    LAYERS,
    MODES,
    MODULES,
    ONE_TEXT,
    assert_same_logits,
    reasons,
)

# Hooks


def scaled(output: Any) -> Any:
    """An output 1.5 times as large; of several the first."""
    return (scaled(output[0]), *output[1:]) if isinstance(output, tuple) else 1.5 * output


def changed(arguments: Any) -> Any:
    """Another first argument: a larger tensor, or other words."""
    first, *rest = arguments
    return (1.5 * first if first.is_floating_point() else first.flip(1), *rest)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODULES)
def test_hooks_fire_once_and_take_effect(name: str, mode: str, stock_of: Callable) -> None:
    model = tiny.classifier()
    stock = stock_of(model)
    with torch.no_grad():
        plain = model(**ONE_TEXT).logits  # prepares the layers
        assert reasons(model) == [None] * 5

    fired = []
    handles = []
    for m in (model, stock):
        module = m.get_submodule(name)

        def after(module: nn.Module, arguments: Any, output: Any) -> Any:
            fired.append("after")
            return scaled(output)

        def before(module: nn.Module, arguments: Any, named: dict[str, Any]) -> Any:
            fired.append("before")
            if arguments:
                return changed(arguments), named
            return arguments, {**named, "input_ids": named["input_ids"].flip(1)}

        handles += [module.register_forward_hook(after), module.register_forward_pre_hook(before, with_kwargs=True)]

    with MODES[mode]():
        expected = stock(**ONE_TEXT).logits
        assert fired == ["before", "after"]
        got = model(**ONE_TEXT).logits
        assert fired == ["before", "after"] * 2
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
        assert (got - plain).abs().max() > 1e-3
        if mode != "gradients":
            expected_reasons: list[str | None] = [None] * 5
            if name.startswith(EMBEDDINGS):
                expected_reasons[0] = f"a {type(model.get_submodule(name)).__name__} has hooks"
            elif name.startswith(LAYERS):
                expected_reasons[int(name.split(".")[3]) + 1] = (
                    f"a {type(model.get_submodule(name)).__name__} has hooks"
                )
            assert reasons(model) == expected_reasons

    for handle in handles:
        handle.remove()
    with torch.no_grad():
        assert reasons(model) == [None] * 5
        assert torch.equal(model(**ONE_TEXT).logits, plain)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("name", [EMBEDDINGS, f"{EMBEDDINGS}.word_embeddings", *LAYERS, f"{LAYERS[0]}.output.dense"])
def test_backward_hooks_see_transformers_gradients(name: str, stock_of: Callable) -> None:
    model = tiny.classifier()
    seen: list[Tensor] = []
    for m in (model, stock_of(model)):
        m.get_submodule(name).register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0]))
        m(**ONE_TEXT).logits[0, 1].backward()
    ours, theirs = seen
    if name == LAYERS[1]:
        theirs = theirs[:, :1]
    torch.testing.assert_close(ours.view_as(theirs), theirs, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_embeddings_see_a_padded_batch() -> None:
    """Also where the texts were never padded; padding reaches nobody."""
    model = tiny.classifier()
    expected = model(**BATCH.padded("mixed")).logits
    shapes = []
    words = model.bert.embeddings.word_embeddings
    words.register_forward_hook(lambda module, arguments, output: shapes.append(output.shape))
    for side in ("left", "right", "mixed"):
        torch.testing.assert_close(model(**BATCH.padded(side, width=45)).logits, expected, atol=1e-5, rtol=1e-5)
    assert shapes == [(len(BATCH), 45, 32)] * 3

    expected = model.bert.embed(**BATCH.padded()).values
    ids, types = (torch.cat(rows).numpy() for rows in (BATCH.ids, BATCH.types))
    got = model.bert.embed_packed(pack_tokens(model.config, ids, types, np.array(tiny.LENGTHS)))
    torch.testing.assert_close(got.values, expected)
    assert shapes[3:] == [(len(BATCH), 40, 32)] * 2


@torch.no_grad()
def test_hooks_where_tokens_are_pruned_and_samples_leave() -> None:
    """The module form decides late; samples and tokens are the same."""
    model = tiny.classifier(exit_head="pooled", exit_layers=[0, 1, 2, 3], exit_threshold=0.85)
    tiny.calibrate_pruning(model, BATCH)
    expected = model(**BATCH.padded(), follow_tokens=True)
    assert len(expected.exit_layer.unique()) > 2
    rows = []
    for layer in model.bert.encoder.layer:
        layer.register_forward_hook(lambda module, arguments, output: rows.append((len(arguments[0]), len(output))))
    got = model(**BATCH.padded(), follow_tokens=True)
    assert all(entered > left for entered, left in rows)
    for name in ("exit_layer", "tokens_per_layer", "pruned_by"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("part", ["", ".dense", ".classifier"])
@pytest.mark.parametrize("head", ["cls", "pooled", "pair"])
def test_hooks_of_an_exit_head(head: str, part: str) -> None:
    model = tiny.classifier(exit_head=head, exit_layers=[2], exit_threshold=1.0)
    plain = model(**BATCH.padded()).logits
    fired = []

    def double(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        fired.append(module)
        return 2 * output

    model.get_submodule(f"exits.2{part}").register_forward_hook(double)
    got = model(**BATCH.padded())
    assert len(fired) == 1
    assert (got.exit_layer == 2).all()
    if part == ".dense":
        assert (got.logits - plain).abs().max() > 0.01
    else:
        torch.testing.assert_close(got.logits, 2 * plain)


def test_forward_hooks_of_all_modules_watch_the_prepared_form() -> None:
    """Profilers set them; what they watch must not change under their eyes."""
    model = tiny.classifier()
    seen: set[type] = set()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.add(type(module)))
    with torch.no_grad():
        model(**BATCH.padded())
        assert reasons(model) == [None] * 5
    handle.remove()
    assert type(model) in seen


# The decision


def test_reasons() -> None:
    model = tiny.classifier()
    assert reasons(model) == ["gradients are recorded"] * 5
    with torch.no_grad():
        assert reasons(model) == [None] * 5
        with torch.autocast("cpu", torch.bfloat16):
            assert reasons(model) == ["autocast is on"] * 5
        assert reasons(model.train()) == ["the model is in training mode"] * 5


class Scaled(nn.Module):
    """Another kind of module in the place of one."""

    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        self.old = old

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return scaled(self.old(*arguments, **named))


class TwiceLayerNorm(nn.LayerNorm):
    """Another computation by the same weights."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def drop_bias(layer: nn.Module, name: str) -> None:
    layer.get_submodule(name).bias = None


def wrap(layer: nn.Module, name: str) -> None:
    layer.set_submodule(name, Scaled(layer.get_submodule(name)))


def replace_forward(layer: nn.Module, name: str) -> None:
    module = layer.get_submodule(name)
    own = module.forward
    module.forward = lambda *arguments: 2 * own(*arguments)


def twice(layer: nn.Module, name: str) -> None:
    old = layer.get_submodule(name)
    layer.set_submodule(name, TwiceLayerNorm(old.normalized_shape, eps=old.eps).eval())
    layer.get_submodule(name).load_state_dict(old.state_dict())


def make_attribute(layer: nn.Module, name: str) -> None:
    """A weight that is no parameter, as it is left by those who compute it."""
    linear = layer.get_submodule(name)
    weight = linear.weight.detach() * 1.5
    del linear.weight
    linear.weight = weight


def make_sparse(layer: nn.Module, name: str) -> None:
    linear = layer.get_submodule(name)
    linear.weight = nn.Parameter(linear.weight.detach().relu().to_sparse_csr())


def narrow(layer: nn.Module, name: str) -> None:
    """The first two of four heads alone."""
    own, width = layer.get_submodule(name), 16
    own.num_attention_heads, own.all_head_size = 2, width
    for linear in (own.query, own.key, own.value):
        linear.weight, linear.bias = (nn.Parameter(x[:width].detach().clone()) for x in (linear.weight, linear.bias))
    output = layer.attention.output.dense
    output.weight = nn.Parameter(output.weight[:, :width].detach().contiguous())


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        (drop_bias, "attention.self.query", "a Linear has no bias"),
        (drop_bias, "attention.self.value", "a Linear has no bias"),
        (drop_bias, "intermediate.dense", "a Linear has no bias"),
        (drop_bias, "output.LayerNorm", "a LayerNorm has no bias"),
        (wrap, "attention", "a layer is a .*.Scaled"),
        (wrap, "attention.self", "a layer is a .*.Scaled"),
        (wrap, "attention.self.value", "a layer is a .*.Scaled"),
        (wrap, "output", "a layer is a .*.Scaled"),
        (wrap, "intermediate.intermediate_act_fn", None),
        (replace_forward, "intermediate", "the forward of a BertIntermediate is replaced"),
        (replace_forward, "output.dense", "the forward of a Linear is replaced"),
        (twice, "output.LayerNorm", "a layer is a .*.TwiceLayerNorm"),
        (make_attribute, "attention.self.query", "a Linear computes its weight"),
        (make_attribute, "output.dense", "a Linear computes its weight"),
        (make_sparse, "attention.self.key", "queries, keys or values are sparse"),
        (narrow, "attention.self", None),
    ],
)
@torch.no_grad()
def test_changed_layers(
    change: Callable[[nn.Module, str], None], name: str, reason: str | None, stock_of: Callable
) -> None:
    model = tiny.classifier()
    stock = stock_of(model)
    plain = model(**BATCH.padded()).logits
    for m in (model, stock):
        change(m.bert.encoder.layer[2], name)
    _, first, second, third, fourth = reasons(model)
    assert first is second is fourth is None
    assert third is None if reason is None else re.fullmatch(reason, str(third))
    assert_same_logits(model, stock)
    assert (model(**BATCH.padded()).logits - plain).abs().max() > 1e-3


@torch.no_grad()
def test_a_replica_is_looked_at_itself() -> None:
    """It starts with all that its original has found out about its own modules."""
    model = tiny.classifier()
    assert reasons(model) == [None] * 5
    replica: nn.Module = model.bert.encoder.layer[2]._replicate_for_data_parallel()
    replica._modules["output"] = Scaled(replica._modules["output"])
    assert "Scaled" in str(why_layer_modules(replica, torch.device("cpu")))
    assert reasons(model) == [None] * 5


@torch.no_grad()
def test_norms_of_another_dtype(stock_of: Callable) -> None:
    """A model in half precision with its norms in full, as some are loaded."""
    model = tiny.classifier()
    stock = stock_of(model)
    assert reasons(model) == [None] * 5
    for m in (model, stock):
        m.bfloat16()
        for module in m.bert.encoder.modules():
            if isinstance(module, nn.LayerNorm):
                module.float()
    assert reasons(model) == [None, *["the weights have several dtypes"] * 4]
    got, expected = (m(**BATCH.padded()).logits.float() for m in (model, stock))
    torch.testing.assert_close(got, expected, atol=0.1, rtol=0.1)


@torch.no_grad()
def test_embeddings_that_scale_their_rows(stock_of: Callable) -> None:
    model = tiny.classifier()
    stock = stock_of(model)
    for m in (model, stock):
        m.bert.embeddings.word_embeddings.max_norm = 2.0
    assert reasons(model) == ["an Embedding scales its rows", None, None, None, None]
    assert_same_logits(model, stock)

"""Adapters, computed weights, offloading and attributions of other libraries do to a pyramid what they do to BERT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_submodules
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from support import tiny
from support.forms import (
    BATCH,
    CPU,
    EMBEDDINGS,
    LABELS,
    MODES,
    assert_same_logits,
    reasons,
)

# Adapters and computed weights


def on_some_linears(change: Callable[[nn.Linear], Any]) -> Callable[[nn.Module], None]:
    def on_layer(model: nn.Module) -> None:
        layer = model.bert.encoder.layer[1]
        for linear in (layer.attention.self.query, layer.intermediate.dense):
            change(linear)

    return on_layer


def norm_weights(linear: nn.Linear) -> None:
    torch.nn.utils.weight_norm(linear)
    linear.weight_g.data *= 1.5


def norm_weights_by_parametrization(linear: nn.Linear) -> None:
    parametrizations.weight_norm(linear)
    linear.parametrizations.weight.original0.data *= 1.5


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("compute", "end", "reason"),
    [
        (
            lambda linear: prune.l1_unstructured(linear, "weight", 0.5),
            lambda linear: prune.remove(linear, "weight"),
            "a Linear has hooks",
        ),
        (norm_weights, torch.nn.utils.remove_weight_norm, "a Linear has hooks"),
        (
            norm_weights_by_parametrization,
            lambda linear: parametrize.remove_parametrizations(linear, "weight"),
            "a layer is a torch.nn.utils.parametrize.ParametrizedLinear",
        ),
    ],
    ids=["pruned", "weight norm", "weight norm by parametrization"],
)
def test_computed_weights(
    compute: Callable[[nn.Linear], Any], end: Callable[[nn.Linear], Any], reason: str, stock_of: Callable
) -> None:
    model = tiny.classifier()
    stock = stock_of(model)
    with torch.inference_mode():
        plain = model(**BATCH.padded()).logits
    for m in (model, stock):
        on_some_linears(compute)(m)
    assert_same_logits(model, stock)
    with torch.inference_mode():
        assert reasons(model) == [None, None, reason, None, None]
        assert_same_logits(model, stock)
        assert (model(**BATCH.padded()).logits - plain).abs().max() > 0.1
    for m in (model, stock):
        on_some_linears(end)(m)
    with torch.inference_mode():
        assert reasons(model) == [None] * 5
        assert_same_logits(model, stock)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_low_rank_adapters(stock_of: Callable) -> None:
    peft = pytest.importorskip("peft", reason="adapters: pip install peft")
    model = tiny.classifier()
    stock = stock_of(model)
    with torch.inference_mode():
        model(**BATCH.padded())
    targets = ["query", "value", "intermediate.dense"]
    settings = peft.LoraConfig("SEQ_CLS", target_modules=targets, r=4, init_lora_weights=False)
    adapted, adapted_stock = (peft.get_peft_model(m, settings) for m in (model, stock))
    adapted_stock.load_state_dict(adapted.state_dict(), strict=False)

    def assert_same_answers(reason: str | None) -> None:
        with torch.inference_mode():
            assert reasons(model) == [None, *[reason] * 4]
            assert_same_logits(adapted, adapted_stock)

    assert_same_answers("a layer is a peft.tuners.lora.layer.Linear")
    for m in (adapted.train(), adapted_stock.train()):
        optimizer = torch.optim.SGD([weight for weight in m.parameters() if weight.requires_grad], lr=0.02)
        for _ in range(2):
            optimizer.zero_grad()
            m(**BATCH.padded(), labels=LABELS).loss.backward()
            optimizer.step()
        m.eval()
    assert_same_answers("a layer is a peft.tuners.lora.layer.Linear")
    adapted, adapted_stock = (m.merge_and_unload(safe_merge=True) for m in (adapted, adapted_stock))
    assert_same_answers(None)


# Weights that are elsewhere


def offload(model: nn.Module, folder: Path) -> None:
    """Every module's weights come when it is called."""
    accelerate.cpu_offload(model, execution_device=CPU)


def dispatch(model: nn.Module, folder: Path) -> None:
    """The parts of a model in several places, two layers and the exit heads on disk."""
    places = {"bert.embeddings": "cpu", "bert.pooler": "cpu", "dropout": "cpu", "classifier": "cpu", "exits": "disk"}
    places |= {f"bert.encoder.layer.{i}": "disk" if i in (1, 2) else "cpu" for i in range(4)}
    accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
@pytest.mark.parametrize(
    ("send_away", "first"), [(offload, "Linear"), (dispatch, "RaggedBertLayer")], ids=["offloaded", "dispatched"]
)
def test_weights_that_come_when_a_module_is_called(
    send_away: Callable[[nn.Module, Path], None], first: str, mode: str, tmp_path: Path, stock_of: Callable
) -> None:
    model = tiny.classifier(exit_head="pooled")
    stock = stock_of(model)
    answers = tiny.define(model, BATCH, dict.fromkeys((1, 2, 3), 0.0))
    thresholds = torch.tensor(tiny.exit_threshold_each([answer.uncertainties for answer in answers]))
    each_its_own = {**BATCH.padded(), "exit_threshold": thresholds}
    with MODES[mode]():
        leaving = model(**each_its_own)
    assert len(leaving.exit_layer.unique()) > 2
    send_away(model, tmp_path)
    assert any(weight.is_meta for weight in model.parameters())
    with MODES[mode]():
        modules = ["BertEmbeddings", *[first] * 4]
        assert reasons(model) == [f"the forward of a {module} is replaced" for module in modules]
        assert_same_logits(model, stock)
        got = model(**each_its_own)
        assert torch.equal(got.exit_layer, leaving.exit_layer)
        torch.testing.assert_close(got.logits, leaving.logits, atol=1e-5, rtol=1e-5)

    remove_hook_from_submodules(model)
    with MODES[mode]():
        assert reasons(model) == [None] * 5
        assert_same_logits(model, stock)
        assert torch.equal(model(**each_its_own).logits, leaving.logits)
    for m in (model, stock):
        m(**BATCH.padded(), labels=LABELS).loss.backward()
    for name, weight in stock.named_parameters():
        torch.testing.assert_close(model.get_parameter(name).grad, weight.grad, atol=1e-5, rtol=1e-5)


# Attributions


@pytest.mark.parametrize("lengths", [(11,), (11, 5, 8)], ids=["one text", "padded texts"])
@pytest.mark.parametrize("name", [EMBEDDINGS, f"{EMBEDDINGS}.word_embeddings"])
def test_integrated_gradients(name: str, lengths: tuple[int, ...], stock_of: Callable) -> None:
    """Captum's hook puts an embedding a step of the path, and a text, in the place of the layer's output."""
    attr = pytest.importorskip("captum.attr", reason="attributions: pip install captum")
    model = tiny.classifier()
    inputs = tiny.samples(lengths).padded()
    nothing = inputs["input_ids"].clone()
    nothing[:, 1:] = 0

    def attributions(m: nn.Module) -> Tensor:
        def forward(ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
            return m(input_ids=ids, attention_mask=mask, token_type_ids=types).logits

        method = attr.LayerIntegratedGradients(forward, m.get_submodule(name))
        others = (inputs["attention_mask"], inputs["token_type_ids"])
        return method.attribute(inputs["input_ids"], nothing, 1, additional_forward_args=others, n_steps=16)

    got, expected = attributions(model), attributions(stock_of(model))
    assert got.abs().max() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

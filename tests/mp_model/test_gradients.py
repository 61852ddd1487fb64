"""Training mode: nobody leaves, tokens are pruned, and gradients are those of autograd through the definition."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mp_model import PyramidBertForSequenceClassification
from mp_model.training.objectives import SoftPruningObjective
from support import definition, tiny
from support.situations import situation

BATCH = tiny.samples()
LABELS = torch.arange(len(BATCH)) % 3
PRUNINGS = {
    "nothing": {},
    "alive": {"prune_thresholds": None, "importance_normalizer": "alive"},
    "input": {"prune_thresholds": None, "importance_normalizer": "input"},
    "top_k": {"top_k": [30, 14, 9, 4]},
}


@functools.cache
def thresholds_for(pruning: str) -> list[float] | None:
    model = tiny.classifier(**PRUNINGS[pruning])
    if "importance_normalizer" in PRUNINGS[pruning]:
        tiny.calibrate_pruning(model, BATCH)
    return model.config.prune_thresholds


def model_for(pruning: str, dtype: torch.dtype, **settings: object) -> PyramidBertForSequenceClassification:
    settings = {**PRUNINGS[pruning], "prune_thresholds": thresholds_for(pruning), **settings}
    return tiny.classifier(**settings).to(dtype).train()


def definition_gradients(model: torch.nn.Module, loss_of) -> dict[str, torch.Tensor]:
    weights = {name: weight.requires_grad_() for name, weight in tiny.weights_of(model).items()}
    answers = [
        definition.run(weights, model.config, ids, types) for ids, types in zip(BATCH.ids, BATCH.types, strict=True)
    ]
    loss_of(answers).backward()
    return {name: weight.grad for name, weight in weights.items()}


def assert_gradients_close(model: torch.nn.Module, expected: dict[str, torch.Tensor], prefix: str = "") -> None:
    double = next(model.parameters()).dtype == torch.float64
    for name, weight in model.named_parameters():
        wanted = expected[prefix + name]
        if wanted is None:
            assert weight.grad is None, name
        else:
            torch.testing.assert_close(
                weight.grad.double(), wanted, atol=1e-12 if double else 1e-5, rtol=1e-10 if double else 1e-5, msg=name
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pruning", PRUNINGS)
def test_classifier_gradients_are_the_definitions(pruning: str, dtype: torch.dtype) -> None:
    model = model_for(pruning, dtype)
    output = model(**BATCH.padded("mixed"), labels=LABELS)
    output.loss.backward()

    expected = definition_gradients(
        model, lambda answers: F.cross_entropy(torch.stack([answer.logits for answer in answers]), LABELS)
    )
    assert_gradients_close(model, expected)

    lengths = torch.tensor(tiny.LENGTHS)
    assert (output.tokens_per_layer[:, 0] < lengths).any() == (pruning != "nothing")
    for name, weight in model.named_parameters():
        if not name.startswith("exits"):
            # A key's bias adds the same to all scores of a row, which softmax does not see.
            assert (weight.grad.abs().max() > 1e-4) == (not name.endswith("key.bias")), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pruning", PRUNINGS)
def test_encoder_gradients_are_the_definitions(pruning: str, dtype: torch.dtype) -> None:
    """Through the states of all tokens, pruned ones included, and the pooler's output."""
    encoder = model_for(pruning, dtype).bert
    hidden = encoder.config.hidden_size
    state_slopes = torch.randn(sum(tiny.LENGTHS), hidden, dtype=torch.float64) / 100
    pooler_slopes = torch.randn(len(BATCH), hidden, dtype=torch.float64) / 10

    inputs = BATCH.padded("mixed")
    output = encoder(**inputs)
    states = output.last_hidden_state[inputs["attention_mask"].bool()]
    ((states * state_slopes.to(dtype)).sum() + (output.pooler_output * pooler_slopes.to(dtype)).sum()).backward()

    weights = tiny.weights_of(encoder)

    def loss_of(answers: list[definition.Answer]) -> torch.Tensor:
        states = torch.cat([answer.last_hidden_state for answer in answers])
        first = torch.stack([answer.states[-1][0] for answer in answers])
        pooled = torch.tanh(definition.linear(weights, "bert.pooler.dense", first))
        return (states * state_slopes).sum() + (pooled * pooler_slopes).sum()

    for weight in weights.values():
        weight.requires_grad_()
    answers = [
        definition.run(weights, encoder.config, ids, types, classify=False)
        for ids, types in zip(BATCH.ids, BATCH.types, strict=True)
    ]
    loss_of(answers).backward()
    assert_gradients_close(encoder, {name: weight.grad for name, weight in weights.items()}, prefix="bert.")


@pytest.mark.parametrize("head", ["cls", "pooled", "pair", "fastbert"])
def test_nobody_leaves_in_training(head: str) -> None:
    model = tiny.classifier(exit_head=head, exit_threshold=1.0)
    with torch.no_grad():
        assert (model(**BATCH.padded()).exit_layer == 1).all()
        model.train()
        output = model(**BATCH.padded(), exit_threshold=1.0)
        assert (output.exit_layer == 4).all()
        never = model.eval()(**BATCH.padded(), exit_threshold=0.0)
        torch.testing.assert_close(output.logits, never.logits, atol=1e-5, rtol=0)


def test_gradients_under_autocast_are_near() -> None:
    model = model_for("nothing", torch.float32)
    slopes = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            model(**BATCH.padded(), labels=LABELS).loss.backward()
        slopes.append(torch.cat([weight.grad.flatten() for weight in model.bert.parameters()]))
    exact, near = slopes
    assert near.dtype == torch.float32
    assert 0 < (near - exact).norm() < 0.1 * exact.norm()


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("pruning", PRUNINGS)
@situation("drop-in", "`gradient_checkpointing_enable()`", "layers are computed twice, and gradients stay the same")
def test_gradient_checkpointing_changes_no_gradient(pruning: str, reentrant: bool | None) -> None:
    model = model_for(pruning, torch.float32, hidden_dropout_prob=0.1)
    runs: list[nn.Module] = []
    for layer in model.bert.stack:
        layer.intermediate.register_forward_hook(lambda module, inputs, output: runs.append(module))

    def gradients() -> dict[str, torch.Tensor | None]:
        runs.clear()
        model.zero_grad()
        torch.manual_seed(1)
        model(**BATCH.padded("mixed"), labels=LABELS).loss.backward()
        return {name: None if x.grad is None else x.grad.clone() for name, x in model.named_parameters()}

    expected = gradients()
    assert len(runs) == 4
    model.gradient_checkpointing_enable(None if reentrant is None else {"use_reentrant": reentrant})
    got = gradients()
    assert len(runs) == 8
    model.gradient_checkpointing_disable()
    again = gradients()
    assert len(runs) == 4
    for name, x in expected.items():
        if x is not None:
            assert torch.equal(got[name], x), name
            assert torch.equal(again[name], x), name


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_thresholds_learn_under_gradient_checkpointing() -> None:
    """Their gradients go through the importance, which reentrant checkpoints would cut off in silence."""
    model = tiny.classifier().train()
    objective = SoftPruningObjective(model, temperature=0.01, penalty=0.1, final_threshold=0.02).train()
    gradients = []
    for _ in range(2):
        objective.zero_grad()
        objective(LABELS, **BATCH.padded())["loss"].backward()
        gradients.append(objective.thresholds.grad.clone())
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert gradients[0].abs().max() > 1e-3
    assert torch.equal(*gradients)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match=r"set gradient_checkpointing_kwargs=\{'use_reentrant': False\}"):
        objective(LABELS, **BATCH.padded())


def test_dropout_is_active_in_training_only() -> None:
    model = tiny.classifier(hidden_dropout_prob=0.3).train()
    inputs = BATCH.padded()
    with torch.no_grad():
        assert not torch.equal(model(**inputs).logits, model(**inputs).logits)
        model.eval()
        assert torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_evaluation_with_exits_can_be_differentiated() -> None:
    """Each sample's logits come from its own exit, and so do their gradients."""
    model = tiny.classifier()
    thresholds = tiny.calibrate_exits(model, BATCH)
    output = model(**BATCH.padded(), exit_threshold=thresholds)
    assert {1, 2, 3, 4} == set(output.exit_layer.tolist())
    output.logits[output.exit_layer == 2].sum().backward()
    assert model.exits["2"].dense.weight.grad.abs().max() > 1e-4
    for untouched in (model.exits["1"], model.exits["3"], model.classifier):
        assert all(weight.grad is None or not weight.grad.any() for weight in untouched.parameters())


@pytest.mark.parametrize(
    ("settings", "labels", "expected"),
    [
        ({}, LABELS, lambda logits: F.cross_entropy(logits, LABELS)),
        ({"num_labels": 1}, LABELS.float(), lambda logits: F.mse_loss(logits[:, 0], LABELS.float())),
        (
            {"problem_type": "multi_label_classification"},
            F.one_hot(LABELS, 3).float(),
            lambda logits: F.binary_cross_entropy_with_logits(logits, F.one_hot(LABELS, 3).float()),
        ),
        (
            {"problem_type": "regression"},
            F.one_hot(LABELS, 3).float(),
            lambda logits: F.mse_loss(logits, F.one_hot(LABELS, 3).float()),
        ),
    ],
    ids=["single label", "regression", "multi label", "regression of three"],
)
def test_losses_are_berts(settings: dict, labels: torch.Tensor, expected) -> None:
    model = tiny.classifier(**settings)
    with torch.no_grad():
        output = model(**BATCH.padded(), labels=labels)
        torch.testing.assert_close(output.loss, expected(output.logits))
        alone = model(**BATCH.select([3]).padded(), labels=labels[3:4])
        assert alone.loss.isfinite()

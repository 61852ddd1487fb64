"""Soft pruning: LTP's own numbers, gradients against finite differences, packed against padded."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mp_model import PyramidBertConfig, PyramidBertForSequenceClassification, engine
from mp_model.backbones import first_rows
from mp_model.training.objectives import SoftPruningObjective
from mp_model.training.soft_pruning import SoftPruning, rising_thresholds
from support import tiny
from support.ltp_numbers import our_name, read_numbers

LAYERS = 4
PADDED_WIDTH = 24
FIRST_POSITION = 2


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return read_numbers("ltp_soft.npz")


def test_ltp_s_own_loss_masks_and_gradients(golden: dict[str, Tensor]) -> None:
    """In its conventions: scores over the padded width, no mask at its layer 0, [CLS] unprotected, every layer whole."""
    model = PyramidBertForSequenceClassification(
        PyramidBertConfig(
            vocab_size=97,
            hidden_size=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=160,
            layer_norm_eps=1e-12,
            num_labels=3,
            pad_token_id=1,
        )
    ).eval()
    weights = {our_name(name.removeprefix("w/")): x for name, x in golden.items() if name.startswith("w/")}
    model.load_state_dict({name: weights.get(name, x) for name, x in model.state_dict().items()})
    offset = "ibert.encoder.layer.{}.attention.self.pruner.keep_threshold"
    offsets = torch.stack([golden["w/" + offset.format(i)].reshape(()) for i in range(LAYERS)])
    thresholds = 0.04 * torch.arange(LAYERS) / LAYERS + offsets
    thresholds[0] = -1e9  # its layer 0 fades nothing
    thresholds.requires_grad_()

    mask, temperature = golden["attention_mask"], float(golden["T"])
    positions = (torch.arange(PADDED_WIDTH) + FIRST_POSITION)[None]
    batch = model.bert.embed(golden["ids"], mask, None, positions, None)
    soft = SoftPruning(thresholds, temperature, PADDED_WIDTH, protect_first=False)
    first = first_rows(engine.run_encoder(model.bert.stack, batch, soft), batch)
    logits = model.final_head(first)
    torch.testing.assert_close(logits, golden["logits"], atol=1e-4, rtol=0)
    cross_entropy = F.cross_entropy(logits, golden["labels"])
    assert abs(cross_entropy.item() - float(golden["ce"])) < 1e-4

    penalty = torch.zeros(())
    for i in range(1, LAYERS):
        padded = torch.sigmoid(-thresholds[i] / temperature).expand(mask.numel())  # what padding, of score 0, gets
        padded = padded.index_copy(0, batch.index, soft.masks[i])
        torch.testing.assert_close(
            padded.reshape(mask.shape)[mask != 0], golden[f"softmask/{i}"][mask != 0], atol=1e-4, rtol=0
        )
        penalty = penalty + padded.mean()
    assert abs(penalty.item() - float(golden["reg"])) < 1e-4

    (cross_entropy + float(golden["lam"]) * penalty).backward()
    parameters, compared = dict(model.named_parameters()), 0
    for name, grad in golden.items():
        if not name.startswith("g/"):
            continue
        if name.endswith("keep_threshold"):
            got = thresholds.grad[int(name.split(".")[3])]
        else:
            got = parameters[our_name(name.removeprefix("g/"))].grad
        torch.testing.assert_close(got.reshape(grad.shape), grad, atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
        compared += 1
    assert compared > 60


def objective(model: PyramidBertForSequenceClassification, **options: float) -> SoftPruningObjective:
    return SoftPruningObjective(model, **{"temperature": 0.02, "penalty": 0.5, "final_threshold": 0.1, **options})


def test_gradients_of_the_thresholds_are_finite_differences() -> None:
    batch = tiny.samples((9, 1, 17, 4))
    stage = objective(tiny.classifier().double())
    stage.thresholds.data = stage.thresholds.data.double()
    inputs = {**batch.padded(), "labels": torch.tensor([0, 1, 2, 0])}
    stage(**inputs)["loss"].backward()
    step = 1e-6
    for layer in range(LAYERS):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                stage.thresholds[layer] += sign * step
                ends.append(stage(**inputs)["loss"].item())
                stage.thresholds[layer] -= sign * step
        slope = (ends[0] - ends[1]) / (2 * step)
        assert abs(stage.thresholds.grad[layer].item() - slope) < 1e-6
        # Layer L answers by its [CLS], which never fades, so its threshold is moved by nothing.
        assert (abs(slope) > 1e-4) == (layer < LAYERS - 1)


def one_padded_sample_at_a_time(stage: SoftPruningObjective, batch: tiny.Batch, labels: Tensor) -> Tensor:
    """The loss with plain padded attention, masks multiplied onto a padded batch: nothing packed anywhere."""
    model, config = stage.model, stage.model.config
    inputs = batch.padded()
    alive = inputs["attention_mask"].bool()
    lengths = alive.sum(1)
    x = model.bert.embeddings(input_ids=inputs["input_ids"], token_type_ids=inputs["token_type_ids"])
    masks = []
    for number, layer in enumerate(model.bert.encoder.layer):
        attention = layer.attention.self
        q, k, v = (
            project(x).unflatten(-1, (config.num_attention_heads, -1)).transpose(1, 2)
            for project in (attention.query, attention.key, attention.value)
        )
        scores = (q @ k.transpose(2, 3)) * q.shape[-1] ** -0.5
        p = torch.softmax(scores.masked_fill(~alive[:, None, None], float("-inf")), -1)
        context = (p @ v).transpose(1, 2).flatten(2)
        attended = layer.attention.output(context, x)
        output = layer.output(layer.intermediate(attended), attended)
        if number < LAYERS - 1:
            importance = (p * alive[:, None, :, None]).sum((1, 2)) / (config.num_attention_heads * lengths[:, None])
            mask = torch.sigmoid((importance - stage.thresholds[number]) / stage.temperature)
            mask = torch.where(torch.arange(mask.shape[1]) == 0, 1.0, mask)
            masks.append(mask[alive].mean())
            output = output * mask.unsqueeze(2)
        x = output
    logits = model.classifier(model.bert.pooler(x))
    return F.cross_entropy(logits, labels) + stage.penalty * torch.stack(masks).mean()


def test_packed_rows_teach_what_padded_rows_teach() -> None:
    batch, labels = tiny.samples((9, 1, 17, 4)), torch.tensor([0, 1, 2, 0])
    stage = objective(tiny.classifier())

    def gradients(loss: Tensor) -> dict[str, Tensor]:
        stage.zero_grad()
        loss.backward()
        return {name: p.grad.clone() for name, p in stage.named_parameters() if p.grad is not None}

    packed_loss = stage(**batch.padded(), labels=labels)["loss"]
    packed = gradients(packed_loss)
    padded_loss = one_padded_sample_at_a_time(stage, batch, labels)
    padded = gradients(padded_loss)
    torch.testing.assert_close(packed_loss, padded_loss, atol=1e-5, rtol=0)
    assert padded.keys() <= packed.keys()
    for name, grad in padded.items():
        torch.testing.assert_close(packed[name], grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_upper_layers_may_be_spared() -> None:
    """Thresholds of the lower layers alone are learned, by the penalty on these layers, and the others prune nothing."""
    batch, labels = tiny.samples((9, 1, 17, 4)), torch.tensor([0, 1, 2, 0])
    spared, whole = objective(tiny.classifier(), pruned_layers=2), objective(tiny.classifier())
    assert spared.thresholds.tolist() == whole.thresholds[:2].tolist()
    with torch.no_grad():
        whole.thresholds[2:] = -1e9  # nothing fades there
    priced = spared(**batch.padded(), labels=labels)["loss"]
    spared.penalty = whole.penalty = 0.0
    plain, expected = (stage(**batch.padded(), labels=labels)["loss"] for stage in (spared, whole))
    torch.testing.assert_close(plain, expected)
    assert priced > plain
    priced.backward()
    assert (spared.thresholds.grad != 0).all()
    spared.harden()
    assert spared.model.config.prune_thresholds == pytest.approx([0.025, 0.05, 0.0, 0.0])


def test_hardened_thresholds_are_the_learned_ones() -> None:
    stage = objective(tiny.classifier())
    torch.testing.assert_close(stage.thresholds.detach(), torch.tensor([0.025, 0.05, 0.075, 0.1]))
    torch.testing.assert_close(rising_thresholds(0.1, 4), stage.thresholds.detach())
    with torch.no_grad():
        stage.thresholds += 0.01
    stage.harden()
    assert stage.model.config.prune_thresholds == pytest.approx([0.035, 0.06, 0.085, 0.11])

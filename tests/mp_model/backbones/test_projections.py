"""The prepared form moves weights into one piece of memory; everybody else sees them as before, and it sees every change."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import accelerate
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mp_model import PyramidBertForSequenceClassification
from mp_model.backbones import why_layer_modules
from support import tiny

BATCH = tiny.samples()
LABELS = torch.arange(len(BATCH)) % 3
NOT_ALONE = "queries, keys or values lie in memory that is not theirs alone"


def answer(model: nn.Module) -> Tensor:
    """Logits in inference mode, for which weights are moved where they were not before."""
    with torch.inference_mode():
        return model.eval()(**BATCH.padded()).logits


def used(seed: int = 3, **settings) -> PyramidBertForSequenceClassification:
    """A model whose weights were moved."""
    model = tiny.classifier(seed, **settings)
    answer(model)
    assert reasons(model) == [None] * 4
    return model


def reasons(model: PyramidBertForSequenceClassification) -> list[str | None]:
    """Why the layers run in module form; None: prepared."""
    with torch.no_grad():
        return [why_layer_modules(layer, torch.device("cpu")) for layer in model.bert.encoder.layer]


def attention_of(model: PyramidBertForSequenceClassification, layer: int = 1) -> nn.Module:
    return model.bert.encoder.layer[layer].attention.self


def assert_answers_of_its_weights(model: PyramidBertForSequenceClassification) -> None:
    """As a fresh model of the same weights, which has never been used, answers."""
    fresh = PyramidBertForSequenceClassification(model.config).to(next(model.parameters()).dtype)
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    torch.testing.assert_close(answer(model), answer(fresh), atol=1e-5, rtol=1e-5)


def storages(model: nn.Module) -> dict[int, int]:
    """Bytes of each storage of the parameters, by its address."""
    found = [parameter.untyped_storage() for parameter in model.parameters()]
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def test_names_values_and_memory_stay() -> None:
    model = tiny.classifier()
    parameters = dict(model.named_parameters())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    size = sum(storages(model).values())
    answer(model)
    assert reasons(model) == [None] * 4
    assert list(model.state_dict()) == list(before)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    assert len(storages(model)) == len(parameters)
    assert sum(storages(model).values()) == size
    # The product of all three reads the parameters' own memory.
    own, piece = attention_of(model), model.bert.encoder.layer[1].projections.pieces["weight"]
    assert piece.data_ptr() == own.query.weight.data_ptr()
    assert piece.nbytes == sum(linear.weight.nbytes for linear in (own.query, own.key, own.value))


# Saving and loading


def save_by_transformers(model: nn.Module, folder: Path) -> None:
    model.save_pretrained(folder)


def save_by_safetensors(model: nn.Module, folder: Path) -> None:
    save_file(model.state_dict(), folder / "model.safetensors")


def save_by_accelerate(model: nn.Module, folder: Path) -> None:
    accelerate.Accelerator(cpu=True).save_model(model, folder)


@pytest.mark.parametrize("save", [save_by_transformers, save_by_safetensors, save_by_accelerate])
def test_saved_whole(save: Callable[[nn.Module, Path], None], tmp_path: Path) -> None:
    """Savers leave out what they take for second names of the same weights."""
    model = used()
    save(model, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(saved[name], weight), name


def test_from_pretrained(tmp_path: Path) -> None:
    model = used()
    model.save_pretrained(tmp_path)
    loaded = PyramidBertForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(answer(loaded), answer(model))
    assert reasons(loaded) == [None] * 4


@pytest.mark.parametrize("assign", [False, True])
def test_other_weights_are_loaded(assign: bool) -> None:
    model, other = used(), used(seed=8)
    expected = answer(other)
    stream = io.BytesIO()
    torch.save(other.state_dict(), stream)
    assert stream.tell() < 1.5 * sum(storages(other).values())
    stream.seek(0)
    model.load_state_dict(torch.load(stream), assign=assign)
    assert torch.equal(answer(model), expected)
    assert reasons(model) == [None] * 4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(copied: Callable[[nn.Module], nn.Module]) -> None:
    model = used()
    expected = answer(model)
    twin = copied(model)
    assert all(layer.projections is None for layer in twin.bert.encoder.layer), "memory that nobody needs is held"
    assert torch.equal(answer(twin), expected)
    assert reasons(twin) == [None] * 4
    with torch.no_grad():
        attention_of(twin).key.weight.mul_(1.5)
    assert torch.equal(answer(model), expected)
    assert (answer(twin) - expected).abs().max() > 0.01
    assert_answers_of_its_weights(twin)


# Changes


def in_place(model: PyramidBertForSequenceClassification) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def in_place_through_data(model: PyramidBertForSequenceClassification) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.1)


def replace_data(model: PyramidBertForSequenceClassification) -> None:
    own = attention_of(model)
    own.query.weight.data = own.query.weight.data * 1.5


def transpose_data(model: PyramidBertForSequenceClassification) -> None:
    """The same memory, read otherwise."""
    own = attention_of(model)
    own.value.weight.data = own.value.weight.data.t()


def replace_parameter(model: PyramidBertForSequenceClassification) -> None:
    own = attention_of(model)
    own.value.bias = nn.Parameter(own.value.bias.detach() + 1)


def replace_linear(model: PyramidBertForSequenceClassification) -> None:
    attention_of(model).key = nn.Linear(32, 32)


def exchange_linears(model: PyramidBertForSequenceClassification) -> None:
    own = attention_of(model)
    own.query, own.value = own.value, own.query


def replace_in_the_rest(model: PyramidBertForSequenceClassification) -> None:
    layer = model.bert.encoder.layer[1]
    layer.attention.output.dense.weight = nn.Parameter(layer.attention.output.dense.weight.detach() * 1.5)
    layer.intermediate.dense.bias.data = layer.intermediate.dense.bias.data + 1
    layer.output.dense = nn.Linear(*layer.output.dense.weight.shape[::-1])
    layer.output.LayerNorm.weight = nn.Parameter(layer.output.LayerNorm.weight.detach() * 1.5)


def load_into_one_layer(model: PyramidBertForSequenceClassification) -> None:
    attention_of(model).load_state_dict(attention_of(tiny.classifier(seed=8)).state_dict())


CHANGES = [
    *(in_place, in_place_through_data, replace_data, transpose_data, replace_parameter),
    *(replace_linear, exchange_linears, replace_in_the_rest, load_into_one_layer),
]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights(change: Callable[[PyramidBertForSequenceClassification], None]) -> None:
    model = used()
    before = answer(model)
    change(model)
    assert_answers_of_its_weights(model)
    assert (answer(model) - before).abs().max() > 0.01
    assert reasons(model) == [None] * 4


def test_another_eps_takes_effect() -> None:
    model = used()
    before = answer(model)
    model.bert.encoder.layer[1].output.LayerNorm.eps = 1.0
    torch.testing.assert_close(answer(model), answer(copy.deepcopy(model)), atol=1e-5, rtol=1e-5)
    assert (answer(model) - before).abs().max() > 0.01


def test_cast_and_back() -> None:
    model = used()
    expected = answer(model)
    half = answer(model.bfloat16())
    assert half.dtype == torch.bfloat16
    assert_answers_of_its_weights(model)
    assert all(layer.projections.pieces["weight"].dtype == torch.bfloat16 for layer in model.bert.encoder.layer)
    torch.testing.assert_close(answer(model.float()), expected, atol=0.2, rtol=0.1)
    assert_answers_of_its_weights(model)
    model.double()
    assert all(layer.projections is None for layer in model.bert.encoder.layer), "memory that nobody needs is held"


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.SGD, torch.optim.AdamW, lambda *args, **options: torch.optim.AdamW(*args, **options, fused=True)],
)
def test_training_goes_on(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    """After each step the answers are those of the new weights; what was used in between trains as what was not."""
    model, never_used = used(), tiny.classifier()
    for m in (model, never_used):
        step = optimizer([weight for name, weight in m.named_parameters() if "key.bias" not in name], lr=0.01)
        for _ in range(3):
            step.zero_grad()
            m.train()(**BATCH.padded(), labels=LABELS).loss.backward()
            step.step()
            if m is model:
                assert_answers_of_its_weights(model)
    torch.testing.assert_close(model.state_dict(), never_used.state_dict(), atol=1e-5, rtol=1e-5)


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = tiny.classifier()
    expected = answer(model)
    assert reasons(model) == [None] * 4
    assert torch.equal(expected, answer(tiny.classifier()))


# Memory that somebody else knows


@pytest.mark.parametrize("when", ["before", "after"])
def test_memory_shared_between_processes(when: str) -> None:
    """Nobody moves the weights out of it."""
    model = tiny.classifier()
    if when == "after":
        answer(model)
    model.share_memory()
    assert_answers_of_its_weights(model)
    assert reasons(model) == [NOT_ALONE] * 4
    assert all(parameter.is_shared() for parameter in model.parameters())


@pytest.mark.parametrize("when", ["before", "after"])
def test_parameters_in_one_vector(when: str) -> None:
    """As optimisers keep them that spread their work over processes."""
    model = tiny.classifier()
    if when == "after":
        answer(model)
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(vector, model.parameters())
    answer(model)
    assert reasons(model) == [NOT_ALONE] * 4
    before = answer(model)
    vector *= 1.1
    assert (answer(model) - before).abs().max() > 0.01
    assert_answers_of_its_weights(model)


@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_a_linear_layer_of_two_layers(part: str) -> None:
    model = used()
    setattr(attention_of(model, 2), part, getattr(attention_of(model, 0), part))
    for _ in range(2):
        assert_answers_of_its_weights(model)
        in_place(model)


def test_weights_that_are_queries_and_keys() -> None:
    model = used()
    own = attention_of(model)
    own.key.weight = own.query.weight
    for _ in range(2):
        assert_answers_of_its_weights(model)
        assert reasons(model) == [None, "queries, keys and values share weights", None, None]
        in_place(model)
    own.value = own.query
    assert_answers_of_its_weights(model)


def test_threads_that_use_a_model_for_the_first_time() -> None:
    expected = answer(tiny.classifier())
    for _ in range(10):
        model = tiny.classifier()
        with ThreadPoolExecutor(4) as pool:
            for logits in pool.map(answer, [model] * 8):
                torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(answer(model), expected)
        assert reasons(model) == [None] * 4

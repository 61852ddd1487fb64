"""States and attentions as outputs, and graphs of one piece: the pyramid on a padded batch, by masks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from transformers import BertConfig, BertForSequenceClassification

from mp_model import PyramidBertForSequenceClassification
from support import tiny
from support.pyramids import BATCH, LAYERS, PRUNINGS, calibrated
from support.situations import situation

LABELS = torch.arange(len(BATCH)) % 3
# Looked up by whoever goes through all attributes of a model.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ALL = {"output_hidden_states": True, "output_attentions": True}
DENSE = [0.0] * LAYERS


def real_tokens(side: str) -> list[tuple[int, Tensor]]:
    """Each sample's number and the columns of its tokens."""
    return [(i, row.nonzero().squeeze(1)) for i, row in enumerate(BATCH.padded(side)["attention_mask"])]


@functools.cache
def stock_of_tiny() -> tuple[BertForSequenceClassification, PyramidBertForSequenceClassification]:
    """Stock BERT and a pyramid, of the same weights."""
    model = tiny.classifier()
    settings = {name: x for name, x in model.config.to_dict().items() if hasattr(BertConfig(), name)}
    stock = BertForSequenceClassification._from_config(
        BertConfig(**{**settings, "model_type": "bert"}), attn_implementation="eager"
    )
    stock.load_state_dict({name: x for name, x in model.state_dict().items() if not name.startswith("exits.")})
    return stock.eval(), model


# States and attentions


@torch.no_grad()
@situation("drop-in", "`output_hidden_states`, `output_attentions`", "BERT's, L + 1 states and L attention matrices")
def test_states_and_attentions_are_berts() -> None:
    stock, model = stock_of_tiny()
    inputs = BATCH.padded(junk=0)
    keep = inputs["attention_mask"].bool()
    for ours, theirs in ((model, stock), (model.bert, stock.bert)):
        got, expected = ours(**inputs, **ALL), theirs(**inputs, **ALL)
        assert (len(got.hidden_states), len(got.attentions)) == (LAYERS + 1, LAYERS)
        for x, y in zip(got.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(x[keep], y[keep], atol=1e-5, rtol=0)
            assert not x[~keep].any()
        for x, y in zip(got.attentions, expected.attentions, strict=True):
            torch.testing.assert_close(x, y.masked_fill(~keep[:, None, :, None], 0), atol=1e-5, rtol=0)
        assert torch.equal(got[0], got.hidden_states[-1] if ours is model.bert else got.logits)
    torch.testing.assert_close(model(**inputs, **ALL).logits, stock(**inputs).logits, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("side", ["right", "left", "mixed"])
@pytest.mark.parametrize("pruning", PRUNINGS)
@situation(
    "drop-in",
    "the same where tokens are pruned",
    "a pruned token keeps the state with which it entered its last layer, and its attention is 0 after it",
)
def test_states_and_attentions_of_pruned_tokens(pruning: str, side: str) -> None:
    model, _, _ = calibrated(pruning, "cls")
    answers = tiny.define(model, BATCH, classify=False)
    classified, encoded = (called(**BATCH.padded(side), **ALL) for called in (model, model.bert))
    for x, y in zip(classified.hidden_states, encoded.hidden_states, strict=True):
        assert torch.equal(x, y)
    assert torch.equal(encoded.last_hidden_state, encoded.hidden_states[-1])
    for i, columns in real_tokens(side):
        answer = answers[i]
        entering, settled = torch.arange(len(columns)), answer.states[0]
        torch.testing.assert_close(encoded.hidden_states[0][i, columns].double(), settled, atol=1e-5, rtol=0)
        for layer, alive in enumerate(answer.survivors):
            settled = settled.index_copy(0, alive, answer.states[layer + 1])
            torch.testing.assert_close(
                encoded.hidden_states[layer + 1][i, columns].double(), settled, atol=1e-5, rtol=0
            )
            attention = encoded.attentions[layer][i].double()
            among = attention[:, columns[entering]][:, :, columns[entering]]
            torch.testing.assert_close(among.sum(2), torch.ones_like(among[:, :, 0]), atol=1e-5, rtol=0)
            assert attention.count_nonzero() == among.count_nonzero(), "attention outside of the tokens that entered"
            received, importance = among.mean(0).sum(0), answer.importance[layer]
            torch.testing.assert_close(received / received.sum(), importance / importance.sum(), atol=1e-5, rtol=0)
            entering = alive


@torch.no_grad()
@pytest.mark.parametrize("pruning", ["nothing", "alive", "shares"])
def test_the_answers_are_those_without_states(pruning: str) -> None:
    model, _, _ = calibrated(pruning, "cls")
    inputs = BATCH.padded("mixed")
    got, expected = (model(**inputs, labels=LABELS, follow_tokens=True, **more) for more in (ALL, {}))
    for name in ("exit_layer", "pruned_by", "tokens_per_layer", "flops"):
        assert torch.equal(got[name], expected[name]), name
    for name in ("loss", "logits", "uncertainty"):
        torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=0)
    padded = tiny.define(tiny.classifier(), tiny.samples([40] * len(BATCH)), decides_first=False)
    whole = [answer.executed_flops for answer in padded]
    d, f, width = 32, 64, 40
    others = 2 * (width - 1) * (d * d + d * d + 2 * width * d + 2 * d * f)  # layer L of all columns, not of [CLS] alone
    assert got.executed_flops.tolist() == [work + others for work in whole]


@torch.no_grad()
@situation("drop-in", "a configuration that asks for states and attentions", "every call returns them")
def test_a_configuration_that_asks(tmp_path) -> None:
    stock, model = stock_of_tiny()
    stock.config.save_pretrained(tmp_path)
    stock.save_pretrained(tmp_path)
    loaded = PyramidBertForSequenceClassification.from_pretrained(tmp_path, **ALL)
    expected = model(**BATCH.padded(), **ALL)
    for called in (loaded, PyramidBertForSequenceClassification.from_pretrained(saved(loaded, tmp_path / "again"))):
        got = called(**BATCH.padded())
        assert list(got) == ["logits", "exit_layer", "uncertainty", "hidden_states", "attentions"]
        for name in ("hidden_states", "attentions"):
            assert all(torch.equal(x, y) for x, y in zip(got[name], expected[name], strict=True))
        without = called(**BATCH.padded(), output_hidden_states=False, output_attentions=False)
        assert list(without) == ["logits", "exit_layer", "uncertainty"]


def saved(model: PyramidBertForSequenceClassification, folder: Any) -> Any:
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
@pytest.mark.parametrize(("asked", "kept"), [(1, {1}), ([0, -1, 9], {0, LAYERS}), ([], set())])
def test_states_of_chosen_layers(asked: int | list[int], kept: set[int]) -> None:
    model = tiny.classifier()
    states = model(**BATCH.padded(), output_hidden_states=True).hidden_states
    for called in (model, model.bert):
        got = called(**BATCH.padded(), output_hidden_states=asked).hidden_states
        for number, (x, y) in enumerate(zip(got, states, strict=True)):
            assert torch.equal(x, y) if number in kept else x is None


@situation(
    "drop-in",
    "states or attentions while exits are open",
    'refused: a sample that leaves has none above its exit; `exit_threshold="never"` gives them',
)
def test_open_exits_and_states() -> None:
    model = tiny.classifier(exit_threshold=0.5)
    for asked in ({"output_hidden_states": True}, {"output_attentions": True}):
        with pytest.raises(ValueError, match="close the exits with exit_threshold='never'"):
            model(**BATCH.padded(), **asked)
        assert model(**BATCH.padded(), **asked, exit_threshold="never").exit_layer.eq(LAYERS).all()
        assert model.train()(**BATCH.padded(), **asked).exit_layer.eq(LAYERS).all()
        model.eval()


@pytest.mark.parametrize("pruning", ["nothing", "alive"])
def test_gradients_through_states_and_attentions(pruning: str) -> None:
    """The returned tensors are those that the answer was made of, and the weights' gradients are the engine's."""
    model, _, _ = calibrated(pruning, "cls")
    gradients = []
    for more in (ALL, {}):
        model.zero_grad()
        output = model(**BATCH.padded(), labels=LABELS, **more)
        for x in (*(output.hidden_states or ()), *(output.attentions or ())):
            x.retain_grad()
        output.loss.backward()
        assert all(x.grad.any() for x in (*(output.hidden_states or ()), *(output.attentions or ())))
        gradients.append({name: x.grad for name, x in model.named_parameters() if x.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, x in gradients[0].items():
        torch.testing.assert_close(x, gradients[1][name], atol=1e-5, rtol=1e-4, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_states_of_other_dtypes(dtype: torch.dtype) -> None:
    model = tiny.classifier().to(dtype)
    got, expected = model(**BATCH.padded(), **ALL), model(**BATCH.padded())
    assert {x.dtype for x in (*got.hidden_states, *got.attentions)} == {dtype}
    torch.testing.assert_close(got.logits, expected.logits, atol=1e-6 if dtype == torch.float64 else 0.1, rtol=0.1)


@torch.no_grad()
@pytest.mark.parametrize("width", [0, 8])
def test_states_of_an_empty_batch(width: int) -> None:
    output = tiny.classifier(top_k=[4, 3, 2, 1])(torch.zeros(0, width, dtype=torch.int64), **ALL)
    assert [tuple(x.shape) for x in output.hidden_states] == [(0, width, 32)] * (LAYERS + 1)
    assert [tuple(x.shape) for x in output.attentions] == [(0, 4, width, width)] * LAYERS
    assert output.logits.shape == (0, 3)


@torch.no_grad()
def test_values_are_checked_for_states_too() -> None:
    model = tiny.classifier(prune_thresholds=[0.01] * LAYERS)
    with pytest.raises(ValueError, match=r"input_ids must lie in 0..49; got 50"):
        model(torch.full((1, 3), 50), **ALL)
    with pytest.raises(ValueError, match="attention_mask has no token in row 0"):
        model(torch.full((1, 3), 5), torch.zeros(1, 3), **ALL)
    model.bert.encoder.layer[1].output.dense.weight[3, 3] = torch.nan
    with pytest.raises(ValueError, match="importance is NaN"):
        model(**BATCH.padded(), **ALL)


# Graphs of one piece


def parts(model: PyramidBertForSequenceClassification) -> list[nn.Module]:
    return [model, model.bert]


def assert_follows(graph: Callable[..., Any], model: nn.Module) -> None:
    """The graph gives the model's answers for a batch of another size, width and side of padding."""
    inputs = tiny.samples((3, 5, 1)).padded("left", width=11)
    with torch.no_grad():
        got, expected = graph(**inputs), model(**inputs)
    for x, y in zip(got if isinstance(got, tuple) else got.to_tuple(), expected.to_tuple(), strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=0)


@situation(
    "drop-in", "`torch.compile(model, fullgraph=True)`, nothing pruned and no exits", "one graph, the same answers"
)
@pytest.mark.parametrize("more", [{}, ALL], ids=["answers", "states"])
def test_compiled_in_one_graph(more: dict[str, bool]) -> None:
    inputs = BATCH.padded()
    for model in parts(tiny.classifier()):
        torch.compiler.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        with torch.no_grad():
            got, expected = compiled(**inputs, **more), model(**inputs, **more)
        assert list(got) == list(expected)
        torch.testing.assert_close(got.to_tuple(), expected.to_tuple(), atol=1e-5, rtol=0)
        assert_follows(compiled, model)
        if hasattr(got, "work"):
            for name in ("tokens_per_layer", "flops"):
                assert torch.equal(got[name], expected[name])
    torch.compiler.reset()


@situation(
    "drop-in",
    "`torch.compile(model, fullgraph=True)` of a model that prunes or has open exits",
    "refused, with the settings under which one graph can be made; without `fullgraph` it works",
)
@pytest.mark.parametrize("settings", [{"prune_thresholds": [0.01] * LAYERS}, {"exit_threshold": 0.5}])
def test_pruning_and_exits_are_in_no_single_graph(settings: dict[str, Any]) -> None:
    model, inputs = tiny.classifier(**settings), BATCH.padded()
    called = parts(model) if "prune_thresholds" in settings else [model]
    for part in called:
        torch.compiler.reset()
        with pytest.raises(
            torch._dynamo.exc.Unsupported, match="which no single graph can follow: leave fullgraph=True out"
        ):
            torch.compile(part, backend="aot_eager", fullgraph=True)(**inputs)
        with torch.no_grad():
            got, expected = torch.compile(part, backend="aot_eager")(**inputs), part(**inputs)
        torch.testing.assert_close(got[0], expected[0], atol=1e-5, rtol=0)
    torch.compiler.reset()


def test_gradients_of_one_graph_are_the_engines() -> None:
    model = tiny.classifier().train()
    torch.compiler.reset()
    gradients = []
    for called in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        called(**BATCH.padded("mixed"), labels=LABELS).loss.backward()
        gradients.append({name: x.grad for name, x in model.named_parameters() if x.grad is not None})
    torch.compiler.reset()
    assert gradients[0].keys() == gradients[1].keys()
    for name, x in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], x, atol=1e-5, rtol=1e-4, msg=name)


@situation("drop-in", "`torch.export`, nothing pruned and no exits", "works, for batches of any size and width")
def test_exported() -> None:
    inputs = BATCH.padded()
    shapes = {name: {0: Dim("batch"), 1: Dim("width", max=64)} for name in inputs}
    for model in parts(tiny.classifier()):
        program = export(model, (), inputs, dynamic_shapes=shapes)
        assert not [node for node in program.graph.nodes if "mp_kernels" in str(node.target)]
        assert_follows(program.module(), model)


class Tuples(nn.Module):
    """A model as tracing takes it: arguments by place, answers as a tuple."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Any:
        return self.model(input_ids, attention_mask, token_type_ids, return_dict=False)


# A DeprecationWarning or a FutureWarning, by the version of torch.
tracers_warnings = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.*deprecated")


def traced(model: nn.Module) -> Callable[..., Any]:
    inputs = BATCH.padded()
    return torch.jit.trace(Tuples(model), tuple(inputs[x] for x in ("input_ids", "attention_mask", "token_type_ids")))


@situation("drop-in", "`torch.jit.trace`, nothing pruned and no exits", "works, for batches of any size and width")
@tracers_warnings
def test_traced() -> None:
    for model in parts(tiny.classifier()):
        assert_follows(traced(model), model)


@situation(
    "drop-in",
    "`torch.export` or `torch.jit.trace` of a model that prunes or has open exits",
    "refused, with the settings under which it can be traced",
)
@tracers_warnings
@pytest.mark.parametrize(
    "settings", [{"exit_threshold": 0.5}, {"prune_thresholds": [0.01] * 4}, {"top_k": [9, 7, 5, 3]}]
)
def test_pruning_and_exits_cannot_be_traced(settings: dict[str, Any]) -> None:
    model = tiny.classifier(**settings)
    with pytest.raises(ValueError, match=r"trace with prune_thresholds=\[0.0\] \* layers and exit_threshold='never'"):
        traced(model)
    with pytest.raises(ValueError, match="a traced or exported graph has the same work for every input"):
        export(model, (), BATCH.padded())
    closed = {"exit_threshold": "never", "prune_thresholds": DENSE}
    program = export(model, (), {**BATCH.padded(), **closed})
    got = program.module()(**BATCH.padded(), **closed).logits
    torch.testing.assert_close(got, model(**BATCH.padded(), **closed).logits, atol=1e-5, rtol=0)

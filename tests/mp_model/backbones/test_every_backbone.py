"""Every backbone: transformers' numbers where nothing is pruned, and a slow pyramid's where something is."""

from __future__ import annotations

import copy
import functools
import re
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline

from mp_model import PyramidForSequenceClassification, PyramidModel
from mp_model.backbones import why_layer_modules
from mp_model.backbones.int8 import to_int8
from mp_model.checkpoints.tokenizers import load_tokenizer
from mp_model.data.batches import encode
from mp_model.data.tokens import Tokeniser
from mp_model.pruning import Pruning
from mp_model.schedule import run_batches
from support import backbones, slow, tiny, wordpiece
from support.backbones import BATCH, KINDS, LAYERS, SIDES, padded

EXACT = {"atol": 1e-5, "rtol": 1e-5}


def at_tokens(states: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    return states[inputs["attention_mask"].bool()]


# Nothing is pruned and nobody leaves: transformers' numbers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_like_transformers(kind: str, side: str) -> None:
    stock, model, inputs = backbones.stock(kind), backbones.pyramid(kind, exit_layers=[]), padded(kind, side)
    # Stock models count positions from the first column, or read a head there, where the padding is on the left.
    on_right = padded(kind, "right")
    states = at_tokens(stock.base_model(**on_right).last_hidden_state, on_right)
    with torch.inference_mode():
        got = model(**inputs)
        torch.testing.assert_close(at_tokens(model.base_model(**inputs).last_hidden_state, inputs), states, **EXACT)
    torch.testing.assert_close(got.logits, stock(**on_right).logits, **EXACT)
    assert all(why is None for why in forms(model)), "the prepared form is not what was compared"


def forms(model: PyramidForSequenceClassification) -> list[str | None]:
    device = torch.device("cpu")
    with torch.inference_mode():
        layers = [why_layer_modules(layer, device) for layer in model.base_model.stack]
        return [model.backbone.why_embedding_modules(model.base_model, device), *layers]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_like_transformers(kind: str) -> None:
    stock, model, inputs = backbones.stock(kind), backbones.pyramid(kind, exit_layers=[]), padded(kind)
    labels = torch.arange(len(BATCH)) % 3
    for each in (stock, model):
        each.zero_grad()
        each(**inputs, labels=labels).loss.backward()
    wanted = {name: weight.grad for name, weight in stock.named_parameters()}
    for name, weight in model.named_parameters():
        assert (weight.grad is None) == (wanted[name] is None), name
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, wanted[name], atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pruned", [False, True])
def test_forms_agree(kind: str, pruned: bool) -> None:
    model, inputs = calibrated(kind, "cls")[0] if pruned else backbones.pyramid(kind), padded(kind)
    with torch.inference_mode():
        prepared = model(**inputs, exit_threshold="never").logits
    called = model(**inputs, exit_threshold="never").logits.detach()  # with gradients: the modules themselves
    masked = model(**inputs, exit_threshold="never", output_hidden_states=True).logits.detach()
    torch.testing.assert_close(called, prepared, **EXACT)
    torch.testing.assert_close(masked, prepared, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_states_and_attentions(kind: str) -> None:
    stock, model, inputs = backbones.stock(kind), backbones.pyramid(kind, exit_layers=[]), padded(kind)
    with torch.inference_mode():
        wanted = stock(**inputs, output_hidden_states=True, output_attentions=True)
        got = model(**inputs, output_hidden_states=True, output_attentions=True)
    for ours, theirs in zip(got.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(at_tokens(ours, inputs), at_tokens(theirs, inputs), **EXACT)
    for ours, theirs in zip(got.attentions, wanted.attentions, strict=True):
        rows = inputs["attention_mask"].bool()[:, None, :, None]
        torch.testing.assert_close(ours, theirs.masked_fill(~rows, 0), **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_word_vectors(kind: str) -> None:
    model, inputs = backbones.pyramid(kind, exit_layers=[]), padded(kind)
    vectors = model.get_input_embeddings()(inputs["input_ids"]).detach()
    with torch.inference_mode():
        expected = model(**inputs).logits
        got = model(inputs_embeds=vectors, attention_mask=inputs["attention_mask"]).logits
    torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind: str) -> None:
    stock, model, inputs = backbones.stock(kind), backbones.pyramid(kind, exit_layers=[]), padded(kind)
    exact = stock(**inputs).logits
    with torch.inference_mode():
        theirs = backbones.half(kind)(**inputs).logits.float()
        ours = model.to(torch.bfloat16)(**inputs).logits.float()
    assert (ours - exact).square().mean() <= 4 * (theirs - exact).square().mean()


# Saving and loading


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints(kind: str, tmp_path: Path) -> None:
    stock, inputs = backbones.stock(kind), padded(kind)
    stock.save_pretrained(tmp_path / "stock")
    model = PyramidForSequenceClassification.from_pretrained(tmp_path / "stock", exit_layers=[2]).eval()
    assert type(model).__name__ == f"Pyramid{model.backbone.name}ForSequenceClassification"
    assert model.config.untrained_exits == [2]
    model.save_pretrained(tmp_path / "ours")
    with torch.inference_mode():
        expected = stock(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits, expected, **EXACT)
        for loaded in (
            PyramidForSequenceClassification.from_pretrained(tmp_path / "ours"),
            AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours"),
        ):
            assert type(loaded) is type(model)
            assert loaded.config.exit_layers == [2]
            assert torch.equal(loaded.eval()(**inputs).logits, model(**inputs).logits)
        states = model.base_model(**inputs).last_hidden_state
        for encoder in (
            PyramidModel.from_pretrained(tmp_path / "stock"),
            AutoModel.from_pretrained(tmp_path / "ours"),
        ):
            assert type(encoder) is type(model.base_model)
            torch.testing.assert_close(encoder.eval()(**inputs).last_hidden_state, states, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_more_words(kind: str) -> None:
    model = backbones.pyramid(kind, exit_layers=[])
    model.resize_token_embeddings(57)
    assert model.config.vocab_size == 57
    with torch.inference_mode():
        assert model(torch.full((1, 4), 56)).logits.isfinite().all()


def test_the_page_names_every_backbone() -> None:
    page = (Path(__file__).parents[3] / "docs" / "backbones.md").read_text(encoding="utf-8")
    table = "".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    assert re.findall(r"`([\w-]+)`", table) == ["model_type", *KINDS]


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(ValueError, match="'t5' is no encoder that a pyramid is built from; those are bert, roberta"):
        PyramidForSequenceClassification.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="from_pretrained or from_config"):
        PyramidModel(backbones.config("bert"))


@pytest.mark.parametrize("kind", ["mpnet", "modernbert"])
def test_positions_are_counted(kind: str) -> None:
    inputs = padded(kind)
    with pytest.raises(ValueError, match=f"position_ids cannot be chosen for {kind}"):
        backbones.pyramid(kind)(**inputs, position_ids=torch.zeros_like(inputs["input_ids"]))


# Pruned, and with exits: the slow pyramid's answers


@functools.cache
def calibrated(kind: str, head: str, **settings: Any) -> tuple[PyramidForSequenceClassification, dict[int, float]]:
    """A model whose layers prune a quarter of the tokens each, and a threshold for each exit by which a third leaves."""
    exits = {"exit_head": head} | ({"exit_layers": [0, 1, 2, 3]} if head in ("pooled", "pair") else {})
    sides = sides_of(head)
    model = backbones.pyramid(kind, **exits, **settings)
    exact = backbones.exact(kind, **settings)
    if model.config.top_k is None:
        model.config.prune_thresholds = [0.0] * LAYERS
        for layer in range(1, LAYERS + 1):
            found = slow.all_importances(exact, model.config, BATCH, layer, sides)
            model.config.prune_thresholds[layer - 1] = tiny.between(found, 0.25)
    heads = backbones.heads_of(model)
    thresholds = dict.fromkeys(model.config.resolved_exit_layers(), 0.0)
    answers = [slow.run(exact, model.config, heads, *sample) for sample in zip(BATCH, repeat(thresholds), sides)]
    staying = [answer.uncertainties for answer in answers]
    for layer in thresholds:
        thresholds[layer] = tiny.between([sample[layer] for sample in staying], 0.3)
        staying = [sample for sample in staying if sample[layer] > thresholds[layer]]
    return model, thresholds


def sides_of(head: str) -> list[Tensor]:
    """The text, 0 or 1, that each token belongs to."""
    return SIDES if head == "pair" else [torch.zeros_like(ids) for ids in BATCH]


def pruned_by(length: int, answer: slow.Answer) -> list[int]:
    """The layer that pruned each token; 0: none did before the layer at which the sample left."""
    layers = [0] * length
    for layer, alive in reversed(list(enumerate(answer.survivors[: answer.exit_layer - 1], 1))):
        for token in set(range(length)) - set(alive.tolist()):
            layers[token] = layer
    return layers


def compare(kind: str, model: PyramidForSequenceClassification, thresholds: dict[int, float], **settings: Any) -> None:
    exact, heads = backbones.exact(kind, **settings), backbones.heads_of(model)
    head = model.config.exit_head
    answers = [
        slow.run(exact, model.config, heads, *sample) for sample in zip(BATCH, repeat(thresholds), sides_of(head))
    ]
    with torch.inference_mode():
        got = model(
            **padded(kind, "mixed", pairs=head == "pair"), exit_threshold=list(thresholds.values()), follow_tokens=True
        )
    assert got.exit_layer.tolist() == [answer.exit_layer for answer in answers]
    assert got.tokens_per_layer.tolist() == [answer.tokens_per_layer for answer in answers]
    tokens = padded(kind, "mixed")["attention_mask"].bool()
    for row, (ids, answer) in enumerate(zip(BATCH, answers, strict=True)):
        assert got.pruned_by[row, tokens[row]].tolist() == pruned_by(len(ids), answer)
    logits = torch.stack([answer.logits for answer in answers])
    torch.testing.assert_close(got.logits.double(), logits, atol=2e-5, rtol=1e-4)
    uncertainty = torch.tensor([answer.uncertainty for answer in answers])
    torch.testing.assert_close(got.uncertainty, uncertainty, atol=2e-5, rtol=0)
    assert len({answer.exit_layer for answer in answers}) > 2, "nothing happens"
    counts = [(n, len(ids)) for ids, answer in zip(BATCH, answers, strict=True) for n in answer.tokens_per_layer]
    assert any(0 < n < whole for n, whole in counts), "nothing is pruned"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["cls", "pooled", "pair", "fastbert"])
def test_slow_pyramid(kind: str, head: str) -> None:
    compare(kind, *calibrated(kind, head))


@pytest.mark.parametrize("kind", KINDS)
def test_slow_pyramid_with_top_k(kind: str) -> None:
    compare(kind, *calibrated(kind, "pooled", top_k=(30, 14, 9, 4)), top_k=(30, 14, 9, 4))


@pytest.mark.parametrize("head", ["cls", "pooled", "pair"])
def test_slow_pyramid_of_mean_heads(head: str) -> None:
    settings = {"classifier_pooling": "mean"}
    compare("modernbert", *calibrated("modernbert", head, **settings), **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_keeps_states_of_pruned_tokens(kind: str) -> None:
    model, _ = calibrated(kind, "cls")
    exact, inputs = backbones.exact(kind), padded(kind)
    with torch.inference_mode():
        got = model.base_model(**inputs).last_hidden_state
        masked = model.base_model(**inputs, output_hidden_states=True).last_hidden_state
    for row, ids in enumerate(BATCH):
        expected = slow.run(exact, model.config, {}, ids).last_hidden_state
        torch.testing.assert_close(got[row, : len(ids)].double(), expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(masked[row, : len(ids)].double(), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_one_text_at_a_time_and_shared_layers(kind: str) -> None:
    model, thresholds = calibrated(kind, "pooled")
    own = list(thresholds.values())
    with torch.inference_mode():
        together = model(**padded(kind), exit_threshold=own)
        alone = [model(ids.unsqueeze(0), exit_threshold=own) for ids in BATCH]
        pieces = (model.base_model.pack(ids.unsqueeze(0)) for ids in BATCH)
        shared = [x.decided for x in run_batches(model.pyramid(exit_threshold=own), pieces) if x.decided is not None]
    torch.testing.assert_close(torch.cat([x.logits for x in alone]), together.logits, **EXACT)
    assert [x.exit_layer.item() for x in alone] == together.exit_layer.tolist()
    logits = torch.zeros_like(together.logits)
    for decided in shared:
        logits[decided.samples] = decided.logits
    torch.testing.assert_close(logits, together.logits, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_int8(kind: str) -> None:
    """Answers near float32's, bit-equal in any batch, and the same from a saved folder's form."""
    model, thresholds = calibrated(kind, "pooled")
    exits = list(thresholds.values())
    model = copy.deepcopy(model)
    with torch.inference_mode():
        expected = model(**padded(kind), exit_threshold="never", prune_thresholds=[0.0] * LAYERS).logits
        to_int8(model)
        got = model(**padded(kind), exit_threshold="never", prune_thresholds=[0.0] * LAYERS).logits
        assert torch.nn.functional.cosine_similarity(got, expected).min() > 0.97
        together = model(**padded(kind), exit_threshold=exits)
        for row, ids in enumerate(BATCH):
            alone = model(ids.unsqueeze(0), exit_threshold=exits)
            assert torch.equal(alone.logits[0], together.logits[row])
            assert alone.exit_layer[0] == together.exit_layer[row]
    assert all(why is None for why in forms(model))


@pytest.mark.parametrize("kind", KINDS)
def test_work_of_a_whole_layer(kind: str) -> None:
    """The count is that of the multiplications of the weights that tokens pass, and of pairs that see each other."""
    model, n = backbones.pyramid(kind, exit_layers=[]), 23
    with torch.inference_mode():
        output = model(torch.full((1, n), 7))
    linears = [
        weight.numel()
        for layer in model.base_model.stack
        for name, weight in layer.named_parameters()
        if weight.dim() == 2
    ]
    windows = model.backbone.windows(model.config)
    pairs = sum(n * (n if window is None else min(n, 2 * window + 1)) for window in windows)
    assert output.flops.item() == 2 * (n * sum(linears) + 2 * model.config.hidden_size * pairs)
    assert Pruning.of(model.config).happens(1) is False


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["single_label_classification", "multi_label_classification", "regression"])
def test_losses_of_every_task(kind: str, task: str) -> None:
    labels = 1 if task == "regression" else 3
    settings = {"problem_type": task, "num_labels": labels}
    stock, model = backbones.stock(kind, **settings), backbones.pyramid(kind, **settings, exit_layers=[])
    wanted = torch.arange(len(BATCH)) % 3
    if task == "multi_label_classification":
        wanted = torch.nn.functional.one_hot(wanted, 3).float()
    elif task == "regression":
        wanted = wanted.float()
    with torch.inference_mode():
        ours, theirs = (x(**padded(kind), labels=wanted).loss for x in (model, stock))
    torch.testing.assert_close(ours, theirs, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_head_masks_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="head_mask is not supported"):
        backbones.pyramid(kind)(**padded(kind), head_mask=torch.ones(LAYERS, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_types_of_pairs_are_the_models_matter(kind: str, tmp_path: Path) -> None:
    """A generic tokenizer does not know whether the model has token types."""
    backbones.pyramid(kind, vocab_size=len(wordpiece.VOCABULARY)).save_pretrained(tmp_path)
    wordpiece.tokenizer().save_pretrained(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    (encoded,) = encode(tokenizer, [("a b", "c")], 64)
    tokens = Tokeniser(tokenizer, 64)([("a b", "c")])
    typed = kind in ("bert", "electra")
    assert encoded["token_type_ids"] == ([0, 0, 0, 0, 1, 1] if typed else [0] * 6)
    assert (tokens.types is None) != typed


@pytest.mark.parametrize("kind", ["bert", "electra"])
def test_token_types(kind: str) -> None:
    stock, model = backbones.stock(kind), backbones.pyramid(kind, exit_layers=[])
    inputs = {**padded(kind), "token_type_ids": (torch.arange(64) % 3 == 0).long().expand(len(BATCH), -1)}
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).logits, stock(**inputs).logits, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_pipelines(kind: str) -> None:
    model, tokenizer = backbones.pyramid(kind, vocab_size=len(wordpiece.VOCABULARY)), wordpiece.tokenizer()
    if model.backbone.token_types(model.config) == 1:
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    answers = pipeline("text-classification", model=model, tokenizer=tokenizer)(["a b the", "c rate"], top_k=None)
    with torch.inference_mode():
        scores = model(**tokenizer(["a b the"], return_tensors="pt")).logits.softmax(1)[0]
    assert [len(answer) for answer in answers] == [3, 3]
    for answer in answers[0]:
        assert answer["score"] == pytest.approx(scores[int(answer["label"][-1])].item(), abs=1e-5)


def test_long_texts() -> None:
    """8,000 and 2,000 tokens, pruned, with exits; each alone gives what both give together."""
    settings = {"max_position_embeddings": 8192, "exit_head": "pooled", "exit_layers": [0, 1, 2, 3]}
    model = backbones.pyramid("modernbert", top_k=[0.5, 0.5, 0.5, 0.5], **settings)
    texts = [torch.randint(5, 50, (n,), generator=torch.Generator().manual_seed(n)) for n in (8000, 2000)]
    ids, mask = torch.zeros(2, 8000, dtype=torch.int64), torch.zeros(2, 8000, dtype=torch.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    with torch.inference_mode():
        closed = model(ids, mask, exit_threshold="never")
        together = model(ids, mask, exit_threshold=0.97)
        alone = [model(text.unsqueeze(0), exit_threshold=0.97) for text in texts]
    assert closed.tokens_per_layer.tolist() == [[4000, 2000, 1000, 1000], [1000, 500, 250, 250]]
    assert [x.exit_layer.item() for x in alone] == together.exit_layer.tolist()
    torch.testing.assert_close(torch.cat([x.logits for x in alone]), together.logits, atol=1e-4, rtol=1e-4)

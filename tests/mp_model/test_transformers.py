"""The models among transformers' own: names, checkpoints, Auto classes, pipelines, Trainer, replaced layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    EvalPrediction,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

from mp_kernels import reference
from mp_model import PyramidBert, PyramidBertConfig, PyramidBertForSequenceClassification, PyramidOutput
from support import tiny
from support.checkpoints import change_json
from support.situations import situation

BATCH = tiny.samples()
LABELS = torch.arange(len(BATCH)) % 3
PRUNED_WITH_EXITS = {"prune_thresholds": [0.02, 0.03, 0.04, 0.05], "exit_threshold": 0.8}


@pytest.fixture(scope="module")
def stock() -> BertForSequenceClassification:
    settings = {name: x for name, x in tiny.config().to_dict().items() if hasattr(BertConfig(), name)}
    model = BertForSequenceClassification(BertConfig(**{**settings, "model_type": "bert"}))
    tiny.randomise(model)
    return model.eval()


# Names


@pytest.mark.parametrize(("head", "width"), [("cls", 32), ("pooled", 64), ("pair", 128)])
def test_state_dict_has_stock_names_and_the_exits(stock: BertForSequenceClassification, head: str, width: int) -> None:
    model = tiny.classifier(exit_head=head)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    exits = {}
    for layer in (1, 2, 3):
        exits[f"exits.{layer}.dense.weight"] = (32, width)
        exits[f"exits.{layer}.dense.bias"] = (32,)
        exits[f"exits.{layer}.classifier.weight"] = (3, 32)
        exits[f"exits.{layer}.classifier.bias"] = (3,)
    assert shapes == {name: tuple(weight.shape) for name, weight in stock.state_dict().items()} | exits


def test_exits_stand_at_the_layers_they_are_named_after() -> None:
    model = tiny.classifier(exit_head="pooled", exit_layers=[0, 3])
    assert {name.split(".")[1] for name in model.state_dict() if name.startswith("exits")} == {"0", "3"}


def test_encoder_has_berts_names(stock: BertForSequenceClassification) -> None:
    assert list(PyramidBert(tiny.config()).state_dict()) == list(BertModel(stock.config).state_dict())
    assert PyramidBert(tiny.config(), add_pooling_layer=False).pooler is None


# Checkpoints


def assert_same_answers(model: nn.Module, other: nn.Module) -> None:
    with torch.no_grad():
        ours, theirs = (m.eval()(**BATCH.padded()) for m in (model, other))
    for name in ("logits", "exit_layer", "tokens_per_layer"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        PRUNED_WITH_EXITS,
        {"exit_head": "pooled", "exit_layers": [0, 2], "exit_threshold": [0.5, 0.7], "top_k": [0.9, 12, 6, 2]},
        {"exit_head": "pair", "exit_layers": [0, 2], "exit_threshold": [0.9, 0.7], "top_k": [0.9, 12, 6, 2]},
        {"exit_head": "fastbert", "exit_threshold": 0.9, "importance_normalizer": 24, "prune_thresholds": [0.01] * 4},
    ],
    ids=["dense", "cls", "pooled", "pair", "fastbert"],
)
def test_save_and_load(tmp_path: Path, settings: dict) -> None:
    model = tiny.classifier(**settings)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded, report = PyramidBertForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert not loaded.training
    for name, value in settings.items():
        assert getattr(loaded.config, name) == value
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    assert_same_answers(loaded, model)


def test_settings_can_be_changed_while_loading(tmp_path: Path) -> None:
    tiny.classifier().save_pretrained(tmp_path)
    loaded = PyramidBertForSequenceClassification.from_pretrained(tmp_path, **PRUNED_WITH_EXITS)
    assert_same_answers(loaded, tiny.classifier(**PRUNED_WITH_EXITS))


def test_auto_classes(tmp_path: Path) -> None:
    model = tiny.classifier(**PRUNED_WITH_EXITS)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is PyramidBertConfig
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(classifier) is PyramidBertForSequenceClassification
    assert_same_answers(classifier, model)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert type(encoder) is PyramidBert
    with torch.no_grad():
        assert torch.equal(encoder(**BATCH.padded()).pooler_output, model.bert(**BATCH.padded()).pooler_output)


def save_as_old_checkpoint(model: nn.Module, folder: Path) -> None:
    """As of 2019: a pickle, LayerNorm's gamma and beta, a buffer now gone, the pre-training heads, no model_type."""
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["model_type"]
    path.write_text(json.dumps(config))
    renamed = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    weights = {}
    for name, weight in model.state_dict().items():
        for new, old in renamed.items():
            name = name.replace(new, old)
        weights[name] = weight.clone()
    weights["bert.embeddings.position_ids"] = torch.arange(64)[None]
    weights["cls.predictions.bias"] = torch.zeros(50)
    weights["cls.predictions.transform.dense.weight"] = torch.zeros(32, 32)
    weights["cls.seq_relationship.weight"] = torch.zeros(2, 32)
    torch.save(weights, folder / "pytorch_model.bin")


@torch.no_grad()
@situation(
    "drop-in",
    "padding on the left, and no `position_ids`",
    "positions count from the first real token, so answers are those of padding on the right; BERT counts and reads padding",
)
def test_positions_under_padding_on_the_left(stock: BertForSequenceClassification) -> None:
    model = tiny.classifier()
    model.load_state_dict(stock.state_dict(), strict=False)
    left, right = (BATCH.padded(side, junk=0) for side in ("left", "right"))
    got = model(**left).logits
    torch.testing.assert_close(got, model(**right).logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(got, stock(**right).logits, atol=1e-5, rtol=0)
    assert (got - stock(**left).logits).abs().max() > 0.1
    keep, columns = left["attention_mask"].bool(), torch.arange(left["input_ids"].shape[1])[None]
    same = model.bert(**left, position_ids=columns).last_hidden_state
    torch.testing.assert_close(same[keep], stock.bert(**left).last_hidden_state[keep], atol=1e-5, rtol=0)


@pytest.mark.parametrize("save", [BertForSequenceClassification.save_pretrained, save_as_old_checkpoint])
def test_stock_classifiers_load_unchanged(stock: BertForSequenceClassification, tmp_path: Path, save) -> None:
    save(stock, tmp_path)
    model, report = PyramidBertForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert all(name.startswith("exits.") for name in report["missing_keys"])
    assert len(report["missing_keys"]) == 3 * 4
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    for name, weight in stock.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name
    for head in model.exits.values():
        assert 0.01 < head.dense.weight.std() < 0.03
        assert (head.dense.bias == 0).all()
    with torch.no_grad():
        output = model(**BATCH.padded(), labels=LABELS)
        expected = stock(**BATCH.padded(), labels=LABELS)
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=0)


@situation(
    "drop-in",
    "floats as `labels`, and no `problem_type`",
    "several labels a text: BERT's loss, noted in the configuration; uncertainty is that of the least certain label",
)
@pytest.mark.parametrize("asked", [{}, {"output_hidden_states": True}], ids=["packed", "masked"])
def test_labels_set_the_problem_type_as_for_bert(
    stock: BertForSequenceClassification, tmp_path: Path, asked: dict
) -> None:
    stock.save_pretrained(tmp_path)
    change_json(tmp_path / "config.json", problem_type=None)  # set where other tests gave it labels
    several = torch.rand(len(BATCH), 3, generator=torch.Generator().manual_seed(0)).round()
    for labels, task in ((several, "multi_label_classification"), (LABELS, "single_label_classification")):
        model = PyramidBertForSequenceClassification.from_pretrained(tmp_path)
        same = BertForSequenceClassification.from_pretrained(tmp_path)
        with torch.no_grad():
            output, expected = (x(**BATCH.padded(), labels=labels, **asked) for x in (model, same))
        torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=0)
        assert model.config.problem_type == same.config.problem_type == task
        one_label = task == "single_label_classification"
        uncertainty = reference.normalized_entropy if one_label else reference.label_entropy
        torch.testing.assert_close(output.uncertainty, uncertainty(output.logits), atol=1e-6, rtol=0)
        model.save_pretrained(tmp_path / task)
        assert json.loads((tmp_path / task / "config.json").read_text())["problem_type"] == task


def test_labels_that_set_the_problem_type_open_exits_of_several_labels() -> None:
    model = tiny.classifier(exit_threshold=0.9)
    with torch.no_grad():
        before = model(**BATCH.padded())
        output = model(**BATCH.padded(), labels=torch.ones(len(BATCH), 3))
        after = model(**BATCH.padded())
    assert torch.equal(output.exit_layer, after.exit_layer)
    assert not torch.equal(output.exit_layer, before.exit_layer)
    torch.testing.assert_close(output.uncertainty, reference.label_entropy(output.logits), atol=1e-6, rtol=0)


def test_stock_encoders_load_into_a_classifier(stock: BertForSequenceClassification, tmp_path: Path) -> None:
    """A folder of BertModel, whose names lack the prefix, gives the encoder; only heads are new."""
    stock.bert.save_pretrained(tmp_path)
    model, report = PyramidBertForSequenceClassification.from_pretrained(
        tmp_path, num_labels=7, output_loading_info=True
    )
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"classifier", "exits"}
    assert model.classifier.weight.shape == (7, 32)
    for name, weight in stock.bert.state_dict().items():
        assert torch.equal(model.bert.state_dict()[name], weight), name


def test_a_classifier_folder_loads_into_an_encoder(tmp_path: Path) -> None:
    model = tiny.classifier(prune_thresholds=[0.03] * 4)
    model.save_pretrained(tmp_path)
    encoder = PyramidBert.from_pretrained(tmp_path)
    with torch.no_grad():
        ours, theirs = encoder(**BATCH.padded()), model.bert(**BATCH.padded())
    assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)


def test_stock_bert_loads_a_saved_pyramid(tmp_path: Path) -> None:
    model = tiny.classifier()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    stock, report = BertForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert set(report["unexpected_keys"]) == {name for name in saved if name.startswith("exits.")}
    with torch.no_grad():
        expected = stock(**BATCH.padded()).logits
        torch.testing.assert_close(model(**BATCH.padded()).logits, expected, atol=1e-5, rtol=0)


def test_load_in_half_precision(tmp_path: Path) -> None:
    tiny.classifier(**PRUNED_WITH_EXITS).save_pretrained(tmp_path)
    model = PyramidBertForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with torch.no_grad():
        assert model(**BATCH.padded()).logits.dtype == torch.bfloat16


@torch.no_grad()
@situation(
    "drop-in",
    "`attn_implementation` on loading",
    "`sdpa` and `eager` change nothing; others are refused, since attention is the pyramid's own",
)
def test_choice_of_an_attention(tmp_path: Path) -> None:
    expected = tiny.classifier(**PRUNED_WITH_EXITS)
    expected.save_pretrained(tmp_path)
    for name in ("sdpa", "eager", None):
        assert_same_answers(
            PyramidBertForSequenceClassification.from_pretrained(tmp_path, attn_implementation=name), expected
        )
    for name in ("flash_attention_2", "flash_attention_3", "flex_attention", "kernels-community/flash-attn", "foo"):
        with pytest.raises(ValueError, match=f"{name}.*is not supported: a pyramid has attention of its own"):
            PyramidBertForSequenceClassification.from_pretrained(tmp_path, attn_implementation=name)
        with pytest.raises(ValueError, match=f"{name}.*is not supported: a pyramid has attention of its own"):
            expected.set_attn_implementation(name)


# Outputs


@torch.no_grad()
@pytest.mark.parametrize("follow", [False, True])
def test_fields_of_the_answer(follow: bool) -> None:
    size, width = len(BATCH), 40
    inputs = BATCH.padded()
    output = tiny.classifier(**PRUNED_WITH_EXITS)(**inputs, labels=LABELS, follow_tokens=follow)
    assert isinstance(output, PyramidOutput)
    expected = {
        "loss": ((), torch.float32),
        "logits": ((size, 3), torch.float32),
        "exit_layer": ((size,), torch.int64),
        "uncertainty": ((size,), torch.float32),
    }
    if follow:
        expected["pruned_by"] = ((size, width), torch.int64)
    assert {name: (tuple(x.shape), x.dtype) for name, x in output.items()} == expected
    counts = {"tokens_per_layer": (size, 4), "flops": (size,), "executed_flops": (size,)}
    for name, shape in counts.items():
        assert (tuple(output[name].shape), output[name].dtype) == (shape, torch.int64)
        assert torch.equal(output[name], getattr(output, name))
        with pytest.raises(AttributeError, match="has no counts of work"):
            getattr(PyramidOutput(**output), name)
    assert output.exit_layer.min() >= 1
    assert output.exit_layer.max() == 4
    assert ((output.uncertainty >= 0) & (output.uncertainty <= 1)).all()
    # Once a sample has left, nothing is counted for it.
    layers = torch.arange(1, 5)
    assert torch.equal(output.tokens_per_layer > 0, layers <= output.exit_layer[:, None])


@torch.no_grad()
@situation("drop-in", "`return_dict=False`", "`(loss, logits)` as from BERT, and what else was asked for, in its order")
def test_answers_as_a_tuple() -> None:
    model = tiny.classifier(**PRUNED_WITH_EXITS)
    output = model(**BATCH.padded())
    (logits,) = model(**BATCH.padded(), return_dict=False)
    assert torch.equal(logits, output.logits)
    assert output[0] is output.logits
    loss, logits = model(**BATCH.padded(), labels=LABELS, return_dict=False)
    assert loss.dim() == 0
    assert torch.equal(logits, output.logits)
    asked = {"output_hidden_states": True, "output_attentions": True, "exit_threshold": "never"}
    loss, logits, states, attentions = model(**BATCH.padded(), labels=LABELS, return_dict=False, **asked)
    assert (len(states), len(attentions)) == (5, 4)

    states, pooled = model.bert(**BATCH.padded(), return_dict=False)
    encoded = model.bert(**BATCH.padded())
    assert torch.equal(states, encoded.last_hidden_state)
    assert torch.equal(pooled, encoded.pooler_output)


def test_resized_vocabulary() -> None:
    model = tiny.classifier()
    model.resize_token_embeddings(60, mean_resizing=False)
    with torch.no_grad():
        assert model(torch.full((1, 3), 59)).logits.isfinite().all()
    assert model.config.vocab_size == 60


# Pipelines and Trainer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special)


TEXTS = ["a", "b c d e f g h", "n o p", "z " * 30, "q w e r t y", "m a", "k l k l k l k l k l"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_text_classification_pipeline(tokenizer: PreTrainedTokenizerFast, batch_size: int) -> None:
    model = tiny.classifier(**PRUNED_WITH_EXITS)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    answers = classify(TEXTS, batch_size=batch_size, top_k=None)

    with torch.no_grad():
        output = model(**tokenizer(TEXTS, padding=True, return_tensors="pt"))
    assert len(output.exit_layer.unique()) > 1
    for answer, logits in zip(answers, output.logits, strict=True):
        scores = {entry["label"]: entry["score"] for entry in answer}
        assert scores == pytest.approx({f"LABEL_{i}": p for i, p in enumerate(logits.softmax(0).tolist())}, abs=1e-5)
    assert classify("a")[0]["label"] == answers[0][0]["label"]


class Examples(torch.utils.data.Dataset):
    """The batch's samples, as Trainer takes them."""

    def __len__(self) -> int:
        return len(BATCH)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": BATCH.ids[i], "token_type_ids": BATCH.types[i], "labels": LABELS[i]}


def padded(examples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    batch = tiny.Batch([e["input_ids"] for e in examples], [e["token_type_ids"] for e in examples])
    return {**batch.padded(), "labels": torch.stack([e["labels"] for e in examples])}


def trainer(model: nn.Module, folder: Path, **options) -> Trainer:
    compute_metrics = options.pop("compute_metrics", None)
    arguments = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        **options,
    )
    return Trainer(
        model,
        arguments,
        data_collator=padded,
        train_dataset=Examples(),
        eval_dataset=Examples(),
        compute_metrics=compute_metrics,
    )


def test_trainer_evaluates_logits(tmp_path: Path) -> None:
    model = tiny.classifier(**PRUNED_WITH_EXITS)
    seen: list[EvalPrediction] = []

    def accuracy(prediction: EvalPrediction) -> dict[str, float]:
        seen.append(prediction)
        return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}

    metrics = trainer(model, tmp_path, per_device_eval_batch_size=5, compute_metrics=accuracy).evaluate()

    with torch.no_grad():
        output = model(**BATCH.padded(), labels=LABELS)
    assert isinstance(seen[0].predictions, np.ndarray)
    np.testing.assert_allclose(seen[0].predictions, output.logits.numpy(), atol=1e-5)
    assert metrics["eval_loss"] == pytest.approx(output.loss.item(), abs=1e-5)
    assert metrics["eval_accuracy"] == float((output.logits.argmax(1) == LABELS).float().mean())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_trainer_trains(tmp_path: Path) -> None:
    """Accumulating two half batches is one step on the whole batch."""

    def trained(**options) -> dict[str, Tensor]:
        model = tiny.classifier(prune_thresholds=[0.02] * 4)
        untrained = {name: weight.clone() for name, weight in model.state_dict().items()}
        options |= {"optim": "sgd", "learning_rate": 0.5, "max_steps": 1, "max_grad_norm": 0, "weight_decay": 0}
        trainer(model, tmp_path, train_sampling_strategy="sequential", **options).train()
        return {name: weight - untrained[name] for name, weight in model.state_dict().items()}

    whole = trained(per_device_train_batch_size=12)
    checkpointed = trained(per_device_train_batch_size=12, gradient_checkpointing=True)
    assert all(torch.equal(change, whole[name]) for name, change in checkpointed.items())
    halves = trained(per_device_train_batch_size=6, gradient_accumulation_steps=2)
    assert whole["bert.encoder.layer.0.attention.self.query.weight"].abs().max() > 1e-3
    assert not any(change.any() for name, change in whole.items() if name.startswith("exits."))
    for name, change in whole.items():
        torch.testing.assert_close(halves[name], change, atol=1e-5, rtol=1e-4, msg=name)


# Replaced layers


class Wrapped(nn.Module):
    """Stands for a quantised or adapted linear layer: no ``weight`` of its own, the old layer inside."""

    def __init__(self, old: nn.Linear) -> None:
        super().__init__()
        self.old = old
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.old(x)


def wrap_linear_layers(module: nn.Module) -> list[Wrapped]:
    wrapped = []
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            wrapped.append(Wrapped(child))
            setattr(module, name, wrapped[-1])
        else:
            wrapped += wrap_linear_layers(child)
    return wrapped


@torch.no_grad()
@pytest.mark.parametrize(("head", "linear_layers_of_a_head"), [("cls", 2), ("pooled", 2), ("pair", 2), ("fastbert", 7)])
def test_replaced_linear_layers_are_called(head: str, linear_layers_of_a_head: int) -> None:
    model = tiny.classifier(exit_head=head, **PRUNED_WITH_EXITS)
    inputs = BATCH.padded()
    all_the_way, leaving = model(**inputs, exit_threshold=0.0), model(**inputs)

    wrapped = wrap_linear_layers(model)
    assert len(wrapped) == 4 * 6 + 2 + 3 * linear_layers_of_a_head
    for expected, got in (
        (all_the_way, model(**inputs, exit_threshold=0.0)),
        (leaving, model(**inputs)),
    ):
        assert all(layer.calls for layer in wrapped)
        for name in ("exit_layer", "tokens_per_layer", "flops"):
            assert torch.equal(got[name], expected[name]), name
        torch.testing.assert_close(got.logits, expected.logits, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, :UserWarning")
@pytest.mark.parametrize("head", ["cls", "pooled", "pair", "fastbert"])
def test_dynamically_quantised_layers(head: str) -> None:
    model = tiny.classifier(exit_head=head)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is nn.Linear for module in quantised.modules())
    inputs = BATCH.padded()
    for layer in range(3):
        # Everybody leaves here, so that rounding decides nothing.
        open_here = [float(other == layer) for other in range(3)]
        exact, near = (m(**inputs, exit_threshold=open_here) for m in (model, quantised))
        assert torch.equal(near.exit_layer, exact.exit_layer)
        torch.testing.assert_close(near.logits, exact.logits, atol=0.3, rtol=0.1)

    quantised.config.prune_thresholds = PRUNED_WITH_EXITS["prune_thresholds"]
    pruned = quantised(**inputs, exit_threshold=0.8)
    assert pruned.logits.isfinite().all()
    assert len(pruned.exit_layer.unique()) > 1

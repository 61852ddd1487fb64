"""A classifier is loaded whole and as it was saved, or refused in a line that names the file and the way out."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, BertModel
from transformers.utils import logging as transformers_logging

from mp_model import Classifier, PyramidBertConfig, PyramidBertForSequenceClassification
from mp_model.checkpoints.reading import read_classifier
from support import tiny
from support.checkpoints import TEXTS, change_json, change_weights, classifier, save, stock_classifier
from support.commands import Command
from support.situations import situation

COMMANDS = ("classify", "evaluate", "tune", "info")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 437\n"
EMBEDDINGS = "bert.embeddings.word_embeddings.weight"


class Hostile:
    """A pickle of it makes a file where it is read without care."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def assert_refused(run: Command, command: str, folder: Path, *words: str) -> None:
    """The command ends with status 2 and a single line that has the words, and has printed nothing else."""
    ended = run(command, folder)
    assert ended.status == 2
    assert ended.out == ""
    (line,) = ended.err.splitlines()
    for word in words:
        assert word in line


def pickled(folder: Path, weights: object) -> Path:
    """The folder with a pickle in place of its weights."""
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


# Files that cannot be read


@situation("checkpoint", "weights that are a git-LFS pointer", "the line names the file and `git lfs pull`; status 2")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_git_lfs_pointer(run: Command, folder: Path, command: str, name: str) -> None:
    (folder / name).write_text(POINTER)
    assert_refused(run, command, folder, f"{folder / name} is a git-LFS pointer", "git lfs pull")


@situation("checkpoint", "weights that were cut short, or are empty", "the line names the file; status 2")
@pytest.mark.parametrize("kept", [0, 0.5, 0.999])
def test_a_file_cut_short(run: Command, folder: Path, kept: float) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert_refused(run, "classify", folder, f"{path} is cut short or damaged; copy it again")


@situation("checkpoint", "a pickle that would run code", "refused; the code does not run; status 2")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("protocol", [None, 2, 4], ids=["torch", "2", "4"])
def test_a_pickle_with_code(run: Command, folder: Path, tmp_path: Path, command: str, protocol: int | None) -> None:
    mark = tmp_path / "mark"
    path = pickled(folder, {"a": Hostile(mark)})
    if protocol is not None:
        path.write_bytes(pickle.dumps({"a": Hostile(mark)}, protocol))
    assert_refused(run, command, folder, f"{path} is cut short, or a pickle", "model.safetensors")
    assert not mark.exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "junk", "zeros", "text", "list", "module"])
def test_a_pickle_that_is_no_mapping_of_tensors(folder: Path, damage: str) -> None:
    model = classifier()
    path = pickled(folder, {"list": [1, 2], "module": model}.get(damage, model.state_dict()))
    junk = {"junk": b"junk", "zeros": bytes(1000), "text": b"<html>not found</html>"}
    if damage in junk:
        path.write_bytes(junk[damage])
    if damage in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if damage == "cut" else 0])
    with pytest.raises(ValueError, match=f"{path} is cut short, or a pickle that holds more than tensors"):
        Classifier.load(folder)


@situation("checkpoint", "weights in shards, in an old pickle, or beside damaged ones of another format", "read")
@pytest.mark.parametrize("kind", ["shards", "pickle", "beside"])
def test_other_files_of_weights(folder: Path, kind: str) -> None:
    expected = Classifier.load(folder)(TEXTS)
    if kind == "shards":
        model = PyramidBertForSequenceClassification.from_pretrained(folder)
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size="20KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 2
    elif kind == "pickle":
        pickled(folder, classifier().state_dict())
    else:
        (folder / "pytorch_model.bin").write_text(POINTER)
    assert Classifier.load(folder)(TEXTS) == expected


@situation("checkpoint", "a shard that is missing, cut short, or not in a readable index", "the line names that file")
@pytest.mark.parametrize("damage", ["missing", "cut", "index", "no index"])
def test_damaged_shards(folder: Path, damage: str) -> None:
    model = PyramidBertForSequenceClassification.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    if damage == "missing":
        shard.unlink()
        message = f"model.safetensors.index.json names {shard.name}, which is missing"
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-4])
        message = f"{shard} is cut short"
    elif damage == "no index":
        (folder / "model.safetensors.index.json").write_text("{}")
        message = "model.safetensors.index.json names no files of weights"
    else:
        (folder / "model.safetensors.index.json").write_text('{"weight_map": ')
        message = "model.safetensors.index.json is not JSON"
    with pytest.raises(ValueError, match=message):
        Classifier.load(folder)


@situation("checkpoint", "no weights in the folder", "one line, exit status 2")
def test_no_weights(run: Command, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert_refused(run, "classify", folder, "has no weights that can be read; it should hold model.safetensors")


@situation("checkpoint", "a config.json that is not JSON, or no configuration", "the line names the file; status 2")
@pytest.mark.parametrize("text", ["", "{nope", "[1, 2]", "3"])
def test_a_configuration_that_is_none(run: Command, folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert_refused(run, "info", folder, f"{folder / 'config.json'} ")


@situation("checkpoint", "a config.json with a byte order mark", "the line says so; status 2")
def test_a_byte_order_mark(run: Command, folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert_refused(
        run, "info", folder, f"{path} begins with a byte order mark, which JSON does not have; save it as UTF-8"
    )


@situation("checkpoint", "a setting of config.json that no BERT can have", "the line names file, setting and value")
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("vocab_size", "many", "vocab_size, 'many', is of another type"),
        ("vocab_size", -3, "vocab_size must be 1 or more; got -3"),
        ("num_attention_heads", 5, "a multiple of num_attention_heads, 5; got 32"),
        ("hidden_act", "geluu", "hidden_act must be one of"),
        ("problem_type", "multi", "problem_type must be None"),
        ("id2label", {"0": "a", "2": "b", "5": "c"}, "id2label must name the labels 0 to N - 1"),
        ("id2label", ["a", "b", "c"], "id2label must name the labels 0 to N - 1"),
        ("id2label", {"0": "a", "1": " a", "2": "b"}, "id2label must have a name of its own for each label; got 'a'"),
        ("id2label", {"0": "a", "1": [], "2": "b"}, "must be a word or a number; label 1 has []"),
        ("num_labels", 5, "num_labels is 5, and id2label names 3 labels"),
        ("dtype", "floaty", "its dtype is none that PyTorch has"),
        ("untrained_exits", "all", "untrained_exits must be a list of layer numbers or None; got 'all'"),
    ],
)
def test_settings_that_cannot_be(run: Command, folder: Path, name: str, value: object, words: str) -> None:
    change_json(folder / "config.json", **{name: value})
    assert_refused(run, "classify", folder, str(folder / "config.json"), words)


@situation("checkpoint", "a wrong vocab_size, or another size that the weights do not have", "both sizes; status 2")
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("vocab_size", 70, f"{EMBEDDINGS} is [61, 32] in the file and [70, 32] by config.json"),
        ("hidden_size", 64, " and 67 more; take both from the same model"),
        ("max_position_embeddings", 32, "position_embeddings.weight is [64, 32] in the file and [32, 32]"),
        ("id2label", {"0": "a", "1": "b"}, "classifier.bias is [3] in the file and [2] by config.json"),
    ],
)
def test_sizes_that_do_not_fit(run: Command, folder: Path, name: str, value: object, words: str) -> None:
    change_json(folder / "config.json", **{name: value})
    assert_refused(run, "info", folder, "do not fit", words)


@situation("checkpoint", "a model that is neither a folder nor on a hub", "one line, exit status 2")
def test_no_such_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in (str(tmp_path / "nothing"), "nobody/nothing"):
        with pytest.raises(ValueError, match=f"{name} is no folder, and no model of that name can be had from a hub"):
            read_classifier(name)
    with pytest.raises(ValueError, match=r"config\.json is missing"):
        read_classifier(tmp_path)


def test_attempts_to_reach_a_hub_are_not_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = logging.getLogger("huggingface_hub.utils._http")

    def unreachable(*_: Any, **__: Any) -> None:
        library.warning("Retrying in 8s [Retry 5/5].")
        raise OSError("unreachable")

    monkeypatch.setattr(PyramidBertConfig, "from_pretrained", unreachable)
    with pytest.raises(ValueError, match="no model of that name can be had from a hub"):
        read_classifier("nobody/nothing")
    assert not caplog.records
    library.warning("heard again")
    assert [record.message for record in caplog.records] == ["heard again"]


# Weights that are missing, too many, or no numbers


def without(part: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        for name in [name for name in weights if part in name]:
            del weights[name]

    return change


@situation("checkpoint", "weights that the file lacks: a layer, a matrix, the head", "refused by name; status 2")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("encoder.layer.2.", "lacks weights of the model: bert.encoder.layer.2.attention.output.LayerNorm.bias and 15"),
        ("layer.1.output.dense.weight", "lacks weights of the model: bert.encoder.layer.1.output.dense.weight;"),
        ("word_embeddings", f"lacks weights of the model: {EMBEDDINGS};"),
        ("pooler", "is no finished classifier: it has no bert.pooler.dense.bias and 1 more; train one"),
        ("classifier.", "is no finished classifier: it has no classifier.bias and 1 more; train one"),
    ],
)
def test_missing_weights(run: Command, folder: Path, command: str, part: str, words: str) -> None:
    change_weights(folder, without(part))
    if part == "classifier.":  # the heads of the exits have one, too
        change_json(folder / "config.json", exit_layers=[])
    assert_refused(run, command, folder, words)


@situation("checkpoint", "more layers in the file than config.json says", "refused, not left out; status 2")
def test_too_many_layers(run: Command, folder: Path) -> None:
    change_json(folder / "config.json", num_hidden_layers=2)
    assert_refused(run, "classify", folder, "bert.encoder.layer.2.", "the model has 2 layers by config.json")


@situation("checkpoint", "NaN or infinite weights", "the line names the tensor; status 2")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("name", "value"), [(EMBEDDINGS, float("nan")), ("exits.2.dense.bias", float("-inf"))])
def test_weights_that_are_no_numbers(run: Command, folder: Path, command: str, value: float, name: str) -> None:
    change_weights(folder, lambda weights: weights[name].view(-1)[3:4].fill_(value))
    assert_refused(run, command, folder, f"has NaN or infinite numbers in {name},")


def test_heads_of_other_tasks_are_left_out(folder: Path) -> None:
    expected = Classifier.load(folder)(TEXTS)
    change_weights(folder, lambda weights: weights.update({"cls.predictions.bias": torch.zeros(61)}))
    assert Classifier.load(folder)(TEXTS) == expected


# What a checkpoint is stored in, and what is said about it


@situation(
    "checkpoint", "weights stored in bfloat16 or float16", "computed in float32, unless something else is asked for"
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_dtypes(tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = classifier().to(dtype)
    folder = save(stored, tmp_path / "model")
    loaded = Classifier.load(folder)
    trained = read_classifier(folder, needs_head=False).model
    for model in (loaded.model, trained):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
        assert all(
            torch.equal(weight, stored.state_dict()[name].float()) for name, weight in model.state_dict().items()
        )
    assert loaded(TEXTS) == Classifier(stored.float(), loaded.tokenizer)(TEXTS)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert Classifier.load(folder, precision="bfloat16").model.dtype == torch.bfloat16


@situation(
    "checkpoint", "a checkpoint without exit heads, or with heads of other tasks", "no table of weights is printed"
)
def test_transformers_report_is_not_shown(stock: Path, run: Command) -> None:
    change_weights(stock, lambda weights: weights.update({"cls.predictions.bias": torch.zeros(61)}))
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger, bars = logging.getLogger("transformers.modeling_utils"), transformers_logging.is_progress_bar_enabled()
    logger.addHandler(listener)
    transformers_logging.set_verbosity_warning()  # its usual one; commands of other tests have made it quieter
    ended = run("classify", stock)
    assert (ended.status, said) == (0, [])
    assert ended.err == "4 texts were longer than 64 tokens, and cut; --long-texts windows reads them whole\n"
    assert transformers_logging.is_progress_bar_enabled() == bars
    PyramidBertForSequenceClassification.from_pretrained(stock)  # the user's own call: transformers has its say
    logger.removeHandler(listener)
    assert "LOAD REPORT" in "".join(said)


# What training takes


def test_training_takes_a_checkpoint_without_a_head(tmp_path: Path) -> None:
    encoder = BertModel(stock_classifier().config, add_pooling_layer=False)
    folder = save(encoder, tmp_path / "encoder")
    with pytest.raises(ValueError, match="is no finished classifier"):
        read_classifier(folder)
    loaded = read_classifier(folder, needs_head=False, exit_layers=[2])
    assert loaded.head_is_drawn
    assert sorted(loaded.drawn) == [
        *("bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", "classifier.weight"),
        *(f"exits.2.{part}.{kind}" for part in ("classifier", "dense") for kind in ("bias", "weight")),
    ]
    assert loaded.model.config.untrained_exits == [2]
    for name, weight in encoder.state_dict().items():
        assert torch.equal(loaded.model.bert.state_dict()[name], weight)


def test_training_takes_a_head_for_other_labels_as_new(folder: Path) -> None:
    loaded = read_classifier(folder, needs_head=False, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    assert loaded.head_is_drawn
    assert loaded.model.classifier.weight.shape == (2, 32)
    assert "bert.pooler.dense.weight" not in loaded.drawn
    assert loaded.model.config.label_names == ["no", "yes"]
    assert loaded.model.config.untrained_exits == [1, 2, 3]
    assert not read_classifier(folder, needs_head=False).drawn


@pytest.mark.parametrize("part", ["encoder.layer.2.", "position_embeddings"])
def test_training_needs_the_whole_backbone(folder: Path, part: str) -> None:
    change_weights(folder, without(part))
    with pytest.raises(ValueError, match=f"lacks weights of the model: .*{part}"):
        read_classifier(folder, needs_head=False)


# Exits that a checkpoint does not hold


@situation("checkpoint", "exits that the checkpoint has no weights for", "answers without them are those of stock BERT")
def test_a_stock_checkpoint_answers_with_its_exits_closed(stock: Path) -> None:
    loaded = Classifier.load(stock)
    theirs = BertForSequenceClassification.from_pretrained(stock).eval()
    rows = loaded.tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**rows).logits.softmax(-1)
    answers = loaded(TEXTS)
    assert {answer.exit_layer for answer in answers} == {4}
    found = torch.tensor([list(answer.scores.values()) for answer in answers])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert loaded(TEXTS, "never") == answers


@situation("checkpoint", "the same with an exit threshold, in Python", "refused: such exits are drawn at random")
@pytest.mark.parametrize("threshold", [0.3, [0.1, 0.2, 0.3], torch.full((len(TEXTS),), 0.3)], ids=type)
def test_untrained_exits_are_refused(stock: Path, threshold: object) -> None:
    loaded = Classifier.load(stock)
    message = "no trained exits at layers 1, 2, 3; train them: magic-pyramid fit --freeze-backbone"
    with pytest.raises(ValueError, match=message):
        loaded(TEXTS, threshold)
    if not isinstance(threshold, torch.Tensor):
        with pytest.raises(ValueError, match=message):
            loaded.stream(TEXTS, exit_threshold=threshold)
    change_json(stock / "config.json", exit_threshold=0.3)
    with pytest.raises(ValueError, match=message):
        Classifier.load(stock)


@situation("checkpoint", "the same in a command", "one line that says how to train them; status 2")
@pytest.mark.parametrize(
    ("command", "options"),
    [("tune", []), ("evaluate", ["--exit-thresholds", "0.1,0.2"]), ("classify", ["--exit-threshold", "0.3"])],
)
def test_commands_refuse_untrained_exits(run: Command, stock: Path, command: str, options: list[str]) -> None:
    ended = run(command, stock, *options)
    assert (ended.status, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert "no trained exits at layers 1, 2, 3; train them: magic-pyramid fit --freeze-backbone" in line


@situation("checkpoint", "evaluate or info on a checkpoint without trained exits", "measured without them; said")
def test_a_checkpoint_without_exits_is_measured_without_them(run: Command, stock: Path) -> None:
    ended = run("evaluate", stock, "--json")
    assert ended.status == 0
    assert [row["exit_threshold"] for row in ended.answers()[0]["evaluations"]] == [None]
    assert "no trained exits at layers 1, 2, 3" in run("info", stock).out


def test_a_model_with_untrained_exits_warns_once(stock: Path) -> None:
    model = PyramidBertForSequenceClassification.from_pretrained(stock)
    batch = tiny.samples([5, 9]).padded()
    model(**batch)
    with pytest.warns(UserWarning, match="no trained exits at layers 1, 2, 3") as warned:
        model(**batch, exit_threshold=0.1)
    model(**batch, exit_threshold=0.2)
    assert len(warned) == 1
    classifier()(**batch, exit_threshold=0.1)  # made in Python, its heads are whatever its maker wants


def test_saving_does_not_train_exits(stock: Path, folder: Path, tmp_path: Path) -> None:
    model = PyramidBertForSequenceClassification.from_pretrained(stock)
    again = save(model, tmp_path / "again")
    loaded, info = PyramidBertForSequenceClassification.from_pretrained(again, output_loading_info=True)
    assert not info["missing_keys"]
    assert loaded.config.untrained_exits == [1, 2, 3]
    with pytest.raises(ValueError, match="no trained exits"):
        Classifier.load(again)(TEXTS, 0.5)
    loaded.config.untrained_exits = None
    assert len(Classifier.load(save(loaded, tmp_path / "trained"))(TEXTS, 0.5)) == len(TEXTS)
    other_heads = read_classifier(folder, exit_head="pooled").model
    assert other_heads.config.untrained_exits == [1, 2, 3]


def test_only_exits_without_weights_are_untrained(tmp_path: Path) -> None:
    folder = save(classifier(exit_layers=[1, 3]), tmp_path / "model")
    assert PyramidBertForSequenceClassification.from_pretrained(folder).config.untrained_exits is None
    change_json(folder / "config.json", exit_layers=[1, 2, 3])
    with pytest.raises(ValueError, match="no trained exits at layer 2; train them"):
        Classifier.load(folder)(TEXTS, 0.5)
    change_json(folder / "config.json", exit_layers=[1])
    assert {answer.exit_layer for answer in Classifier.load(folder)(TEXTS, 1.0)} == {1}


@situation(
    "checkpoint", "weights that another library quantised", "refused: give the checkpoint that they were made from"
)
def test_weights_quantised_elsewhere(tmp_path: Path) -> None:
    folder = save(classifier(), tmp_path / "model")
    change_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(ValueError, match="quantised by another library"):
        read_classifier(folder)

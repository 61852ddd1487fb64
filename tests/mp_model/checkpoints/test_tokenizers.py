"""A checkpoint's tokenizer is the one that its model was trained with, or is refused; texts are cut where it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import BertTokenizer, PreTrainedTokenizerFast, pipeline

from mp_model import Classifier
from mp_model.checkpoints.tokenizers import load_tokenizer, max_length_of
from mp_model.data.batches import encode
from support import tiny, wordpiece
from support.checkpoints import TEXTS, change_json, classifier, save
from support.commands import Command
from support.situations import situation

COMMANDS = ("classify", "evaluate", "tune", "info")
VOCABULARY = [*wordpiece.VOCABULARY, "[MASK]", "The", "T"]


def without_tokenizer(folder: Path) -> Path:
    for path in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        path.unlink()
    return folder


@situation("checkpoint", "no tokenizer in the folder", "refused, with both sizes of vocabulary; status 2")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("model_type", ["pyramid_bert", "bert"])
def test_no_tokenizer(run: Command, folder: Path, command: str, model_type: str) -> None:
    """transformers makes an empty one for BERT, by which every word is [UNK]."""
    change_json(without_tokenizer(folder) / "config.json", model_type=model_type)
    ended = run(command, folder)
    assert (ended.status, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert "has no tokenizer, or another model's: it knows 5 tokens, and the model's vocabulary has 61" in line


@situation("checkpoint", "a tokenizer with less than half of the model's vocabulary", "refused, with both sizes")
def test_a_small_tokenizer(tmp_path: Path) -> None:
    for size, small in ((61 * 2, False), (61 * 2 + 1, True)):
        folder = save(classifier(vocab_size=size), tmp_path / str(size))
        if small:
            with pytest.raises(ValueError, match=f"it knows 61 tokens, and the model's vocabulary has {size}"):
                Classifier.load(folder)
        else:
            assert len(Classifier.load(folder)(TEXTS)) == len(TEXTS)


@situation("checkpoint", "a tokenizer with ids that the model has not", "refused, with both sizes")
def test_a_tokenizer_with_other_ids(tmp_path: Path) -> None:
    folder = save(classifier(vocab_size=60), tmp_path)
    with pytest.raises(ValueError, match="has ids up to 60, and the model's vocabulary has 60 tokens"):
        Classifier.load(folder)


def test_a_special_token_that_texts_do_not_have_needs_no_row(folder: Path, tmp_path: Path) -> None:
    expected = Classifier.load(folder)(TEXTS)
    tokenizer = wordpiece.tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    assert tokenizer.mask_token_id == 61
    assert Classifier.load(save(classifier(), tmp_path / "more", tokenizer))(TEXTS) == expected


@situation("checkpoint", "vocab.txt alone", "read as for BERT: lower case, unless do_lower_case is false")
@pytest.mark.parametrize("model_type", ["pyramid_bert", "bert"])
def test_vocabulary_alone(tmp_path: Path, model_type: str) -> None:
    folder = without_tokenizer(save(classifier(vocab_size=len(VOCABULARY)), tmp_path))
    change_json(folder / "config.json", model_type=model_type)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    loaded = Classifier.load(folder)
    ids = loaded.tokenizer(["The rate."])["input_ids"][0]
    assert [VOCABULARY[number] for number in ids] == ["[CLS]", "the", "rate", ".", "[SEP]"]
    bert = BertTokenizer.from_pretrained(folder)
    assert loaded(TEXTS) == Classifier(loaded.model, bert)(TEXTS)
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    ids = load_tokenizer(folder)(["The rate."])["input_ids"][0]
    assert [VOCABULARY[number] for number in ids] == ["[CLS]", "The", "rate", ".", "[SEP]"]


@situation("checkpoint", "vocab.txt without [CLS] or the like", "refused: texts would get ids that nobody trained")
def test_vocabulary_without_special_tokens(tmp_path: Path) -> None:
    words = [word for word in VOCABULARY if word != "[SEP]"]
    folder = without_tokenizer(save(classifier(vocab_size=len(VOCABULARY)), tmp_path))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    with pytest.raises(ValueError, match=r"vocab\.txt has no \[SEP\], so that the model would get ids"):
        Classifier.load(folder)


@situation("checkpoint", "a tokenizer without a padding token", "read: packed texts need none")
def test_no_padding_token(run: Command, folder: Path, tmp_path: Path) -> None:
    expected = run("classify", folder).out
    assert len(expected.splitlines()) == len(TEXTS)
    known = wordpiece.tokenizer()
    special = {name: known.special_tokens_map[name] for name in ("unk_token", "cls_token", "sep_token")}
    bare = PreTrainedTokenizerFast(tokenizer_object=known.backend_tokenizer, **special)
    assert bare.pad_token is None
    bare_folder = save(classifier(), tmp_path / "bare", bare)
    assert run("classify", bare_folder).out == expected
    assert run("evaluate", bare_folder, "--json").answers() == run("evaluate", folder, "--json").answers()


@situation("checkpoint", "a tokenizer file that is damaged", "the line names the file")
@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json is not JSON"),
        ("tokenizer_config.json", "", "tokenizer_config.json is not JSON"),
        ("tokenizer.json", "{}", "the tokenizer of .* cannot be read; copy it again"),
        ("tokenizer.json", '{"added_tokens": [], "model": {"type": "no"}}', "the tokenizer of .* cannot be read"),
    ],
)
def test_damaged_tokenizers(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Classifier.load(folder)


def test_a_vocabulary_that_is_a_pointer(tmp_path: Path) -> None:
    folder = without_tokenizer(save(classifier(), tmp_path))
    (folder / "vocab.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 437\n")
    with pytest.raises(ValueError, match=r"vocab\.txt is a git-LFS pointer"):
        Classifier.load(folder)


# How long texts may be


@pytest.mark.parametrize(("own", "expected"), [(8, 8), (64, 64), (100, 64), (int(1e30), 64), (None, 64), (3, 3)])
def test_the_longest_text(own: int | None, expected: int) -> None:
    tokenizer = wordpiece.tokenizer()
    tokenizer.model_max_length = own
    assert max_length_of(tokenizer, tiny.config()) == expected


@pytest.mark.parametrize("own", ["64", float("nan"), [64]])
def test_a_length_that_is_no_number(own: Any) -> None:
    tokenizer = wordpiece.tokenizer()
    tokenizer.model_max_length = own
    with pytest.raises(ValueError, match=r"model_max_length is .*; set it to a number of tokens in tok"):
        max_length_of(tokenizer, tiny.config())


@pytest.mark.parametrize("own", [-1, 0, 2])
def test_a_length_without_room(own: int) -> None:
    tokenizer = wordpiece.tokenizer()
    tokenizer.model_max_length = own
    with pytest.raises(
        ValueError, match=f"model_max_length is {own}, and 2 tokens are the tokenizer's own; set it to 3"
    ):
        max_length_of(tokenizer, tiny.config())


@situation(
    "checkpoint",
    "a model that was fitted with --max-length",
    "its texts are cut there by every command, and by transformers' pipeline",
)
def test_every_command_cuts_texts_where_the_tokenizer_says(
    folder: Path, table: Path, run: Command, tmp_path: Path
) -> None:
    short = shutil.copytree(folder, tmp_path / "short")
    change_json(short / "tokenizer_config.json", model_max_length=8)
    whole, cut = Classifier.load(folder), Classifier.load(short)
    answers = cut(TEXTS)
    assert max(answer.tokens for answer in answers) == 8
    assert [answer.label for answer in answers] != [answer.label for answer in whole(TEXTS)]
    rows = encode(cut.tokenizer, TEXTS, 8)
    assert [answer.tokens for answer in answers] == [len(row["input_ids"]) for row in rows]

    stock = pipeline("text-classification", model=str(short), truncation=True)
    for answer, theirs in zip(answers, stock(TEXTS), strict=True):
        assert (answer.label, pytest.approx(answer.score, abs=1e-5)) == (theirs["label"], theirs["score"])

    lines = run("classify", short).answers()
    assert [(line["label"], line["tokens"]) for line in lines] == [(x.label, x.tokens) for x in answers]
    table.write_text("label\ttext\n" + "".join(f"{x.label}\t{text}\n" for x, text in zip(answers, TEXTS, strict=True)))
    assert run("evaluate", short, "--json").answers()[0]["evaluations"][0]["accuracy"] == 1.0
    assert run("evaluate", folder, "--json").answers()[0]["evaluations"][0]["accuracy"] < 1.0
    assert run("tune", short, "--dry-run", "--json").answers()[0]["accuracy_without_exits"] == 1.0
    assert "longest text" in run("info", short).out
    assert run("info", short, "--json").answers()[0]["longest text"] == "8 tokens"

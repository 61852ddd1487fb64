"""A checkpoint's tokenizer is the one that its model was trained with, or is refused; texts are cut where it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerFast, pipeline

from mp_model import Classifier
from mp_model.checkpoints.tokenizers import load_tokenizer, max_length_of, say_types
from mp_model.data.batches import encode
from mp_model.data.tokens import Tokeniser
from mp_model.data.windows import Windows
from support import backbones, tiny, wordpiece
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


# Texts of a pair, told apart


def like_robertas() -> PreTrainedTokenizerFast:
    """Bytes, with RoBERTa's special tokens, which give no text a type of its own."""
    alphabet = ["<s>", "<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    built = Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    built.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=built, model_max_length=64, **special)


def pair_config(kind: str = "roberta", **settings: Any) -> Any:
    return backbones.config(kind, vocab_size=259, **{"exit_head": "pair", "exit_layers": [0, 2], **settings})


def test_second_texts_get_type_1_where_exits_compare_them() -> None:
    """Special tokens belong to the text that they follow; ids and places of words stay as they were."""
    plain, marked = like_robertas(), like_robertas()
    say_types(marked, pair_config())
    assert "token_type_ids" in marked.model_input_names
    found, before = (x("ab", "c d", return_token_type_ids=True, return_offsets_mapping=True) for x in (marked, plain))
    assert before["token_type_ids"] == [0] * 11
    assert found["token_type_ids"] == [0] * 6 + [1] * 5  # <s> space a b </s> </s>, space c space d </s>
    for name in ("input_ids", "attention_mask", "offset_mapping"):
        assert found[name] == before[name], name
    assert marked("ab")["input_ids"] == plain("ab")["input_ids"]
    assert marked(["ab"], [""])["token_type_ids"] == [[0] * 6 + [1]]
    for pair in (("ab" * 30, "c" * 9), ("", "c"), ("</s>", "a")):
        ids, types = (marked(*pair, truncation=True, max_length=20)[name] for name in ("input_ids", "token_type_ids"))
        assert ids == plain(*pair, truncation=True, max_length=20)["input_ids"]
        tokens = Tokeniser(marked, 20)([pair])
        (row,) = encode(marked, [pair], 20)
        assert (tokens.ids.tolist(), tokens.types.tolist()) == (ids, types)
        assert (row["input_ids"], row["token_type_ids"]) == (ids, types)
    for window in Windows(marked, 20).of(("ab" * 30, "c")):
        assert window.types == [0] * (len(window.ids) - 3) + [1] * 3


def test_a_marked_tokenizer_is_saved_so(tmp_path: Path) -> None:
    tokenizer = like_robertas()
    say_types(tokenizer, pair_config())
    tokenizer.save_pretrained(tmp_path)
    pair_config().save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert again("ab", "c")["token_type_ids"] == tokenizer("ab", "c")["token_type_ids"]
    loaded = load_tokenizer(tmp_path)
    processor = str(loaded.backend_tokenizer.post_processor)
    assert loaded("ab", "c")["token_type_ids"] == tokenizer("ab", "c")["token_type_ids"]
    say_types(loaded, pair_config())
    assert str(loaded.backend_tokenizer.post_processor) == processor


def test_tokenizers_of_other_heads_stay_as_they_are() -> None:
    for settings in ({"exit_head": "pooled"}, {"exit_layers": []}):
        tokenizer = like_robertas()
        say_types(tokenizer, pair_config(**settings))
        assert "token_type_ids" not in tokenizer.model_input_names
        assert not any(tokenizer("ab", "c", return_token_type_ids=True)["token_type_ids"])
    ours = wordpiece.tokenizer()
    before = str(ours.backend_tokenizer.post_processor)
    say_types(ours, pair_config("distilbert"))
    assert "token_type_ids" in ours.model_input_names
    assert str(ours.backend_tokenizer.post_processor) == before


def test_a_slow_tokenizer_that_cannot_tell_texts_apart_is_refused() -> None:
    class Slow:
        is_fast, model_input_names = False, ("input_ids",)
        init_kwargs: ClassVar[dict[str, Any]] = {}

        def __call__(self, *texts: str, **settings: Any) -> dict[str, list[int]]:
            return {"token_type_ids": [0, 0]}

    with pytest.raises(ValueError, match="need a tokenizer that tells them apart by token_type_ids, or a fast one"):
        say_types(Slow(), pair_config())

"""What an earlier call left in a fit's folder is gone on with, or refused in a line that says what has changed."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers
from typer.testing import CliRunner

from mp_model import Classifier
from mp_model.command_line import app
from mp_model.data.tables import TableError, read_labelled
from mp_model.data.tokens import Tokeniser
from mp_model.training import fit, folder, load_task
from mp_model.training.folder import claimed
from mp_model.training.identity import changes, checkpoint_identity
from mp_model.training.recipes import RECIPES
from mp_model.training.tasks import held_out_places
from support import wordpiece
from support.checkpoints import change_json
from support.fits import QUICK, write_rows
from support.situations import situation

SHORT = replace(QUICK, epochs=1)


def command(table: Path, checkpoint: Path, output: Path, *options: str) -> Any:
    quick = ["--recipe", "bert", "--epochs", "1", "--learning-rate", "1e-3"]
    arguments = ["fit", str(table), "--model", str(checkpoint), "--output", str(output), *quick, *options]
    return CliRunner().invoke(app, arguments)


def contents(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


@pytest.fixture
def copies(checkpoint: Path, files: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """Training texts, validation texts and a checkpoint that may be changed."""
    shutil.copytree(checkpoint, tmp_path / "checkpoint")
    return Path(shutil.copy(files[0], tmp_path)), Path(shutil.copy(files[1], tmp_path)), tmp_path / "checkpoint"


def append(path: Path, line: str) -> None:
    path.write_text(path.read_text() + line)


@situation(
    "fit",
    "`fit` given again after the texts, the checkpoint or a setting have changed",
    "refused in a line that says what has changed; the earlier fit stays as it is",
)
@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (lambda train, *_: append(train, "no\tthe\n"), [], "the training texts have changed (401, before 400)"),
        (
            lambda train, *_: train.write_text(train.read_text().replace("rate", "the", 1)),
            [],
            "the training texts have changed (400, before 400)",
        ),
        (
            lambda _, validation, __: append(validation, "yes\trate\n"),
            [],
            "the validation texts have changed (151, before",
        ),
        (
            lambda *files: change_json(files[2] / "config.json", hidden_dropout_prob=0.1),
            [],
            "the checkpoint has changed (config.json)",
        ),
        (
            lambda *files: (files[2] / "vocab.txt").write_text("[PAD]\n"),
            [],
            "the checkpoint has changed (vocab.txt)",
        ),
        (lambda *_: None, ["--batch-size", "16", "--seed", "1"], "batch_size is 16, before 32; seed is 1, before 0"),
        (lambda *_: None, ["--recipe", "ltp"], "recipe is ltp, before bert; stages is"),
    ],
)
def test_a_changed_fit_is_refused(
    change: Callable[..., Any], options: list[str], said: str, copies: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    train, validation, checkpoint = copies
    output = tmp_path / "fit"
    given = ["--validation", str(validation)]
    assert command(train, checkpoint, output, *given).exit_code == 0
    before = contents(output)
    change(*copies)
    refused = command(train, checkpoint, output, *given, *options)
    assert isinstance(refused.exception, ValueError)
    assert "holds a fit that was made from something else: " + said in str(refused.exception)
    assert contents(output) == before


@situation(
    "fit", "`fit` given again with nothing changed", 'its stages are "already done"; a new --max-drop is followed'
)
def test_finished_stages_are_already_done(checkpoint: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    first = command(files[0], checkpoint, tmp_path / "fit", "--validation", str(files[1]))
    assert "fine-tune: 13 steps in" in first.stderr
    again = command(files[0], checkpoint, tmp_path / "fit", "--validation", str(files[1]), "--max-drop", "3")
    assert again.exit_code == 0, again.exception
    assert "fine-tune: already done" in again.stderr
    assert "steps" not in again.stderr
    assert again.stdout == first.stdout


def test_a_folder_of_an_earlier_version_is_refused(checkpoint: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    """Such a folder does not say what its texts were."""
    fit(str(checkpoint), load_task(*files), tmp_path / "fit", "bert", SHORT, quiet=True)
    kept = json.loads((tmp_path / "fit" / "settings.json").read_text())
    earlier = {**kept, "checkpoint": str(checkpoint), "train_texts": 400}
    del earlier["training texts"], earlier["validation texts"]
    assert changes(earlier, kept) == [
        "its checkpoint was not kept, by an earlier version",
        "its training texts were not kept, by an earlier version",
        "its validation texts were not kept, by an earlier version",
    ]


def test_a_setting_that_an_earlier_version_did_not_have_has_not_changed() -> None:
    now = {"settings": {"epochs": 3.0, "bfloat16": False}}
    assert changes({"settings": {"epochs": 3.0}}, now) == []
    other = {"settings": {"epochs": 3.0, "bfloat16": True}}
    assert changes({"settings": {"epochs": 3.0}}, other) == ["bfloat16 is True, before False"]


def test_a_checkpoint_on_a_hub_is_known_by_its_commit() -> None:
    before, now = ({"checkpoint": checkpoint_identity("bert-base-uncased", commit)} for commit in ("86b5", "a265"))
    assert changes(before, before) == []
    assert changes(before, now) == ["the checkpoint has changed (commit)"]


def test_texts_whose_number_was_not_kept_have_changed() -> None:
    now = {"training texts": {"texts": 3, "sha256": "5e"}}
    assert changes({"training texts": {}}, now) == ["the training texts have changed (3, before None)"]


@situation("fit", "a settings.json that is cut short, or holds something else", "one line; the folder stays as it is")
@pytest.mark.parametrize("record", ['{"recipe": ', "[]", "null"])
def test_a_damaged_record_is_refused(tmp_path: Path, record: str) -> None:
    (tmp_path / "settings.json").write_text(record)
    with (
        pytest.raises(ValueError, match=r"settings\.json is damaged, so that nobody knows what"),
        claimed(tmp_path, {}, 0),
    ):
        pass


def test_a_stage_without_passes_is_no_stage_of_0_steps(
    checkpoint: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    done = command(
        files[0], checkpoint, tmp_path / "fit", "--recipe", "ltp", "--stages", "fine-tune,soft", "--soft-epochs", "0"
    )
    assert done.exit_code == 0, done.exception
    assert "soft: left out, with 0 passes" in done.stderr
    assert "0 steps" not in done.stderr
    assert "Recipe ltp: of its stages fine-tune and soft alone" in done.stderr
    assert RECIPES["ltp"].about not in done.stderr


@pytest.fixture
def other_fit(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has a fit in the folder ``fit``."""
    program = (
        "import sys, time; from pathlib import Path; from mp_model.training.folder import claimed\n"
        "with claimed(Path(sys.argv[1]), {}, 0): print('holds', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "fit")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.communicate()


@situation(
    "fit", "two fits into one folder at once", "the second is refused; when the first is killed, nothing is in its way"
)
def test_two_fits_into_one_folder(
    other_fit: subprocess.Popen[str], checkpoint: Path, files: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "fit" / "settings.json").unlink()
    refused = command(files[0], checkpoint, tmp_path / "fit")
    assert str(refused.exception) == (
        f"another fit is running in {tmp_path / 'fit'}; wait for its end, or choose another folder"
    )
    other_fit.kill()
    other_fit.wait()
    done = command(files[0], checkpoint, tmp_path / "fit")
    assert done.exit_code == 0, done.exception


def test_the_folder_is_held_until_the_end(checkpoint: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    with claimed(tmp_path / "fit", {}, 0), pytest.raises(ValueError, match="another fit is running"):
        fit(str(checkpoint), load_task(*files), tmp_path / "fit", "bert", SHORT, quiet=True)
    with claimed(tmp_path / "fit", {}, 0):
        pass


@situation(
    "fit",
    "`fit --max-length 8`, then other commands and transformers' pipeline",
    "the length is saved with the model and followed by all of them",
)
def test_the_length_is_kept(checkpoint: Path, tmp_path: Path) -> None:
    """What comes after the eighth token says the opposite of what comes before it."""
    table = tmp_path / "train.tsv"
    rows = [
        (label, " ".join([words[label]] * 6 + [words[1 - label]] * 30)) for label in (0, 1) for words in [("a", "b")]
    ]
    table.write_text("label\ttext\n" + "".join(f"{('no', 'yes')[label]}\t{text}\n" for label, text in rows * 30))
    output = tmp_path / "fit"
    options = ["--validation", str(table), "--max-length", "8", "--epochs", "20"]
    done = command(table, checkpoint, output, *options)
    assert done.exit_code == 0, done.exception
    assert "longer than 8, cut" in done.stderr
    for saved in (output / "model", output / "stages" / "1-fine-tune" / "model"):
        assert json.loads((saved / "tokenizer_config.json").read_text())["model_max_length"] == 8

    measured = CliRunner().invoke(
        app, ["evaluate", str(table), "--model", str(output / "model"), "--no-time", "--json"]
    )
    assert json.loads(measured.stdout)["evaluations"][0]["accuracy"] == 1.0
    texts = [text for _, text in rows]
    ours = Classifier.load(output / "model")(texts)
    assert [(answer.label, answer.tokens) for answer in ours] == [("no", 8), ("yes", 8)]
    pipeline = transformers.pipeline("text-classification", str(output / "model"))
    theirs = pipeline(texts, truncation=True)
    assert [answer["label"] for answer in theirs] == ["no", "yes"]
    assert [answer["score"] for answer in theirs] == pytest.approx([answer.score for answer in ours], abs=1e-5)

    further = fit(str(output / "model"), load_task(table, table), tmp_path / "further", "bert", SHORT, quiet=True)
    assert further.truncated_texts == 120
    assert Classifier.load(tmp_path / "further" / "model").tokenise.max_length == 8


def test_a_length_beyond_the_positions_is_refused(checkpoint: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    refused = command(files[0], checkpoint, tmp_path / "fit", "--max-length", "65")
    assert str(refused.exception) == "max_length must not exceed the model's 64 positions; got 65"
    assert not (tmp_path / "fit").exists()


@situation(
    "fit", "a folder that cannot be made or written to, or a file in its place", "one line, before anything is trained"
)
def test_folders_that_cannot_be_written_to(
    checkpoint: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    in_the_way = command(files[0], checkpoint, tmp_path / "file")
    assert (
        str(in_the_way.exception)
        == f"{tmp_path / 'file'} is a file, where a folder is needed; choose another name than {tmp_path / 'file'}"
    )
    below = command(files[0], checkpoint, tmp_path / "file" / "fit")
    assert (
        str(below.exception)
        == f"{tmp_path / 'file'} is a file, where a folder is needed; choose another name than {tmp_path / 'file' / 'fit'}"
    )
    assert (tmp_path / "file").read_text() == "mine"

    def read_only(*_: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(folder.os, "open", read_only)
    refused = command(files[0], checkpoint, tmp_path / "fit")
    assert isinstance(refused.exception, OSError)
    assert "cannot be written to (Read-only file system); choose another folder" in str(refused.exception)


@situation("run", "a umask of one's own, and models that a fit saves", "all of their files obey it")
def test_models_obey_the_umask(checkpoint: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        fit(str(checkpoint), load_task(*files), tmp_path / "fit", "bert", SHORT, quiet=True)
    finally:
        os.umask(before)
    for saved in (tmp_path / "fit" / "model", tmp_path / "fit" / "stages" / "1-fine-tune" / "model"):
        modes = {path.name: stat.filemode(path.stat().st_mode) for path in saved.iterdir()}
        assert modes.keys() >= {"model.safetensors", "config.json", "tokenizer.json"}
        assert set(modes.values()) == {"-rw-r-----"}


@situation("fit", "a disk without room for the fit", "one line with both sizes, before anything is trained")
def test_a_disk_without_room(
    checkpoint: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    size = (checkpoint / "model.safetensors").stat().st_size
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5 * size))
        refused = command(files[0], checkpoint, tmp_path / "fit")
    assert isinstance(refused.exception, OSError)
    assert "GB free, and this fit may write" in str(refused.exception)
    assert not (tmp_path / "fit" / "stages").exists()
    assert command(files[0], checkpoint, tmp_path / "fit").exit_code == 0
    with monkeypatch.context() as patched:  # what is finished needs no room
        patched.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size))
        assert command(files[0], checkpoint, tmp_path / "fit").exit_code == 0


@situation(
    "fit",
    "a disk that is full before the fit ends",
    "one line; given again with more room, it goes on to the same weights",
)
@pytest.mark.parametrize("sizes", [0.5, 1.5])
def test_a_disk_that_fills_up(sizes: float, checkpoint: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    """Files may become half as large as the model's, or as half of the optimiser's, as if the disk were full then."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    limit = int(sizes * (checkpoint / "model.safetensors").stat().st_size)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        stopped = command(files[0], checkpoint, tmp_path / "fit")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert isinstance(stopped.exception, OSError)
    assert "could not be written: is the disk full? Free some room" in str(stopped.exception)
    weights = []
    for output in (tmp_path / "fit", tmp_path / "undisturbed"):
        assert command(files[0], checkpoint, output).exit_code == 0
        weights.append((output / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_tenth_of_each_label_is_held_out() -> None:
    labels = ["a"] * 700 + ["b"] * 250 + ["c"] * 43 + ["d"] * 6 + ["e"]
    for seed in range(5):
        chosen = held_out_places(labels, seed)
        counts = {label: sum(labels[place] == label for place in chosen) for label in "abcde"}
        assert counts == {"a": 70, "b": 25, "c": 4, "d": 1, "e": 0}
        assert chosen == held_out_places(labels, seed)
    assert held_out_places(labels, 0) != held_out_places(labels, 1)


@situation(
    "file",
    "labels with few texts, no validation file",
    "each has its share of the held-out tenth; an only text stays in training, and its label is named as not validated",
)
def test_a_label_with_a_single_text_stays_in_training(checkpoint: Path, tmp_path: Path) -> None:
    table = write_rows(tmp_path / "train.tsv", 100, 0)
    append(table, "rare\ta b c\n")
    task = load_task(table)
    assert task.label_names == ["no", "rare", "yes"]
    assert (task.train.labels.count(1), task.validation.labels.count(1)) == (1, 0)
    assert len(task.validation) == 10
    done = command(table, checkpoint, tmp_path / "fit")
    assert "labels without a validation text: 'rare'" in done.stderr

    table.write_text("label\ttext\nno\ta\nyes\tb\n")
    with pytest.raises(TableError, match="every label has a single text, so none can be held out; give --validation"):
        load_task(table)


@situation(
    "file",
    "labels that only validation texts have",
    "said; nothing teaches the model their texts, which count as errors",
)
def test_labels_that_only_validation_texts_have(checkpoint: Path, tmp_path: Path) -> None:
    table = write_rows(tmp_path / "train.tsv", 400, 0)
    validation = write_rows(tmp_path / "dev.tsv", 120, 1)
    append(validation, "rare\tthe a b\n" * 30)  # "the" says "no" in all other texts
    options = ["--validation", str(validation), "--epochs", "8", "--json"]
    done = command(table, checkpoint, tmp_path / "fit", *options)
    assert done.exit_code == 0, done.exception
    assert "labels without a training text: 'rare'\n" in done.stderr
    assert "30 of 150 validation texts have a label that no training text teaches; they count in the" in done.stderr
    found = json.loads(done.stdout)
    assert found["label_names"] == ["no", "rare", "yes"]
    assert found["notes"][-1] == "labels that validation texts have and the model gave to none: 'rare'"
    texts, labels = zip(*read_labelled(validation), strict=True)
    given = [answer.label for answer in Classifier.load(tmp_path / "fit" / "model")(texts)]
    assert "rare" not in given
    assert found["validation_accuracy"] == sum(map(str.__eq__, given, labels)) / 150
    assert 0.7 < found["validation_accuracy"] <= 120 / 150


@situation("file", "labels of validation texts that the model never gives", "named in a line at the end of the fit")
def test_labels_that_are_never_given(checkpoint: Path, tmp_path: Path) -> None:
    table, validation = (write_rows(tmp_path / f"{name}.tsv", 150, seed) for name, seed in (("train", 0), ("dev", 1)))
    for path in (table, validation):
        append(path, "rare\tthe a b\n")  # "the" says "no" in 150 other texts
    done = command(table, checkpoint, tmp_path / "fit", "--validation", str(validation), "--json", "--epochs", "4")
    assert done.exit_code == 0, done.exception
    said = "labels that validation texts have and the model gave to none: 'rare'"
    assert said in done.stderr
    assert json.loads(done.stdout)["notes"][-1] == said


@situation(
    "file", "a text of megabytes, in fit", "its tokens are counted up to 16 times the longest text; 8 MB take a moment"
)
def test_a_very_long_text_among_those_to_learn_from(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, seen = write_rows(tmp_path / "train.tsv", 50, 0), []
    append(table, f"yes\t{'rate a ' * 1_200_000}\n")
    tokenise = Tokeniser.__call__

    def watched(self: Tokeniser, texts: Any) -> Any:
        seen.extend(len(self.cut(text)) for text in texts)
        return tokenise(self, texts)

    monkeypatch.setattr(Tokeniser, "__call__", watched)
    done = command(table, checkpoint, tmp_path / "fit")
    assert done.exit_code == 0, done.exception
    assert "1,024 or more" in done.stderr
    assert "longer than 64, cut 1" in " ".join(done.stderr.split())
    assert "`magic-pyramid classify --long-texts windows` will read such texts whole" in done.stderr
    assert max(seen) < 20_000


def test_the_table_of_the_texts_comes_first(checkpoint: Path, tmp_path: Path) -> None:
    """Counts by hand: 26 labels of which the ten most frequent are shown, lengths with [CLS] and [SEP]."""
    rows = [(label, "a " * (10 if place else 90)) for place, label in enumerate(wordpiece.LETTERS)]
    rows += [(label, "a b") for label in "zyxwvutsrq" for _ in range(2)]
    table = tmp_path / "train.tsv"
    table.write_text("label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in rows))
    done = command(table, checkpoint, tmp_path / "fit", "--validation", str(table))
    lines = [line.split() for line in done.stderr.splitlines()]
    begin = lines.index(["training", "validation"])
    assert lines[begin + 1 : begin + 16] == [
        ["texts", "46", "46"],
        *([label, "3", "3"] for label in "qrstuvwxyz"),
        ["16", "more", "labels", "16", "16"],
        ["tokens,", "median", "12", "12"],
        ["tokens,", "longest", "92", "92"],
        ["longer", "than", "64,", "cut", "1", "1"],
    ]

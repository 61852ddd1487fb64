"""``magic-pyramid classify`` cut off, gone on with, and given rows and places that are none."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mp_model import Classifier
from mp_model.checkpoints.precisions import Precision
from mp_model.command_line import classify, partial
from mp_model.serving.classifier import Answer
from support import wordpiece
from support.commands import Command, Ended
from support.situations import situation

TEXTS = wordpiece.texts(30)
BAD = {"text": ["a", "list"]}
KEYS = ["label", "score", "exit_layer", "uncertainty", "tokens", "flops"]


class Lengths:
    """Classifies texts by their length alone, so that every run writes the same bytes.

    interrupt: called before the answer of each text, with its number.
    """

    longer = 0
    precision = Precision("float32", "nothing was tuned for another precision", "Advice.")

    def __init__(self, interrupt: Callable[[int], None] = lambda number: None) -> None:
        self.interrupt = interrupt

    def stream(self, texts: Iterable[str], window: int, threshold: object) -> Iterator[Answer]:
        for number, text in enumerate(texts):
            self.interrupt(number)
            yield Answer("météo", 1 / (1 + len(text)), {"météo": 1.0}, 1, 0.5, len(text), 7)


@pytest.fixture
def lengths(monkeypatch: pytest.MonkeyPatch) -> Lengths:
    """Takes the place of every saved model, and can interrupt it."""
    classifier = Lengths()
    monkeypatch.setattr(Classifier, "load", lambda *_, **__: classifier)
    return classifier


def forbid_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test fails if a model is loaded from now on."""
    monkeypatch.setattr(Classifier, "load", lambda *_, **__: pytest.fail("the model must not be loaded"))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_models(monkeypatch)


def jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row if isinstance(row, dict) else {"text": row}) + "\n" for row in rows))
    return path


def assert_one_line(ended: Ended, *messages: str) -> None:
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    for message in messages:
        assert message in ended.err


class Files:
    """The files of one classification.

    Attributes:
        input, output, partial, note: as they are named.
        whole: bytes of the output when nothing interrupts.
    """

    def __init__(self, folder: Path, path: Path, classify: Command) -> None:
        self.input = jsonl(path / "a.jsonl", TEXTS)
        self.output, self.partial, self.note = (path / f"b.jsonl{end}" for end in ("", ".partial", ".partial.json"))
        self.options = ["--model", folder, "--output", self.output]
        self._classify = classify
        assert self.classify().status == 0
        self.whole = self.output.read_bytes()
        assert len(self.whole.splitlines()) == len(TEXTS)
        self.output.unlink()

    def classify(self, *options: object) -> Ended:
        return self._classify("classify", self.input, *self.options, *options)

    def assert_kept(self, answers: int) -> None:
        assert not self.output.exists()
        assert self.partial.read_bytes() == b"".join(self.whole.splitlines(keepends=True)[:answers])

    def assert_complete(self) -> None:
        assert self.output.read_bytes() == self.whole
        assert sorted(os.listdir(self.output.parent)) == ["a.jsonl", "b.jsonl"]


@pytest.fixture
def files(lengths: Lengths, folder: Path, tmp_path: Path, magic_pyramid: Command) -> Files:
    return Files(folder, tmp_path, magic_pyramid)


def interrupted(files: Files, lengths: Lengths, at: int, number: int = signal.SIGTERM) -> Ended:
    """A run that a signal ends before the answer with this number."""
    lengths.interrupt = lambda text: os.kill(os.getpid(), number) if text == at else None
    try:
        return files.classify()
    finally:
        lengths.interrupt = lambda text: None


@pytest.mark.parametrize("many", [len(TEXTS), len(TEXTS) + 1])
def test_many_texts_are_worth_a_word_on_a_faster_precision(
    files: Files, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classify, "MANY", many)
    assert files.classify().err == ("computed in float32; Advice.\n" if many == len(TEXTS) else "")
    files.assert_complete()


# Cut off, and gone on with


@situation(
    "run",
    "classify into a file, ended by Ctrl-C, SIGTERM or SIGHUP",
    "finished answers stay in FILE.partial, --resume goes on with the next text; status 130, 143, 129",
)
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
@pytest.mark.parametrize("at", [1, 17, 29])
def test_a_signal_keeps_what_is_finished(files: Files, lengths: Lengths, number: int, status: int, at: int) -> None:
    ended = interrupted(files, lengths, at, number)
    said = f"{files.partial} holds the first {at} answers; the same command with --resume goes on from there\n"
    assert ended == Ended(status, "", said)
    files.assert_kept(at)
    assert files.classify("--resume") == Ended(0, "", "")
    files.assert_complete()


def test_nothing_is_left_where_nothing_was_finished(files: Files, lengths: Lengths) -> None:
    assert interrupted(files, lengths, 0) == Ended(143, "", "")
    assert os.listdir(files.output.parent) == ["a.jsonl"]


def test_a_signal_that_is_ignored_stays_so(files: Files, lengths: Lengths) -> None:
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert interrupted(files, lengths, 3, signal.SIGHUP) == Ended(0, "", "")
    finally:
        signal.signal(signal.SIGHUP, before)
    files.assert_complete()


def test_a_second_signal_does_not_disturb_the_clearing_up(files: Files, lengths: Lengths, monkeypatch) -> None:
    """A program like timeout signals the process, and its group at once."""
    keep = partial.PartialFile.keep_or_remove

    def signalled_again(self: partial.PartialFile, error: BaseException) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        keep(self, error)

    monkeypatch.setattr(partial.PartialFile, "keep_or_remove", signalled_again)
    assert interrupted(files, lengths, 5).status == 143
    files.assert_kept(5)


def test_it_can_be_cut_off_again_and_again(files: Files, lengths: Lengths) -> None:
    interrupted(files, lengths, 4)
    for finished in range(8, 30, 4):
        lengths.interrupt = lambda text: os.kill(os.getpid(), signal.SIGINT) if text == 4 else None
        assert files.classify("--resume").status == 130
        files.assert_kept(finished)
    lengths.interrupt = lambda text: None
    assert files.classify("--resume").status == 0
    files.assert_complete()


def test_an_answer_that_cannot_be_made_keeps_those_before_it(files: Files, lengths: Lengths) -> None:
    """A mistake of the program's own shows its traceback, with the way on."""

    def fail(text: int) -> None:
        if text == 7:
            raise ZeroDivisionError

    lengths.interrupt = fail
    with pytest.raises(ZeroDivisionError) as raised:
        files.classify()
    assert "holds the first 7 answers" in raised.value.__notes__[0]
    files.assert_kept(7)


@situation(
    "run",
    "a disk that becomes full under the answers",
    "one line, exit status 2; whole lines are kept, --resume goes on",
)
@pytest.mark.parametrize("room", [0, 1, 1000, 2000])
def test_a_full_disk(files: Files, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """The last piece that has room is written in part, as it happens."""
    pwrite = os.pwrite

    def write(descriptor: int, data: bytes, offset: int) -> int:
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(files.note):
            return pwrite(descriptor, data, offset)
        if offset >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data[: room - offset], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", write)
        patch.setattr(partial, "BUFFERED", 400)
        ended = files.classify()
    assert_one_line(ended, f"{files.output}: no space left on device")
    if files.partial.exists():
        kept = files.partial.read_bytes()
        answers = kept.count(b"\n")
        assert 0 < len(kept) <= room
        assert f"holds the first {answers} answers" in ended.err
        files.assert_kept(answers)
    assert files.partial.exists() == (room >= 1000)
    assert files.classify("--resume").status == 0
    files.assert_complete()


@situation(
    "run", "classify killed without a warning (SIGKILL, a power cut)", "FILE.partial is cut to its last whole piece"
)
@pytest.mark.parametrize("torn", [b"", b'{"label": "m', b'{"label": "x"}\n{"lab'])
def test_what_a_killed_run_has_left(files: Files, lengths: Lengths, torn: bytes) -> None:
    interrupted(files, lengths, 11)
    with files.partial.open("ab") as stream:
        stream.write(torn)
    assert files.classify("--resume").status == 0
    files.assert_complete()


def test_answers_outlive_a_kill_soon(files: Files, lengths: Lengths, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are on disk after FLUSHED seconds, with a note that counts them, while the run goes on."""
    monkeypatch.setattr(partial, "FLUSHED", 0.0)
    counts = []
    lengths.interrupt = lambda text: counts.append(
        (json.loads(files.note.read_text())["lines"], files.partial.read_bytes().count(b"\n"))
    )
    assert files.classify().status == 0
    assert counts == [(done, done) for done in range(30)]


@situation(
    "run", "classify again into a file with a .partial", "refused unless --resume is given; nothing of it is lost"
)
def test_a_partial_file_is_not_overwritten(files: Files, lengths: Lengths, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(files, lengths, 6)
    forbid_models(monkeypatch)
    assert_one_line(
        files.classify(), f"{files.partial} holds 6 answers of a run that was cut off; go on with --resume, or remove"
    )
    files.assert_kept(6)


@situation(
    "run", "--resume with another model, threshold or input", "refused, and the line says what differs; nothing is lost"
)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--exit-threshold", "0.5"], "was made with another --exit-threshold; go on with the same, or remove"),
        (["--scores", "--exit-threshold", "never"], "another --exit-threshold and another --scores"),
    ],
)
def test_other_answers_are_not_mixed_in(
    files: Files, lengths: Lengths, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    interrupted(files, lengths, 6)
    forbid_models(monkeypatch)
    assert_one_line(files.classify("--resume", *options), message)
    files.assert_kept(6)


def test_another_model_is_not_gone_on_with(files: Files, lengths: Lengths, tmp_path_factory) -> None:
    interrupted(files, lengths, 6)
    other = tmp_path_factory.mktemp("other")
    (other / "config.json").write_text("{}")
    files.options[1] = other
    assert_one_line(files.classify("--resume"), "was made with another model")
    files.assert_kept(6)


@pytest.mark.parametrize("change", ["changed", "inserted", "shorter"])
def test_another_input_is_not_gone_on_with(files: Files, lengths: Lengths, change: str) -> None:
    interrupted(files, lengths, 6)
    texts = {"changed": [*TEXTS[:5], "other", *TEXTS[6:]], "inserted": ["new", *TEXTS], "shorter": TEXTS[:5]}
    jsonl(files.input, texts[change])
    assert_one_line(files.classify("--resume"), "the first 6 rows are not those whose answers were kept")
    files.assert_kept(6)


def test_rows_that_were_not_answered_may_change(files: Files, lengths: Lengths) -> None:
    """The answers are those of the input as it is now."""
    interrupted(files, lengths, 6)
    jsonl(files.input, TEXTS[:8])
    assert files.classify("--resume").status == 0
    assert files.output.read_bytes() == b"".join(files.whole.splitlines(keepends=True)[:8])


def test_a_partial_file_that_is_not_ours_is_kept(files: Files, no_model: None) -> None:
    files.partial.write_text("mine\n")
    for options in ([], ["--resume"]):
        assert_one_line(files.classify(*options), "b.jsonl.partial has no note beside it of what it was made from")
        assert files.partial.read_text() == "mine\n"


@pytest.mark.parametrize("note", ["", "[]", "null", "{}", '{"lines": 6, "bytes": 9, "rows": "", "made_by": [1]}'])
def test_a_note_that_says_something_else(files: Files, lengths: Lengths, no_model: None, note: str) -> None:
    files.partial.write_text("mine\n")
    files.note.write_text(note)
    assert_one_line(files.classify("--resume"), "b.jsonl.partial has no note beside it of what it was made from")
    assert files.partial.read_text() == "mine\n"


def test_resume_with_nothing_to_go_on_from_begins(files: Files) -> None:
    assert files.classify("--resume") == Ended(0, "", "")
    files.assert_complete()


@situation("run", "two commands writing the same answers at once", "the second is refused")
def test_two_at_once(files: Files, lengths: Lengths, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(files, lengths, 6)
    forbid_models(monkeypatch)
    with files.partial.open("rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert_one_line(files.classify("--resume"), f"another command is writing {files.partial}")
    files.assert_kept(6)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_output_obeys_the_umask_and_keeps_its_permissions(files: Files, lengths: Lengths, umask: int) -> None:
    before = os.umask(umask)
    try:
        assert files.classify().status == 0
        assert files.output.stat().st_mode & 0o777 == 0o666 & ~umask
        files.output.chmod(0o440)
        modes = set()
        lengths.interrupt = lambda text: modes.add(files.partial.stat().st_mode & 0o777)
        assert files.classify().status == 0
    finally:
        os.umask(before)
    assert files.output.stat().st_mode & 0o777 == 0o440
    assert modes == {0o640}
    files.assert_complete()


def test_the_output_may_be_a_symbolic_link(files: Files, lengths: Lengths, tmp_path_factory) -> None:
    """The partial file is beside its target, on the same disk."""
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "c.jsonl"
    files.output.symlink_to(elsewhere)
    ended = interrupted(files, lengths, 3)
    assert f"{elsewhere}.partial holds the first 3 answers" in ended.err
    assert files.classify("--resume").status == 0
    assert files.output.readlink() == elsewhere
    assert os.listdir(elsewhere.parent) == ["c.jsonl"]
    files.assert_complete()


def test_going_on_with_a_real_model(magic_pyramid: Command, folder: Path, tmp_path: Path) -> None:
    """Kept answers stay as they are, byte for byte; the others are those of any run."""
    path, output = jsonl(tmp_path / "a.jsonl", [*TEXTS[:20], BAD, *TEXTS[21:]]), tmp_path / "b.jsonl"
    options = ("--model", folder, "--output", output, "--window", 2)
    assert_one_line(magic_pyramid("classify", path, *options), "row 21", "holds the first 20 answers")
    kept = output.with_name("b.jsonl.partial").read_bytes()
    jsonl(path, TEXTS)
    said = "5 texts were longer than 64 tokens, and cut; --long-texts windows reads them whole\n"
    assert magic_pyramid("classify", path, *options, "--resume") == Ended(0, "", said)
    written = output.read_bytes()
    assert written.startswith(kept)
    classifier = Classifier.load(folder)
    for line, text in zip(written.splitlines(), TEXTS, strict=True):
        (alone,) = classifier([text])
        assert json.loads(line) == pytest.approx(alone.as_dict(all_scores=False), abs=1e-5)
    assert sorted(os.listdir(tmp_path)) == ["a.jsonl", "b.jsonl"]


# Rows that hold no text


@situation("file", "a row without a text, in classify", "those before it are answered and kept; the line names the row")
def test_a_bad_row_fails(files: Files) -> None:
    jsonl(files.input, [*TEXTS[:9], BAD, *TEXTS[10:]])
    ended = files.classify()
    assert_one_line(ended, f"{files.input}: row 10 ", f"{files.partial} holds the first 9 answers")
    files.assert_kept(9)


@situation("file", "the same with --on-error skip", "the row is left out, and counted at the end")
def test_bad_rows_can_be_left_out(files: Files) -> None:
    jsonl(files.input, [BAD, *TEXTS[:9], BAD, {}, *TEXTS[9:], BAD])
    ended = files.classify("--on-error", "skip")
    assert (ended.status, ended.out) == (0, "")
    assert ended.err.startswith(f"4 of 34 rows without a text, left out; the first: {files.input}: row 1 ")
    assert ended.err.count("\n") == 1
    files.assert_complete()


@situation("file", "the same with --on-error null", "a line of nulls with the error stands in its place")
@pytest.mark.parametrize("scores", [False, True])
def test_bad_rows_can_be_answered_with_null(files: Files, scores: bool) -> None:
    jsonl(files.input, [BAD, *TEXTS[:9], BAD, {}, *TEXTS[9:], BAD])
    ended = files.classify("--on-error", "null", *["--scores"] * scores)
    assert (ended.status, ended.out) == (0, "")
    assert ended.err.startswith(f"4 of 34 rows without a text, answered with null; the first: {files.input}: row 1 ")
    answers = [json.loads(line) for line in files.output.read_text().splitlines()]
    bad = {place: answer for place, answer in enumerate(answers) if answer["label"] is None}
    assert list(bad) == [0, 10, 11, 33]
    for place, answer in bad.items():
        assert list(answer) == [*KEYS[:2], *["scores"] * scores, *KEYS[2:], "error"]
        assert {answer[key] for key in answer if key != "error"} == {None}
        assert answer["error"].startswith(f"{files.input}: row {place + 1} ")
    if not scores:
        lines = files.output.read_bytes().splitlines(keepends=True)
        assert b"".join(line for place, line in enumerate(lines) if place not in bad) == files.whole


def test_a_run_that_failed_at_a_row_can_go_on_without_it(files: Files) -> None:
    jsonl(files.input, [*TEXTS[:9], BAD, *TEXTS[9:20], BAD, *TEXTS[20:]])
    assert files.classify().status == 2
    assert files.classify("--resume", "--on-error", "skip").err.startswith("2 of 32 rows without a text, left out")
    files.assert_complete()


@pytest.mark.parametrize("on_error", ["skip", "null"])
@pytest.mark.parametrize("at", [3, 9, 10, 29])
def test_bad_rows_and_going_on(files: Files, lengths: Lengths, on_error: str, at: int) -> None:
    jsonl(files.input, [BAD, *TEXTS[:9], BAD, {}, *TEXTS[9:], BAD])
    uninterrupted = files.classify("--on-error", on_error)
    files.whole = files.output.read_bytes()
    files.output.unlink()
    lengths.interrupt = lambda text: os.kill(os.getpid(), signal.SIGTERM) if text == at else None
    assert files.classify("--on-error", on_error).status == 143
    lengths.interrupt = lambda text: None
    assert files.classify("--on-error", on_error, "--resume") == uninterrupted
    files.assert_complete()


def test_an_input_of_bad_rows_alone(files: Files) -> None:
    jsonl(files.input, [BAD] * 3)
    assert files.classify("--on-error", "null").status == 0
    assert files.output.read_text().count('"label": null') == 3
    assert files.classify("--on-error", "skip").err.startswith("3 of 3 rows without a text, left out")
    assert files.output.read_bytes() == b""


# Places to read from and to write to


@situation(
    "run",
    "no such input, a folder as input or output, an output folder that is read-only or a file",
    "one line, exit status 2, before the model is loaded",
)
@pytest.mark.parametrize(
    ("input", "output", "message"),
    [
        ("nowhere.tsv", "b", "nowhere.tsv: no such file"),
        (".", "b", "a folder; expected a file"),
        ("a.tsv", ".", "is a folder; expected a name for a file"),
        ("a.tsv", "/sys/b", "/sys/b"),
        ("a.tsv", "a.tsv/b", "a.tsv: not a directory"),
        ("a.log", "b", "cannot tell the format by the ending '.log'"),
        ("empty.tsv", "b", "empty.tsv: the file is empty"),
    ],
)
def test_places_that_are_none(
    no_model: None, magic_pyramid: Command, folder: Path, tmp_path: Path, input: str, output: str, message: str
) -> None:
    for name in ("a.tsv", "a.log"):
        (tmp_path / name).write_text("text\nthe\n")
    (tmp_path / "empty.tsv").write_text("")
    ended = magic_pyramid("classify", "--model", folder, tmp_path / input, "--output", tmp_path / output)
    assert_one_line(ended, message)
    assert sorted(os.listdir(tmp_path)) == ["a.log", "a.tsv", "empty.tsv"]


@situation("run", "standard input that is closed (<&-)", "one line, exit status 2")
def test_standard_input_that_is_closed(no_model: None, magic_pyramid: Command, folder: Path) -> None:
    assert_one_line(magic_pyramid("classify", "--model", folder, stdin=None), "standard input is closed")


@situation(
    "run", "an input that is a pipe: a FIFO, or <(...)", "read as it comes, in the format given or named by its ending"
)
@pytest.mark.parametrize(("name", "options"), [("pipe.tsv", []), ("pipe", ["--format", "tsv"])])
def test_a_pipe_is_read(
    lengths: Lengths, magic_pyramid: Command, folder: Path, tmp_path: Path, name: str, options: list[str]
) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=("text\nthe\nrate\n",))
    writer.start()
    ended = magic_pyramid("classify", "--model", folder, path, *options)
    writer.join()
    assert [answer["tokens"] for answer in ended.answers()] == [3, 4]


def test_the_format_of_a_pipe_must_be_known(
    no_model: None, magic_pyramid: Command, folder: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    ended = magic_pyramid("classify", "--model", folder, tmp_path / "pipe")
    assert_one_line(ended, "cannot tell the format by the ending ''", "give it with --format")


@pytest.mark.parametrize("output", ["-", "/dev/stdout"])
def test_other_names_of_standard_input_and_output(
    lengths: Lengths, magic_pyramid: Command, folder: Path, output: str
) -> None:
    ended = magic_pyramid("classify", "--model", folder, "-", "--output", output, stdin="the\nrate\n")
    assert [answer["tokens"] for answer in ended.answers()] == [3, 4]


def test_resume_needs_a_file(no_model: None, magic_pyramid: Command, folder: Path) -> None:
    assert_one_line(magic_pyramid("classify", "--model", folder, "--resume"), "--resume goes on from a file")
    ended = magic_pyramid("classify", "--model", folder, "--resume", "--output", os.devnull)
    assert_one_line(ended, "/dev/null is no file, so there is nothing to go on from")


def test_a_device_is_written_directly(files: Files) -> None:
    files.options[-1] = os.devnull
    assert files.classify() == Ended(0, "", "")
    files.options[-1] = "/dev/full"
    assert_one_line(files.classify(), "/dev/full: no space left on device")


# Long texts, and texts that are shown


def test_long_texts_are_counted(magic_pyramid: Command, folder: Path) -> None:
    texts = ["the rate", "the " * 100, "a b", "rate " * 300]
    cut = magic_pyramid("classify", "--model", folder, stdin="\n".join(texts))
    assert cut.err == "2 texts were longer than 64 tokens, and cut; --long-texts windows reads them whole\n"
    assert [answer["tokens"] for answer in cut.answers()] == [4, 64, 4, 64]

    options = ("--model", folder, "--long-texts", "windows", "--exit-threshold", "never")
    whole = magic_pyramid("classify", *options, stdin="\n".join(texts))
    assert whole.err == "2 texts were longer than 64 tokens, and read in windows until certain\n"
    answers = Classifier.load(folder, long_texts="windows")([text.strip() for text in texts], "never")
    assert whole.answers() == [pytest.approx(answer.as_dict(all_scores=False), abs=1e-5) for answer in answers]
    assert [answer["tokens"] for answer in whole.answers()] == [4, 64 + 55, 4, 6 * 64 + 20]

    assert magic_pyramid("classify", "--model", folder, stdin="the rate").err == ""
    wrong = magic_pyramid("classify", "--model", folder, "--long-texts", "whole", stdin="the rate")
    assert_one_line(wrong, "long_texts must be one of 'cut', 'windows'; got 'whole'")


def test_the_first_texts_are_explained(magic_pyramid: Command, folder: Path) -> None:
    rows = [{"text": "the rate"}, BAD, {"text": "a [b] c"}, {"text": "the"}]
    given = "".join(json.dumps(row) + "\n" for row in rows)
    options = ("--model", folder, "--format", "jsonl", "--on-error", "skip", "--exit-threshold", "1")
    ended = magic_pyramid("classify", *options, "--explain", 2, stdin=given)
    assert [answer["exit_layer"] for answer in ended.answers()] == [1, 1, 1]
    labels = [answer["label"] for answer in ended.answers()]
    captions = [line.rstrip() for line in ended.err.splitlines() if "answered by layer 1 of 4" in line]
    assert [caption.split(":")[0] for caption in captions] == labels[:2]
    lines = [line.strip() for line in ended.err.splitlines()]
    assert "the rate" in lines
    assert "a [b] c" in lines

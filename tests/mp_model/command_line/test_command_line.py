"""The command ``magic-pyramid``: help at once, answers in order, errors in one line."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.main import get_command

from mp_model import Classifier, PyramidBertForSequenceClassification
from mp_model.command_line import app
from support import tiny, wordpiece
from support.commands import Command, Ended

TEXTS = [text for text in wordpiece.texts(12) if text]
LONG = "3 texts were longer than 64 tokens, and cut; --long-texts windows reads them whole\n"


def expected(folder: Path, texts: Iterable[str], **options: Any) -> list[dict[str, Any]]:
    model = PyramidBertForSequenceClassification.from_pretrained(folder).eval()
    answers = [Classifier(model, wordpiece.tokenizer())([text], **options)[0] for text in texts]
    return [pytest.approx(answer.as_dict(all_scores=False), abs=1e-5) for answer in answers]


def jsonl(path: Path, texts: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


# Help


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ("classify", "magic-pyramid classify --model demo-output/model articles.tsv > answers.jsonl"),
        ("demo", "magic-pyramid demo --texts texts.txt --threads 4 --json"),
        ("evaluate", "magic-pyramid evaluate test.tsv --model fits/news/model --output reports/news"),
        ("fit", "magic-pyramid fit train.tsv --model bert-base-uncased --output fits/news"),
        ("tune", "magic-pyramid tune dev.tsv --model fits/news/model --max-drop 0.5"),
    ],
)
def test_help_shows_an_example(magic_pyramid: Command, command: str, example: str) -> None:
    ended = magic_pyramid(command, "--help")
    assert ended.status == 0
    assert example in " ".join(ended.out.split())


@pytest.mark.parametrize(
    "arguments", [["--help"], *([command, "--help"] for command in ("classify", "demo", "evaluate", "fit", "tune"))]
)
def test_help_comes_without_heavy_imports(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from mp_model.command_line import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print({name.split('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert "Usage" in ended.stdout
    assert "'typer'" in ended.stderr
    for heavy in ("torch", "transformers", "pyarrow", "matplotlib"):
        assert f"'{heavy}'" not in ended.stderr


def test_every_option_and_argument_says_what_it_is() -> None:
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    assert len(commands) > 8
    for name, command in commands.items():
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name}: {parameter.name} has no help"


def test_help_is_shown_where_no_command_is_named(magic_pyramid: Command) -> None:
    ended = magic_pyramid()
    assert "classify" in ended.out + ended.err
    assert "demo" in ended.out + ended.err


# Classify


def test_a_file(magic_pyramid: Command, folder: Path, tmp_path: Path) -> None:
    ended = magic_pyramid("classify", "--model", folder, jsonl(tmp_path / "a.jsonl", TEXTS))
    assert (ended.status, ended.err) == (0, LONG)
    assert ended.answers() == expected(folder, TEXTS)
    assert list(ended.answers()[0]) == ["label", "score", "exit_layer", "uncertainty", "tokens", "flops"]


@pytest.mark.parametrize("sizes", [["--window", 1], ["--window", 3], ["--window", 50]])
def test_sizes_change_nothing(magic_pyramid: Command, folder: Path, sizes: list[object]) -> None:
    ended = magic_pyramid("classify", "--model", folder, *sizes, stdin="\n".join(TEXTS))
    assert ended.answers() == expected(folder, TEXTS)


def test_standard_input_as_lines_and_as_json(magic_pyramid: Command, folder: Path) -> None:
    ended = magic_pyramid("classify", "--model", folder, stdin="".join(f"{text}\n" for text in TEXTS))
    assert (ended.status, ended.err) == (0, LONG)
    assert ended.answers() == expected(folder, TEXTS)

    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    assert magic_pyramid("classify", "--model", folder, "--format", "jsonl", stdin=rows).out == ended.out


def test_progress_on_a_terminal_takes_no_answers_with_it(folder: Path) -> None:
    """As in ``magic-pyramid classify ... > answers.jsonl``: standard error is a terminal, standard output is not."""
    program = "from mp_model.command_line import main; main()"
    terminal, stderr = pty.openpty()
    try:
        ended = subprocess.run(
            [sys.executable, "-c", program, "classify", "--model", folder],
            input="\n".join(TEXTS).encode(),
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "TERM": "xterm"},
            check=True,
        )
        assert b"texts" in os.read(terminal, 10_000)
    finally:
        os.close(stderr)
        os.close(terminal)
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    alone = Classifier.load(folder)(TEXTS)
    # By itself the program decides exits first or late as its batches go, which changes the work alone.
    assert [answer["label"] for answer in answers] == [answer.label for answer in alone]
    assert [answer["exit_layer"] for answer in answers] == [answer.exit_layer for answer in alone]
    assert [answer["score"] for answer in answers] == pytest.approx([answer.score for answer in alone], abs=1e-5)


def test_an_output_file(magic_pyramid: Command, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    ended = magic_pyramid("classify", "--model", folder, "--output", path, stdin="\n".join(TEXTS))
    assert ended == Ended(0, "", LONG)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == expected(folder, TEXTS)
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("given", "threshold", "layers"), [("1", 1.0, {1}), ("0,1,0", [0.0, 1.0, 0.0], {2}), ("never", "never", {4})]
)
def test_the_exit_threshold_can_be_set(
    magic_pyramid: Command, folder: Path, given: str, threshold: object, layers: set[int]
) -> None:
    ended = magic_pyramid("classify", "--model", folder, "--exit-threshold", given, stdin="\n".join(TEXTS))
    assert {answer["exit_layer"] for answer in ended.answers()} == layers
    assert ended.answers() == expected(folder, TEXTS, exit_threshold=threshold)


def test_names_are_written_as_they_are(magic_pyramid: Command, folder: Path) -> None:
    ended = magic_pyramid("classify", "--model", folder, stdin="\n".join(wordpiece.texts(40)))
    assert '"label": "météo"' in ended.out


def test_threads_can_be_set(magic_pyramid: Command, folder: Path) -> None:
    threads = torch.get_num_threads()
    try:
        assert magic_pyramid("classify", "--model", folder, "--threads", 2, stdin="the").status == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_no_texts(magic_pyramid: Command, folder: Path) -> None:
    assert magic_pyramid("classify", "--model", folder) == Ended(0, "", "")


# Errors


def assert_one_line(ended: Ended, message: str) -> None:
    assert ended.status == 2
    assert ended.out == ""
    assert ended.err.startswith("error: ")
    assert ended.err.endswith("\n")
    assert len(ended.err.splitlines()) == 1
    assert message in ended.err


def test_no_model(magic_pyramid: Command, tmp_path: Path) -> None:
    ended = magic_pyramid("classify", "--model", tmp_path / "nowhere", stdin="the")
    assert_one_line(ended, f"--model must be a folder of a saved model, with config.json; got {tmp_path / 'nowhere'}")


def test_no_weights(magic_pyramid: Command, tmp_path: Path) -> None:
    """The message is transformers' own, of several lines or of one."""
    tiny.config().save_pretrained(tmp_path)
    assert_one_line(magic_pyramid("classify", "--model", tmp_path, stdin="the"), "model.safetensors")


def test_no_file(magic_pyramid: Command, folder: Path, tmp_path: Path) -> None:
    ended = magic_pyramid("classify", "--model", folder, tmp_path / "nowhere.tsv")
    assert_one_line(ended, "nowhere.tsv: no such file")


def test_no_column(magic_pyramid: Command, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("sentence\tlabel\nthe\t1\n")
    assert_one_line(magic_pyramid("classify", "--model", folder, path), "expected a column 'text', or 'text_a'")


def test_standard_input_that_is_not_utf8(magic_pyramid: Command, folder: Path) -> None:
    ended = magic_pyramid("classify", "--model", folder, stdin="né\n".encode("latin-1"))
    assert_one_line(ended, "standard input: row 1 is not UTF-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--exit-threshold", 2], "exit_threshold must lie in [0, 1]"),
        (["--exit-threshold", "low"], "--exit-threshold must be numbers with commas between them; got 'low'"),
        (["--device", "abacus"], "device 'abacus' cannot be used here: PyTorch finds cpu"),
        (["--format", "csv"], "standard input: a stream is read as txt or jsonl; got 'csv'"),
    ],
)
def test_options_that_cannot_be_followed(
    magic_pyramid: Command, folder: Path, options: list[object], message: str
) -> None:
    assert_one_line(magic_pyramid("classify", "--model", folder, *options, stdin="the\n"), message)


def test_an_unknown_option(magic_pyramid: Command, folder: Path) -> None:
    ended = magic_pyramid("classify", "--model", folder, "--treshold", 1)
    assert ended.status == 2
    assert "--treshold" in ended.err
    assert "Traceback" not in ended.err


def test_answers_before_an_error_are_on_standard_output(magic_pyramid: Command, folder: Path, tmp_path: Path) -> None:
    texts = jsonl(tmp_path / "a.jsonl", [*TEXTS[:5], None])
    ended = magic_pyramid("classify", "--model", folder, "--window", 2, texts)
    assert ended.status == 2
    assert ended.answers() == expected(folder, TEXTS[:5])
    assert "row 6 has no text" in ended.err

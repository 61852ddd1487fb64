"""The ends of commands, in processes of their own: signals, pipes that nobody reads, full disks, closed streams."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.situations import situation

PROGRAM = """
import os, sys
import typer
from mp_model.command_line.endings import status_of

app = typer.Typer(pretty_exceptions_enable=False)

@app.command()
def run(does: str) -> None:
    try:
        exec(does)
    finally:
        os.write(3, b"cleared up")

sys.exit(status_of(app))
"""
MUCH = "print('answer\\n' * 100_000)"
MUCH_BY_RICH = "from rich.console import Console\nfor _ in range(40):\n    Console().print('answer\\n' * 1_000)"


def run(does: str, redirected: str = "", before: str = "") -> tuple[int, str, str]:
    """The status, the output and the errors of a command that executes a line, as a shell runs it.

    redirected: words of the shell after the command; before: lines of the shell before it.
    """
    command = shlex.join([sys.executable, "-c", PROGRAM, does])
    cleared, end = os.pipe()
    script = f"{before}\n{command} 3>&{end} {redirected}\nexit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", script], pass_fds=[end], capture_output=True, text=True)
    os.close(end)
    with os.fdopen(cleared) as stream:
        assert stream.read() == "cleared up"
    return ended.returncode, ended.stdout, ended.stderr


@situation("run", "a command ended by Ctrl-C, SIGTERM or SIGHUP", "it clears up; status 130, 143, 129 and no traceback")
@pytest.mark.parametrize(("name", "status"), [("INT", 130), ("TERM", 143), ("HUP", 129)])
def test_signals(name: str, status: int) -> None:
    does = f"import signal, time; os.kill(os.getpid(), signal.SIG{name}); time.sleep(60)"
    assert run(does) == (status, "", "")


def test_a_warning_is_said_once() -> None:
    """A file that several steps read is warned of by each of them, from other lines of the program."""
    does = "import warnings\nwarnings.warn('odd')\nwarnings.warn('odd')\nwarnings.warn('strange')"
    assert run(does) == (0, "", "warning: odd\nwarning: strange\n")


def test_a_signal_that_the_shell_ignores_is_ignored() -> None:
    does = "import signal; os.kill(os.getpid(), signal.SIGHUP); print('goes on')"
    assert run(does, before="trap '' HUP") == (0, "goes on\n", "")


def test_an_echo_of_a_signal_does_not_disturb_the_clearing_up() -> None:
    does = (
        "import signal\ntry:\n    os.kill(os.getpid(), signal.SIGTERM)\nfinally:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('cleared up')"
    )
    assert run(does) == (143, "cleared up\n", "")


@situation("run", "a standard output that nobody reads any more (| head -1)", "it ends quietly, as if by SIGPIPE: 141")
@pytest.mark.parametrize("does", [MUCH, MUCH_BY_RICH])
def test_a_pipe_that_nobody_reads(does: str) -> None:
    assert run(does, "| head -1") == (141, "answer\n", "")


def test_a_pipe_that_nobody_reads_when_little_is_printed() -> None:
    """It waits in Python's buffer to the end."""
    assert run("import time; print('answer'); time.sleep(0.5)", "| true") == (141, "", "")


@situation("run", "a standard output on a full disk", "one line, exit status 2")
@pytest.mark.parametrize("does", [MUCH, MUCH_BY_RICH, "print('answer')"])
def test_standard_output_on_a_full_disk(does: str) -> None:
    assert run(does, "> /dev/full") == (2, "", "error: standard output: no space left on device\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_closed_streams_that_nobody_needs(closed: str) -> None:
    assert run("pass", closed) == (0, "", "")


@situation("run", "a standard output that is closed (>&-)", "one line, exit status 2, if there is anything to print")
@pytest.mark.parametrize("does", ["print('answer')", MUCH_BY_RICH])
def test_standard_output_that_is_closed(does: str) -> None:
    assert run(does, ">&-") == (2, "", "error: standard output: it is closed\n")


def test_an_error_of_the_users_has_one_line() -> None:
    assert run("raise ValueError('first\\n  second')") == (2, "", "error: first second\n")
    assert run("raise ValueError('first')", "2>&-") == (2, "", "")
    assert run("open('/no/where')") == (2, "", "error: /no/where: no such file or directory\n")
    assert run("raise OSError('the weights are damaged')") == (2, "", "error: the weights are damaged\n")


def test_a_mistake_of_the_programs_shows_its_traceback() -> None:
    status, out, err = run("print('answer'); {}['key']")
    assert (status, out) == (1, "answer\n")
    assert "Traceback" in err
    assert err.endswith("KeyError: 'key'\n")


# The program itself

MAGIC_PYRAMID = [sys.executable, "-c", "from mp_model.command_line import main; main()"]


@situation("run", "a locale that is not UTF-8 (LC_ALL=C, PYTHONIOENCODING=latin-1)", "answers are UTF-8")
def test_answers_are_utf8_and_end_with_their_reader(folder: Path) -> None:
    """Endless texts from a pipe of the shell's, of whose answers one is read."""
    classify = shlex.join([*MAGIC_PYRAMID, "classify", "--model", str(folder), "--scores", "--format", "txt"])
    script = f"{classify} <(yes the rate) | head -1; exit ${{PIPESTATUS[0]}}"
    locale = {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    ended = subprocess.run(["bash", "-c", script], capture_output=True, env={**os.environ, **locale})
    assert (ended.returncode, ended.stderr) == (141, b"")
    assert list(json.loads(ended.stdout.decode("utf-8"))["scores"]) == ["sport", "money", "météo"]


def test_sigterm_while_waiting_for_texts(folder: Path, tmp_path: Path) -> None:
    output, kept = tmp_path / "a.jsonl", tmp_path / "a.jsonl.partial"
    command = [*MAGIC_PYRAMID, "classify", "--model", str(folder), "--output", str(output)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        while process.poll() is None and not (kept.exists() and kept.stat().st_size):
            process.stdin.write(b"the rate\n")
            process.stdin.flush()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read().decode()
        assert process.wait() == 143
    lines = kept.read_bytes().splitlines(keepends=True)
    assert said == f"{kept} holds the first {len(lines)} answers; the same command with --resume goes on from there\n"
    for line in lines:
        assert line.endswith(b"\n")
        assert json.loads(line)["tokens"] == 4

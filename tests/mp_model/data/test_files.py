"""A file is written whole, or what was there before stays."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mp_model.data.files import whole_file


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "answers.jsonl"
    with whole_file(path) as stream:
        stream.write("é\n")
        stream.flush()
        assert not path.exists()
    assert path.read_bytes() == "é\n".encode()
    assert os.listdir(path.parent) == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_file_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("old and longer")
    with whole_file(path) as stream:
        stream.write("new")
        stream.flush()
        assert path.read_text() == "old and longer"
    assert path.read_text() == "new"


def write_half(path: Path, error: type[BaseException]) -> None:
    with whole_file(path) as stream:
        stream.write("half of ")
        stream.flush()
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("old")
    with pytest.raises(error):
        write_half(path, error)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == [path.name]


def test_an_error_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "answers.jsonl", RuntimeError)
    assert os.listdir(tmp_path) == []


def test_binary(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    with whole_file(path, "wb") as stream:
        stream.write(b"\x89PNG\r\n")
    assert path.read_bytes() == b"\x89PNG\r\n"


def test_a_pipe_is_written_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        with whole_file(path) as stream:
            stream.write("answer")
        assert os.read(end, 100) == b"answer"
    finally:
        os.close(end)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), whole_file(tmp_path):
        pytest.fail("the block must not be entered")

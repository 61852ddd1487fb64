"""A file is written whole, or what was there before stays."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mp_model.data.files import check_folder, whole_file
from support.situations import situation


def test_a_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "answers.jsonl"
    with whole_file(path) as stream:
        stream.write("é\n")
        stream.flush()
        assert not path.exists()
    assert path.read_bytes() == "é\n".encode()
    assert os.listdir(path.parent) == [path.name]


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


def test_folders_that_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (".", "new", "new/folder"):
        check_folder(tmp_path / name)
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    for name in ("file", "file/new/folder"):
        with pytest.raises(NotADirectoryError, match=f"file is a file, where a folder is needed; .* than .*/{name}"):
            check_folder(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda *_: False)  # nothing is forbidden to root
    with pytest.raises(PermissionError, match=f"new cannot be written to: {tmp_path} gives no permission"):
        check_folder(tmp_path / "new")


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


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@situation("run", "a umask of one's own", "new files obey it; a file that is written anew keeps its permissions")
@pytest.mark.parametrize(("umask", "mode"), [(0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_is_obeyed(tmp_path: Path, umask: int, mode: int) -> None:
    path = tmp_path / "answers.jsonl"
    before = os.umask(umask)
    try:
        with whole_file(path) as stream:
            stream.write("new")
        assert mode_of(path) == mode
        path.chmod(0o604)
        with whole_file(path) as stream:
            (part,) = set(tmp_path.iterdir()) - {path}
            assert mode_of(part) == 0o604  # from the start: nobody else reads it meanwhile
    finally:
        os.umask(before)
    assert mode_of(path) == 0o604


@situation("run", "an output that is a symbolic link", "the link stays, and its target is replaced")
@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_stays(tmp_path: Path, there: bool) -> None:
    target, link = tmp_path / "elsewhere" / "answers.jsonl", tmp_path / "link"
    link.symlink_to(target)
    if there:
        target.parent.mkdir()
        target.write_text("old")
    with whole_file(link) as stream:
        stream.write("new")
    assert link.readlink() == target
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == [target.name]


def test_lone_surrogates_are_written_as_json_escapes_them(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as stream:
        stream.write('"é\udcff"')
    assert (tmp_path / "a").read_bytes() == '"é\\udcff"'.encode()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    link = tmp_path / "full"
    link.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*/full'"), whole_file(link) as stream:
        stream.write("answer")


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(NotADirectoryError, match=r"Not a directory: .*/a'"), whole_file(tmp_path / "a" / "b"):
        pytest.fail("the block must not be entered")

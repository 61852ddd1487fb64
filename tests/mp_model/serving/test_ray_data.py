"""Files classified by Ray: the answers of ``classify`` without it, in order, whatever is killed meanwhile."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from mp_model import Answer, Classifier
from mp_model.command_line import main
from mp_model.command_line.classify import here
from mp_model.serving.jobs import Job
from support import wordpiece
from support.situations import situation

pytest.importorskip("ray", reason="pip install -e .[ray]")

from ray import cloudpickle

from mp_model.serving import ray_data
from mp_model.serving.ray_cluster import cluster, share_of
from mp_model.serving.ray_data import ClassifyParts, PartsOfFile, classify_files

# Ray warns of what it does itself.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]
TEXTS = wordpiece.texts(90)
PART = 16


@pytest.fixture(scope="module")
def processors() -> Iterator[int]:
    """Those of a small cluster, which the tests share."""
    with cluster(1) as processors:
        yield processors


@pytest.fixture
def job(served_folder: Path) -> Job:
    return Job(served_folder, scores=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file of each kind, one of them in a folder of its own, and files that are none."""
    folder = tmp_path / "articles"
    (folder / "more").mkdir(parents=True)
    parquet.write_table(pa.table({"text": TEXTS[:40], "year": [2026] * 40}), folder / "a.parquet")
    lines = [json.dumps({"text": text}) for text in TEXTS[40:60]]
    lines[3] = json.dumps({"text": None})
    (folder / "b.jsonl").write_text("\n".join(lines) + "\n")
    with (folder / "more" / "c.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["text_a", "text_b"], *([text, "the rate"] for text in TEXTS[60:75])])
    (folder / "more" / "d.tsv").write_text("text\n" + "".join(f"{text}\n" for text in TEXTS[75:]))
    (folder / "_SUCCESS").write_text("")
    (folder / "readme.md").write_text("Nothing to classify.")
    return folder


def answers_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_as_without_ray(job: Job, source: Path, output: Path, tmp_path: Path) -> None:
    """The file of answers has the lines that ``classify`` writes in this process, but for the last digits.

    And but for ``flops``: what a layer does for a text depends on those that it shares the layer with.
    """
    here(job, source, tmp_path / "expected.jsonl", False, 0)
    found, expected = answers_in(output), answers_in(tmp_path / "expected.jsonl")
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert list(one) == list(other)
        numbers = [name for name, value in other.items() if isinstance(value, float)]
        assert [one[name] for name in numbers] == pytest.approx([other[name] for name in numbers], abs=1e-5)
        for name in set(other) - set(numbers) - {"scores", "flops"}:
            assert one[name] == other[name], name
        if other.get("scores"):
            assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


def test_files_of_all_kinds_are_answered_as_without_ray(
    processors: int, job: Job, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By more processes than there are processors, which would wait for ever if each asked for a whole one."""
    job = replace(job, on_error="null")
    came: list[int] = []
    done = classify_files(job, folder, tmp_path / "out", processes=2, part=PART, progress=came.append)
    assert (done.rows, done.kept, done.bad, sum(came)) == (90, 0, 1, 90)
    assert done.first_bad is not None
    assert done.first_bad.startswith(f"{folder}/b.jsonl: row 4 has no text")
    names = ["a.parquet", "b.jsonl", "more/c.csv", "more/d.tsv"]
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.jsonl")) == [
        f"{name}.jsonl" for name in names
    ]
    for name in names:
        assert_as_without_ray(job, folder / name, tmp_path / "out" / f"{name}.jsonl", tmp_path)
    assert not (tmp_path / "out.parts").exists()


class Dying:
    """A classifier whose process is killed in the middle of a part, unless one was before."""

    def __init__(self, classifier: Classifier, mark: Path) -> None:
        self.classifier, self.mark = classifier, mark
        self.longer, self.tokenise = 0, classifier.tokenise

    def stream(self, *given: Any) -> Iterator[Answer]:
        for number, answer in enumerate(self.classifier.stream(*given)):
            if number == 3 and not self.mark.exists():
                self.mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield answer


@situation("run", "a process of `classify --ray` is killed", "its part is done anew by another, and no row is lost")
def test_a_process_that_is_killed_loses_nothing(
    processors: int, job: Job, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "killed"

    class ClassifiesUntilKilled(ClassifyParts):
        def __init__(self, job: Job, folder: Path) -> None:
            super().__init__(job, folder)
            self.classifier = Dying(self.classifier, mark)  # type: ignore[assignment]

    this = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(this)
    monkeypatch.setattr(ray_data, "ClassifyParts", ClassifiesUntilKilled)
    try:
        done = classify_files(job, folder / "a.parquet", tmp_path / "out.jsonl", processes=1, part=PART)
    finally:
        cloudpickle.unregister_pickle_by_value(this)
    assert mark.exists()
    assert (done.rows, done.kept) == (40, 0)
    assert_as_without_ray(job, folder / "a.parquet", tmp_path / "out.jsonl", tmp_path)
    assert not (tmp_path / "out.jsonl.parts").exists()


@situation(
    "run",
    "`classify --ray` meets a row without a text",
    "one line names it, the parts before it are kept, and --resume goes on from them",
)
def test_parts_are_gone_on_with(
    processors: int,
    job: Job,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also after the row was repaired, since a part is known by its rows."""
    source, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows = [json.dumps({"text": text}) for text in TEXTS]
    source.write_text("\n".join([*rows[:80], "{}", *rows[80:]]) + "\n")
    options = ["--model", str(job.model), str(source), "--output", str(output), "--ray", "--processes", "1"]
    monkeypatch.setattr(ray_data.classify_files, "__defaults__", _with_part(PART))

    def command(*more: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["magic-pyramid", "classify", *options, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr().err

    status, err = command()
    assert status == 2
    assert f"error: {source}: row 81 has no text; expected a column 'text'" in err
    parts = sorted(path.name[:13] for path in (tmp_path / "out.jsonl.parts").glob("*.jsonl"))
    assert parts
    assert set(parts) <= {f"00000-{number:07}" for number in range(5)}
    assert f"holds {len(parts)} parts; the same command with --resume goes on from there" in err
    assert not output.exists()
    source.write_text("\n".join(rows) + "\n")
    status, err = command()
    assert status == 2
    assert f"holds {len(parts)} parts of a run that was cut off; go on with --resume, or remove" in err
    status, err = command("--resume", "--scores")
    assert "was made with another --scores; go on with the same" in err
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.jsonl.parts").glob("*.jsonl")}
    kept: list[dict[str, int]] = []
    join = ray_data.Parts.join

    def seen(parts: Any, target: Path, names: list[str]) -> None:
        kept.append({name: (parts.folder / name).stat().st_mtime_ns for name in names if name in before})
        join(parts, target, names)

    monkeypatch.setattr(ray_data.Parts, "join", seen)
    status, err = command("--resume")
    assert status == 0, err
    assert kept == [before]
    assert_as_without_ray(replace(job, scores=False), source, output, tmp_path)


def _with_part(part: int) -> tuple[Any, ...]:
    before = classify_files.__defaults__
    assert before is not None
    return tuple(part if value == ray_data.PART else value for value in before)


def parts_of(job: Job, path: Path, folder: Path, part: int = PART) -> list[dict[str, Any]]:
    return list(PartsOfFile(job, folder, part)({"file": 7, "path": str(path)}))


def test_parts_hold_all_rows_in_order(job: Job, folder: Path, tmp_path: Path) -> None:
    found = parts_of(job, folder / "a.parquet", tmp_path)
    assert [(part["file"], part["number"], part["rows"], part["last"]) for part in found] == [
        (7, 0, 16, False),
        (7, 1, 16, False),
        (7, 2, 8, True),
    ]
    assert [text for part in found for text in json.loads(part["texts"])] == TEXTS[:40]


def test_a_part_that_is_there_is_not_done_again(job: Job, folder: Path, tmp_path: Path) -> None:
    """Unless it has other rows."""
    source = folder / "more" / "d.tsv"
    (part,) = parts_of(job, source, tmp_path)
    assert not part["kept"]
    (tmp_path / part["name"]).touch()
    assert parts_of(job, source, tmp_path) == [{**part, "kept": True, "texts": b""}]
    source.write_text(source.read_text() + "the\n")
    (other,) = parts_of(job, source, tmp_path)
    assert not other["kept"]


@pytest.mark.parametrize(("on_error", "lines"), [("skip", 19), ("null", 20)])
def test_rows_without_a_text_are_counted(job: Job, folder: Path, tmp_path: Path, on_error: str, lines: int) -> None:
    parts = parts_of(replace(job, on_error=on_error), folder / "b.jsonl", tmp_path)
    assert [(part["rows"], part["bad"]) for part in parts] == [(16, 1), (4, 0)]
    assert sum(len(json.loads(part["texts"])) for part in parts) == lines


def test_files_without_rows_have_answers_without_lines(job: Job, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (part,) = parts_of(job, tmp_path / "empty.jsonl", tmp_path)
    assert (part["rows"], part["last"], json.loads(part["texts"])) == (0, True, [])


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_parts_that_never_come_are_missed(job: Job, folder: Path, tmp_path: Path, lost: int) -> None:
    found = ray_data._Found(1)
    for part in parts_of(job, folder / "a.parquet", tmp_path):
        if part["number"] != lost:
            found.take({**part, "file": 0})
    with pytest.raises(RuntimeError, match="lost parts"):
        found.names()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "nowhere: no such file"),
        ("articles/readme.md", "cannot tell the format by the ending '.md'"),
        ("empty", "empty has no files to classify; expected names that end in tsv, csv"),
    ],
)
def test_what_is_no_input_is_said(job: Job, folder: Path, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=said):
        classify_files(job, tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out.parts").exists()


def test_gpus_that_are_not_there_are_not_waited_for(processors: int, job: Job, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 processes with --device cuda need a GPU each; Ray finds 0"):
        classify_files(replace(job, device="cuda"), folder, tmp_path / "out", processes=2)
    assert not (tmp_path / "out.parts").exists()


@pytest.mark.parametrize(("processors", "threads", "processes"), [(2, 1, 2), (2, 1, 3), (16, 4, 4), (96, 1, 96)])
def test_all_processes_find_room(processors: int, threads: int, processes: int) -> None:
    share = share_of(processors, threads, processes)
    assert 0 < share * processes <= processors - 0.02

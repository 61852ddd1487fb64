"""Files too big for one process or one machine, classified part by part by Ray Data.

A part is so many rows of one file. Whoever holds a model reads a part's texts from Ray, and writes the part's answers whole;
the name of what it writes has the hash of the rows, so that a part is never done twice, nor taken for another.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from .ray_cluster import check_gpus, cluster, ray, share_of  # first, since it says how Ray is installed

# isort: split
import pyarrow as pa
import ray.data as data
from ray.exceptions import RayError

from ..data.batches import Text
from ..data.files import read_record, whole_file
from ..data.tables import FORMATS, TableError, format_of, read_texts
from .classifier import Classifier
from .jobs import Job
from .lines import line_of
from .settings import WAITING

PART = 2048  # rows of a part, which is done anew where a process is killed
READING = 0.02  # processors that Ray sets aside for reading a file, which hardly needs any
BLOCK = 1  # bytes after which reading hands on what it has: each part by itself
NOTE = "made-by.json"


@dataclass
class Done:
    """What became of all rows.

    Attributes:
        rows: rows that were read.
        kept: those among them whose answers an earlier run had written.
        bad: those without a text.
        first_bad: the error of the first of these, file by file.
        longer: texts of more tokens than the model takes, among those that were answered now.
        most: tokens that the model takes; 0: nothing was answered now.
    """

    rows: int = 0
    kept: int = 0
    bad: int = 0
    first_bad: str | None = None
    longer: int = 0
    most: int = 0


def classify_files(
    job: Job,
    source: Path,
    output: Path,
    processes: int | None = None,
    resume: bool = False,
    address: str | None = None,
    part: int = PART,
    progress: Callable[[int], Any] = lambda rows: None,
) -> Done:
    """Classifies a file, or each file of a folder, in as many processes as there are processors.

    Answers are written part by part into ``OUTPUT.parts``, and joined, in the order of the rows, when all of them are there.

    Args:
        job: the model, and what is wanted of it.
        source: a file, or a folder with files in one of :data:`FORMATS`, which may lie in folders of its own.
        output: the file of the answers; of a folder the folder, which gets a file ``NAME.jsonl`` for each.
        processes: processes that hold a model; None: all processors or GPUs.
        resume: whether to go on from the parts that an earlier run has left.
        address: address of a Ray cluster, whose machines all see the same files; None: one is started here.
        part: rows of a part.
        progress: told how many rows more are answered.

    Raises:
        ValueError: no files; parts that cannot be gone on with; a row without a text, where such a row is to fail.
        TableError: as for :func:`read_texts`.
        OSError: Ray has failed; a file cannot be written.
    """
    files = files_of(source, job.file_format)
    parts = Parts(output, job.made_by(), resume)
    try:
        if job.device == "cpu":  # else this machine may have no such device
            Classifier.load(job.model, job.precision, job.device).pyramid(job.exit_threshold)
        with cluster(address=address) as processors:
            processes = processes or _most(job, processors)
            check_gpus(job.device, processes)
            # A cluster of others may be full, which Ray warns of.
            logging.getLogger("ray.data").setLevel(logging.ERROR if address is None else logging.WARNING)
            answered = _answered(job, files, parts.folder, processes, processors, part)
            found = _Found(len(files))
            _take(answered, found, progress)
            names = found.names()
    except BaseException as error:
        parts.keep_or_remove(error)
        raise
    targets = [output] if source.is_file() else [output / f"{path.relative_to(source)}.jsonl" for path in files]
    for target, of_file in zip(targets, names, strict=True):
        parts.join(target, of_file)
    parts.remove()
    return found.summary()


def files_of(source: Path, file_format: str | None) -> list[Path]:
    """The file, or the files of a folder, by their names; hidden ones and those of other formats are left out.

    Raises:
        ValueError: there is none.
        TableError: a format that is not known.
    """
    if not source.exists():
        raise TableError(f"{source}: no such file")
    if source.is_file():
        if file_format is None:
            format_of(source)
        return [source]
    if not source.is_dir():
        raise ValueError(f"{source} is a pipe; --ray reads files and folders")
    found = [path for path in sorted(source.rglob("*")) if path.is_file() and _is_input(path.relative_to(source))]
    if not found:
        raise ValueError(f"{source} has no files to classify; expected names that end in {', '.join(FORMATS)}")
    return found


def _is_input(path: Path) -> bool:
    if any(part.startswith((".", "_")) for part in path.parts):
        return False
    try:
        format_of(path)
    except TableError:
        return False
    return True


def _most(job: Job, processors: int) -> int:
    """Processes that hold a model, where nobody says how many."""
    if job.device == "cpu":
        return max(1, processors // (job.threads or 1))
    return max(1, int(ray.cluster_resources().get("GPU", 1)))


def _answered(job: Job, files: list[Path], folder: Path, processes: int, processors: int, part: int) -> Any:
    """Ray's data set of the parts that are done; nothing is done before somebody asks for them."""
    context = data.DataContext.get_current()
    context.target_max_block_size, context.enable_progress_bars = BLOCK, False
    context.print_on_execution_start, context.issue_detectors_config.detectors = False, []
    threads = job.threads or 1
    numbered = [{"file": number, "path": str(path.resolve())} for number, path in enumerate(files)]
    environment = {"env_vars": WAITING}
    parts = data.from_items(numbered, override_num_blocks=len(files)).flat_map(
        PartsOfFile(job, folder, part), num_cpus=READING, runtime_env=environment
    )
    return parts.map_batches(
        ClassifyParts,
        fn_constructor_args=(job, folder),
        batch_size=1,
        batch_format="pyarrow",
        compute=data.ActorPoolStrategy(size=processes),
        num_cpus=share_of(processors, threads, processes),
        num_gpus=0 if job.device == "cpu" else 1,
        runtime_env=environment,
    )


def _take(answered: Any, found: _Found, progress: Callable[[int], Any]) -> None:
    """Runs it, and notes what comes.

    Raises:
        ValueError: a part with an error in its place.
        OSError: Ray has failed.
    """
    try:
        with warnings.catch_warnings():
            # Ray warns where there are fewer parts than processes, which nobody can know before.
            warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
            for part in answered.iter_rows():
                found.take(part)
                progress(part["rows"])
    except RayError as error:
        raise OSError(f"Ray has failed: {_last_line(error)}") from error


def _last_line(error: BaseException) -> str:
    """What Ray's processes have said last, without the places in their programs."""
    return str(error).strip().splitlines()[-1]


class PartsOfFile:
    """Reads a file, and gives its parts.

    A part is a row of Ray's with the number of its ``file``, its own ``number``, the ``name`` of the file of its answers,
    its ``texts`` (JSON; empty where the answers are there already), and what is known of its rows. In the place of a part
    may stand an ``error``, the last row then.

    Args:
        job: how files are read.
        folder: folder of the answers.
        part: rows of a part.
    """

    def __init__(self, job: Job, folder: Path, part: int) -> None:
        self.job, self.folder, self.part = job, folder, part

    def __call__(self, file: dict[str, Any]) -> Iterator[dict[str, Any]]:
        empty = {
            "file": file["file"],
            "number": -1,
            "name": "",
            "texts": b"",
            "rows": 0,
            "bad": 0,
            "longer": 0,
            "most": 0,
        }
        empty |= {"first_bad": "", "error": "", "last": False, "kept": False}
        try:
            for number, rows, last in self._pieces(Path(file["path"])):
                yield {**empty, **self._part(file["file"], number, rows), "last": last}
        except ValueError as error:
            yield {**empty, "error": str(error)}

    def _pieces(self, path: Path) -> Iterator[tuple[int, list[Text | TableError], bool]]:
        rows = read_texts(path, self.job.file_format, bad_rows="raise" if self.job.on_error == "fail" else "yield")
        number, piece = 0, list(islice(rows, self.part))
        while ahead := list(islice(rows, self.part)):
            yield number, piece, False
            number, piece = number + 1, ahead
        yield number, piece, True

    def _part(self, file: int, number: int, rows: list[Text | TableError]) -> dict[str, Any]:
        bad = [row for row in rows if isinstance(row, TableError)]
        wanted = rows if self.job.on_error == "null" else [row for row in rows if not isinstance(row, TableError)]
        texts = json.dumps([{"error": str(row)} if isinstance(row, TableError) else row for row in wanted]).encode()
        name = f"{file:05}-{number:07}-{hashlib.sha256(texts).hexdigest()[:32]}.jsonl"
        kept = (self.folder / name).exists()
        return {
            "number": number,
            "name": name,
            "texts": b"" if kept else texts,
            "kept": kept,
            "rows": len(rows),
            "bad": len(bad),
            "first_bad": str(bad[0]) if bad else "",
        }


class ClassifyParts:
    """Holds a model, and writes the answers of parts, each whole or not at all.

    A process that is killed has written a part or has not; Ray gives what it was at to the next one.

    Args:
        job: the model, and what is wanted of it.
        folder: folder of the answers.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.classifier = Classifier.load(
            job.model, job.precision, job.device, job.threads or 1, long_texts=job.long_texts
        )

    def __call__(self, parts: pa.Table) -> pa.Table:
        answered = []
        for part in parts.to_pylist():
            texts = part.pop("texts")
            if texts:
                try:
                    part["longer"] = self._answer(json.loads(texts), self.folder / part["name"])
                    part["most"] = self.classifier.tokenise.max_length
                except (ValueError, OSError) as error:
                    part["error"] = str(error)
            answered.append(part)
        return pa.Table.from_pylist(answered)

    def _answer(self, rows: list[Any], path: Path) -> int:
        """Writes the answers of rows; the number of texts that were longer than the model takes."""
        longer = self.classifier.longer
        texts = (row if isinstance(row, str) else tuple(row) for row in rows if not isinstance(row, dict))
        answers = self.classifier.stream(texts, self.job.window, self.job.exit_threshold)
        with whole_file(path, "wb") as stream:
            for row in rows:
                outcome = ValueError(row["error"]) if isinstance(row, dict) else next(answers)
                stream.write(line_of(outcome, self.job.scores).encode(errors="backslashreplace"))
        return self.classifier.longer - longer


@dataclass
class _Found:
    """The parts that are done, in whatever order they come."""

    files: int
    parts: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)

    def take(self, part: dict[str, Any]) -> None:
        """Notes a part.

        Raises:
            ValueError: it has an error in its place.
        """
        if part["error"]:
            raise ValueError(part["error"])
        self.parts[part["file"], part["number"]] = part

    def names(self) -> list[list[str]]:
        """The names of each file's parts, in order.

        Raises:
            RuntimeError: one of them never came.
        """
        names: list[list[str]] = [[] for _ in range(self.files)]
        ended = set()
        for (file, number), part in sorted(self.parts.items()):
            if number == len(names[file]):
                names[file].append(part["name"])
            if part["last"] and number == len(names[file]) - 1:
                ended.add(file)
        if len(ended) < self.files:
            raise RuntimeError("Ray has lost parts of the input without saying so")
        return names

    def summary(self) -> Done:
        done = Done()
        for _, part in sorted(self.parts.items()):
            done.rows += part["rows"]
            done.kept += part["rows"] if part["kept"] else 0
            done.bad += part["bad"]
            done.longer += part["longer"]
            done.most = max(done.most, part["most"])
            done.first_bad = done.first_bad or part["first_bad"] or None
        return done


class Parts:
    """The folder ``OUTPUT.parts``, with the parts that are done, and a note of what they are made by.

    Args:
        output: name of the file or folder that the parts become.
        made_by: all besides the rows that decides how lines read, as JSON has it.
        resume: whether to go on from parts that are there.

    Raises:
        ValueError: parts are there and ``resume`` is false, or they cannot be gone on with.
    """

    def __init__(self, output: Path, made_by: dict[str, Any], resume: bool) -> None:
        self.folder = output.absolute().with_name(output.name + ".parts")
        ways = f"or remove {self.folder} to start over"
        if done := self._done():
            try:
                before = read_record(self.folder / NOTE)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{self.folder} has no note of what it was made by; keep it elsewhere {ways}"
                ) from error
            if not resume:
                raise ValueError(
                    f"{self.folder} holds {done} parts of a run that was cut off; go on with --resume, {ways}"
                )
            if changed := [name for name, value in made_by.items() if before.get(name) != value]:
                raise ValueError(
                    f"{self.folder} was made with another {' and another '.join(changed)}; go on with the same, {ways}"
                )
        with whole_file(self.folder / NOTE) as stream:
            json.dump(made_by, stream)

    def _done(self) -> int:
        return len(list(self.folder.glob("*.jsonl")))

    def join(self, target: Path, names: list[str]) -> None:
        """Writes a file of parts, one after the other."""
        with whole_file(target, "wb") as stream:
            for name in names:
                with (self.folder / name).open("rb") as part:
                    shutil.copyfileobj(part, stream)

    def keep_or_remove(self, error: BaseException) -> None:
        """Clears up after an error, which gets a note of what is kept."""
        if done := self._done():
            error.add_note(f"{self.folder} holds {done} parts; the same command with --resume goes on from there")
        else:
            self.remove()

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

"""``magic-pyramid classify``: texts in, one JSON line a text out."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..serving.jobs import Job
from .loading import check_model_folder, numbers_of
from .options import LONG_TEXTS_HELP, PRECISION_HELP
from .partial import Lines, StreamOfLines, lines_into
from .passing import OnError, Row, RowsInPassing

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..data.batches import Text
    from ..serving.classifier import Classifier

STANDARD = (Path("-"), Path("/dev/stdin"), Path("/dev/stdout"))  # other names of standard input and output
MANY = 1000  # texts, from which a faster precision is worth a word


def classify(
    model: Annotated[Path, typer.Option(help="Folder of a saved model and its tokenizer.")],
    input: Annotated[
        Path | None, typer.Argument(help="tsv, csv, jsonl, json, parquet or txt file; standard input if left out or -.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File for the answers; standard output if left out or -.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the next text after those in OUTPUT.partial, which a run that was cut off has left. Batches "
            "are other ones then, so scores may differ in their last digits from those of a run in one go.",
        ),
    ] = False,
    on_error: Annotated[
        OnError,
        typer.Option(help="At a row without a text: fail, skip the row, or write an answer of nulls with the error."),
    ] = OnError.FAIL,
    input_format: Annotated[
        str | None,
        typer.Option("--format", help="Format: txt or jsonl for standard input (default txt); else by the ending."),
    ] = None,
    exit_threshold: Annotated[
        str | None,
        typer.Option(
            help="Exit threshold instead of the model's own: 0 (slow, sure) to 1 (fast), one for each exit layer by commas, "
            "or never."
        ),
    ] = None,
    window: Annotated[int, typer.Option(min=1, help="Texts held at a time; more make fuller batches.")] = 1024,
    scores: Annotated[bool, typer.Option("--scores", help="Also write the probabilities of all labels.")] = False,
    long_texts: Annotated[str, typer.Option(help=LONG_TEXTS_HELP)] = "cut",
    explain: Annotated[
        int, typer.Option(min=0, help="Print the first texts to standard error, shaded by how far each word went.")
    ] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all processors if left out.")] = None,
    device: Annotated[str, typer.Option(help="Device of the model.")] = "cpu",
    precision: Annotated[str, typer.Option(help=PRECISION_HELP)] = "auto",
    ray: Annotated[
        bool, typer.Option("--ray", help="Let Ray do it in many processes: the input is a file or a folder of files.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="With --ray: processes that hold a model; all processors if left out.")
    ] = None,
) -> None:
    """Classify texts with a saved model: one JSON object a line, in input order, as soon as it is known.

    Files have a column **text**, or **text_a** and **text_b**; lines of a txt file or of standard input are texts. An output
    file appears when it is complete; the answers of a run that was cut off stay in OUTPUT.partial.

    Examples:

        magic-pyramid classify --model demo-output/model articles.tsv > answers.jsonl

        magic-pyramid classify --model demo-output/model articles.tsv --output answers.jsonl --resume

        echo "Chelsea won again on Saturday." | magic-pyramid classify --model demo-output/model --explain 1

        magic-pyramid classify --model demo-output/model articles --output answers --ray
    """
    check_model_folder(model)
    threshold = None if exit_threshold is None else threshold_of(exit_threshold)
    input, output = (None if path in STANDARD else path for path in (input, output))
    job = Job(model, threshold, window, precision, device, threads, long_texts, scores, on_error, input_format)
    if ray:
        if explain:
            raise ValueError("--explain shows texts as this process answers them; leave it out with --ray")
        with_ray(job, input, output, resume, processes)
    elif processes is not None:
        raise ValueError("--processes is for --ray; give both, or --threads")
    else:
        here(job, input, output, resume, explain)


def here(job: Job, input: Path | None, output: Path | None, resume: bool, explain: int) -> None:
    """Classifies in this process; None: from standard input, to standard output."""
    rows = rows_from(input, job.file_format)
    place = standard_output(resume) if output is None else lines_into(output, job.made_by(), resume)
    with place as lines:
        from ..checkpoints.tuned_for import TunedForOtherWarning
        from ..serving.classifier import Classifier
        from ..serving.lines import line_of

        with warnings.catch_warnings():
            if job.exit_threshold is not None:
                warnings.simplefilter("ignore", TunedForOtherWarning)  # the model's own threshold is not followed
            classifier = Classifier.load(job.model, job.precision, job.device, job.threads, long_texts=job.long_texts)
        passing = RowsInPassing(rows, OnError(job.on_error), lines.done, lines.rows)
        with progress_bar(to_terminal=output is None) as progress:
            task = progress.add_task("classify", total=None, completed=lines.done)
            answers = classifier.stream(passing.texts(), job.window, job.exit_threshold)
            for row, answer in passing.with_answers(answers):
                lines.write(row, line_of(answer or ValueError(row), job.scores))
                progress.advance(task)
                if explain and not isinstance(row, ValueError):
                    explain -= 1
                    print_shaded(classifier, row, job.exit_threshold)
    most = classifier.tokenise.max_length if classifier.longer else 0
    say(job, classifier.longer, most, passing.bad, passing.read, passing.first_bad)
    if passing.read >= MANY and classifier.precision.advice is not None:
        typer.echo(f"computed in {classifier.precision.name}; {classifier.precision.advice}", err=True)


def with_ray(job: Job, input: Path | None, output: Path | None, resume: bool, processes: int | None) -> None:
    """Classifies in many processes."""
    if input is None or output is None:
        raise ValueError("--ray reads a file or a folder, and writes one; name the input, and the output with --output")
    from ..serving.ray_data import classify_files

    with progress_bar(to_terminal=False) as progress:
        task = progress.add_task("classify", total=None)
        address = os.environ.get("RAY_ADDRESS")
        done = classify_files(
            job, input, output, processes, resume, address, progress=lambda rows: progress.advance(task, rows)
        )
    say(job, done.longer, done.most, done.bad, done.rows, done.first_bad)


def rows_from(path: Path | None, file_format: str | None) -> Iterator[Row]:
    """The rows of a file, a pipe, or standard input (None); what a file lacks is said at once.

    Raises:
        ValueError: standard input is closed, a pipe without a format.
        TableError: as for :func:`mp_model.data.tables.read_texts`.
    """
    from ..data.tables import TableError, format_of, read_lines, read_texts

    if path is None:
        if sys.stdin is None:
            raise ValueError("standard input is closed; give a file, or texts by a pipe")
        return read_lines(sys.stdin, file_format or "txt", "standard input", bad_rows="yield")
    if file_format is None and path.exists() and not path.is_dir():
        try:
            file_format = format_of(path)
        except TableError as error:
            raise ValueError(f"{error}; give it with --format") from error
    rows = read_texts(path, file_format, bad_rows="yield")
    if path.exists() and not (path.is_file() or path.is_dir()):
        return rows  # a pipe, whose first row may be long in coming
    return chain(list(islice(rows, 1)), rows)


@contextlib.contextmanager
def standard_output(resume: bool) -> Iterator[Lines]:
    """Standard output as a place for lines, in UTF-8 whatever the locale.

    Raises:
        ValueError: it is closed, or nothing that could be gone on with.
    """
    if resume:
        raise ValueError("--resume goes on from a file; give it with --output")
    if not sys.stdout.writable():
        raise ValueError("standard output is closed; give a file with --output")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # a lone surrogate, as JSON escapes it
    yield StreamOfLines(sys.stdout)


def progress_bar(to_terminal: bool) -> Progress:
    """A count of texts on standard error, where that is a terminal.

    to_terminal: whether the answers go to standard output: none between answers on the same terminal.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    shared = to_terminal and sys.stdout.isatty()
    shown = sys.stderr is not None and sys.stderr.isatty() and not shared
    columns = (SpinnerColumn(), TextColumn("{task.completed} texts"), TimeElapsedColumn())
    # By itself rich would send what is printed meanwhile to its own console: answers to standard error.
    return Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False, disable=not shown)


def print_shaded(classifier: Classifier, text: Text, threshold: float | str | list[float] | None) -> None:
    """Prints a text to standard error, shaded by how far each word went, as the model reads it alone."""
    from rich.console import Console

    from ..reporting.shading import for_terminal, shade_answer

    Console(stderr=True).print(for_terminal(shade_answer(classifier.model, classifier.tokenizer, text, threshold)), "")


def say(job: Job, longer: int, most: int, bad: int, read: int, first_bad: object) -> None:
    """Says on standard error how many texts had more tokens than the model takes, and how many rows no text.

    Args:
        job: what became of both.
        longer, most: number of such texts, and the tokens that the model takes.
        bad, read, first_bad: number of such rows, of all rows, and the error of the first.
    """
    if longer:
        cut = "and cut; --long-texts windows reads them whole"
        became = cut if job.long_texts == "cut" else "and read in windows until certain"
        typer.echo(f"{longer} text{'s were' if longer > 1 else ' was'} longer than {most} tokens, {became}", err=True)
    if bad:
        became = "left out" if job.on_error == OnError.SKIP else "answered with null"
        typer.echo(f"{bad} of {read} rows without a text, {became}; the first: {first_bad}", err=True)


def threshold_of(value: str) -> float | str | list[float]:
    """An exit threshold as it was given: a number, numbers with commas between them, or ``never``."""
    if value == "never":
        return value
    numbers = numbers_of("--exit-threshold", value, float)
    return numbers if "," in value else numbers[0]

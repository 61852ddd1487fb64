"""``magic-pyramid classify``: texts in, one JSON line a text out."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import fields
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .loading import check_model_folder, numbers_of
from .options import LONG_TEXTS_HELP, PRECISION_HELP
from .partial import Lines, StreamOfLines, lines_into
from .passing import OnError, Row, RowsInPassing

if TYPE_CHECKING:
    from rich.progress import Progress

    from ..data.batches import Text
    from ..serving.classifier import Answer, Classifier

STANDARD = (Path("-"), Path("/dev/stdin"), Path("/dev/stdout"))  # other names of standard input and output


def classify(
    model: Annotated[Path, typer.Option(help="Folder of a saved model and its tokenizer.")],
    input: Annotated[
        Path | None, typer.Argument(help="tsv, csv, jsonl, json, parquet or txt file; standard input if left out or -.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File for the answers; standard output if left out or -.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from OUTPUT.partial, which a run that was cut off has left.")
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
) -> None:
    """Classify texts with a saved model: one JSON object a line, in input order, as soon as it is known.

    Files have a column **text**, or **text_a** and **text_b**; lines of a txt file or of standard input are texts. An output
    file appears when it is complete; the answers of a run that was cut off stay in OUTPUT.partial.

    Examples:

        magic-pyramid classify --model demo-output/model articles.tsv > answers.jsonl

        magic-pyramid classify --model demo-output/model articles.tsv --output answers.jsonl --resume

        echo "Chelsea won again on Saturday." | magic-pyramid classify --model demo-output/model --explain 1
    """
    check_model_folder(model)
    threshold = None if exit_threshold is None else threshold_of(exit_threshold)
    input, output = (None if path in STANDARD else path for path in (input, output))
    rows = rows_from(input, input_format)
    if output is None:
        place = standard_output(resume)
    else:
        from ..checkpoints.files import hashes_of

        made_by = {"--exit-threshold": exit_threshold, "--scores": scores, "--long-texts": long_texts}
        place = lines_into(output, {"model": hashes_of(model), **made_by, "--precision": precision}, resume)
    with place as lines:
        from ..checkpoints.tuned_for import TunedForOtherWarning
        from ..serving.classifier import Classifier

        with warnings.catch_warnings():
            if threshold is not None:
                warnings.simplefilter("ignore", TunedForOtherWarning)  # the model's own threshold is not followed
            classifier = Classifier.load(model, precision, device, threads, long_texts=long_texts)
        passing = RowsInPassing(rows, on_error, lines.done, lines.rows)
        with progress_bar(to_terminal=output is None) as progress:
            task = progress.add_task("classify", total=None, completed=lines.done)
            for row, answer in passing.with_answers(classifier.stream(passing.texts(), window, threshold)):
                lines.write(row, line_of(row, answer, scores))
                progress.advance(task)
                if explain and not isinstance(row, ValueError):
                    explain -= 1
                    print_shaded(classifier, row, threshold)
    for sentence in sentences_on(classifier, passing, on_error):
        typer.echo(sentence, err=True)


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


def sentences_on(classifier: Classifier, passing: RowsInPassing, on_error: OnError) -> Iterator[str]:
    """How many texts had more tokens than the model takes, how many rows had no text, and what became of both."""
    if count := classifier.longer:
        cut = "and cut; --long-texts windows reads them whole"
        became = cut if classifier.windows is None else "and read in windows until certain"
        most = classifier.tokenise.max_length
        yield f"{count} text{'s were' if count > 1 else ' was'} longer than {most} tokens, {became}"
    if passing.bad:
        became = "left out" if on_error is OnError.SKIP else "answered with null"
        yield f"{passing.bad} of {passing.read} rows without a text, {became}; the first: {passing.first_bad}"


def line_of(row: Row, answer: Answer | None, scores: bool) -> str:
    """The line of a text's answer, or that of a row without a text: the same keys with nulls, and the error."""
    if answer is None:
        from ..serving.classifier import Answer

        keys = [field.name for field in fields(Answer) if scores or field.name != "scores"]
        values = {**dict.fromkeys(keys), "error": str(row)}
    else:
        values = answer.as_dict(scores)
    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"


def threshold_of(value: str) -> float | str | list[float]:
    """An exit threshold as it was given: a number, numbers with commas between them, or ``never``."""
    if value == "never":
        return value
    numbers = numbers_of("--exit-threshold", value, float)
    return numbers if "," in value else numbers[0]

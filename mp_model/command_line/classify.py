"""``magic-pyramid classify``: texts in, one JSON line a text out."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from .loading import check_model_folder, numbers_of


def classify(
    model: Annotated[Path, typer.Option(help="Folder of a saved model and its tokenizer.")],
    input: Annotated[
        Path | None, typer.Argument(help="tsv, csv, jsonl, parquet or txt file; standard input if left out.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File for the answers; standard output if left out.")] = None,
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
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all processors if left out.")] = None,
    device: Annotated[str, typer.Option(help="Device of the model.")] = "cpu",
) -> None:
    """Classify texts with a saved model: one JSON object a line, in input order, as soon as it is known.

    Files have a column **text**, or **text_a** and **text_b**; lines of a txt file or of standard input are texts.

    Examples:

        magic-pyramid classify --model demo-output/model articles.tsv > answers.jsonl

        echo "Chelsea won again on Saturday." | magic-pyramid classify --model demo-output/model
    """
    check_model_folder(model)
    threshold = None if exit_threshold is None else threshold_of(exit_threshold)

    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from ..data.files import whole_file
    from ..data.tables import read_lines, read_texts
    from ..serving.classifier import Classifier

    classifier = Classifier.load(model, device=device, threads=threads)
    if input is None:
        assert isinstance(sys.stdin, io.TextIOWrapper)
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")  # like a file, whatever the locale
        texts = read_lines(sys.stdin, input_format or "txt", "standard input")
    else:
        texts = read_texts(input, input_format)
    answers = classifier.stream(texts, window, threshold)
    columns = (SpinnerColumn(), TextColumn("{task.completed} texts"), TimeElapsedColumn())
    console = Console(stderr=True)
    # Neither between answers on the same terminal, nor in a log, where it would leave an empty line.
    hidden = not sys.stderr.isatty() or (output is None and sys.stdout.isatty())
    # By itself rich would send what is printed meanwhile to its own console: answers to standard error.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, disable=hidden) as progress:
        task = progress.add_task("classify", total=None)
        with contextlib.nullcontext(sys.stdout) if output is None else whole_file(output) as stream:
            for answer in answers:
                stream.write(json.dumps(answer.as_dict(scores), ensure_ascii=False) + "\n")
                if output is None:
                    stream.flush()
                progress.advance(task)


def threshold_of(value: str) -> float | str | list[float]:
    """An exit threshold as it was given: a number, numbers with commas between them, or ``never``."""
    if value == "never":
        return value
    numbers = numbers_of("--exit-threshold", value, float)
    return numbers if "," in value else numbers[0]

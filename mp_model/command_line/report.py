"""``magic-pyramid report``: all that there is to know about a model and its answers to labelled texts, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .evaluate import measure
from .loading import check_model_folder, numbers_of
from .options import LONG_TEXTS_HELP, Running, takes_dataclasses


@takes_dataclasses
def report(
    *,
    model: Annotated[Path, typer.Argument(help="Folder of a saved model and its tokenizer.")],
    texts: Annotated[str, typer.Argument(help="Labelled tsv, csv, jsonl or parquet file; or a data set's name.")],
    output: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    max_texts: Annotated[
        int | None, typer.Option(min=1, help="Texts to measure, drawn at random; all if left out.")
    ] = None,
    shown: Annotated[int, typer.Option(min=0, help="Texts in each list of uncertain and of wrong answers.")] = 8,
    exit_thresholds: Annotated[
        str | None, typer.Option(help="Thresholds of the curves, by commas; eleven from 0 to 1 if left out.")
    ] = None,
    buckets: Annotated[
        str, typer.Option(help="Longest texts of each range of lengths but the last, in tokens, by commas.")
    ] = "35,70",
    time: Annotated[
        bool, typer.Option("--time/--no-time", help="Also measure wall-clock, beside transformers' padded model.")
    ] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of wall-clock; the median counts.")] = 1,
    long_texts: Annotated[str, typer.Option(help=LONG_TEXTS_HELP)] = "cut",
    running: Running,
) -> None:
    """Write a report on a model: one HTML file that needs no network, in words, charts and shaded texts.

    It says how many answers are right and what they cost, where texts leave and tokens are pruned, how far the exits' scores
    can be trusted, which labels are confused, and shows the surest errors and the most uncertain texts. Needs the extra
    **report**: `pip install 'magic-pyramid[report]'`.

    Examples:

        magic-pyramid report fits/news/model test.tsv

        magic-pyramid report fits/news/model test.tsv --output news.html --max-texts 500 --no-time
    """
    check_model_folder(model)
    bounds = numbers_of("--buckets", buckets, int)
    sweep = None if exit_thresholds is None else numbers_of("--exit-thresholds", exit_thresholds, float)

    from rich.console import Console

    measure(
        model,
        texts,
        sweep,
        bounds,
        running,
        Console(stderr=True),
        rounds=rounds if time else None,
        long_texts=long_texts,
        report=output,
        shown=shown,
        most=max_texts,
    )
    typer.echo(f"{output}: open it in a browser")

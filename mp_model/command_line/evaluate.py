"""``magic-pyramid evaluate``: what a model answers and costs, for a sweep of exit thresholds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from .loading import check_model_folder, load_classifier, load_labelled, numbers_of, read_exits


def evaluate(
    texts: Annotated[str, typer.Argument(help="Labelled tsv, csv, jsonl or parquet file; or a data set's name.")],
    model: Annotated[Path, typer.Option(help="Folder of a saved model and its tokenizer.")],
    exit_thresholds: Annotated[
        str | None, typer.Option(help="Thresholds to try, by commas; left out, eleven from 0 to 1.")
    ] = None,
    buckets: Annotated[
        str, typer.Option(help="Longest texts of each range of lengths but the last, in tokens, by commas.")
    ] = "35,70",
    output: Annotated[Path | None, typer.Option(help="Folder for evaluation.json and pictures.")] = None,
    time: Annotated[
        bool, typer.Option("--time/--no-time", help="Also measure wall-clock, beside transformers' padded BERT.")
    ] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts in a batch.")] = 32,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all processors if left out.")] = None,
    device: Annotated[str, typer.Option(help="Device of the model.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Measure a model on labelled texts: accuracy, F1, work, time; by threshold, by length, by layer.

    First the model as it is set, then without exits, then with one threshold for all layers. Work is in GFLOPs a text, by
    the paper's count and as executed. Batches are of texts of similar length.

    Examples:

        magic-pyramid evaluate test.tsv --model fits/news/model --output reports/news

        magic-pyramid evaluate test.tsv --model fits/news/model --exit-thresholds 0.05,0.1,0.2 --no-time --json
    """
    check_model_folder(model)
    bounds = numbers_of("--buckets", buckets, int)

    from rich.console import Console

    from ..data.files import whole_file
    from ..data.labels import TEST
    from ..measuring.evaluation import Evaluation
    from ..measuring.evaluation import evaluate as run
    from ..measuring.timing import padded_twin, time_ways

    console = Console(stderr=True)
    classifier, tokenizer = load_classifier(model, device, threads)
    data, batches = load_labelled(texts, classifier, tokenizer, TEST, batch_size)
    exits = read_exits(classifier, batches, data.labels, console)
    thresholds = [None]
    if exits.layers[:-1]:
        sweep = [step / 10 for step in range(11)]
        thresholds += sweep if exit_thresholds is None else numbers_of("--exit-thresholds", exit_thresholds)
    own = classifier.config.exit_threshold
    if own is not None:
        thresholds = [own, *(threshold for threshold in thresholds if threshold != own)]
    evaluations: list[Evaluation] = [run(exits, threshold, bounds) for threshold in thresholds]

    padded = None
    if time:
        twin = padded_twin(classifier)
        ways = {"padded": lambda inputs: twin(**inputs)}
        classifier.config.exit_threshold = None
        for evaluation in evaluations:
            threshold = evaluation.exit_threshold
            ways[str(threshold)] = lambda inputs, threshold=threshold: classifier(**inputs, exit_threshold=threshold)
        seconds = time_ways(ways, batches)
        padded = seconds["padded"]
        evaluations = [replace(x, seconds=seconds[str(x.exit_threshold)]) for x in evaluations]

    document = {
        "texts": len(exits),
        "padded_bert_seconds": padded,
        "evaluations": [evaluation.as_json() for evaluation in evaluations],
    }
    if output is not None:
        from ..reporting.plots import plot_buckets, plot_exits, plot_tokens, plot_trade_off

        shown = evaluations[0]
        curve = sorted((x.executed_gflops, x.accuracy) for x in evaluations)
        plot_trade_off({"thresholds": curve}, output / "trade_off.png", title="Accuracy over executed work")
        plot_exits(shown, output / "exits.png", title=f"Exits at threshold {threshold_text(shown.exit_threshold)}")
        plot_tokens(shown, output / "tokens.png", title="Tokens alive after each layer, of texts that stay")
        saved = {bucket.name: bucket.dense_gflops / bucket.executed_gflops for bucket in shown.buckets}
        plot_buckets({"executed": saved}, output / "lengths.png", title="Work saved by length")
        with whole_file(output / "evaluation.json") as stream:
            json.dump(document, stream, indent=1)
    if as_json:
        print(json.dumps(document))
        return
    _print_tables(evaluations, padded)
    if output is not None:
        console.print(f"{output}: evaluation.json, trade_off.png, exits.png, tokens.png, lengths.png", highlight=False)


def threshold_text(threshold: float | list[float] | None) -> str:
    if threshold is None:
        return "no exits"
    return f"{threshold:.3g}" if isinstance(threshold, float | int) else " ".join(f"{x:.2g}" for x in threshold)


def _print_tables(evaluations: list, padded: float | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{evaluations[0].texts} texts")
    columns = ["threshold", "accu-\nracy", "F1", "mean\nexit", "GFLOPs\npaper", "exe-\ncuted", "work\nsaved"]
    for column in columns + (["ms a\ntext", "x\npadded"] if padded else []):
        table.add_column(column, justify="right")
    for x in evaluations:
        row = [threshold_text(x.exit_threshold), f"{x.accuracy:.2%}", f"{x.f1:.2%}", f"{x.mean_exit_layer:.2f}"]
        row += [f"{x.gflops:.3f}", f"{x.executed_gflops:.3f}", f"{x.speed_up:.2f}x"]
        if padded:
            row += [f"{1e3 * x.seconds:.2f}", f"{padded / x.seconds:.2f}x"]
        table.add_row(*row)
    console.print(table)

    shown = evaluations[0]
    lengths = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=f"By length, threshold {threshold_text(shown.exit_threshold)}"
    )
    for column in ("tokens", "texts", "accuracy", "mean exit", "work saved"):
        lengths.add_column(column, justify="right")
    for bucket in shown.buckets:
        lengths.add_row(
            bucket.name,
            str(bucket.texts),
            f"{bucket.accuracy:.2%}",
            f"{bucket.mean_exit_layer:.2f}",
            f"{bucket.dense_gflops / bucket.executed_gflops:.2f}x",
        )
    console.print(lengths)

    layers = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=f"By layer, threshold {threshold_text(shown.exit_threshold)}"
    )
    for column in ("layer", "texts that leave", "tokens alive after it"):
        layers.add_column(column, justify="right")
    for layer, leaving in enumerate(shown.exits):
        kept = None if layer == 0 else shown.tokens_kept[layer - 1]
        layers.add_row(str(layer), str(leaving), "" if kept is None else f"{kept:.0%}")
    console.print(layers)

"""``magic-pyramid tune``: exit thresholds, and how strongly to prune, for a goal that somebody has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .loading import check_model_folder, load_classifier, load_labelled, numbers_of, read_exits

if TYPE_CHECKING:
    from ..measuring.tuning import Outcome, TradeOff


def tune(
    texts: Annotated[str, typer.Argument(help="Labelled tsv, csv, jsonl or parquet file; or a data set's name.")],
    model: Annotated[
        Path, typer.Option(help="Folder of a saved model and its tokenizer; the choice is written there.")
    ],
    max_drop: Annotated[float | None, typer.Option(min=0, help="Goal: points of accuracy that may be lost.")] = None,
    speedup: Annotated[
        float | None, typer.Option(min=0, help="Goal: times less executed work than a BERT without padding.")
    ] = None,
    latency: Annotated[float | None, typer.Option(min=0, help="Goal: milliseconds a text, on this machine.")] = None,
    by_layer: Annotated[
        bool,
        typer.Option("--by-layer", help="A threshold for each layer: fits the texts better, few of them too well."),
    ] = False,
    factors: Annotated[
        str | None, typer.Option(help="Multiples of the pruning thresholds to try, by commas; 1 always is.")
    ] = None,
    confidence: Annotated[
        float | None, typer.Option(help="With --max-drop: be so sure, 0.9 say, that no more is lost on all such texts.")
    ] = None,
    counted: Annotated[
        bool, typer.Option("--counted", help="With --max-drop: go by the loss counted on these texts alone.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Choose and print; write nothing.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts in a batch.")] = 32,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all processors if left out.")] = None,
    device: Annotated[str, typer.Option(help="Device of the model.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print the curve and the choice as JSON.")] = False,
) -> None:
    """Choose exit thresholds on validation texts, for one goal; losses count from the model with its exits closed.

    Prints the whole trade-off curve, and writes the choice into the model. The fastest setting whose counted loss is small
    enough was lucky on these texts; so **--max-drop** also holds for the mean of what was counted and what the model's own
    head, calibrated, expects to be lost. With **--confidence** the loss is bounded, not only estimated: learn then test,
    with an exact binomial test of how many answers become wrong.

    Examples:

        magic-pyramid tune dev.tsv --model fits/news/model --max-drop 0.5

        magic-pyramid tune dev.tsv --model fits/news/model --speedup 8 --factors 0.5,2

        magic-pyramid tune dev.tsv --model fits/news/model --max-drop 1 --confidence 0.95
    """
    check_model_folder(model)
    goals = {"--max-drop": max_drop, "--speedup": speedup, "--latency": latency}
    given = [name for name, value in goals.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"give one goal out of {', '.join(goals)}; got {' and '.join(given) or 'none'}")
    if confidence is not None and max_drop is None:
        raise ValueError("--confidence bounds what is lost; it goes with --max-drop")
    if counted and (max_drop is None or confidence is not None):
        raise ValueError("--counted says how --max-drop is estimated; it goes with --max-drop, without --confidence")
    strengths = sorted({1.0, *(numbers_of("--factors", factors) if factors else [])})

    import torch
    from rich.console import Console

    from ..data.labels import VALIDATION
    from ..measuring.tuning import right_without_exits, trade_off

    console = Console(stderr=True)
    classifier, tokenizer = load_classifier(model, device, threads)
    own = classifier.config.resolved_thresholds()
    if own is None and strengths != [1.0]:
        raise ValueError(
            "--factors multiply pruning thresholds, and this model has none; fit it with a recipe that prunes"
        )
    if strengths[0] < 0:
        raise ValueError(f"--factors must be 0 or more; got {strengths[0]}")
    data, batches = load_labelled(texts, classifier, tokenizer, VALIDATION, batch_size)

    def prune(factor: float) -> None:
        if own is not None:
            classifier.config.prune_thresholds = [factor * threshold for threshold in own]

    by_factor = {}
    for factor in strengths:
        prune(factor)
        what = "Read all texts" if len(strengths) == 1 else f"Read all texts, pruning x {factor:g}"
        by_factor[factor] = read_exits(classifier, batches, data.labels, console, what)

    took = None
    if confidence is not None:
        offers, chosen = _guaranteed(by_factor, by_layer, max_drop / 100, confidence)
    else:
        offers = trade_off(by_factor, layered=by_layer)
        if max_drop is not None:
            chosen = offers.fastest(max_drop / 100, counted=counted)
        elif speedup is not None:
            chosen = offers.most_accurate(speedup)
        else:

            def measure(outcome: Outcome) -> float:
                prune(outcome.factor)
                return _seconds(classifier, batches, outcome.exit_threshold)

            chosen, took = offers.within_latency(latency / 1e3, measure)
    prune(chosen.factor)
    classifier.config.exit_threshold = chosen.exit_threshold
    if not dry_run:
        _write(model, classifier.config)

    reference = by_factor[1.0]
    if as_json:
        print(
            json.dumps(
                {
                    "texts": len(reference),
                    "accuracy_without_exits": right_without_exits(reference).double().mean().item(),
                    "chosen": chosen.as_json(),
                    "prune_thresholds": classifier.config.prune_thresholds,
                    "seconds": took,
                    "confidence": confidence,
                    "written": not dry_run,
                    "curve": [outcome.as_json() for outcome in offers.curve()],
                }
            )
        )
        return
    _print_curve(offers, chosen)
    lost, expected = (100 * (offers.reference.accuracy - x) for x in (chosen.accuracy, chosen.expected_accuracy))
    sure = "" if confidence is None else f"; no more than {max_drop:g} points with confidence {confidence:g}"
    time = "" if took is None else f", {1e3 * took:.2f} ms a text with {torch.get_num_threads()} threads"
    where = "not written" if dry_run else f"written to {model / 'config.json'}"
    print(
        f"{chosen.speed_up:.2f} times less work at {lost:.2f} points lost, {expected:.2f} expected{sure}{time}; {where}"
    )


def _guaranteed(
    by_factor: dict[float, Any], by_layer: bool, max_harm: float, confidence: float
) -> tuple[TradeOff, Outcome]:
    """What is offered, and the fastest of it whose harm is bounded.

    One threshold for all layers is a path that no text had a part in, so all texts test it; a path that is chosen by
    texts is made of one half of them and tested on the other.
    """
    import torch

    from ..measuring.tuning import guaranteed, outcomes_of_one_threshold, right_without_exits, texts_needed, trade_off

    everything = by_factor[1.0]
    if by_layer or len(by_factor) > 1:
        order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))
        learn, test = order[: len(order) // 2], order[len(order) // 2 :]
        offers = trade_off({factor: exits.select(learn) for factor, exits in by_factor.items()}, layered=by_layer)
        path = offers.curve()
        tests = {factor: exits.select(test) for factor, exits in by_factor.items()}
    else:
        offers = trade_off(by_factor, layered=False)
        path, tests = outcomes_of_one_threshold(everything, right_without_exits(everything)), by_factor
    chosen = guaranteed(tests, right_without_exits(tests[1.0]), path, max_harm, confidence)
    if chosen is None:
        raise ValueError(
            f"with these {len(tests[1.0])} texts nothing can be guaranteed at {100 * max_harm:g} points and confidence "
            f"{confidence:g}; it takes at least {texts_needed(max_harm, confidence)} texts, and few harmed among them. Give "
            "more texts, or a goal of more points"
        )
    return offers, chosen


def _seconds(model: Any, batches: Any, exit_threshold: Any) -> float:
    from ..measuring.timing import time_ways

    model.config.exit_threshold = None
    return time_ways({"it": lambda inputs: model(**inputs, exit_threshold=exit_threshold)}, batches)["it"]


def _write(folder: Path, config: Any) -> None:
    """Changes the thresholds in a model's config.json, and nothing else."""
    from ..data.files import whole_file

    document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    document["exit_threshold"], document["prune_thresholds"] = config.exit_threshold, config.prune_thresholds
    with whole_file(folder / "config.json") as stream:
        json.dump(document, stream, indent=2)
        stream.write("\n")


def _print_curve(offers: TradeOff, chosen: Outcome) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from .evaluate import threshold_text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="The trade-off, slowest first")
    columns = (
        "",
        "threshold",
        "pruning\nx",
        "accu-\nracy",
        "made\nwrong",
        "mean\nexit",
        "GFLOPs\npaper",
        "exe-\ncuted",
    )
    for column in (*columns, "work\nsaved"):
        table.add_column(column, justify="right")
    curve = offers.curve()
    shown = curve if chosen in curve else [*curve, chosen]
    for x in sorted(shown, key=lambda x: -x.executed_gflops):
        table.add_row(
            ">" if x == chosen else "",
            threshold_text(x.exit_threshold),
            f"{x.factor:g}",
            f"{x.accuracy:.2%}",
            f"{x.harm:.2%}",
            f"{x.mean_exit_layer:.2f}",
            f"{x.gflops:.3f}",
            f"{x.executed_gflops:.3f}",
            f"{x.speed_up:.2f}x",
        )
    Console().print(table)

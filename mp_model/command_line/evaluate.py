"""``magic-pyramid evaluate``: the answers and the cost of a model, for a sweep of exit thresholds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..reporting.words import threshold_text, times_text
from .loading import check_model_folder, for_the_model, in_windows, numbers_of, read_exits, said_of_long_texts
from .options import LONG_TEXTS_HELP, Running, takes_dataclasses

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from torch import Tensor

    from ..data.batches import Text, TextBatch
    from ..measuring.evaluation import Evaluation, SeveralFigures
    from ..measuring.failures import ToldApart
    from ..measuring.record import Predictions, Threshold
    from ..modelling import PyramidForSequenceClassification
    from ..reporting.page import Measurements
    from ..serving.classifier import Classifier


Row = TypeVar("Row")


@dataclass(frozen=True)
class Padded:
    """The stock transformers classifier with the same weights: padded, nothing pruned, nobody leaves.

    Attributes:
        accuracy: share of right answers.
        f1, several: as in :class:`mp_model.measuring.evaluation.Evaluation`.
        gflops: mean work for a text by the paper's count, without the padding.
        executed_gflops: mean work for a text, padding included.
        seconds: time for a text.
    """

    accuracy: float
    f1: float
    gflops: float
    executed_gflops: float
    seconds: float
    several: SeveralFigures | None = None


@dataclass(frozen=True)
class Float32:
    """The same model in float32, as it is set, beside a run in another precision.

    Attributes:
        accuracy: share of right answers.
        differing: share of texts that get another answer.
    """

    accuracy: float
    differing: float


@dataclass(frozen=True)
class Measured:
    """All that was measured.

    Attributes:
        evaluations: records by exit threshold; that of the model as it is set comes first.
        precision: the precision that it ran in.
        float32: the same model in float32, where that is another precision and the weights have it.
        padded: the stock classifier beside them, where time was measured.
        told_apart: how well uncertainties tell which early answers differ from layer L's; nothing of texts in windows, or
            where nobody reaches layer L.
    """

    evaluations: list[Evaluation]
    precision: str
    float32: Float32 | None = None
    padded: Padded | None = None
    told_apart: list[ToldApart] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {
            "texts": self.evaluations[0].texts,
            "precision": self.precision,
            "float32": None if self.float32 is None else asdict(self.float32),
            "padded_bert_seconds": None if self.padded is None else self.padded.seconds,
            "padded_bert": None if self.padded is None else asdict(self.padded),
            "told_apart": [row.as_json() for row in self.told_apart],
            "evaluations": [evaluation.as_json() for evaluation in self.evaluations],
        }


@dataclass(frozen=True)
class Run:
    """A classifier's run over labelled texts.

    Attributes:
        classifier: the classifier.
        texts: the texts.
        exits: the answers of all its exits.
        measured: all that was measured.
        long: sentence on the texts that are longer than the model takes; None: none is.
    """

    classifier: Classifier
    texts: list[Text]
    exits: Predictions
    measured: Measured
    long: str | None


@takes_dataclasses
def evaluate(
    *,
    texts: Annotated[str, typer.Argument(help="Labelled tsv, csv, jsonl or parquet file; or a data set's name.")],
    model: Annotated[Path, typer.Option(help="Folder of a saved model and its tokenizer.")],
    exit_thresholds: Annotated[
        str | None, typer.Option(help="Thresholds to try, by commas; eleven from 0 to 1 if left out.")
    ] = None,
    buckets: Annotated[
        str, typer.Option(help="Longest texts of each range of lengths but the last, in tokens, by commas.")
    ] = "35,70",
    output: Annotated[Path | None, typer.Option(help="Folder for evaluation.json and pictures.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="HTML file for a report, as `magic-pyramid report` writes it.")
    ] = None,
    time: Annotated[
        bool, typer.Option("--time/--no-time", help="Also measure wall-clock, beside transformers' padded model.")
    ] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of wall-clock; the median counts.")] = 3,
    long_texts: Annotated[str, typer.Option(help=LONG_TEXTS_HELP)] = "cut",
    running: Running,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> Measured:
    """Measure a model on labelled texts: accuracy, F1, work, time; by threshold, by length, by layer.

    First the model as it is set, then without exits, then, if it has trained ones, with one threshold for all layers. Work
    is in GFLOPs a text, by the paper's count and as executed. Batches are of texts of similar length.

    Examples:

        magic-pyramid evaluate test.tsv --model fits/news/model --output reports/news --report reports/news.html

        magic-pyramid evaluate test.tsv --model fits/news/model --exit-thresholds 0.05,0.1,0.2 --no-time --json
    """
    check_model_folder(model)
    bounds = numbers_of("--buckets", buckets, int)
    sweep = None if exit_thresholds is None else numbers_of("--exit-thresholds", exit_thresholds, float)

    from rich.console import Console

    from ..data.files import check_folder, whole_file

    console = Console(stderr=True)
    if output is not None:
        check_folder(output)
    run = measure(
        model,
        texts,
        sweep,
        bounds,
        running,
        console,
        rounds=rounds if time else None,
        long_texts=long_texts,
        report=report,
    )
    measured = run.measured
    if output is not None:
        _draw(measured.evaluations, output)
        with whole_file(output / "evaluation.json") as stream:
            json.dump(measured.as_json(), stream, indent=1, allow_nan=False)
    if as_json:
        print(json.dumps(measured.as_json(), allow_nan=False))
        return measured
    by_length, by_layer = _by_length(measured.evaluations[0]), _by_layer(measured.evaluations[0])
    told = told_apart_table(measured.told_apart)
    Console().print(overview(measured), by_length, by_layer, *([] if told is None else [told]))
    if measured.float32 is not None:
        print(_beside_float32(measured, measured.float32))
    if output is not None:
        console.print(f"{output}: evaluation.json, trade_off.png, exits.png, tokens.png, lengths.png", highlight=False)
    return measured


# What is computed


def measure(
    folder: Path,
    source: str,
    sweep: Sequence[float] | None,
    bounds: Sequence[int],
    running: Running,
    console: Console,
    *,
    rounds: int | None,
    long_texts: str = "cut",
    report: Path | None = None,
    shown: int = 8,
    most: int | None = None,
) -> Run:
    """Measures a saved model on labelled texts, and writes a report where one is asked for.

    Args:
        folder: folder of the model.
        source: file or data set of the texts.
        sweep: exit thresholds to try; None: eleven.
        bounds: bounds of the ranges of lengths.
        running: the way the model is run.
        console: console of the progress bars.
        rounds: rounds of wall-clock; None: no time is measured, nor is it of texts in windows.
        long_texts: what becomes of long texts, as for :class:`mp_model.Classifier`.
        report: HTML file for the report.
        shown: texts of each of its lists, at most.
        most: texts that are measured, at most, drawn at random; None: all.
    """
    from ..checkpoints.configurations import read_config
    from ..data.labels import TEST, read_rows
    from ..measuring.evaluation import evaluate as evaluate_at
    from ..measuring.windows import ExitsOfWindows
    from ..reporting.page import check_report, write_report
    from ..serving.classifier import Classifier

    if report is not None:
        check_report(report)
    rows = drawn(read_rows(source, TEST, read_config(folder).label_names), most)
    how = running.precision, running.device, running.threads
    classifier = Classifier.load(folder, *how, long_texts=long_texts, every_layer=True)  # its stock twin has them all
    if sweep is not None:
        classifier.model.config.check_exits(max(sweep))
    data, batches = for_the_model(rows, source, classifier, running.batch_size)
    long = said_of_long_texts(classifier, batches, data.texts)
    if long is not None:
        typer.echo(long, err=True)

    def read(model: PyramidForSequenceClassification, doing: str) -> Predictions:
        if classifier.windows is None or long is None:
            return read_exits(model, batches, data.targets, console, doing)
        windows = in_windows(data, classifier, running.batch_size)
        return ExitsOfWindows(read_exits(model, windows.batches, windows.labels, console, doing), windows.text_of)

    exits = read(classifier.model, "Read all texts")
    measured = Measured(
        [evaluate_at(exits, threshold, bounds) for threshold in _thresholds(classifier.model, sweep)],
        classifier.precision.name,
        _in_float32(folder, classifier, exits, read),
        told_apart=_told_apart(exits),
    )
    if rounds is not None and isinstance(exits, ExitsOfWindows):
        typer.echo("time is not measured of texts in windows", err=True)
    elif rounds is not None:
        measured = _timed(measured, classifier.model, batches, exits.labels, rounds)
    run = Run(classifier, data.texts, exits, measured, long)
    if report is not None:
        write_report(report, _for_a_report(folder, source, run), shown)
    return run


def _told_apart(exits: Predictions) -> list[ToldApart]:
    """The rows of :attr:`Measured.told_apart`; none where no exit has been trained."""
    from ..measuring.all_exits import AllExits
    from ..measuring.failures import told_apart

    config = exits.config
    there = isinstance(exits, AllExits) and config.depth is None and config.why_untrained() is None
    return told_apart(exits) if isinstance(exits, AllExits) and there else []


def drawn(rows: Sequence[Row], most: int | None) -> Sequence[Row]:
    """Rows, or as many of them, in their order, always the same ones."""
    if most is None or most >= len(rows):
        return rows
    return [rows[place] for place in sorted(random.Random(0).sample(range(len(rows)), most))]


def _thresholds(model: PyramidForSequenceClassification, sweep: Sequence[float] | None) -> list[Threshold]:
    """The model's own exit threshold, if it has one, closed exits, and thresholds to try, where there are trained exits."""
    thresholds: list[Threshold] = [None]
    if model.config.resolved_exit_layers() and model.config.why_untrained() is None:
        thresholds += [step / 10 for step in range(11)] if sweep is None else sweep
    own = model.config.exit_threshold
    return thresholds if own is None else [own, *(threshold for threshold in thresholds if threshold != own)]


def _in_float32(
    folder: Path,
    classifier: Classifier,
    exits: Predictions,
    read: Callable[[PyramidForSequenceClassification, str], Predictions],
) -> Float32 | None:
    """The folder's model in float32 beside the answers of another precision; None: it is the same, or cannot be had.

    read: reads the answers of all exits of a model, with some words beside the progress bar.
    """
    from ..checkpoints.configurations import read_config
    from ..checkpoints.reading import read_classifier

    if classifier.precision.name == "float32" or read_config(folder).precision != "float":
        return None
    model = read_classifier(folder).model.to(classifier.model.device)
    own = model.config.exit_threshold
    exact = read(model, "Read all texts in float32").answers(own)
    same = exits.config.choice.same
    return Float32(
        accuracy=same(exact.predictions, exits.labels).double().mean().item(),
        differing=1 - same(exact.predictions, exits.answers(own).predictions).double().mean().item(),
    )


def _timed(
    measured: Measured,
    model: PyramidForSequenceClassification,
    batches: Sequence[TextBatch],
    labels: Tensor,
    rounds: int,
) -> Measured:
    """The same with seconds for a text, and with the stock classifier beside it."""
    from ..data.batches import in_input_order
    from ..measuring.evaluation import SeveralFigures, f1_score
    from ..measuring.timing import one_by_one, padded_gflops, padded_twin, time_ways, way_at

    twin = padded_twin(model)
    logits_of: dict[int, Tensor] = {}

    def padded(inputs: dict[str, Tensor]) -> None:
        logits_of[id(inputs)] = twin(**inputs).logits.cpu()  # kept from a run that is timed anyhow

    ways = {str(x.exit_threshold): way_at(model, x.exit_threshold) for x in measured.evaluations}
    seconds = time_ways({"padded": one_by_one(padded), **ways}, batches, rounds)

    places = [place for batch in batches for place in batch.places]
    logits = in_input_order([logits_of[id(batch.inputs)] for batch in batches], places)
    problem = model.config.choice
    predictions = problem.answers(logits)
    return replace(
        measured,
        evaluations=[replace(x, seconds=seconds[str(x.exit_threshold)]) for x in measured.evaluations],
        padded=Padded(
            accuracy=problem.same(predictions, labels).double().mean().item(),
            f1=f1_score(predictions, labels, logits.shape[1], problem),
            gflops=measured.evaluations[0].dense_gflops,
            executed_gflops=padded_gflops(model, batches),
            seconds=seconds["padded"],
            several=SeveralFigures.of(predictions, labels) if problem.several else None,
        ),
    )


# What is shown


def table_of(title: str, columns: Sequence[str]) -> Table:
    """An empty table of figures."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title=title)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def told_apart_table(rows: Sequence[ToldApart]) -> Table | None:
    """How well uncertainties tell which early answers differ from the last layer's; None: there are no exits."""
    if not rows:
        return None
    kinds = list(rows[0].auroc)
    table = table_of(
        "Answers other than the last layer's, and how well\nuncertainty tells them (AUROC)", ["layer", "differ", *kinds]
    )
    for row in rows:
        shown = ("" if x is None else f"{x:.3f}" for x in row.auroc.values())
        table.add_row("mean" if row.layer is None else str(row.layer), f"{row.differing:.2%}", *shown)
    return table


def overview(measured: Measured) -> Table:
    """Accuracy, work and time by exit threshold."""
    padded = measured.padded
    several = measured.evaluations[0].several is not None
    scores = ["all labels\nright", "each\nright", "micro\nF1", "macro\nF1"] if several else ["accu-\nracy", "F1"]
    columns = ["threshold", *scores, "mean\nexit", "GFLOPs\npaper", "exe-\ncuted", "work\nsaved"]
    columns += [] if padded is None else ["ms a\ntext", "x\npadded"]
    beside = "" if padded is None else "; padded: transformers' own model with the same weights"
    table = table_of(f"{measured.evaluations[0].texts} texts{beside}", columns)
    if padded is not None:
        row = ["padded", *_scores(padded), "", f"{padded.gflops:.3f}"]
        row += [f"{padded.executed_gflops:.3f}", times_text(padded.gflops / padded.executed_gflops)]
        table.add_row(*row, f"{1e3 * padded.seconds:.2f}", times_text(1.0))
    for x in measured.evaluations:
        row = [threshold_text(x.exit_threshold), *_scores(x), f"{x.mean_exit_layer:.2f}"]
        row += [f"{x.gflops:.3f}", f"{x.executed_gflops:.3f}", times_text(x.speed_up)]
        if padded is not None and x.seconds is not None:
            row += [f"{1e3 * x.seconds:.2f}", times_text(padded.seconds / x.seconds)]
        table.add_row(*row)
    return table


def _scores(measured: Evaluation | Padded) -> list[str]:
    """Accuracy and F1; of several labels the accuracy of texts and of labels, and the two F1s."""
    x = measured.several
    shares = [measured.accuracy, measured.f1] if x is None else [*asdict(x).values()]
    return [f"{share:.2%}" for share in shares]


def _beside_float32(measured: Measured, exact: Float32) -> str:
    """The line on what a precision costs."""
    here = measured.evaluations[0]
    return (
        f"As it is set, in {measured.precision}: accuracy {here.accuracy:.2%}, in float32 {exact.accuracy:.2%}; "
        f"{exact.differing:.2%} of the answers differ"
    )


def _by_length(evaluation: Evaluation) -> Table:
    columns = ("tokens", "texts", "accuracy", "mean exit", "work saved")
    table = table_of(f"By length, threshold {threshold_text(evaluation.exit_threshold)}", columns)
    for x in evaluation.buckets:
        table.add_row(x.name, str(x.texts), f"{x.accuracy:.2%}", f"{x.mean_exit_layer:.2f}", times_text(x.speed_up))
    return table


def _by_layer(evaluation: Evaluation) -> Table:
    columns = ("layer", "texts that leave", "tokens alive after it")
    table = table_of(f"By layer, threshold {threshold_text(evaluation.exit_threshold)}", columns)
    for layer, leaving in enumerate(evaluation.exits):
        kept = None if layer == 0 else evaluation.tokens_kept[layer - 1]
        table.add_row(str(layer), str(leaving), "" if kept is None else f"{kept:.0%}")
    return table


def _for_a_report(folder: Path, source: str, run: Run) -> Measurements:
    """All that a report shows."""
    import torch

    from mp_kernels.info import describe

    from ..measuring.windows import ExitsOfWindows
    from ..reporting.page import Beside, Measurements
    from .info import describe_model

    measured, classifier = run.measured, run.classifier
    padded = measured.padded
    notes = [] if measured.float32 is None else [_beside_float32(measured, measured.float32)]
    notes += [] if run.long is None else [f"{run.long}."]
    if isinstance(run.exits, ExitsOfWindows):
        notes.append("The words of such texts are shaded as their first window is read alone.")
    return Measurements(
        folder=name_of(folder),
        source=Path(source).name,
        model=classifier.model,
        tokenizer=classifier.tokenizer,
        texts=run.texts,
        exits=run.exits,
        evaluations=measured.evaluations,
        beside=None if padded is None else Beside("transformers' padded model", padded.accuracy, padded.seconds),
        settings={
            **describe_model(classifier.model),
            "precision": f"{classifier.precision.name}, since {classifier.precision.why}",
            "longest text": f"{classifier.tokenise.max_length} tokens",
            **describe(),
            "threads": torch.get_num_threads(),
        },
        notes=notes,
    )


def name_of(folder: Path) -> str:
    """The name of a model's folder, with the folder that it stands in where it is called no more than model."""
    path = folder.resolve()
    return path.name if path.name != "model" else f"{path.parent.name}/{path.name}"


def _draw(evaluations: Sequence[Evaluation], folder: Path) -> None:
    """Pictures of the model as it is set, and of its trade-off."""
    from ..reporting.plots import plot_buckets, plot_exits, plot_tokens, plot_trade_off

    shown = evaluations[0]
    curve = sorted((x.executed_gflops, x.accuracy) for x in evaluations)
    plot_trade_off({"thresholds": curve}, folder / "trade_off.png", title="Accuracy over executed work")
    plot_exits(shown, folder / "exits.png", title=f"Exits at threshold {threshold_text(shown.exit_threshold)}")
    plot_tokens(shown, folder / "tokens.png", title="Tokens alive after each layer, of texts that stay")
    saved = {bucket.name: bucket.speed_up for bucket in shown.buckets}
    plot_buckets({"executed": saved}, folder / "lengths.png", title="Work saved by length")

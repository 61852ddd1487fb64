"""``magic-pyramid fit``: labelled texts and a checkpoint in, a tuned pyramid out."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..training.recipes import RECIPES, STAGES, TEACHERS, Settings
from .options import takes_dataclasses

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..training.fitting import Summary
    from ..training.preparing import Prepared

SHOWN_LABELS = 10  # of many labels, the most frequent ones


@dataclass(frozen=True)
class Plan:
    """What a fit trains, where that is not what its recipe says."""

    stages: Annotated[str | None, f"Stages instead of the recipe's, by commas, out of {', '.join(STAGES)}."] = None
    exit_training: Annotated[
        str | None, "Training of exits: joint (with the backbone) or frozen (under it); else the recipe's way."
    ] = None
    freeze_backbone: Annotated[bool, "Learn thresholds and exit heads alone: minutes, not hours."] = False
    train_head: Annotated[bool, "With --freeze-backbone: train the model's own head first, as of an encoder."] = False
    exit_uncertainty: Annotated[
        str | None,
        "Uncertainty to leave by: entropy; disagreement, told by confidence heads that learn from a tenth of the texts; or "
        "auto: they learn, and whichever saves more is taken.",
    ] = None
    teacher: Annotated[
        str | None, f"Teacher of joint training: {', '.join(TEACHERS)} or a classifier's folder; else the recipe's."
    ] = None

    def arguments(self) -> dict[str, Any]:
        """The same as arguments of :func:`mp_model.training.preparing.prepare`."""
        from ..exits import AUTO, DISAGREEMENT

        given = {name: value for name, value in asdict(self).items() if name != "exit_uncertainty"}
        stages = None if self.stages is None else words_of(self.stages)
        return {**given, "stages": stages, "confidence": self.exit_uncertainty in (AUTO, DISAGREEMENT)}


@takes_dataclasses
def fit(
    *,
    train: Annotated[
        str, typer.Argument(help="tsv, csv, jsonl or parquet file with a column label; or a data set's name.")
    ],
    model: Annotated[
        str,
        typer.Option(help="Checkpoint of an encoder such as BERT: a folder, or a name on a hub."),
    ],
    output: Annotated[Path, typer.Option(help="Folder for everything; given again, a fit that was cut off goes on.")],
    validation: Annotated[
        str | None,
        typer.Option(help="File or data set to set exits on; a tenth of the training texts if left out."),
    ] = None,
    recipe: Annotated[str, typer.Option(help=f"Recipe: {', '.join(RECIPES)}.")] = "pyramid",
    settings: Settings,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Names of all labels, by commas, in the order of the checkpoint's numbers for them, or of columns of 0, 1."
        ),
    ] = None,
    plan: Plan,
    max_drop: Annotated[float, typer.Option(min=0, help="Points of validation accuracy that exits may cost.")] = 0.5,
    precision: Annotated[str, typer.Option(help="Precision to set exits in: float32, bfloat16 or int8.")] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all processors if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Train a classifier: fine-tuning, soft pruning, hard pruning, exit heads, as the recipe says.

    Files have a column **label** and a column **text**, or **text_a** and **text_b**. Where a text may have several labels,
    they are a list there, or in a column **labels** (names with commas between them in tsv and csv files), or columns of 0
    and 1 that **--labels** names. Data sets of a hub are named like **ag_news** or, with a configuration,
    **nyu-mll/glue:mrpc**. The model is left in OUTPUT/model, a summary in
    OUTPUT/summary.json; given again, a fit goes on only with the same texts, checkpoint and settings. A classifier that is
    finished keeps its numbers for the labels; **--labels** names them where it has no names. Passes over the texts that are
    left out go by the number of training texts: fewer for larger sets.

    Examples:

        magic-pyramid fit train.tsv --model bert-base-uncased --output fits/news

        magic-pyramid fit train.tsv --validation dev.tsv --model ./minilm --output fits/mp --recipe mp --epochs 5

        magic-pyramid fit train.tsv --model ./my-classifier --output fits/quick --freeze-backbone

        magic-pyramid fit train.tsv --model ./my-encoder --output fits/quick --freeze-backbone --train-head

        magic-pyramid fit comments.csv --labels toxic,insult,threat --model ./minilm --output fits/comments
    """
    import torch
    from rich.console import Console

    from ..checkpoints.precisions import check_precision
    from ..measuring.tuning import check_exit_uncertainty
    from ..training.folder import processes
    from ..training.preparing import prepare
    from ..training.tasks import load_task

    check_precision(precision, "cpu")
    if plan.exit_uncertainty is not None:
        check_exit_uncertainty(plan.exit_uncertainty)
    if threads:
        torch.set_num_threads(threads)
    _hush_transformers()
    console = Console(stderr=True, quiet=not processes().is_main_process)
    prepared = prepare(
        model,
        load_task(train, validation, settings.seed, None if labels is None else words_of(labels)),
        output,
        recipe,
        settings,
        **plan.arguments(),
        quiet=not console.is_terminal,
    )
    summary = _train(prepared, max_drop / 100, precision, plan.exit_uncertainty, console)
    if not console.quiet:
        _describe(prepared, summary, Path(model).name)
        print(json.dumps(asdict(summary)) if as_json else f"{output / 'model'}: {_sentence(summary)}")


def data_table(prepared: Prepared) -> Table:
    """The texts of a fit by their labels, and their lengths in tokens."""
    from rich.table import Table

    names, *rows = data_rows(prepared)
    table = Table(*(name.replace(" (", "\n(") for name in names), box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def data_rows(prepared: Prepared) -> list[tuple[str, ...]]:
    """The rows of that table; the first has the columns' names."""
    parts = (prepared.train, prepared.validation)
    table: list[tuple[str, ...]] = [("", "training", f"validation{' (held out)' if prepared.task.held_out else ''}")]

    def add(name: str, values: Iterable[float], more_from: float = math.inf) -> None:
        table.append((name, *(f"{x:,.10g}{' or more' if x >= more_from else ''}" for x in values)))

    add("texts", map(len, parts))
    names, several = prepared.task.label_names, prepared.task.several
    of_labels = [itertools.chain.from_iterable(part.labels) if several else part.labels for part in parts]
    counts = [Counter(numbers) for numbers in of_labels]
    by_size = sorted(range(len(names)), key=lambda number: -counts[0][number])
    shown = sorted(by_size[:SHOWN_LABELS])
    for number in shown:
        add(f"  {names[number]}", (count[number] for count in counts))
    if rest := by_size[SHOWN_LABELS:]:
        add(f"  {len(rest)} more labels", (sum(count[number] for number in rest) for count in counts))
    if several:
        add("  without a label", (sum(not labels for labels in part.labels) for part in parts))
    add("tokens, median", (statistics.median(part.lengths) for part in parts))
    add("tokens, longest", (max(part.lengths) for part in parts), prepared.train.most)
    add(f"longer than {prepared.max_length}, cut", (part.truncated for part in parts))
    return table


def words_of(value: str) -> list[str]:
    """Words that were given with commas between them."""
    return [word.strip() for word in value.split(",")]


def _hush_transformers() -> None:
    """Keeps transformers' own progress bars and advice off the terminal."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _train(
    prepared: Prepared, max_drop: float, precision: str, exit_uncertainty: str | None, console: Console
) -> Summary:
    """Runs a fit, and says on the console what it is made from and how it went."""
    from ..training.fitting import run_fit

    def say(lines: Iterable[str]) -> None:
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    recipe, stages = prepared.recipe, prepared.stages
    about = recipe.about if stages == recipe.stages else f"of its stages {' and '.join(stages)} alone"
    say([f"Recipe {prepared.recipe_name}: {about}"])
    console.print(data_table(prepared))
    say(prepared.notes)
    summary = run_fit(prepared, max_drop, precision, exit_uncertainty)
    say(f"{stage}: {_course(stage, facts, stage in summary.already_done)}" for stage, facts in summary.stages.items())
    say(summary.notes[len(prepared.notes) :])
    if summary.truncated_texts:
        say(
            [
                f"{summary.truncated_texts} texts were cut to {prepared.max_length} tokens; `magic-pyramid classify "
                "--long-texts windows` will read such texts whole"
            ]
        )
    return summary


def _describe(prepared: Prepared, summary: Summary, checkpoint: str) -> None:
    """Writes the card of the fitted model."""
    from ..checkpoints.configurations import read_config
    from ..data.batches import are_pairs
    from ..reporting.card import Figure, escaped, figures_of, write_card
    from .info import settings_of

    folder = prepared.output / "model"
    config = read_config(folder)
    names = {"whole": "exits closed", "exits": f"exit threshold {summary.exit_threshold}"}
    figures = [Figure(names[name], **work) for name, work in summary.work.items()]
    settings = {**settings_of(config), "longest text": f"{prepared.max_length} tokens", "precision": summary.precision}
    about = (
        "A text classifier that does less for easy texts: tokens without importance are pruned, and a text leaves at the "
        "first layer that is certain of its answer. "
        f"It has {config.num_hidden_layers} layers of width {config.hidden_size}, and "
        f"was made from {escaped(checkpoint)} by the recipe {prepared.recipe_name}: {prepared.recipe.about}"
    )
    notes = [note[0].upper() + note[1:] + "." for note in summary.notes]
    write_card(
        folder,
        about,
        summary.label_names,
        figures_of(figures, summary.validation_texts, settings),
        data_rows(prepared),
        notes,
        are_pairs(prepared.task.train.texts),
    )


def _course(stage: str, facts: dict[str, float], already_done: bool) -> str:
    """The course of a stage, for people."""
    if already_done:
        return "already done"
    if stage == "confidence":
        return f"in {facts['seconds']:.0f} s, mean log-loss {facts['loss']:.3f} of unseen texts"
    if not facts["steps"]:
        return "left out, with 0 passes"
    return f"{facts['steps']:.0f} steps in {facts['seconds']:.0f} s, mean loss {facts['loss']:.3f}"


def _sentence(summary: Summary) -> str:
    """The outcome of a fit in one sentence."""
    whole = f"validation accuracy {summary.validation_accuracy:.1%}"
    if summary.exits_accuracy is None:
        return whole
    if summary.exit_threshold is None:
        return f"{whole}; exits stay closed, for no threshold meets --max-drop"
    at = f" in {summary.precision}" if summary.precision != "float32" else ""
    of = f" of {summary.exit_uncertainty}" if summary.exit_uncertainty == "disagreement" else ""
    return f"{whole}, {summary.exits_accuracy:.1%} with exits at {summary.exit_threshold}{of}{at}"

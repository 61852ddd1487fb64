"""``magic-pyramid fit``: labelled texts and a BERT checkpoint in, a tuned pyramid out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..training.recipes import RECIPES, STAGES, Settings
from .options import takes_dataclasses

if TYPE_CHECKING:
    from ..training.fitting import Summary


@takes_dataclasses
def fit(
    *,
    train: Annotated[
        str, typer.Argument(help="tsv, csv, jsonl or parquet file with a column label; or a data set's name.")
    ],
    model: Annotated[str, typer.Option(help="BERT checkpoint: a folder, or a name on a hub.")],
    output: Annotated[Path, typer.Option(help="Folder for everything; given again, a fit that was cut off goes on.")],
    validation: Annotated[
        str | None,
        typer.Option(help="File or data set to set exits on; a tenth of the training texts if left out."),
    ] = None,
    recipe: Annotated[str, typer.Option(help=f"Recipe: {', '.join(RECIPES)}.")] = "pyramid",
    settings: Settings,
    stages: Annotated[
        str | None,
        typer.Option(help=f"Stages instead of the recipe's, by commas, out of {', '.join(STAGES)}."),
    ] = None,
    exit_training: Annotated[
        str | None,
        typer.Option(help="Training of exits: joint (with the backbone) or frozen (under it); else the recipe's way."),
    ] = None,
    freeze_backbone: Annotated[
        bool, typer.Option("--freeze-backbone", help="Learn thresholds and heads alone: minutes, not hours.")
    ] = False,
    max_drop: Annotated[float, typer.Option(min=0, help="Points of validation accuracy that exits may cost.")] = 0.5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all processors if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Train a classifier: fine-tuning, soft pruning, hard pruning, exit heads, as the recipe says.

    Files have a column **label** and a column **text**, or **text_a** and **text_b**; data sets of a hub are named like
    **ag_news** or, with a configuration, **nyu-mll/glue:mrpc**. The model is left in OUTPUT/model, a summary in
    OUTPUT/summary.json. Passes over the texts that are left out go by the number of training texts: fewer for larger sets.

    Examples:

        magic-pyramid fit train.tsv --model bert-base-uncased --output fits/news

        magic-pyramid fit train.tsv --validation dev.tsv --model ./minilm --output fits/mp --recipe mp --epochs 5

        magic-pyramid fit train.tsv --model ./my-classifier --output fits/quick --freeze-backbone
    """
    if recipe not in RECIPES:
        raise ValueError(f"--recipe must be one of {', '.join(RECIPES)}; got {recipe!r}")

    import torch
    from rich.console import Console
    from transformers.utils import logging as transformers_logging

    from ..training.fitting import fit as run
    from ..training.tasks import load_task

    if threads:
        torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    console = Console(stderr=True)
    task = load_task(train, validation, settings.seed)
    held_out = " (held out of the training file)" if task.held_out else ""
    console.print(
        f"{len(task.train)} training texts, {len(task.validation)} validation texts{held_out}, "
        f"{len(task.label_names)} labels; recipe {recipe}: {RECIPES[recipe].about}"
    )
    summary = run(
        model,
        task,
        output,
        recipe,
        settings,
        stages=None if stages is None else [stage.strip() for stage in stages.split(",")],
        exit_training=exit_training,
        freeze_backbone=freeze_backbone,
        max_drop=max_drop / 100,
        quiet=not console.is_terminal,
    )
    for stage, facts in summary.stages.items():
        console.print(f"{stage}: {facts['steps']:.0f} steps in {facts['seconds']:.0f} s, mean loss {facts['loss']:.3f}")
    print(json.dumps(asdict(summary)) if as_json else f"{output / 'model'}: {_sentence(summary)}")


def _sentence(summary: Summary) -> str:
    """The outcome of a fit in one sentence."""
    whole = f"validation accuracy {summary.validation_accuracy:.1%}"
    if summary.exits_accuracy is None:
        return whole
    return f"{whole}, {summary.exits_accuracy:.1%} with exits at {summary.exit_threshold}"

"""``magic-pyramid fit``: labelled texts and a BERT checkpoint in, a tuned pyramid out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def fit(
    train: Annotated[
        str, typer.Argument(help="tsv, csv, jsonl or parquet file with a column label; or a data set's name.")
    ],
    model: Annotated[str, typer.Option(help="A BERT checkpoint: a folder, or a name on a hub.")],
    output: Annotated[Path, typer.Option(help="Folder for everything; given again, a fit that was cut off goes on.")],
    validation: Annotated[
        str | None,
        typer.Option(help="File or data set to set exits on; left out, a tenth of the training texts is."),
    ] = None,
    recipe: Annotated[str, typer.Option(help="pyramid, mp, bert, distilbert, ltp, fastbert or power.")] = "pyramid",
    epochs: Annotated[float | None, typer.Option(help="Of fine-tuning, and of distillation.")] = None,
    soft_epochs: Annotated[float | None, typer.Option(help="Of soft pruning.")] = None,
    hard_epochs: Annotated[float | None, typer.Option(help="Of hard pruning.")] = None,
    joint_epochs: Annotated[float | None, typer.Option(help="Of exits and backbone together.")] = None,
    exit_epochs: Annotated[float | None, typer.Option(help="Of exit heads under a frozen backbone.")] = None,
    batch_size: Annotated[int, typer.Option(help="Texts a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Of the weights.")] = 5e-5,
    threshold_learning_rate: Annotated[float, typer.Option(help="Of the pruning thresholds, soft stage.")] = 1e-3,
    exit_learning_rate: Annotated[float, typer.Option(help="Of exit heads.")] = 1e-3,
    temperature: Annotated[float, typer.Option(help="Of soft pruning; LTP searched 1e-4 to 2e-3.")] = 1e-3,
    penalty: Annotated[float, typer.Option(help="Price of a token that stays; LTP found 0.01 to 0.2 useful.")] = 0.1,
    final_threshold: Annotated[float, typer.Option(help="Where layer L's threshold starts.")] = 0.01,
    exit_weight: Annotated[float, typer.Option(help="Of each exit's loss, trained jointly.")] = 0.3,
    reverse_kl: Annotated[bool, typer.Option("--reverse-kl", help="KL(student, teacher), as in Eq. 1.")] = False,
    keep: Annotated[float, typer.Option(help="Share of the tokens that layer L keeps, recipe power.")] = 0.3,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of a text at most; else the model's positions.")
    ] = None,
    normalizer: Annotated[
        str, typer.Option("--importance-normalizer", help="alive, input, or a number to divide importance by.")
    ] = "128",
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    stages: Annotated[
        str | None,
        typer.Option(help="These alone, in this order: out of fine-tune, distil, soft, hard, joint, exits; by commas."),
    ] = None,
    exit_training: Annotated[
        str | None, typer.Option(help="joint (with the backbone) or frozen (under it), instead of the recipe's way.")
    ] = None,
    freeze_backbone: Annotated[
        bool, typer.Option("--freeze-backbone", help="Learn thresholds and exit heads alone: minutes, not hours.")
    ] = False,
    max_drop: Annotated[float, typer.Option(min=0, help="Points of validation accuracy that exits may cost.")] = 0.5,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all processors if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Train a classifier: fine-tuning, soft pruning, hard pruning, exit heads, as the recipe says.

    Files have a column **label** and a column **text**, or **text_a** and **text_b**; data sets of a hub are named like
    **ag_news** or, with a configuration, **nyu-mll/glue:mrpc**. The model is left in OUTPUT/model, what was done in
    OUTPUT/summary.json. Epochs that are left out go by the number of training texts: fewer for larger sets.

    Examples:

        magic-pyramid fit train.tsv --model bert-base-uncased --output fits/news

        magic-pyramid fit train.tsv --validation dev.tsv --model ./minilm --output fits/mp --recipe mp --epochs 5

        magic-pyramid fit train.tsv --model ./my-classifier --output fits/quick --freeze-backbone
    """
    import torch
    from rich.console import Console
    from transformers.utils import logging as transformers_logging

    from mp_model.training import RECIPES, Settings, load_task
    from mp_model.training import fit as run

    if recipe not in RECIPES:
        raise ValueError(f"--recipe must be one of {', '.join(RECIPES)}; got {recipe!r}")
    if normalizer not in ("alive", "input") and not normalizer.replace(".", "", 1).isdecimal():
        raise ValueError(f"--importance-normalizer must be alive, input or a number; got {normalizer!r}")
    if threads:
        torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    console = Console(stderr=True)
    task = load_task(train, validation, seed)
    passes = {
        "epochs": epochs,
        "soft_epochs": soft_epochs,
        "hard_epochs": hard_epochs,
        "joint_epochs": joint_epochs,
        "exit_epochs": exit_epochs,
    }
    settings = Settings.for_texts(
        len(task.train),
        **{name: value for name, value in passes.items() if value is not None},
        batch_size=batch_size,
        learning_rate=learning_rate,
        threshold_learning_rate=threshold_learning_rate,
        exit_learning_rate=exit_learning_rate,
        temperature=temperature,
        penalty=penalty,
        final_threshold=final_threshold,
        exit_weight=exit_weight,
        reverse_kl=reverse_kl,
        keep=keep,
        max_length=max_length,
        importance_normalizer=normalizer if normalizer in ("alive", "input") else float(normalizer),
        seed=seed,
    )
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
    if as_json:
        print(json.dumps(asdict(summary)))
        return
    for stage, facts in summary.stages.items():
        console.print(f"{stage}: {facts['steps']:.0f} steps in {facts['seconds']:.0f} s, mean loss {facts['loss']:.3f}")
    exits = (
        ""
        if summary.exits_accuracy is None
        else f", {summary.exits_accuracy:.1%} with exits at {summary.exit_threshold}"
    )
    print(f"{output / 'model'}: validation accuracy {summary.validation_accuracy:.1%}{exits}")

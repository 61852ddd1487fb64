"""``python -m paper``: train, measure, write the report; each step goes on where it was."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers.utils import logging as transformers_logging

from mp_model import PyramidBertConfig
from mp_model.data.files import whole_file
from mp_model.data.samples import minilm

from .clocking import clock, settings_of
from .plan import CORPORA, jobs
from .report import write_report
from .results import all_results
from .training import is_there, train

STEPS = ("train", "measure", "clock", "report")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def thresholds_of(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The exit thresholds that a corpus's systems are timed at, by system."""
    return {system: settings_of(result, system) for system in result["systems"]}


def about(model: str | Path) -> dict[str, Any]:
    """The model, commit, date, software and processor that a corpus's figures come from."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "model": "MiniLM-L6" if model == minilm() else str(model),
        "layers": PyramidBertConfig.from_pretrained(model).num_hidden_layers,
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "processor": processor(),
    }


@app.command()
def main(
    corpora: Annotated[
        Path, typer.Option(envvar="MAGIC_PYRAMID_CORPORA", help="Folder of folders with train.tsv and test.tsv.")
    ] = Path("corpora"),
    hub: Annotated[bool, typer.Option("--hub", help="Read all corpora from the hub instead.")] = False,
    model: Annotated[
        str | None, typer.Option(help="BERT checkpoint: a folder, or a name on a hub. Default: MiniLM.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder for trained models.")] = Path("runs"),
    only: Annotated[
        list[str] | None, typer.Option(help="Corpus to take; may be given several times. Default: all.")
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option(help=f"Step to take, one of {', '.join(STEPS)}; may be given several times. Default: all."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Number of threads. Default: all processors.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for results.md and its pictures.")] = Path("docs"),
) -> None:
    """Run the paper's experiments on the corpora at hand. Finished work is not done again."""
    unknown = [name for name in only or [] if name not in CORPORA] + [name for name in step or [] if name not in STEPS]
    if unknown:
        raise ValueError(f"unknown: {', '.join(unknown)}; corpora are {', '.join(CORPORA)}, steps {', '.join(STEPS)}")
    if threads:
        torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    console, steps = Console(), step or STEPS
    folder = None if hub else corpora
    names = [name for name in only or CORPORA if is_there(folder, CORPORA[name])]
    for name in only or CORPORA:
        if name not in names:
            console.print(f"{CORPORA[name].title} is left out: no {corpora / name / 'train.tsv'}")
    weights = model or minilm()
    if "train" in steps:
        for job in jobs(runs, names):
            train(job, folder, weights, console)
    path = output / "results" / "results.json"
    document = json.loads(path.read_text()) if path.exists() else {"corpora": {}}
    if "measure" in steps:
        for name, result in all_results(names, runs, folder, console).items():
            before = document["corpora"].get(name, {})
            # Times that were taken at the same thresholds hold still.
            same = "clock" in before and thresholds_of(before) == thresholds_of(result)
            kept = {"clock": before["clock"]} if same else {}
            document["corpora"][name] = {**result, "about": about(weights), **kept}
    if "clock" in steps:
        for name in names:
            if name in document["corpora"]:
                result = document["corpora"][name]
                result["clock"] = clock(result, runs, folder, console)
    if "measure" in steps or "clock" in steps:
        document["corpora"] = {name: document["corpora"][name] for name in CORPORA if name in document["corpora"]}
        with whole_file(path) as stream:
            json.dump(document, stream)
    if "report" in steps:
        write_report(document, output)


app()

"""``python -m paper``: train, measure, write the report; each step goes on where it was."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from transformers.utils import logging as transformers_logging

from mp_model.checkpoints.configurations import read_config
from mp_model.data.files import whole_file
from mp_model.data.samples import minilm

from .clocking import clock, settings_of
from .plan import BACKBONES, CORPORA, MINILM, Backbone, Job, first_job, jobs
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


def about(job: Job) -> dict[str, Any]:
    """The model, commit, date, software and processor that a corpus's figures come from; job: a trained one."""
    config = read_config(job.model)
    kind = config.backbone.config.model_type
    shape = kind, config.num_hidden_layers, config.hidden_size
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "model": job.backbone.title if shape == job.backbone.shape else f"another {kind}",
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "commit": commit.stdout.strip() or "unknown",
        "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "scikit-learn")},
        "processor": processor(),
    }


def check_known(option: str, given: list[str] | None, known: Iterable[str]) -> None:
    """Ends the command where an option has a value that there is not."""
    unknown = [name for name in given or [] if name not in known]
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}; expected one of {', '.join(known)}", param_hint=option)


def measured(
    before: dict[str, Any], backbone: Backbone, names: list[str], runs: Path, corpora: Path | None, console: Console
) -> dict[str, Any]:
    """The results of a backbone by corpus, those of earlier measurements among them."""
    results = dict(before)
    for name, result in all_results(backbone, names, runs, corpora, console).items():
        old = before.get(name, {})
        # Times that were taken at the same thresholds hold still.
        same = "clock" in old and thresholds_of(old) == thresholds_of(result)
        kept = {"clock": old["clock"]} if same else {}
        results[name] = {**result, "about": about(first_job(runs, backbone, CORPORA[name], "bert")), **kept}
    return results


def keep(results: dict[str, Any], backbone: Backbone, document: dict[str, Any], path: Path) -> None:
    """Writes the document with these results of a backbone."""
    document["backbones"][backbone.name] = {name: results[name] for name in CORPORA if name in results}
    with whole_file(path) as stream:
        json.dump(document, stream)


@app.command()
def main(
    backbone_name: Annotated[
        str, typer.Option("--backbone", help=f"Pretrained model to train: {' or '.join(BACKBONES)}.")
    ] = MINILM.name,
    model: Annotated[
        str | None,
        typer.Option(help="Its checkpoint: a folder, or a name on a hub. MiniLM's is found where it is installed."),
    ] = None,
    corpora: Annotated[
        Path, typer.Option(envvar="MAGIC_PYRAMID_CORPORA", help="Folder of folders with train.tsv and test.tsv.")
    ] = Path("corpora"),
    hub: Annotated[bool, typer.Option("--hub", help="Read all corpora from the hub instead.")] = False,
    runs: Annotated[Path, typer.Option(help="Folder for trained models.")] = Path("runs"),
    only: Annotated[
        list[str] | None, typer.Option(help="Corpus to take; may be given several times. Default: the backbone's.")
    ] = None,
    fit: Annotated[
        list[str] | None,
        typer.Option(help="Fit to train, with those that it starts from; may be given several times. Default: all."),
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option(help=f"Step to take, one of {', '.join(STEPS)}; may be given several times. Default: all."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Number of threads. Default: all processors.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for results.md and its pictures.")] = Path("docs"),
) -> None:
    """Run the paper's experiments from one backbone on the corpora at hand. Finished work is not done again."""
    check_known("--backbone", [backbone_name], BACKBONES)
    backbone = BACKBONES[backbone_name]
    check_known("--only", only, CORPORA)
    check_known("--fit", fit, {x.name: x for x in backbone.fits})
    check_known("--step", step, STEPS)
    if threads:
        torch.set_num_threads(threads)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    console, steps = Console(), step or STEPS
    folder = None if hub else corpora
    wanted = only or backbone.corpora
    names = [name for name in wanted if is_there(folder, CORPORA[name])]
    for name in wanted:
        if name not in names:
            console.print(f"{CORPORA[name].title} is left out: no {corpora / name / 'train.tsv'}")
    if "train" in steps:
        if model is None and backbone is not MINILM:
            raise typer.BadParameter(f"give the checkpoint of {backbone.title}", param_hint="--model")
        for job in jobs(runs, backbone, names, fit):
            train(job, folder, model or minilm(), console)
    path = output / "results" / "results.json"
    document = json.loads(path.read_text()) if path.exists() else {"backbones": {}}
    results = document["backbones"].get(backbone.name, {})
    if "measure" in steps:
        results = measured(results, backbone, names, runs, folder, console)
        keep(results, backbone, document, path)
    if "clock" in steps:
        for name in (name for name in names if name in results):
            results[name]["clock"] = clock(results[name], backbone, runs, folder, console)
            keep(results, backbone, document, path)
    if "report" in steps:
        write_report(document, output)


if __name__ == "__main__":
    app()

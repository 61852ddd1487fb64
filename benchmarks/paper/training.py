"""Trains what the plan says; what is finished is passed over, what was cut off goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console

from mp_model.training import Task, load_task, train_stages

from .plan import Corpus, Job


def task_of(corpora: Path, corpus: Corpus, seed: int) -> Task:
    """The training texts, a tenth of them held out to choose thresholds on."""
    return load_task(corpora / corpus.name / "train.tsv", seed=seed)


def train(job: Job, corpora: Path, checkpoint: Path | str, console: Console) -> None:
    """One fit; its checkpoints are removed when it is finished, for each takes three times the model's room."""
    if job.model.is_dir():
        return
    start = checkpoint if job.fit.start is None else job.folder.parent / job.fit.start
    console.print(f"{job.corpus.title}, seed {job.seed}: {job.fit.name} ({' + '.join(job.fit.stages)})")
    task = task_of(corpora, job.corpus, job.seed)
    trained = train_stages(
        start, task, job.folder, job.fit.recipe, job.settings, stages=job.fit.stages, quiet=not console.is_terminal
    )
    for stage, facts in trained.stages.items():
        console.print(f"  {stage}: {facts['steps']:.0f} steps, {facts['seconds']:.0f} s, mean loss {facts['loss']:.3f}")
    for leftover in job.folder.glob("stages/*/checkpoint-*"):
        shutil.rmtree(leftover)

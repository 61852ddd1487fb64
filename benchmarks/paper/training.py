"""Training by the plan; a finished fit is passed over, one that was cut off goes on."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from mp_model.data.labels import LabelledTexts, load_split
from mp_model.data.samples import bbc_news
from mp_model.training import Settings, Task, load_task, train_stages
from mp_model.training.preparing import why_untrainable_in_bfloat16
from mp_model.training.recipes import TEACHERS

from .plan import Corpus, Job

BBC_TRAIN, BBC_VALIDATION, BBC_TEST = 700, 200, 600


def is_there(corpora: Path | None, corpus: Corpus) -> bool:
    """Whether a corpus can be read; ``corpora`` None stands for the hub, which has all of them."""
    return corpora is None or corpus.name == "bbc_news" or (corpora / corpus.name / "train.tsv").is_file()


def task_of(corpora: Path | None, corpus: Corpus, seed: int) -> Task:
    """The training texts, some of which are held out to choose thresholds on."""
    if corpora is None:
        return load_task(corpus.hub, seed=seed)
    if corpus.name == "bbc_news":
        articles, labels, topics = bbc_news()
        ends = (0, BBC_TRAIN, BBC_TRAIN + BBC_VALIDATION)
        parts = [LabelledTexts(articles[a:b], labels[a:b]) for a, b in itertools.pairwise(ends)]
        return Task(topics, *parts, held_out=True)
    return load_task(corpora / corpus.name / "train.tsv", seed=seed)


def test_texts(corpora: Path | None, corpus: Corpus, task: Task) -> LabelledTexts:
    """The texts that no training and no choice has seen."""
    if corpora is None:
        return load_split(corpus.hub, task.label_names, (corpus.test,))
    if corpus.name == "bbc_news":
        articles, labels, _ = bbc_news()
        begin = BBC_TRAIN + BBC_VALIDATION
        return LabelledTexts(articles[begin : begin + BBC_TEST], labels[begin : begin + BBC_TEST])
    return load_split(corpora / corpus.name / "test.tsv", task.label_names)


def settings_here(settings: Settings) -> Settings:
    """A plan's settings on this machine: in float32 where that is faster."""
    return settings if why_untrainable_in_bfloat16() is None else replace(settings, bfloat16=False)


def train(job: Job, corpora: Path | None, checkpoint: Path | str, console: Console) -> None:
    """Trains one fit."""
    if job.model.is_dir():
        return
    start = checkpoint if job.fit.start is None else job.beside(job.fit.start).model
    console.print(f"{job} ({' + '.join(job.fit.stages)})")
    task = task_of(corpora, job.corpus, job.seed)
    teacher = job.fit.teacher
    trained = train_stages(
        start,
        task,
        job.folder,
        job.fit.recipe,
        settings_here(job.settings),
        stages=job.fit.stages,
        teacher=teacher if teacher is None or teacher in TEACHERS else str(job.beside(teacher).model),
        quiet=not console.is_terminal,
    )
    for stage, facts in trained.stages.items():
        console.print(f"  {stage}: {facts['steps']:.0f} steps, {facts['seconds']:.0f} s, mean loss {facts['loss']:.3f}")

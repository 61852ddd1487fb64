"""The plan of the paper's experiments: what is trained from what, with which settings, and what can be asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from paper.plan import BACKBONES, CORPORA, MINILM, MPNET, Backbone, Job, first_job, jobs
from paper.training import settings_here

RUNS = Path("runs")


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=str)
def test_every_start_is_trained_before_it_is_needed(backbone: Backbone) -> None:
    trained: set[Path] = set()
    for job in jobs(RUNS, backbone, backbone.corpora):
        for name in (job.fit.start, job.fit.teacher):
            if name not in (None, "none"):
                assert job.beside(name).model in trained, job
        assert job.model not in trained
        trained.add(job.model)


def test_a_fit_brings_its_starts_and_nothing_else() -> None:
    names = [(job.seed, job.fit.name) for job in jobs(RUNS, MINILM, ["rte"], ["pyramid"])]
    assert names == [(seed, name) for seed in range(3) for name in ("bert", "soft", "joint", "pyramid")]
    lower = [job.fit.name for job in jobs(RUNS, MPNET, ["rte"], ["pyramid"])]
    assert lower == ["bert", "soft-lower", "joint", "pyramid"]
    assert [job.fit.name for job in jobs(RUNS, MINILM, ["bbc_news"], ["fastbert"])] == []


def test_backbones_are_kept_apart() -> None:
    for backbone in BACKBONES.values():
        job = first_job(RUNS, backbone, CORPORA["mrpc"], "pyramid")
        assert job.folder == RUNS / backbone.name / "mrpc" / "seed-0" / "pyramid"
        assert job.model == job.folder / "stages" / "1-exits" / "model"


def test_seeds() -> None:
    """Small and large sets alike have three of the systems that are compared, and one of everything else."""
    count: dict[tuple[str, str], int] = {}
    for job in jobs(RUNS, MINILM, MINILM.corpora):
        key = job.corpus.name, job.fit.name
        count[key] = count.get(key, 0) + 1
    for corpus in ("mrpc", "rte", "qqp", "ag_news"):
        for name in ("bert", "soft", "ltp", "mp", "joint", "pyramid", "fastbert"):
            assert count[corpus, name] == 3
        assert count[corpus, "power"] == 1
    assert count["newsgroups", "pyramid"] == count["go_emotions", "pyramid"] == 1
    assert {job.seed for job in jobs(RUNS, MPNET, MPNET.corpora)} == {0}


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    def job(backbone: Backbone, corpus: str, name: str) -> Job:
        return first_job(RUNS, backbone, CORPORA[corpus], name)

    large = job(MPNET, "ag_news", "joint").settings
    assert (large.learning_rate, large.head_learning_rate, large.exit_learning_rate) == (3e-5, 3e-4, 1e-3)
    assert (large.epochs, large.soft_epochs, large.hard_epochs, large.joint_epochs) == (2.0, 1.0, 1.0, 1.0)
    assert large.bfloat16
    assert job(MINILM, "ag_news", "bert").settings.bfloat16
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for fast in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda fast=fast: fast)
        assert settings_here(large) == dataclasses.replace(large, bfloat16=fast)
    # Lower layers alone begin at 0.015 l / 12 at 50 tokens a text; longer texts' importances are lower.
    lower = job(MPNET, "ag_news", "soft-lower").settings
    assert (lower.pruned_layers, lower.importance_normalizer) == (6, "alive")
    assert lower.final_threshold == pytest.approx(0.015)
    assert job(MPNET, "bbc_news", "soft-lower").settings.final_threshold == pytest.approx(0.015 / 8)
    assert job(MINILM, "bbc_news", "soft-alive").settings.final_threshold == pytest.approx(3.2e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fit", "piramid"], "piramid; expected one of bert, soft"),
        (["--only", "imdb"], "imdb; expected one of ag_news"),
        (["--backbone", "gpt"], "gpt; expected one of minilm, mpnet"),
        (["--step", "try"], "try; expected one of train"),
        (["--backbone", "mpnet", "--step", "train"], "give the checkpoint of MPNet-base"),
    ],
)
def test_what_there_is_not(options: list[str], said: str, tmp_path: Path) -> None:
    from paper.__main__ import app

    ended = CliRunner().invoke(app, [*options, "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "docs")])
    assert ended.exit_code == 2
    assert said in " ".join(ended.output.replace("│", " ").split())
    assert not list(tmp_path.iterdir())

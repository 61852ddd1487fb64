"""The plan of training: corpora, recipes, settings, and the fit that each fit starts from, so that stages are shared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mp_model.training import Settings


@dataclass(frozen=True)
class Corpus:
    """A labelled corpus.

    Attributes:
        name: name of its folder, which holds ``train.tsv`` and ``test.tsv``.
        title: name for people.
        hub: name of the data set on the hub.
        test: split of that data set that it is measured on.
        settings: epochs and rates; the paper's kind of schedule, cut where the machine is small.
        seeds: number of seeds.
        bounds: tokens of the longest texts of each range of lengths but the last.
        fits: names of the fits that are trained on it; None: all.
    """

    name: str
    title: str
    hub: str
    test: str
    settings: Settings
    seeds: int = 1
    bounds: tuple[int, ...] = (35, 70)
    fits: tuple[str, ...] | None = None


# Small and noisy sets take more passes and three seeds; large ones two passes of fine-tuning.
SMALL = Settings(epochs=4.0, soft_epochs=2.0, hard_epochs=1.0, exit_epochs=10.0)
LARGE = Settings(epochs=2.0, soft_epochs=1.0, hard_epochs=1.0, exit_epochs=10.0)

CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus("ag_news", "AG News", "fancyzhx/ag_news", "test", LARGE),
        Corpus("mrpc", "MRPC", "nyu-mll/glue:mrpc", "validation", SMALL, seeds=3),
        Corpus("qqp", "QQP", "nyu-mll/glue:qqp", "validation", replace(LARGE, epochs=3.0)),
        Corpus("rte", "RTE", "nyu-mll/glue:rte", "validation", SMALL, seeds=3),
        # Long texts, for the paper's Figure 1; it comes as a package and not as files.
        Corpus(
            "bbc_news",
            "BBC News",
            "SetFit/bbc-news",
            "test",
            replace(LARGE, epochs=3.0),
            bounds=(250, 400),
            fits=("bert", "soft", "ltp", "mp", "joint", "pyramid", "cls-frozen", "soft-alive", "ltp-alive"),
        ),
    )
}


@dataclass(frozen=True)
class Fit:
    """One training run.

    Attributes:
        name: name of its folder, under ``<corpus>/seed-<n>``.
        recipe: recipe that its heads and targets come from.
        stages: stages that it adds to its start.
        start: model that it starts from, in a folder beside its own; None: the checkpoint.
        changes: settings that differ from the corpus's, by name.
        teacher: teacher of its stage ``"joint"``, a model in a folder beside its own, or ``"none"``; None: the recipe's.
        all_seeds: whether it is trained for every seed, and not for the first alone.
        measured: whether it is a system of its own, and not only a start for others.
    """

    name: str
    recipe: str
    stages: tuple[str, ...]
    start: str | None = None
    changes: dict[str, Any] | None = None
    teacher: str | None = None
    all_seeds: bool = False
    measured: bool = True


JOINT = {"joint_epochs": 2.0}
FITS = (
    Fit("bert", "bert", ("fine-tune",), all_seeds=True),
    Fit("soft", "ltp", ("soft",), "bert/stages/1-fine-tune/model", all_seeds=True, measured=False),
    Fit("ltp", "ltp", ("hard",), "soft/stages/1-soft/model", all_seeds=True),
    Fit("mp", "mp", ("exits",), "ltp/stages/1-hard/model", all_seeds=True),
    Fit(
        "joint",
        "pyramid",
        ("joint",),
        "soft/stages/1-soft/model",
        JOINT,
        "bert/stages/1-fine-tune/model",
        all_seeds=True,
    ),
    Fit("pyramid", "pyramid", ("exits",), "joint/stages/1-joint/model", all_seeds=True),
    Fit("fastbert", "fastbert", ("exits",), "bert/stages/1-fine-tune/model", {"exit_epochs": 2.0}),
    Fit("distilbert", "distilbert", ("distil",), "bert/stages/1-fine-tune/model"),
    Fit("power", "power", ("hard",), "bert/stages/1-fine-tune/model"),
)

# Ingredients of "pyramid", each without one of the others; trained on one corpus.
ABLATIONS = (
    Fit("cls-frozen", "mp", ("exits",), "bert/stages/1-fine-tune/model"),
    Fit("pooled-frozen", "pyramid", ("exits",), "bert/stages/1-fine-tune/model"),
    Fit("pooled-pruned-frozen", "pyramid", ("exits",), "ltp/stages/1-hard/model"),
    Fit("joint-unpruned", "pyramid", ("joint",), "bert/stages/1-fine-tune/model", JOINT),
    Fit("pyramid-unpruned", "pyramid", ("exits",), "joint-unpruned/stages/1-joint/model"),
    Fit("joint-untaught", "pyramid", ("joint",), "soft/stages/1-soft/model", JOINT, "none", measured=False),
    Fit("pyramid-untaught", "pyramid", ("exits",), "joint-untaught/stages/1-joint/model"),
)
ABLATION_CORPUS = "ag_news"

# Importance divided by a fixed 128 is as high in long texts as in short ones; divided by the tokens that enter the layer, it
# is lower in long texts, and Figure 1 may come from that. Settings in its units are 128 / 400 of what they are elsewhere,
# since the long corpus has about 400 tokens a text.
ALIVE = {
    "importance_normalizer": "alive",
    "final_threshold": 3.2e-3,
    "temperature": 3.2e-4,
    "threshold_learning_rate": 3.2e-4,
}
BY_ENTERING_TOKENS = (
    Fit("soft-alive", "ltp", ("soft",), "bert/stages/1-fine-tune/model", ALIVE, measured=False),
    Fit("ltp-alive", "ltp", ("hard",), "soft-alive/stages/1-soft/model", ALIVE),
)


@dataclass(frozen=True)
class Job:
    """A fit of one corpus with one seed."""

    corpus: Corpus
    seed: int
    fit: Fit
    folder: Path

    @property
    def settings(self) -> Settings:
        """The corpus's settings with the fit's changes and the seed."""
        return replace(self.corpus.settings, seed=self.seed, **(self.fit.changes or {}))

    @property
    def model(self) -> Path:
        """The finished model's folder."""
        return self.folder / "stages" / f"{len(self.fit.stages)}-{self.fit.stages[-1]}" / "model"


def jobs(runs: Path, names: list[str]) -> Iterator[Job]:
    """All jobs of these corpora: first seeds first, and every start before it is needed."""
    for seed in range(max(CORPORA[name].seeds for name in names)):
        for name in names:
            corpus = CORPORA[name]
            if seed >= corpus.seeds:
                continue
            for fit in fits_of(corpus):
                if seed == 0 or fit.all_seeds:
                    yield Job(corpus, seed, fit, runs / name / f"seed-{seed}" / fit.name)


def fits_of(corpus: Corpus) -> list[Fit]:
    """All fits of a corpus, each start before the fits that start from it."""
    if corpus.fits is not None:
        return [fit for fit in FITS + ABLATIONS + BY_ENTERING_TOKENS if fit.name in corpus.fits]
    return list(FITS + (ABLATIONS if corpus.name == ABLATION_CORPUS else ()))

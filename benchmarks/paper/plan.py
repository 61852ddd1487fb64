"""The plan of training: backbones, corpora, settings, and the fit that each fit starts from, so that stages are shared."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mp_model.training import Settings
from mp_model.training.recipes import NO_TEACHER


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
        tokens: mean number of tokens of a text, roughly.
        fits: names of the fits that are trained on it, beside their starts; None: all of the backbone's.
    """

    name: str
    title: str
    hub: str
    test: str
    settings: Settings
    seeds: int = 1
    bounds: tuple[int, ...] = (35, 70)
    tokens: int = 50
    fits: tuple[str, ...] | None = None


# Small and noisy sets take more passes; large ones two passes of fine-tuning.
PASSES: dict[str, Any] = {"hard_epochs": 1.0, "joint_epochs": 2.0, "exit_epochs": 10.0, "bfloat16": True}
SMALL = Settings(epochs=4.0, soft_epochs=2.0, **PASSES)
LARGE = Settings(epochs=2.0, soft_epochs=1.0, **PASSES)
LONGER = replace(LARGE, epochs=3.0)
HARDER_FITS = ("bert", "mp", "joint", "pyramid", "distilbert")

CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus("ag_news", "AG News", "fancyzhx/ag_news", "test", LARGE, seeds=3),
        Corpus("mrpc", "MRPC", "nyu-mll/glue:mrpc", "validation", SMALL, seeds=3),
        Corpus("qqp", "QQP", "nyu-mll/glue:qqp", "validation", LONGER, seeds=3, tokens=30),
        Corpus("rte", "RTE", "nyu-mll/glue:rte", "validation", SMALL, seeds=3, tokens=70),
        # Long texts, for the paper's Figure 1; it comes as a package and not as files.
        Corpus(
            "bbc_news",
            "BBC News",
            "SetFit/bbc-news",
            "test",
            LONGER,
            bounds=(250, 400),
            tokens=400,
            fits=("bert", "ltp", "mp", "joint", "pyramid", "cls-frozen", "ltp-alive"),
        ),
        # Harder ground: many labels, several a text; and many topics of long, untidy texts.
        Corpus(
            "go_emotions",
            "GoEmotions",
            "google-research-datasets/go_emotions:simplified",
            "test",
            LONGER,
            bounds=(14, 22),
            tokens=20,
            fits=HARDER_FITS,
        ),
        Corpus(
            "newsgroups",
            "20 Newsgroups",
            "SetFit/20_newsgroups",
            "test",
            LONGER,
            bounds=(100, 250),
            tokens=200,
            fits=HARDER_FITS,
        ),
    )
}


@dataclass(frozen=True)
class Fit:
    """One training run.

    Attributes:
        name: name of its folder, under ``<backbone>/<corpus>/seed-<n>``.
        recipe: recipe that its heads and targets come from.
        stages: stages that it adds to its start.
        start: fit whose finished model it starts from; None: the checkpoint.
        changes: settings that differ from the corpus's, by name.
        by_length: settings in units of importance, which falls with the length of texts where it is divided by the tokens
            that enter the layer: times the mean number of tokens of the corpus's texts.
        teacher: teacher of its stage ``"joint"``, a fit or ``"none"``; None: the recipe's.
        corpora: names of the corpora that it is trained on; None: all.
        all_seeds: whether it is trained for every seed, and not for the first alone.
        measured: whether it is a system of its own, and not only a start for others.
    """

    name: str
    recipe: str
    stages: tuple[str, ...]
    start: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    by_length: Mapping[str, float] = field(default_factory=dict)
    teacher: str | None = None
    corpora: tuple[str, ...] | None = None
    all_seeds: bool = False
    measured: bool = True


FITS = (
    Fit("bert", "bert", ("fine-tune",), all_seeds=True),
    Fit("soft", "ltp", ("soft",), "bert", all_seeds=True, measured=False),
    Fit("ltp", "ltp", ("hard",), "soft", all_seeds=True),
    Fit("mp", "mp", ("exits",), "ltp", all_seeds=True),
    Fit("joint", "pyramid", ("joint",), "soft", teacher="bert", all_seeds=True),
    Fit("pyramid", "pyramid", ("exits",), "joint", all_seeds=True),
    # FastBERT's heads cannot be trained on states that are computed once.
    Fit("fastbert", "fastbert", ("exits",), "bert", {"exit_epochs": 2.0}, all_seeds=True),
    Fit("distilbert", "distilbert", ("distil",), "bert"),
    Fit("power", "power", ("hard",), "bert"),
)

# Ingredients of "pyramid", each without one of the others; trained on one corpus.
ABLATION_CORPUS = "ag_news"
ABLATED = (ABLATION_CORPUS,)
ABLATIONS = (
    Fit("cls-frozen", "mp", ("exits",), "bert", corpora=(ABLATION_CORPUS, "bbc_news")),
    Fit("pooled-frozen", "pyramid", ("exits",), "bert", corpora=ABLATED),
    Fit("pooled-pruned-frozen", "pyramid", ("exits",), "ltp", corpora=ABLATED),
    Fit("joint-unpruned", "pyramid", ("joint",), "bert", teacher="bert", corpora=ABLATED),
    Fit("pyramid-unpruned", "pyramid", ("exits",), "joint-unpruned", corpora=ABLATED),
    Fit("joint-untaught", "pyramid", ("joint",), "soft", teacher=NO_TEACHER, corpora=ABLATED, measured=False),
    Fit("pyramid-untaught", "pyramid", ("exits",), "joint-untaught", corpora=ABLATED),
)

# Importance divided by a fixed 128 is as high in long texts as in short ones; divided by the tokens that enter the layer, it
# is lower in long texts, and Figure 1 may come from that. At 128 tokens a text these settings are what they are elsewhere.
ALIVE: dict[str, Any] = {"importance_normalizer": "alive"}
ALIVE_BY_LENGTH = {"final_threshold": 1.28, "temperature": 0.128, "threshold_learning_rate": 0.128}
LONG = ("bbc_news",)
BY_ENTERING_TOKENS = (
    Fit("soft-alive", "ltp", ("soft",), "bert", ALIVE, ALIVE_BY_LENGTH, corpora=LONG, measured=False),
    Fit("ltp-alive", "ltp", ("hard",), "soft-alive", ALIVE, corpora=LONG),
)

# MPNet attends to few tokens: with importance divided by 128, most would be gone before anything is learned. One law on all
# twelve layers broke the last one in a trial without training, so "pyramid" learns to prune in the lower six alone, with
# thresholds that begin at a law that cost nothing there.
ALL_LAYERS = {"final_threshold": 0.5, "temperature": 0.05, "threshold_learning_rate": 0.05}
LOWER_LAYERS = {"final_threshold": 0.75, "temperature": 0.05, "threshold_learning_rate": 0.005}
MPNET_FITS = (
    Fit("bert", "bert", ("fine-tune",)),
    Fit("soft-lower", "ltp", ("soft",), "bert", {**ALIVE, "pruned_layers": 6}, LOWER_LAYERS, measured=False),
    Fit("joint", "pyramid", ("joint",), "soft-lower", ALIVE, teacher="bert"),
    Fit("pyramid", "pyramid", ("exits",), "joint", ALIVE),
    Fit("soft", "ltp", ("soft",), "bert", ALIVE, ALL_LAYERS, measured=False),
    Fit("ltp", "ltp", ("hard",), "soft", ALIVE),
    Fit("mp", "mp", ("exits",), "ltp", ALIVE),
    Fit("cls-frozen", "mp", ("exits",), "bert"),
    Fit("joint-unpruned", "pyramid", ("joint",), "bert", teacher="bert"),
    Fit("pyramid-unpruned", "pyramid", ("exits",), "joint-unpruned"),
    Fit("distilbert", "distilbert", ("distil",), "bert"),
)


@dataclass(frozen=True)
class Backbone:
    """A pretrained model, and what is trained from it.

    Attributes:
        name: name of its folder.
        title: name for people.
        shape: its ``model_type``, number of layers and hidden size.
        fits: its fits, each start before the fits that start from it.
        corpora: names of its corpora.
        changes: settings that differ from the corpora's, by name.
        changes_of: further ones, by corpus.
        seeds: number of seeds at most.
        smaller: the backbone of fewer layers that it is held against.
    """

    name: str
    title: str
    shape: tuple[str, int, int]
    fits: tuple[Fit, ...]
    corpora: tuple[str, ...]
    changes: Mapping[str, Any] = field(default_factory=dict)
    changes_of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: int = 3
    smaller: Backbone | None = None

    def settings(self, corpus: Corpus) -> Settings:
        """The settings of its fits on a corpus."""
        return replace(corpus.settings, **{**self.changes, **self.changes_of.get(corpus.name, {})})

    def fits_of(self, corpus: Corpus, only: Collection[str] | None = None) -> list[Fit]:
        """The fits of a corpus, each start before the fits that start from it.

        only: names of the fits that are wanted; their starts and teachers come along. None: all.
        """
        wanted = {
            fit.name
            for fit in self.fits
            if (fit.corpora is None or corpus.name in fit.corpora)
            and (corpus.fits is None or fit.name in corpus.fits)
            and (only is None or fit.name in only)
        }
        for fit in reversed(self.fits):
            if fit.name in wanted:
                wanted.update(name for name in (fit.start, fit.teacher) if name not in (None, NO_TEACHER))
        return [fit for fit in self.fits if fit.name in wanted]


MINILM_FITS = FITS + ABLATIONS + BY_ENTERING_TOKENS
MINILM = Backbone("minilm", "MiniLM-L6", ("bert", 6, 384), MINILM_FITS, tuple(CORPORA))
# One pass of joint training was enough in a trial; sets of a few thousand pairs take one more of fine-tuning.
MPNET = Backbone(
    "mpnet",
    "MPNet-base",
    ("mpnet", 12, 768),
    MPNET_FITS,
    ("ag_news", "mrpc", "qqp", "rte", "bbc_news"),
    {
        "epochs": 2.0,
        "soft_epochs": 1.0,
        "hard_epochs": 1.0,
        "joint_epochs": 1.0,
        "learning_rate": 3e-5,
        "head_learning_rate": 3e-4,
        "exit_learning_rate": 1e-3,
    },
    {"mrpc": {"epochs": 3.0}, "rte": {"epochs": 3.0}},
    seeds=1,
    smaller=MINILM,
)
BACKBONES = {backbone.name: backbone for backbone in (MINILM, MPNET)}


@dataclass(frozen=True)
class Job:
    """A fit from one backbone, on one corpus, with one seed; ``runs``: the folder of all of these."""

    backbone: Backbone
    corpus: Corpus
    seed: int
    fit: Fit
    runs: Path

    def __str__(self) -> str:
        return f"{self.backbone.title}, {self.corpus.title}, seed {self.seed}: {self.fit.name}"

    @property
    def folder(self) -> Path:
        """Everything that is kept of it."""
        return self.runs / self.backbone.name / self.corpus.name / f"seed-{self.seed}" / self.fit.name

    @property
    def settings(self) -> Settings:
        """The settings of the backbone and the corpus with the fit's changes and the seed."""
        by_length = {name: value / self.corpus.tokens for name, value in self.fit.by_length.items()}
        return replace(self.backbone.settings(self.corpus), seed=self.seed, **{**self.fit.changes, **by_length})

    @property
    def model(self) -> Path:
        """The finished model's folder."""
        return self.folder / "stages" / f"{len(self.fit.stages)}-{self.fit.stages[-1]}" / "model"

    def beside(self, name: str) -> Job:
        """Another fit from the same backbone, on the same corpus, with the same seed."""
        return replace(self, fit=next(fit for fit in self.backbone.fits if fit.name == name))

    def of_smaller(self) -> Job | None:
        """The finished fit of the same name from the backbone of fewer layers; None: there is none."""
        smaller = self.backbone.smaller
        job = smaller and replace(self, backbone=smaller).beside(self.fit.name)
        return job if job is not None and job.model.is_dir() else None


def first_job(runs: Path, backbone: Backbone, corpus: Corpus, name: str) -> Job:
    """The first seed's job of a fit, by its name."""
    return Job(backbone, corpus, 0, backbone.fits[0], runs).beside(name)


def jobs(runs: Path, backbone: Backbone, names: Collection[str], only: Collection[str] | None = None) -> Iterator[Job]:
    """All jobs of these corpora: first seeds first, and every start before it is needed.

    only: names of the fits that are wanted, as in :meth:`Backbone.fits_of`.
    """
    for seed in range(backbone.seeds):
        for corpus in (CORPORA[name] for name in names if seed < CORPORA[name].seeds):
            for fit in backbone.fits_of(corpus, only):
                if seed == 0 or fit.all_seeds:
                    yield Job(backbone, corpus, seed, fit, runs)

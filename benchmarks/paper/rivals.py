"""Rivals that are less work to build than a pyramid, as the exits of a whole BERT: read, tuned and counted like the systems.

A cascade asks something cheap first and the whole fine-tuned BERT for the rest: it is that BERT with one exit, at layer 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from mp_model.data.batches import Text
from mp_model.data.labels import LabelledTexts
from mp_model.measuring.all_exits import AllExits

from .measuring import SPLITS, Reading, keep, read_job
from .plan import Job
from .training import task_of, test_texts

TFIDF, LAYER_0, SMALLER = "tfidf", "layer-0", "six-layer"
RIVALS = (TFIDF, LAYER_0, SMALLER)
LEAST = 1e-9  # probability of a label that the training texts do not have


def cascade(first: Tensor, whole: AllExits, head: str = "pooled") -> AllExits:
    """A model that lets those texts leave before layer 1 of which something else is certain, and is whole for the others.

    Args:
        first: logits ``[texts, labels]`` of what is asked first.
        whole: the exits of the whole model, of which the last layer's alone is asked.
        head: kind of exit head as whose work the first answer is counted.
    """
    changes = {"exit_layers": [0], "exit_head": head, "exit_threshold": None}
    config = type(whole.config).from_dict({**whole.config.to_dict(), **changes})
    logits = {0: first, config.num_hidden_layers: whole.logits[config.num_hidden_layers]}
    return AllExits(config, whole.labels, whole.lengths, whole.survivors, logits)


def check_same_texts(one: AllExits, other: AllExits, names: str) -> None:
    """Raises ValueError for readings of different texts, or of labels in another order."""
    if not torch.equal(one.labels, other.labels):
        raise ValueError(f"{names} were read on different texts; delete what is kept of these runs' readings")


def _joined(texts: Sequence[Text]) -> list[str]:
    """Texts as bags of words have them, a pair as one text."""
    return [text if isinstance(text, str) else " ".join(text) for text in texts]


class BagOfWords:
    """Logistic regression on TF-IDF of single words and pairs of words.

    Args:
        train: texts to learn from.
        labels: number of labels.
    """

    def __init__(self, train: LabelledTexts, labels: int) -> None:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.linear_model import LogisticRegression
            from sklearn.multiclass import OneVsRestClassifier
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("the rivals need scikit-learn; run `pip install scikit-learn`") from error
        self.labels, self.several = labels, train.among is not None
        self.words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        regression = LogisticRegression(C=10.0, max_iter=1000)
        self.classifier = OneVsRestClassifier(regression) if self.several else regression
        self.classifier.fit(self.words.fit_transform(_joined(train.texts)), train.targets.numpy())

    def logits(self, texts: Sequence[Text]) -> Tensor:
        """float32 ``[texts, labels]``; a label that the training texts do not have is next to impossible."""
        known = torch.from_numpy(self.classifier.predict_proba(self.words.transform(_joined(texts))))
        places = torch.arange(self.labels) if self.several else torch.from_numpy(self.classifier.classes_)
        probabilities = torch.zeros(len(texts), self.labels, dtype=torch.float64)
        probabilities[:, places] = known
        probabilities = probabilities.clamp(LEAST, 1 - LEAST)
        return (probabilities.logit() if self.several else probabilities.log()).float()


def tfidf_cascade(bert: Job, whole: Reading, corpora: Path | None, console: Console) -> Reading:
    """TF-IDF with logistic regression first, the whole fine-tuned BERT for the rest; its answers are kept on disk.

    Its own work is counted as that of a head at layer 0, which is more products than it takes.

    bert: the finished job of that BERT.
    """
    paths = [bert.folder.parent / TFIDF / f"{split}.safetensors" for split in SPLITS]
    if not all(path.exists() for path in paths):
        console.print(f"{bert.backbone.title}, {bert.corpus.title}, seed {bert.seed}: {TFIDF}")
        names = whole.test.config.label_names
        task = task_of(corpora, bert.corpus, bert.seed).in_the_order_of(names)
        words = BagOfWords(task.train, len(names))
        for path, data in zip(paths, (task.validation, test_texts(corpora, bert.corpus, task)), strict=True):
            keep({"logits": words.logits(data.texts)}, path)
    first = [load_file(path)["logits"] for path in paths]
    return Reading(cascade(first[0], whole.validation), cascade(first[1], whole.test))


def layer_0_cascade(pyramid: Reading, whole: Reading) -> Reading | None:
    """A pyramid's head at layer 0 first, the whole fine-tuned BERT for the rest; None: it has no such head."""
    if 0 not in pyramid.test.logits:
        return None
    readings = []
    for mine, other in ((pyramid.validation, whole.validation), (pyramid.test, whole.test)):
        check_same_texts(mine, other, "pyramid and bert")
        readings.append(cascade(mine.logits[0], other, mine.config.exit_head))
    return Reading(*readings)


def smaller_bert(bert: Job, whole: Reading, corpora: Path | None, console: Console) -> Reading | None:
    """The fine-tuned BERT of the backbone of fewer layers, whole; None: there is no such backbone, or it is not trained."""
    job = bert.of_smaller()
    if job is None:
        return None
    reading = read_job(job, corpora, console)
    check_same_texts(reading.test, whole.test, f"{job} and {bert}")
    return reading


def add_rivals(
    readings: dict[tuple[int, str], Reading], berts: Sequence[Job], corpora: Path | None, console: Console
) -> None:
    """Adds the rivals' readings, by seed and name, to those of the systems; berts: the finished jobs ``"bert"``."""
    for bert in berts:
        whole, pyramid = readings[bert.seed, "bert"], readings.get((bert.seed, "pyramid"))
        readings[bert.seed, TFIDF] = tfidf_cascade(bert, whole, corpora, console)
        others: dict[str, Reading | None] = {
            LAYER_0: pyramid and layer_0_cascade(pyramid, whole),
            SMALLER: smaller_bert(bert, whole, corpora, console),
        }
        readings.update({(bert.seed, name): x for name, x in others.items() if x is not None})

"""The report: one HTML file about a model and its answers to labelled texts, which needs no network and no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.batches import Text
from ..data.files import check_folder, whole_file
from ..measuring.evaluation import Evaluation
from ..measuring.record import Predictions
from ..modelling import PyramidForSequenceClassification
from . import charts
from .charts import Point
from .findings import Findings, OfLabel, by_label
from .shading import ShadedText, shade_answer
from .summary import summary_of
from .words import seconds_text, share_text, threshold_text, times_text, work_text

TEMPLATE = "report.html"
MATRIX_LABELS = 40  # most labels whose confusions are shown as a matrix
FEW_LABELS = 8  # of those, the most that fit on a phone, with their names in rows
WORDS = 90  # of a text, at most
SURE = 0.55  # share of the layers from which on a word's colour asks for white letters


@dataclass(frozen=True)
class Beside:
    """A classifier to compare with: its name, its accuracy as a share, and its seconds for a text."""

    name: str
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Measurements:
    """A model and all that was measured of it on labelled texts.

    Attributes:
        folder: name of the model, for people.
        source: name of the file or the data set of the texts.
        model, tokenizer: the classifier.
        texts: the texts.
        exits: the answers of all exits to them.
        evaluations: evaluations by exit threshold, the one of the model as it is set first.
        beside: the classifier that time was measured beside; None: no time was measured.
        settings: settings and versions, by name.
        notes: sentences for the reader, such as how many texts were cut.
    """

    folder: str
    source: str
    model: PyramidForSequenceClassification
    tokenizer: Any
    texts: Sequence[Text]
    exits: Predictions
    evaluations: Sequence[Evaluation]
    beside: Beside | None
    settings: Mapping[str, Any]
    notes: Sequence[str] = ()


def check_report(path: Path) -> None:
    """Raises an error if no report could be written to a path, before anything is measured.

    Raises:
        ModuleNotFoundError: a library that draws is missing.
        OSError: the folder cannot be written to, or the path is one.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"a report needs {error.name}; run `pip install 'magic-pyramid[report]'`", name=error.name
        ) from error
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected a name for an HTML file")
    check_folder(path.parent)


def write_report(path: Path, measured: Measurements, shown: int = 8) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: name of the HTML file.
        measured: what it is about.
        shown: texts of each list, at most.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("mp_model.reporting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=share_text, times=times_text, threshold=threshold_text, seconds=seconds_text, work=work_text
    )
    content = _content(measured, shown)
    content["charts"] = {name: Markup(svg) for name, svg in _charts(measured, content["findings"]).items()}
    page = environment.get_template(TEMPLATE).render(**content)
    with whole_file(path) as stream:
        stream.write(page)


def _content(measured: Measurements, shown: int) -> dict[str, Any]:
    """Everything that the template shows but the charts, by name."""
    evaluation = measured.evaluations[0]
    findings = Findings.of(measured.exits, evaluation.exit_threshold)
    names = measured.model.config.label_names
    labels = by_label(findings, names)
    few = len(names) <= FEW_LABELS
    has_matrix = len(names) <= MATRIX_LABELS and not findings.problem.several
    confusions = [(_named(a, names), _named(b, names), count) for a, b, count in findings.confusions(10)]
    return {
        "measured": measured,
        "evaluation": evaluation,
        "findings": findings,
        "summary": summary_of(measured.evaluations, findings, measured.beside),
        "names": names,
        "few": few,
        "matrix": findings.confusion().tolist() if has_matrix else None,
        "labels": labels if few else sorted(labels, key=_from_the_worst),
        "confusions": [] if few and has_matrix else confusions,
        "by_layer": findings.by_layer(),
        "uncertain": [_shown(measured, findings, place) for place in findings.most_uncertain(shown)],
        "errors": [_shown(measured, findings, place) for place in findings.surest_errors(shown)],
        "layers": measured.model.config.num_hidden_layers,
        "prunes": any(share is not None and share < 1 for share in evaluation.tokens_kept),
        "sure": SURE,
    }


@dataclass(frozen=True)
class Shown:
    """A text in a list, with its answer.

    Attributes:
        shaded: its words and how far each went.
        words: the words that are shown, each with its share of the layers.
        left_out: number of words that are not.
        label, right: names of the labels that were answered and of the right ones.
        score, uncertainty, layer: of the answer.
    """

    shaded: ShadedText
    words: list[tuple[str, float]]
    left_out: int
    label: str
    right: str
    score: float
    uncertainty: float
    layer: int


def _shown(measured: Measurements, findings: Findings, place: int) -> Shown:
    threshold = measured.evaluations[0].exit_threshold
    shaded = shade_answer(measured.model, measured.tokenizer, measured.texts[place], threshold)
    shares = [reached / shaded.layers for reached in shaded.reached]
    names = measured.model.config.label_names
    label, right = (
        _named(findings.labels_of(x[place : place + 1])[0], names) for x in (findings.predictions, findings.labels)
    )
    return Shown(
        shaded=shaded,
        words=list(zip(shaded.words, shares, strict=True))[:WORDS],
        left_out=max(0, len(shaded.words) - WORDS),
        label=label,
        right=right,
        score=float(findings.scores[place]),
        uncertainty=float(findings.uncertainty[place]),
        layer=int(findings.exit_layer[place]),
    )


def _named(labels: Sequence[int], names: Sequence[str]) -> str:
    """Labels by their names."""
    return ", ".join(names[label] for label in labels) or "no label"


def _from_the_worst(label: OfLabel) -> tuple[bool, float, int]:
    """A key by which labels stand from the lowest F1 to the highest, and those without any at the end."""
    return label.f1 is None, label.f1 or 0.0, -label.texts


def _charts(measured: Measurements, findings: Findings) -> dict[str, str]:
    """The charts as SVG, by name."""
    evaluations, chosen = measured.evaluations, measured.evaluations[0]
    drawn = {
        "work": charts.trade_off(
            [Point(x.executed_gflops, x.accuracy, "") for x in evaluations],
            Point(chosen.executed_gflops, chosen.accuracy, "as it is set"),
            None,
            "GFLOPs a text, executed",
        ),
        "exits": charts.bars(
            [100 * count / chosen.texts for count in chosen.exits],
            list(map(str, range(len(chosen.exits)))),
            x="layer of the exit",
            y="texts, %",
            form="%.0f",
        ),
        "lengths": charts.bars(
            [bucket.speed_up for bucket in chosen.buckets],
            [bucket.name for bucket in chosen.buckets],
            x="tokens of the text",
            y="times less work",
            form="%.1f",
            factors=True,
        ),
        "reliability": charts.reliability(findings.bins()),
    }
    if chosen.tokens_kept[0] is not None:
        drawn["tokens"] = charts.bars(
            [None if share is None else 100 * share for share in chosen.tokens_kept],
            list(map(str, range(1, len(chosen.tokens_kept) + 1))),
            x="layer",
            y="tokens alive after it, %",
            series=2,
            form="%.0f",
        )
    if measured.beside is not None:
        timed = [Point(1e3 * x.seconds, x.accuracy, "as it is set") for x in evaluations if x.seconds is not None]
        beside = Point(1e3 * measured.beside.seconds, measured.beside.accuracy, measured.beside.name)
        drawn["time"] = charts.trade_off(timed, timed[0], beside, "milliseconds a text")
    return drawn

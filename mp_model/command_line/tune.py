"""``magic-pyramid tune``: the choice of exit thresholds, and of the strength of pruning, for a user's goal."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..reporting.words import threshold_text, times_text
from .evaluate import table_of, told_apart_table
from .loading import check_model_folder, for_the_model, numbers_of, read_exits
from .options import Running, takes_dataclasses

if TYPE_CHECKING:
    from rich.table import Table

    from ..measuring.all_exits import AllExits
    from ..measuring.failures import ToldApart
    from ..measuring.tuning import Outcome, TradeOff
    from ..serving.classifier import Classifier


CONFIDENCE = 0.9  # of --max-disagreement


@dataclass(frozen=True)
class Bound:
    """A share of all texts that is not exceeded.

    Attributes:
        share: whose share: those that are harmed, or those that get another answer than the last layer's.
        most: the share, in (0, 1).
        confidence: probability that it holds, in (0, 1).
    """

    share: Literal["harm", "disagreement"]
    most: float
    confidence: float


def share_of(option: str, value: str) -> float:
    """A share in (0, 1), given as such or with a percent sign.

    Raises:
        ValueError: it is no such share.
    """
    try:
        share = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise ValueError(f"{option} must be a share above 0 and below 1, such as 0.01, or 1%; got {value!r}")
    return share


@dataclass(frozen=True)
class Goal:
    """A goal, and the settings among which the one that meets it best is chosen."""

    max_drop: Annotated[float | None, typer.Option(min=0, help="Goal: points of accuracy that may be lost.")] = None
    speedup: Annotated[
        float | None, typer.Option(min=0, help="Goal: times less executed work than the dense model without padding.")
    ] = None
    latency: Annotated[float | None, typer.Option(min=0, help="Goal: milliseconds a text, on this machine.")] = None
    max_disagreement: Annotated[
        str | None,
        typer.Option(help="Goal: share of texts, 1% or 0.01 say, that may get another answer than the last layer's."),
    ] = None
    uncertainty: Annotated[
        str,
        typer.Option(
            help="Uncertainty to leave by: entropy, disagreement (told by confidence heads), or auto, which saves more."
        ),
    ] = "auto"
    by_layer: Annotated[bool, "Choose a threshold for each layer: fits the texts better, few of them too well."] = False
    depth: Annotated[
        bool,
        typer.Option("--depth", help="Also close everything above a layer, where that meets the goal with less work."),
    ] = False
    factors: Annotated[str | None, "Multiples of the pruning thresholds to try, by commas; 1 always is."] = None
    confidence: Annotated[
        float | None,
        "With --max-drop: be so sure, 0.9 say, that no more is lost on all such texts; 0.9 for --max-disagreement.",
    ] = None
    counted: Annotated[bool, "With --max-drop or --max-disagreement: go by what is counted on these texts alone."] = (
        False
    )

    def __post_init__(self) -> None:
        goals = {
            "--max-drop": self.max_drop,
            "--speedup": self.speedup,
            "--latency": self.latency,
            "--max-disagreement": self.max_disagreement,
        }
        given = [name for name, value in goals.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"give one goal out of {', '.join(goals)}; got {' and '.join(given) or 'none'}")
        bounded = self.max_drop is not None or self.max_disagreement is not None
        if self.confidence is not None and not bounded:
            raise ValueError("--confidence bounds what is lost; it goes with --max-drop or --max-disagreement")
        if self.counted and (not bounded or self.confidence is not None):
            raise ValueError(
                "--counted says how a loss is estimated; it goes with --max-drop or --max-disagreement, without --confidence"
            )
        if self.max_disagreement is not None:
            share_of("--max-disagreement", self.max_disagreement)
        if self.strengths[0] < 0:
            raise ValueError(f"--factors must be 0 or more; got {self.strengths[0]}")

    @property
    def asked(self) -> dict[str, Any]:
        """The options that were given, by name."""
        return {x.name: value for x in fields(self) if (value := getattr(self, x.name)) != x.default}

    @property
    def bound(self) -> Bound | None:
        """What is bounded on all texts, not only estimated on these; None: nothing."""
        if self.counted:
            return None
        if self.max_disagreement is not None:
            most = share_of("--max-disagreement", self.max_disagreement)
            return Bound("disagreement", most, CONFIDENCE if self.confidence is None else self.confidence)
        if self.max_drop is None or self.confidence is None:
            return None
        return Bound("harm", self.max_drop / 100, self.confidence)

    @property
    def strengths(self) -> list[float]:
        """The multiples of the pruning thresholds, rising; 1 is among them."""
        return sorted({1.0, *([] if self.factors is None else numbers_of("--factors", self.factors, float))})


@dataclass(frozen=True)
class Choice:
    """The outcome that was chosen.

    Attributes:
        offers: all that the model can be tuned to.
        chosen: the outcome that meets the goal.
        seconds: time for a text, where the goal was a latency.
        prune_thresholds: thresholds of pruning that go with it.
        tried: the outcome that meets the goal best by each kind of uncertainty that can.
        told_apart: how well uncertainties tell, at the model's own pruning, which early answers differ from the last's.
    """

    offers: TradeOff
    chosen: Outcome
    seconds: float | None = None
    prune_thresholds: list[float] | None = None
    tried: dict[str, Outcome] = field(default_factory=dict)
    told_apart: list[ToldApart] = field(default_factory=list)


@takes_dataclasses
def tune(
    *,
    texts: Annotated[str, typer.Argument(help="Labelled tsv, csv, jsonl or parquet file; or a data set's name.")],
    model: Annotated[
        Path, typer.Option(help="Folder of a saved model and its tokenizer; the choice is written there.")
    ],
    goal: Goal,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Choose and print; write nothing.")] = False,
    running: Running,
    as_json: Annotated[bool, typer.Option("--json", help="Print the curve and the choice as JSON.")] = False,
) -> Choice:
    """Choose exit thresholds on validation texts, for one goal; losses count from the model with its exits closed.

    Prints the whole trade-off curve, and writes the choice into the model. The fastest setting whose counted loss is small
    enough was lucky on these texts; so **--max-drop** also holds for the mean of the counted loss and the loss that the
    model's own head, calibrated, expects. With **--confidence** the loss is bounded, not only estimated: learn then test,
    with an exact binomial test of how many answers become wrong. **--max-disagreement** is such a bound too: of how many
    answers are others than the last layer's, right or wrong. A model with confidence heads (`magic-pyramid fit
    --exit-uncertainty auto`) may leave by the probability of that; whichever uncertainty meets the goal with less work is
    taken, entropy if both do alike.

    Examples:

        magic-pyramid tune dev.tsv --model fits/news/model --max-drop 0.5

        magic-pyramid tune dev.tsv --model fits/news/model --speedup 8 --factors 0.5,2

        magic-pyramid tune dev.tsv --model fits/news/model --max-disagreement 1% --confidence 0.95
    """
    check_model_folder(model)

    from rich.console import Console

    from ..checkpoints.configurations import read_config
    from ..checkpoints.tuned_for import TunedForOtherWarning
    from ..data.files import check_folder
    from ..data.labels import VALIDATION, read_rows
    from ..measuring.failures import told_apart
    from ..measuring.tuning import kinds_of_uncertainty
    from ..serving.classifier import Classifier

    console = Console(stderr=True)
    if not dry_run:
        check_folder(model)
    kinds_of_uncertainty(read_config(model), goal.uncertainty)
    rows = read_rows(texts, VALIDATION, read_config(model).label_names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TunedForOtherWarning)  # they are about to be chosen anew
        classifier = Classifier.load(model, running.precision, running.device, running.threads, every_layer=True)
    _ = classifier.model.config.choice  # which is refused where answers are values
    classifier.model.config.depth = None  # it is chosen anew, too
    classifier.model.config.check_exits(1.0)
    prunings = _prunings(classifier.model.config.resolved_thresholds(), goal.strengths)
    data, batches = for_the_model(rows, texts, classifier, running.batch_size)
    by_factor = {}
    for factor, thresholds in prunings.items():
        doing = "Read all texts" if len(prunings) == 1 else f"Read all texts, pruning x {factor:g}"
        by_factor[factor] = read_exits(classifier.model, batches, data.targets, console, doing, thresholds)

    def measure(outcome: Outcome) -> float:
        from ..measuring.timing import time_ways, way_at

        classifier.model.config.depth = outcome.depth
        classifier.model.config.exit_uncertainty = outcome.exit_uncertainty
        way = way_at(classifier.model, outcome.exit_threshold, prunings[outcome.factor])
        return time_ways({"it": way}, batches)["it"]

    choice = _choose_uncertainty(goal, by_factor, measure)
    chosen = choice.chosen
    choice = replace(choice, prune_thresholds=prunings[chosen.factor], told_apart=told_apart(by_factor[1.0]))
    if not dry_run:
        exits = by_factor[chosen.factor].by(chosen.exit_uncertainty)
        _write(model, classifier, choice, goal, exits.capped(chosen.depth))
        _refresh_card(model, classifier, choice)
    if as_json:
        print(json.dumps(_document(choice, goal, written=not dry_run)))
    else:
        _show(choice, goal, "not written" if dry_run else f"written to {model / 'config.json'}")
    return choice


# What is computed


def _show(choice: Choice, goal: Goal, where: str) -> None:
    from rich.console import Console

    Console().print(_curve(choice), *([told] if (told := told_apart_table(choice.told_apart)) else []))
    print(_sentence(choice, goal, where))


def _prunings(own: Sequence[float] | None, factors: Sequence[float]) -> dict[float, list[float] | None]:
    """The pruning thresholds times each factor, by factor; None: the model has none.

    Raises:
        ValueError: factors other than 1 of thresholds that there are not.
    """
    if own is None and list(factors) != [1.0]:
        raise ValueError(
            "--factors multiply pruning thresholds, and this model has none; fit it with a recipe that prunes"
        )
    return {factor: None if own is None else [factor * x for x in own] for factor in factors}


def _choose_uncertainty(goal: Goal, by_factor: dict[float, AllExits], measure: Callable[[Outcome], float]) -> Choice:
    """The choice by the kind of uncertainty that meets the goal best: with the least work, or the highest accuracy."""
    from ..measuring.tuning import kinds_of_uncertainty

    kinds = kinds_of_uncertainty(by_factor[1.0].config, goal.uncertainty)
    choices: dict[str, Choice] = {}
    for kind in kinds:
        exits = {factor: x.by(kind) for factor, x in by_factor.items()}
        try:
            choices[kind] = _choose(goal, exits, measure, len(kinds))
        except ValueError:
            if kind == kinds[-1] and not choices:
                raise
    fast = goal.speedup is not None or goal.latency is not None

    def cost(choice: Choice) -> float:
        return -choice.chosen.accuracy if fast else choice.chosen.executed_gflops

    best = min(choices.values(), key=cost)  # the first of equals, which is entropy
    return replace(best, tried={kind: choice.chosen for kind, choice in choices.items()})


def _choose(
    goal: Goal, by_factor: dict[float, AllExits], measure: Callable[[Outcome], float], kinds: int = 1
) -> Choice:
    """All that is offered, the outcome that meets the goal, and its seconds for a text where they were measured.

    kinds: kinds of uncertainty that are tried, by which errors of a bound add up.
    """
    from ..measuring.tuning import trade_off

    bound = goal.bound
    if bound is not None:
        return Choice(*_guaranteed(by_factor, goal, bound, 1 - (1 - bound.confidence) / kinds))
    offers = trade_off(by_factor, layered=goal.by_layer, depths=goal.depth)
    if goal.max_disagreement is not None:
        return Choice(offers, offers.agreeing(share_of("--max-disagreement", goal.max_disagreement)))
    if goal.max_drop is not None:
        return Choice(offers, offers.fastest(goal.max_drop / 100, counted=goal.counted))
    if goal.speedup is not None:
        return Choice(offers, offers.most_accurate(goal.speedup))
    assert goal.latency is not None
    return Choice(offers, *offers.within_latency(goal.latency / 1e3, measure))


def _guaranteed(
    by_factor: dict[float, AllExits], goal: Goal, bound: Bound, confidence: float
) -> tuple[TradeOff, Outcome]:
    """All that is offered, and the fastest of it whose harm, or disagreement, is bounded.

    One threshold for all layers is a path that no text had a part in, so all texts test it; a path that is chosen by
    texts is made of one half of them and tested on the other.
    """
    import torch

    from ..measuring import tuning
    from ..measuring.tuning import outcomes_of_one_threshold, trade_off

    everything = by_factor[1.0]
    if goal.by_layer or goal.depth or len(by_factor) > 1:
        order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))
        learn, test = order[: len(order) // 2], order[len(order) // 2 :]
        learned = {factor: exits.select(learn) for factor, exits in by_factor.items()}
        offers = trade_off(learned, layered=goal.by_layer, depths=goal.depth)
        path = offers.curve() if bound.share == "harm" else offers.curve(lambda outcome: -outcome.disagreement)
        tests = {factor: exits.select(test) for factor, exits in by_factor.items()}
    else:
        offers = trade_off(by_factor, layered=False)
        path, tests = outcomes_of_one_threshold(everything), by_factor
    chosen = tuning.guaranteed(tests, path, bound.most, confidence, bound.share)
    if chosen is None:
        most = f"{100 * bound.most:g}"
        wanted, few, more = (
            (f"{most} points", "few harmed", "a goal of more points")
            if bound.share == "harm"
            else (f"{most} % of other answers", "few other answers", "a larger share")
        )
        raise ValueError(
            f"with these {len(tests[1.0])} texts nothing can be guaranteed at {wanted} and confidence {confidence:g}; it "
            f"takes at least {tuning.texts_needed(bound.most, confidence)} texts, and {few} among them. Give more texts, or "
            f"{more}"
        )
    return offers, chosen


def _write(folder: Path, classifier: Classifier, choice: Choice, goal: Goal, exits: AllExits) -> None:
    """Changes thresholds and depth in a model's config.json, with the record of what they were tuned for, and nothing else.

    exits: the answers of all exits, under the pruning and the depth that were chosen.
    """
    from ..checkpoints.tuned_for import record_of
    from ..data.files import whole_file
    from ..measuring.levels import priced_levels

    config = classifier.model.config
    config.exit_threshold, config.prune_thresholds = choice.chosen.exit_threshold, choice.prune_thresholds
    config.depth, config.exit_uncertainty = choice.chosen.depth, choice.chosen.exit_uncertainty
    document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    document["exit_threshold"] = config.exit_threshold
    document["prune_thresholds"] = config.prune_thresholds
    if config.depth is not None or "depth" in document:
        document["depth"] = config.depth
    if config.confidence_heads:
        document["exit_uncertainty"] = config.exit_uncertainty
    record = record_of(classifier.model, classifier.tokenise.max_length, len(exits), goal.asked)
    levels = [level.as_json() for level in priced_levels(replace(exits, judge=None), config.exit_threshold)]
    document["tuned_for"] = {**record, "levels": levels}
    with whole_file(folder / "config.json") as stream:
        json.dump(document, stream, indent=2)
        stream.write("\n")


def _refresh_card(folder: Path, classifier: Classifier, choice: Choice) -> None:
    """Puts the choice into the card that a fit wrote of the model, if there is one."""
    from ..reporting.card import Figure, figures_of, refresh_card
    from .info import settings_of

    figures = [
        Figure(name, x.accuracy, x.executed_gflops, x.speed_up)
        for name, x in (
            ("exits closed", choice.offers.reference),
            (f"exit threshold {threshold_text(choice.chosen.exit_threshold)}", choice.chosen),
        )
    ]
    settings = {
        **settings_of(classifier.model.config),
        "longest text": f"{classifier.tokenise.max_length} tokens",
        "precision": classifier.precision.name,
    }
    refresh_card(folder, figures_of(figures, choice.offers.reference.texts, settings))


# What is shown


def _document(choice: Choice, goal: Goal, written: bool) -> dict[str, Any]:
    """Everything, as JSON has it."""
    reference = choice.offers.reference
    return {
        "texts": reference.texts,
        "accuracy_without_exits": reference.accuracy,
        "chosen": choice.chosen.as_json(),
        "prune_thresholds": choice.prune_thresholds,
        "seconds": choice.seconds,
        "confidence": None if goal.bound is None else goal.bound.confidence,
        "written": written,
        "tried": {kind: outcome.as_json() for kind, outcome in choice.tried.items()},
        "told_apart": [row.as_json() for row in choice.told_apart],
        "curve": [outcome.as_json() for outcome in choice.offers.curve()],
    }


def _sentence(choice: Choice, goal: Goal, where: str) -> str:
    """The choice in one sentence."""
    import torch

    reference, chosen = choice.offers.reference, choice.chosen
    counted, expected = (_points(reference.accuracy - x) for x in (chosen.accuracy, chosen.expected_accuracy))
    texts = reference.texts
    said = f"{chosen.speed_up:.2f} times less work; {counted} on these {texts} texts, {expected} expected on others"
    if chosen.depth is not None:
        said += f"; everybody leaves by layer {chosen.depth}"
    if len(choice.tried) > 1:
        others = (f"{x.speed_up:.2f} by {kind}" for kind, x in choice.tried.items() if kind != chosen.exit_uncertainty)
        said += f"; by {chosen.exit_uncertainty} ({', '.join(others)})"
    if goal.max_disagreement is not None:
        said += f"; {chosen.disagreement:.2%} other answers than the last layer's"
    if goal.bound is not None:
        most = f"{100 * goal.bound.most:g} {'points' if goal.bound.share == 'harm' else '%'}"
        said += f"; no more than {most} with confidence {goal.bound.confidence:g}"
    if choice.seconds is not None:
        said += f", {1e3 * choice.seconds:.2f} ms a text with {torch.get_num_threads()} threads"
    return f"{said}; {where}"


def _points(lost: float) -> str:
    """A loss of accuracy, a share, for people."""
    return f"{100 * lost:.2f} points lost" if lost >= 0 else f"{-100 * lost:.2f} points gained"


def _curve(choice: Choice) -> Table:
    """The outcomes that no other beats, with the chosen one marked."""
    columns = ["", "threshold", "depth", "pruning\nx", "accu-\nracy", "made\nwrong", "mean\nexit", "GFLOPs\npaper"]
    table = table_of("The trade-off, slowest first", [*columns, "exe-\ncuted", "work\nsaved"])
    curve = choice.offers.curve()
    shown = curve if choice.chosen in curve else [*curve, choice.chosen]
    for x in sorted(shown, key=lambda x: -x.executed_gflops):
        table.add_row(
            ">" if x == choice.chosen else "",
            threshold_text(x.exit_threshold),
            "" if x.depth is None else str(x.depth),
            f"{x.factor:g}",
            f"{x.accuracy:.2%}",
            f"{x.harm:.2%}",
            f"{x.mean_exit_layer:.2f}",
            f"{x.gflops:.3f}",
            f"{x.executed_gflops:.3f}",
            times_text(x.speed_up),
        )
    return table

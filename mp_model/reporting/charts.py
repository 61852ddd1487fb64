"""Charts for a page, as inline SVG that takes its colours from the page's style sheet, so that it follows its theme."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

# Colours while matplotlib draws, and what stands in the SVG instead: the page's text, its lines, and its palette.
INK, FAINT = "#010101", "#010102"
SERIES = ("#010103", "#010104", "#010105")
INSTEAD = {INK: "currentColor", FAINT: "var(--faint)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, 1)
}
FAR_APART = 20.0  # the largest value over the smallest, beyond which small ones could not be told apart
LEAST_SPAN = 4.0  # points of accuracy that an axis shows
WIDTH, HEIGHT = 4.5, 2.9  # inches; on a phone they are about as wide as the screen


class Point(NamedTuple):
    """A setting of a model in a chart: what it costs, its accuracy as a share, and its name."""

    cost: float
    accuracy: float
    name: str


class Bin(NamedTuple):
    """Answers whose scores lie close together: their number, and the mean score and the share of right ones."""

    texts: int
    said: float
    was: float


def trade_off(curve: Sequence[Point], chosen: Point, beside: Point | None, cost: str) -> str:
    """Accuracy over cost: a line through ``curve``, the chosen setting, and something to compare with.

    cost: the horizontal axis, with its unit.
    """
    figure, axes = _axes(xlabel=cost, ylabel="accuracy, %")
    ordered = sorted(curve)
    axes.plot([x.cost for x in ordered], [100 * x.accuracy for x in ordered], ".-", color=SERIES[0], linewidth=1.6)
    axes.plot(chosen.cost, 100 * chosen.accuracy, "o", color=SERIES[1], markersize=9, label=chosen.name, clip_on=False)
    if beside is not None:
        axes.plot(beside.cost, 100 * beside.accuracy, "s", color=INK, markersize=7, label=beside.name)
    axes.set_xlim(left=0)
    low, high = axes.get_ylim()
    if high - low < LEAST_SPAN:  # differences of a few texts are not to look large
        axes.set_ylim((low + high - LEAST_SPAN) / 2, (low + high + LEAST_SPAN) / 2)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, labelcolor=INK)
    return _svg(figure, f"Accuracy over {cost}")


def bars(
    values: Sequence[float | None],
    names: Sequence[str],
    *,
    x: str,
    y: str,
    series: int = 0,
    form: str,
    factors: bool = False,
) -> str:
    """A bar for each value, with the value above it; None: a place without a bar.

    form: format of the values.
    factors: whether positive values that are far apart are drawn on a scale of factors.
    """
    figure, axes = _axes(xlabel=x, ylabel=y)
    places = [place for place, value in enumerate(values) if value is not None]
    drawn = axes.bar(places, [value for value in values if value is not None], color=SERIES[series])
    axes.bar_label(drawn, fmt=form, fontsize=9.5 if len(values) <= 8 else 7, color=INK, padding=1)
    axes.set_xticks(range(len(names)), names)
    axes.margins(y=0.12)
    heights = [value for value in values if value is not None]
    if factors and min(heights) > 0 and max(heights) > FAR_APART * min(heights):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(bottom=min(1.0, *heights))
    axes.grid(visible=False, axis="x")
    return _svg(figure, f"{y} by {x}")


def reliability(bins: Sequence[Bin]) -> str:
    """The share of right answers over the score that was said, a circle a bin; on the diagonal both are the same."""
    figure, axes = _axes(xlabel="said: mean score, %", ylabel="was: right answers, %")
    lowest = 10 * int(10 * min(min(x.said, x.was) for x in bins))
    axes.plot([lowest, 100], [lowest, 100], "--", color=FAINT, linewidth=1.2)
    most = max(x.texts for x in bins)
    sizes = [20 + 260 * x.texts / most for x in bins]
    axes.scatter(
        [100 * x.said for x in bins], [100 * x.was for x in bins], sizes, color=SERIES[0], alpha=0.75, clip_on=False
    )
    axes.set(xlim=(lowest - 4, 104), ylim=(lowest - 4, 104))
    return _svg(figure, "Share of right answers over their mean score")


def _axes(xlabel: str, ylabel: str) -> tuple[Any, Any]:
    """An empty figure and its axes, in the colours that stand for the page's."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 10}):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot(facecolor="none")
        axes.set_xlabel(xlabel, color=INK)
        axes.set_ylabel(ylabel, color=INK)
    axes.tick_params(colors=INK, labelsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(color=FAINT, alpha=0.4, linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Any, title: str) -> str:
    """The figure as an SVG element without a size of its own, in the page's font and colours."""
    from matplotlib import rc_context

    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(stream, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format")))
    drawn = stream.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<(metadata|style).*?</\1>", "", drawn, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', drawn))
    drawn = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", drawn)
    drawn = re.sub(r"font-family: [^;\"]*; ?", "", drawn)
    for colour, instead in INSTEAD.items():
        drawn = drawn.replace(colour, instead)
    box = re.search(r'viewBox="[^"]*"', drawn)
    assert box is not None
    opening = f'<svg {box[0]} role="img" aria-label="{title}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"<svg.*?>", opening, drawn, count=1, flags=re.DOTALL).strip()

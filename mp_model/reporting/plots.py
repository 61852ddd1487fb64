"""Pictures of evaluations, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.files import whole_file
from ..measuring.evaluation import Evaluation

COLOURS = ("#3b6fb6", "#c8553d", "#4f9d69", "#8a6fb0", "#d19a2e", "#555555", "#2a9d8f", "#b5838d")
FAR_APART = 20.0  # the largest value over the smallest, beyond which small ones could not be told apart


def _figure(width: float = 6.4, height: float = 4.0) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need matplotlib; run `pip install matplotlib`") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    with whole_file(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=150)


def _far_apart(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > FAR_APART * min(values)


def plot_trade_off(
    curves: dict[str, Sequence[tuple[float, float]]],
    path: Path,
    *,
    title: str,
    points: dict[str, tuple[float, float]] | None = None,
    work: str = "GFLOPs a text, executed",
) -> None:
    """Draws accuracy over work, as lines and single points.

    Args:
        curves: points (GFLOPs, accuracy as a share) of each line, by its name; a line without points is left out, but keeps
            its colour for other pictures of the same names.
        path: PNG file to write.
        title: title of the picture.
        points: (GFLOPs, accuracy as a share) of each single point, by its name.
        work: label of the horizontal axis.
    """
    figure, axes = _figure()
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
        if curve:
            axes.plot([x for x, _ in curve], [100 * y for _, y in curve], ".-", color=colour, label=name, linewidth=1.4)
    for (name, (x, y)), marker in zip((points or {}).items(), "s^Dv*X", strict=False):
        axes.plot([x], [100 * y], marker, color="black", label=name, markersize=7, linestyle="none")
    axes.set(xlabel=work, ylabel="accuracy, %", title=title)
    if _far_apart([x for line in axes.lines for x in line.get_xdata()]):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    _save(figure, path)


def plot_exits(evaluation: Evaluation, path: Path, *, title: str) -> None:
    """Draws the share of texts that left at each layer."""
    figure, axes = _figure(height=3.2)
    axes.bar(range(len(evaluation.exits)), [100 * n / evaluation.texts for n in evaluation.exits], color=COLOURS[0])
    axes.set(xlabel="layer of the exit", ylabel="texts, %", title=title, xticks=range(len(evaluation.exits)))
    _save(figure, path)


def plot_tokens(evaluation: Evaluation, path: Path, *, title: str) -> None:
    """Draws the share of tokens that each layer leaves alive, over the texts that stay."""
    figure, axes = _figure(height=3.2)
    kept = [(layer, 100 * share) for layer, share in enumerate(evaluation.tokens_kept, 1) if share is not None]
    axes.bar([layer for layer, _ in kept], [share for _, share in kept], color=COLOURS[2])
    layers = range(1, len(evaluation.tokens_kept) + 1)
    axes.set(xlabel="layer", ylabel="tokens alive, % of the input", title=title, xticks=layers, ylim=(0, 100))
    _save(figure, path)


def plot_buckets(by_name: dict[str, dict[str, float]], path: Path, *, title: str) -> None:
    """Draws dense work over executed work by length: for each name, a bar a bucket.

    Values that are far apart are drawn on a scale of factors.
    """
    figure, axes = _figure()
    buckets = list(dict.fromkeys(bucket for values in by_name.values() for bucket in values))
    width = 0.8 / len(by_name)
    for place, ((name, values), colour) in enumerate(zip(by_name.items(), COLOURS, strict=False)):
        at = [number + (place - (len(by_name) - 1) / 2) * width for number, b in enumerate(buckets) if b in values]
        bars = axes.bar(at, [values[b] for b in buckets if b in values], width, color=colour, label=name)
        axes.bar_label(bars, fmt=lambda height: f"{height:.2g}" if height < 100 else f"{height:,.0f}", fontsize=7)
    heights = [height for values in by_name.values() for height in values.values()]
    if _far_apart(heights):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(bottom=min(1.0, *heights))
    axes.set(ylabel="times less work", xlabel="tokens of the text", title=title)
    axes.set_xticks(range(len(buckets)), buckets)
    axes.axhline(1, color="black", linewidth=0.8)
    figure.legend(loc="outside lower center", ncols=min(len(by_name), 4), frameon=False)
    _save(figure, path)

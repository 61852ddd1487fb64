"""Shows what a pyramid did to a text: each word shaded by the layer that pruned it, in a terminal and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from rich.text import Text as RichText

Colour = tuple[int, int, int]
# From words that were pruned at once (pale) to words that reached the exit (strong).
PALE: Colour = (226, 232, 240)
STRONG: Colour = (37, 99, 235)


@dataclass
class ShadedText:
    """A text and its way through the layers.

    Attributes:
        words: the words, in order.
        reached: for each word, how many layers it went through: the layer that pruned it, or the exit's.
        exit_layer: the layer that answered.
        layers: L.
        caption: the answer in words.
    """

    words: list[str]
    reached: list[int]
    exit_layer: int
    layers: int
    caption: str


def shade(
    tokenizer: Any, text: str, pruned_by: Sequence[int], exit_layer: int, layers: int, caption: str, max_length: int
) -> ShadedText:
    """Brings tokens back to words: a word goes as far as the last of its pieces.

    pruned_by: for each token of the text, the layer that pruned it, 0 if none did.
    """
    encoded = tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True)
    spans: list[tuple[int, int]] = []
    reached: list[int] = []
    for (begin, end), layer in zip(encoded["offset_mapping"], pruned_by, strict=True):
        if begin == end:  # [CLS], [SEP]
            continue
        went = layer or exit_layer
        if spans and begin == spans[-1][1]:  # no space between: a piece of the same word, or its punctuation
            spans[-1] = (spans[-1][0], end)
            reached[-1] = max(reached[-1], went)
        else:
            spans.append((begin, end))
            reached.append(went)
    return ShadedText([text[begin:end] for begin, end in spans], reached, exit_layer, layers, caption)


def colours(reached: int, layers: int) -> tuple[str, str]:
    """Text and background colour of a word, as #rrggbb."""
    share = reached / layers
    background = tuple(round(pale + (strong - pale) * share) for pale, strong in zip(PALE, STRONG, strict=True))
    return "#ffffff" if share > 0.55 else "#334155", "#{:02x}{:02x}{:02x}".format(*background)


def for_terminal(text: ShadedText, limit: int = 120) -> RichText:
    """The first ``limit`` words with coloured backgrounds."""
    line = RichText(text.caption + "\n", style="bold")
    for word, reached in zip(text.words[:limit], text.reached[:limit], strict=True):
        foreground, background = colours(reached, text.layers)
        line.append(word, style=f"{foreground} on {background}")
        line.append(" ")
    if len(text.words) > limit:
        line.append(f"… and {len(text.words) - limit} more words", style="dim")
    return line


def save_picture(texts: Sequence[ShadedText], path: str | BinaryIO, limit: int = 110) -> None:
    """Draws the texts with their words shaded and a legend, as PNG; ``path`` is a name or a binary stream."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, line_height, font = 11.0, 0.27, 9.5
    figure = Figure(figsize=(width, 1), dpi=130, facecolor="white")
    renderer = FigureCanvasAgg(figure).get_renderer()

    def inches(words: str, weight: str = "normal") -> float:
        probe = figure.text(0, 0, words, fontsize=font, fontweight=weight, parse_math=False)
        extent = probe.get_window_extent(renderer).width / figure.dpi
        probe.remove()
        return extent

    margin, gap = 0.25, 0.07
    placed: list[tuple[float, float, str, str, str | None, str]] = []  # x, y from the top, words, colour, box, weight
    y = margin
    for text in texts:
        placed.append((margin, y, text.caption, "#0f172a", None, "bold"))
        y += line_height * 1.25
        x = margin
        for word, reached in zip(text.words[:limit], text.reached[:limit], strict=True):
            extent = inches(word)
            if x + extent > width - margin:
                x, y = margin, y + line_height
            placed.append((x, y, word, *colours(reached, text.layers), "normal"))
            x += extent + gap
        if len(text.words) > limit:
            rest = f"… {len(text.words) - limit} more words"
            if x + inches(rest) > width - margin:
                x, y = margin, y + line_height
            placed.append((x, y, rest, "#94a3b8", None, "normal"))
        y += line_height * 2
    x = margin
    layers = texts[0].layers
    for reached in range(layers + 1):
        label = (
            "exit at the embeddings"
            if reached == 0
            else "reached the last layer"
            if reached == layers
            else f"layer {reached}"
        )
        placed.append((x, y, label, *colours(reached, layers), "normal"))
        x += inches(label) + 0.2
    height = y + line_height + margin / 2

    figure.set_size_inches(width, height)
    for x, top, words, colour, box, weight in placed:
        background = None if box is None else {"facecolor": box, "edgecolor": "none", "pad": 1.6}
        position = (x / width, 1 - (top + line_height / 2) / height)
        style = {"fontsize": font, "color": colour, "fontweight": weight, "va": "center", "bbox": background}
        figure.text(*position, words, parse_math=False, **style)  # two dollar signs in a word are money, not a formula
    figure.savefig(path, format="png")

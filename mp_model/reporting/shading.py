"""Texts whose words are shaded by the layer that pruned them, for a terminal and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

import torch
from rich.text import Text as RichText

from ..checkpoints.tokenizers import max_length_of
from ..data.batches import Text, encode
from ..modelling import PyramidForSequenceClassification

Colour = tuple[int, int, int]
# Colours from words that were pruned at once (pale) to words that reached the exit (strong).
PALE: Colour = (226, 232, 240)
STRONG: Colour = (37, 99, 235)


@dataclass
class ShadedText:
    """A text and its way through the layers.

    Attributes:
        words: words of the text, in order.
        reached: number of layers that each word went through: up to the layer that pruned it, or to the exit.
        exit_layer: layer that answered.
        layers: number of layers, L.
        caption: the answer, for people.
    """

    words: list[str]
    reached: list[int]
    exit_layer: int
    layers: int
    caption: str


@torch.inference_mode()
def shade_answer(
    model: PyramidForSequenceClassification,
    tokenizer: Any,
    text: Text,
    exit_threshold: float | str | Sequence[float] | None = None,
) -> ShadedText:
    """A text, or a pair of texts, shaded by the way that it takes through a model, with the answer for its caption.

    Args:
        model, tokenizer: the classifier.
        text: the text; its beginning where it is longer than the model takes.
        exit_threshold: instead of the model's own.
    """
    longest, layers = max_length_of(tokenizer, model.config), model.config.num_hidden_layers
    (row,) = encode(tokenizer, [text], longest)
    inputs = {name: torch.tensor([values], device=model.device) for name, values in row.items()}
    out = model(**inputs, exit_threshold=exit_threshold, follow_tokens=True)
    layer = int(out.exit_layer)
    where = "at the embeddings, before any layer" if layer == 0 else f"by layer {layer} of {layers}"
    label = model.config.label_names[int(out.logits.argmax())]
    how_sure = "" if out.uncertainty.isnan() else f", uncertainty {float(out.uncertainty):.3f}"
    caption = f"{label}: answered {where}{how_sure}"
    return shade(tokenizer, text, out.pruned_by[0].tolist(), layer, layers, caption, longest)


def shade(
    tokenizer: Any, text: Text, pruned_by: Sequence[int], exit_layer: int, layers: int, caption: str, max_length: int
) -> ShadedText:
    """Brings tokens back to words: a word goes as far as the last of its pieces.

    Args:
        tokenizer: tokenizer that made the tokens.
        text: the text, or the pair, whose words follow one another.
        pruned_by: layer that pruned each token of the text, 0 for tokens that none did.
        exit_layer, layers, caption: as in :class:`ShadedText`.
        max_length: tokens of a text, at most.
    """
    texts = (text,) if isinstance(text, str) else text
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_offsets_mapping=True)
    spans: list[tuple[int, int, int]] = []  # the text's number, and the word's place in it
    reached: list[int] = []
    for (begin, end), number, layer in zip(encoded["offset_mapping"], encoded.sequence_ids(0), pruned_by, strict=True):
        if number is None or begin == end:  # [CLS], [SEP]
            continue
        went = layer or exit_layer
        if spans and (number, begin) == (spans[-1][0], spans[-1][2]):  # no space between: a piece of the word before
            spans[-1] = (number, spans[-1][1], end)
            reached[-1] = max(reached[-1], went)
        else:
            spans.append((number, begin, end))
            reached.append(went)
    words = [texts[number][begin:end] for number, begin, end in spans]
    return ShadedText(words, reached, exit_layer, layers, caption)


def colours(reached: int, layers: int) -> tuple[str, str]:
    """Colours of a word and of its background, as #rrggbb."""
    share = reached / layers
    background = tuple(round(pale + (strong - pale) * share) for pale, strong in zip(PALE, STRONG, strict=True))
    return "#ffffff" if share > 0.55 else "#334155", "#{:02x}{:02x}{:02x}".format(*background)


def for_terminal(text: ShadedText, limit: int = 120) -> RichText:
    """The caption, and the first ``limit`` words with coloured backgrounds."""
    line = RichText(text.caption + "\n", style="bold")
    for word, reached in zip(text.words[:limit], text.reached[:limit], strict=True):
        foreground, background = colours(reached, text.layers)
        line.append(word, style=f"{foreground} on {background}")
        line.append(" ")
    if len(text.words) > limit:
        line.append(f"… and {len(text.words) - limit} more words", style="dim")
    return line


class Placed(NamedTuple):
    """Words in a picture: inches from the left and from the top, colour of the text and of the box around it."""

    x: float
    y: float
    words: str
    colour: str
    box: str | None = None
    weight: str = "normal"


def save_picture(texts: Sequence[ShadedText], path: str | IO[bytes], limit: int = 110) -> None:
    """Draws the texts with their words shaded and a legend, as PNG.

    Args:
        texts: the texts.
        path: name of the file, or a binary stream.
        limit: words of a text that are drawn, at most.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, line_height, font, margin, gap = 11.0, 0.27, 9.5, 0.25, 0.07
    figure = Figure(figsize=(width, 1), dpi=130, facecolor="white")
    renderer = FigureCanvasAgg(figure).get_renderer()

    def inches(words: str) -> float:
        probe = figure.text(0, 0, words, fontsize=font, parse_math=False)
        extent = probe.get_window_extent(renderer).width / figure.dpi
        probe.remove()
        return extent

    placed: list[Placed] = []
    y = margin
    for text in texts:
        placed.append(Placed(margin, y, text.caption, "#0f172a", weight="bold"))
        x, y = margin, y + line_height * 1.25
        pieces = [
            (word, *colours(reached, text.layers)) for word, reached in zip(text.words, text.reached, strict=True)
        ]
        rest = [] if len(pieces) <= limit else [(f"… {len(pieces) - limit} more words", "#94a3b8", None)]
        for words, colour, box in [*pieces[:limit], *rest]:
            extent = inches(words)
            if x + extent > width - margin:
                x, y = margin, y + line_height
            placed.append(Placed(x, y, words, colour, box))
            x += extent + gap
        y += line_height * 2
    x, layers = margin, texts[0].layers
    for reached in range(layers + 1):
        label = {0: "exit at the embeddings", layers: "reached the last layer"}.get(reached, f"layer {reached}")
        placed.append(Placed(x, y, label, *colours(reached, layers)))
        x += inches(label) + 0.2
    height = y + line_height + margin / 2

    figure.set_size_inches(width, height)
    for piece in placed:
        figure.text(
            piece.x / width,
            1 - (piece.y + line_height / 2) / height,
            piece.words,
            fontsize=font,
            fontweight=piece.weight,
            color=piece.colour,
            va="center",
            bbox=None if piece.box is None else {"facecolor": piece.box, "edgecolor": "none", "pad": 1.6},
            parse_math=False,  # two dollar signs in a word are money, not a formula
        )
    figure.savefig(path, format="png")

"""A tiny task that a tiny model learns in seconds: its texts and the settings."""

from __future__ import annotations

import random
from pathlib import Path

from mp_model.training import Settings

QUICK = Settings(
    epochs=4,
    soft_epochs=2,
    exit_epochs=3,
    learning_rate=1e-3,
    temperature=5e-3,
    penalty=0.2,
    final_threshold=0.05,
    importance_normalizer="alive",
)


def write_rows(path: Path, count: int, seed: int, names: tuple[str, str] = ("no", "yes"), pairs: bool = False) -> Path:
    """Texts of single letters; the label says which of two words is somewhere among them, of pairs in the second text."""
    draw = random.Random(seed)
    lines = ["label\ttext_a\ttext_b" if pairs else "label\ttext"]
    for _ in range(count):
        label, words = draw.randint(0, 1), draw.choices("abcdefgh", k=draw.randint(3, 20))
        words.insert(draw.randint(0, len(words)), ("the", "rate")[label])
        text = " ".join(words)
        lines.append(f"{names[label]}\t{text[:9].replace('the', 'a')}\t{text}" if pairs else f"{names[label]}\t{text}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_several(path: Path, count: int, seed: int) -> Path:
    """Texts of single letters, each with the labels, "no" and "yes", of those of two words that are in it: 0, 1 or 2."""
    draw = random.Random(seed)
    lines = ["labels\ttext"]
    for _ in range(count):
        words = draw.choices("abcdefgh", k=draw.randint(3, 20))
        labels = [name for name in ("no", "yes") if draw.random() < 0.5]
        for name in labels:
            words.insert(draw.randint(0, len(words)), {"no": "the", "yes": "rate"}[name])
        lines.append(f"{','.join(labels)}\t{' '.join(words)}")
    path.write_text("\n".join(lines) + "\n")
    return path

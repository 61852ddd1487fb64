"""Model cards: the README.md of a fitted model's folder, which says what it is, how good it is, and how to use it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..data.files import whole_file

CARD = "README.md"
OURS = (
    "<!-- magic-pyramid wrote this card: fit writes it anew, tune its figures. Without this line it is left alone. -->"
)
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
FRONT = """---
library_name: magic-pyramid
pipeline_tag: text-classification
tags:
- magic-pyramid
- token-pruning
- early-exit
---"""


class Figure(NamedTuple):
    """A way to run a model: its name, accuracy as a share, executed GFLOPs for a text, and dense work over that work."""

    name: str
    accuracy: float
    gflops: float
    speed_up: float


def write_card(
    folder: Path,
    about: str,
    labels: Sequence[str],
    figures: str,
    data: Sequence[Sequence[str]] | None = None,
    notes: Sequence[str] = (),
    pairs: bool = False,
) -> bool:
    """Writes the card of a folder, unless a README.md is there that somebody else wrote; returns whether it did.

    Args:
        folder: folder of the model, named as people shall name it.
        about: sentences on what the model is.
        labels: names of its labels, in the order of their numbers.
        figures: part on accuracy, work and settings, by :func:`figures_of`.
        data: rows of a table of the texts that it was made from, the columns' names first; None: unknown.
        notes: sentences on them.
        pairs: whether it reads pairs of texts.
    """
    if not is_ours(folder):
        return False
    parts = [
        FRONT,
        OURS,
        f"# {escaped(folder.name if folder.name != 'model' else folder.absolute().parent.name)}",
        about,
        "## Labels",
        ", ".join(f"{number}: {escaped(name)}" for number, name in enumerate(labels)),
    ]
    if data is not None:
        parts += ["## Data", table(data), *map(escaped, notes)]
    parts += [figures, _use(folder, pairs)]
    with whole_file(folder / CARD) as stream:
        stream.write("\n\n".join(parts) + "\n")
    return True


def refresh_card(folder: Path, figures: str) -> bool:
    """Puts new figures into the card of a folder; returns whether it has one that was not written by somebody else."""
    if not (folder / CARD).is_file() or not is_ours(folder):
        return False
    before, begin, rest = (folder / CARD).read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    if not begin:
        return False
    with whole_file(folder / CARD) as stream:
        stream.write(before + figures + after)
    return True


def is_ours(folder: Path) -> bool:
    """Whether the folder's README.md, if there is one, may be written: it has the line that says so."""
    path = folder / CARD
    return not path.exists() or (path.is_file() and OURS in path.read_text(encoding="utf-8", errors="replace"))


def figures_of(figures: Sequence[Figure], texts: int, settings: Mapping[str, object]) -> str:
    """The part of a card that changes with the thresholds.

    Args:
        figures: accuracy and work, by setting.
        texts: number of the validation texts that they were measured on.
        settings: the model's settings, by name.
    """
    rows = [("", "accuracy", "GFLOPs a text", "less work than dense")]
    rows += [(x.name, f"{x.accuracy:.1%}", f"{x.gflops:.3g}", f"{x.speed_up:.2f}x") for x in figures]
    return "\n\n".join(
        [
            BEGIN,
            "## Accuracy and work",
            table(rows),
            f"Measured on the {texts:,} validation texts that the exit threshold was chosen on; expect a little less of "
            "others. `magic-pyramid evaluate` and `magic-pyramid report` measure it on yours.",
            "## Settings",
            table([("setting", "value"), *((name, str(value)) for name, value in settings.items())]),
            END,
        ]
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row has the columns' names."""
    lines = [[escaped(cell) for cell in row] for row in rows]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(words: str) -> str:
    """Words in one line, of which Markdown takes none for a sign of its own."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(words.split()))


def _use(folder: Path, pairs: bool) -> str:
    texts, file = ('("A text.", "Another one.")', "pairs.tsv") if pairs else ('"A text.", "Another one."', "texts.txt")
    return f"""## Use

```python
from mp_model import Classifier

classifier = Classifier.load("{folder}")
for answer in classifier([{texts}]):
    print(answer.label, answer.score, answer.exit_layer)
```

```bash
magic-pyramid classify --model {folder} {file} --output answers.jsonl
magic-pyramid tune validation.tsv --model {folder} --max-drop 0.5
magic-pyramid report {folder} test.tsv
```"""

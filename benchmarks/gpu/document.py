"""The JSON that a day's steps write into, each at once, and that several days' parts merge into.

``machine``: facts about the device and the software. ``dry``: whether nothing was measured. ``steps``: for each step, by its
name, its ``part``, its ``status``, the ``seconds`` that it took, the ``tail`` of its output or the ``reason`` why it did not
run, and its ``figures`` by name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mp_model.data.files import whole_file

PASSED, FAILED, TIMED_OUT, LEFT_OUT, NOT_ENDED = "passed", "failed", "timed out", "left out", "not ended"
SAME_FOR_ALL = ("device", "torch", "triton", "transformers")  # facts about the machine on which parts must agree

FOLDERS = re.compile(r"(?<![\w/.:])/(?:[^\s/\"':,()]+/)+")  # of a file that is named from the root

Document = dict[str, Any]


def read(path: Path) -> Document:
    """The document of a file.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON; give the file that gpu_day.py wrote") from error
    if not isinstance(document, dict) or not {"machine", "dry", "steps"} <= set(document):
        raise ValueError(f"{path} was not written by gpu_day.py: it must have machine, dry and steps")
    return document


def write(path: Path, document: Document) -> None:
    """Writes the whole document, or nothing."""
    with whole_file(path) as stream:
        stream.write(json.dumps(document, indent=1, sort_keys=True) + "\n")


def start(path: Path, step: str, **facts: Any) -> None:
    """Begins a step's record, with its part and its status; what an earlier run of it left is gone."""
    document = read(path)
    document["steps"][step] = {"figures": {}, **facts}
    write(path, document)


def note(path: Path, step: str, **facts: Any) -> None:
    """Adds facts to a step's record, such as another status."""
    document = read(path)
    document["steps"][step].update(facts)
    write(path, document)


def merged(documents: Sequence[Document]) -> Document:
    """One document of several runs, each of whose steps has its run's date; a later run's step replaces an earlier one's.

    Raises:
        ValueError: the parts come from different machines, or only some from a dry run.
    """
    first, *others = documents
    for other in others:
        known = {"dry": first["dry"], **first["machine"]}
        for name, here in {"dry": other["dry"], **other["machine"]}.items():
            if name in ("dry", *SAME_FOR_ALL) and known.get(name) != here:
                raise ValueError(f"figures of different machines do not mix: {name} is {known.get(name)} and {here}")
    steps: dict[str, Any] = {}
    for document in documents:
        date = document["machine"].get("date")
        ran = {
            name: {"date": date, **step}
            for name, step in document["steps"].items()
            if step["status"] != LEFT_OUT or name not in steps
        }
        steps.update(ran)
    return {"machine": documents[-1]["machine"], "dry": first["dry"], "steps": steps}


def published(document: Document) -> Document:
    """The same for everybody: without what steps have printed, and without the folders of files on the machine."""

    def cleaned(x: Any) -> Any:
        if isinstance(x, dict):
            return {name: cleaned(value) for name, value in x.items() if name != "tail"}
        if isinstance(x, list):
            return [cleaned(value) for value in x]
        return FOLDERS.sub("", x) if isinstance(x, str) else x

    found: Document = cleaned(document)
    return found


class Sheet:
    """A step's place in the document, for the step's own process.

    Args:
        path: the document.
        step: the step's name.
        dry: whether the step is only tried: tiny shapes, on the CPU.
    """

    def __init__(self, path: Path, step: str, dry: bool) -> None:
        self.path, self.step, self.dry = path, step, dry

    @classmethod
    def of_this_process(cls) -> Sheet:
        """The place that :meth:`environment` told this process."""
        return cls(Path(os.environ["GPU_DAY_PATH"]), os.environ["GPU_DAY_STEP"], os.environ["GPU_DAY_DRY"] == "1")

    def environment(self) -> dict[str, str]:
        """Variables by which another process finds this place."""
        return {"GPU_DAY_PATH": str(self.path), "GPU_DAY_STEP": self.step, "GPU_DAY_DRY": str(int(self.dry))}

    def keep(self, name: str, figure: Any) -> None:
        """Adds a figure, at once."""
        document = read(self.path)
        document["steps"][self.step]["figures"][name] = figure
        write(self.path, document)

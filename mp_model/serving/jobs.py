"""A classification of files: the model, and what is wanted of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """All that decides how answers read, besides the rows; it imports nothing heavy, and travels to other machines.

    Attributes:
        model: folder of the model; under Ray where every machine finds it.
        exit_threshold, window: as for :meth:`Classifier.stream`.
        precision, device, threads, long_texts: as for :meth:`Classifier.load`.
        scores: whether the probabilities of all labels are written.
        on_error: what becomes of a row without a text: ``"fail"``, ``"skip"`` or ``"null"``.
        file_format: format of the files; None: by their endings.
    """

    model: Path
    exit_threshold: float | str | list[float] | None = None
    window: int = 1024
    precision: str = "auto"
    device: str = "cpu"
    threads: int | None = None
    long_texts: str = "cut"
    scores: bool = False
    on_error: str = "fail"
    file_format: str | None = None

    def made_by(self) -> dict[str, Any]:
        """What must be the same for answers to be gone on with, by the names of options, as JSON has it."""
        from ..checkpoints.files import hashes_of

        return {
            "model": hashes_of(self.model),
            "--exit-threshold": self.exit_threshold,
            "--scores": self.scores,
            "--precision": self.precision,
            "--long-texts": self.long_texts,
        }

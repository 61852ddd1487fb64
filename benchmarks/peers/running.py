"""The steps of a run, each in a process of its own, whose threads are set before anything is imported there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .document import Document
from .fitted import PEERS, name_of
from .plan import Budget, cases_of

HERE = Path(__file__).parent


class Runner:
    """Measures what is not in the document yet.

    Args:
        document: the figures.
        work: folder for files of models and of compilers.
        budget: size of a case.
        names: the ways that are wanted.
        again: whether to measure what is done once more.
    """

    def __init__(self, document: Document, work: Path, budget: Budget, names: Sequence[str], again: bool) -> None:
        self.document, self.work, self.budget = document, work.absolute(), budget
        self.names, self.again = list(names), again

    def model(self, model: str, threads: int, batch_sizes: Sequence[int]) -> None:
        """Times the ways on one model with so many threads."""
        cases = [
            case
            for case in cases_of(model, threads, batch_sizes)
            if self.again or not self.document.is_done("cases", case.name, self.names)
        ]
        if cases:
            self._step("prepare", os.cpu_count() or 1, model=model)
            self._step("measure", threads, model=model, cases=cases)

    def memory(self, model: str) -> None:
        """Reads the memory of each way, alone in its process."""
        names = [name for name in self.names if self.again or not self.document.is_done("memory", model, [name])]
        if names:
            self._step("prepare", os.cpu_count() or 1, model=model, names=names)
        for name in names:
            self._step("memory", 1, model=model, names=[name])

    def fitted(self, folder: Path, texts_file: Path, threads: int) -> None:
        """Times a fitted pyramid beside the ways that it is held against."""
        names = [name for name in PEERS if name in self.names]
        if self.again or not self.document.is_done("fitted", name_of(folder, threads), names):
            self._step(
                "fitted", threads, names=names, folder=str(folder.absolute()), texts_file=str(texts_file.absolute())
            )

    def _step(self, do: str, threads: int, **more: Any) -> None:
        step = {
            "do": do,
            "threads": threads,
            "figures": str(self.document.path.absolute()),
            "work": str(self.work),
            "budget": asdict(self.budget),
            "names": self.names,
            **more,
        }
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")])),
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "RAYON_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
            "TORCHINDUCTOR_FREEZING": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        command = [sys.executable, "-W", "ignore", "-m", "peers.measuring", json.dumps(step)]
        ended = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
        if ended.returncode:
            last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise RuntimeError(f"{do} of {more.get('model') or more.get('folder')} failed: {last}")

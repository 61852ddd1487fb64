"""The JSON that all figures go into, each part as soon as it is measured.

``machine``: facts about processor and software; ``dry``: whether nothing was measured; ``settings``: each way's, by name;
``cases``, ``memory`` and ``fitted``: the parts, by name. A way within a part has figures, or ``left out`` with the reason,
and then ``missing`` where packages would help.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import cpuinfo

import mp_kernels
from mp_model.data.files import whole_file

from .ways import APART, is_installed, ways

PARTS = ("cases", "memory", "fitted")
PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf", "torchao")


def _versions() -> dict[str, str]:
    places = {x.metadata["Name"].lower(): x.version for x in importlib.metadata.distributions(path=[str(APART)])}
    for name in PACKAGES:
        if name not in places and is_installed(name):
            places[name] = importlib.metadata.version(name)
    return {name: places[name] for name in PACKAGES if name in places}


def machine() -> dict[str, Any]:
    """The processor and the software of this process."""
    processor = cpuinfo.get_cpu_info()
    flags = set(processor.get("flags", ()))
    return {
        "processor": processor.get("brand_raw", processor["arch"]),
        "cores": os.cpu_count(),
        "instructions": [
            x for x in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16") if x in flags
        ],
        "kernels": mp_kernels.extension.chosen_instruction_set() if mp_kernels.extension.is_built() else None,
        "python": platform.python_version(),
        **_versions(),
    }


class Document:
    """The figures of one machine in a file.

    Args:
        path: the file; it need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any] | None:
        """All that is known; None: there is no file.

        Raises:
            ValueError: the file holds something else.
        """
        if not self.path.exists():
            return None
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{self.path} is no JSON; give --figures the file that this command wrote") from error
        if not isinstance(known, dict) or not {"machine", "dry", "settings", *PARTS} <= set(known):
            raise ValueError(f"{self.path} was not written by this command; give --figures another file")
        return known

    def open(self, here: dict[str, Any], dry: bool) -> None:
        """Makes the file, or finds that its figures may stand beside those that are measured here.

        Raises:
            ValueError: it holds figures of another machine or of other software, or only one of both is a dry run.
        """
        known = self.read() or {"machine": here, "dry": dry, **{part: {} for part in PARTS}}
        others = [name for name in {*known["machine"], *here} if known["machine"].get(name) != here.get(name)]
        others += ["dry"] if known["dry"] != dry else []
        # A package that has come since adds ways, and changes nothing about those that were measured without it.
        others = [name for name in others if name not in PACKAGES or known["machine"].get(name) is not None]
        if others:
            raise ValueError(
                f"{self.path} holds figures with another {', '.join(sorted(others))}; give --figures another file"
            )
        self._write({**known, "machine": here, "settings": {way.name: way.settings for way in ways().values()}})

    def keep(self, part: str, name: str, figures: dict[str, Any]) -> None:
        """Puts figures into a part, in the place of those that have the same name."""
        known = self.read()
        assert known is not None
        known[part][name] = figures
        self._write(known)

    def known(self, part: str, name: str) -> dict[str, Any]:
        """The figures of a part's ways, by name; empty where there are none."""
        figures: dict[str, Any] = (self.read() or {}).get(part, {}).get(name, {}).get("ways", {})
        return figures

    def is_done(self, part: str, name: str, wanted: list[str]) -> bool:
        """Whether all wanted ways were measured, or are left out for a reason that installing nothing would change."""
        known = self.known(part, name)
        return all(way in known and not _is_there_now(known[way]) for way in wanted)

    def _write(self, known: dict[str, Any]) -> None:
        with whole_file(self.path) as stream:
            stream.write(json.dumps(known, indent=1, sort_keys=True) + "\n")


def _is_there_now(figure: dict[str, Any]) -> bool:
    """Whether a way was left out for packages that have been installed since."""
    missing = figure.get("missing", [])
    return bool(missing) and all(is_installed(package) for package in missing)


def left_out(reason: str) -> dict[str, Any]:
    """The figure of a way that could not be measured."""
    return {"left out": reason}


def not_installed(missing: list[str]) -> dict[str, Any]:
    """The figure of a way whose packages are missing."""
    return {"left out": f"not installed: {', '.join(missing)}", "missing": missing}

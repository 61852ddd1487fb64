"""Check of wheels: their tag, what is in them, and what their kernels need of the machine that they come to.

``python -m wheels.check build/wheels/*.whl``, with the folder ``tests`` on the path, ends with the faults that it found.
"""

from __future__ import annotations

import io
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

# The kernels are loaded by torch, not by Python, so a wheel serves every Python 3; torch's own wheels are manylinux_2_28.
TAG = re.compile(r"-py3-none-manylinux_2_(\d+)_(x86_64|aarch64)\.whl$")
MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}
KERNELS = "mp_kernels/_C.so"
# Newest versions of symbols in manylinux_2_28: glibc's own, and those of GCC 8.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
SYSTEM = {"libc.so.6", "libm.so.6", "libstdc++.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
TORCH = "libtorch_cpu.so"
# torch's C++ names differ between its versions; its stable functions have plain C names.
UNSTABLE = re.compile(r"_ZNK?(2at|3c10|5torch)")
FOLDERS = ("mp_kernels/", "mp_model/")
DATA = (
    "mp_kernels/py.typed",
    "mp_model/py.typed",
    "mp_model/reporting/report.html",
    "mp_model/serving/page/index.html",
)


def faults_of(wheel: Path) -> Iterator[str]:
    """What is wrong with a wheel, a sentence each; nothing if it can be given to people."""
    tag = TAG.search(wheel.name)
    if tag is None or int(tag[1]) > 28:
        yield f"the name {wheel.name} does not end with py3-none-manylinux_2_28, or an older one, and a processor"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        yield from faults_of_contents(names)
        if KERNELS in names:
            yield from faults_of_kernels(archive.read(KERNELS), tag and tag[2])


def faults_of_contents(names: list[str]) -> Iterator[str]:
    """Files that are missing, and those that do not belong there."""
    for name in (KERNELS, *DATA):
        if name not in names:
            yield f"{name} is missing"
    for name in names:
        if not name.startswith(FOLDERS) and ".dist-info/" not in name:
            yield f"{name} does not belong to the packages"
        elif name.endswith(".so") and name != KERNELS:
            yield f"{name} runs with one build of torch alone"


def faults_of_kernels(library: bytes, processor: str | None) -> Iterator[str]:
    """What ties compiled kernels to a machine, an older or newer system, or one version of torch.

    processor: the one that the wheel's tag names.
    """
    elf = ELFFile(io.BytesIO(library))
    if processor is not None and elf["e_machine"] != MACHINES[processor]:
        yield f"the kernels are for {elf['e_machine']}, the tag says {processor}"
    for section in elf.iter_sections():
        if isinstance(section, DynamicSection):
            for entry in section.iter_tags():
                if entry.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
                    yield "the kernels look for libraries in a folder of the machine that built them"
                if entry.entry.d_tag == "DT_NEEDED" and entry.needed not in (*SYSTEM, TORCH):
                    yield f"the kernels need {entry.needed}"
        elif isinstance(section, GNUVerNeedSection):
            yield from faults_of_versions(section)
        elif section.name == ".dynsym":
            for symbol in section.iter_symbols():
                if symbol["st_shndx"] == "SHN_UNDEF" and UNSTABLE.match(symbol.name):
                    yield f"the kernels call {symbol.name}, which is not in torch's stable interface"


def faults_of_versions(section: GNUVerNeedSection) -> Iterator[str]:
    """Versions of symbols that older systems do not have."""
    for library, versions in section.iter_versions():
        for version in versions:
            kind, _, number = version.name.partition("_")
            if tuple(map(int, number.split("."))) > NEWEST[kind]:
                yield f"the kernels need {version.name} of {library.name}, newer than manylinux_2_28"


def main() -> None:
    """Checks the wheels that are named on the command line.

    Raises:
        SystemExit: there are none, or something is wrong with them.
    """
    wheels = [Path(name) for name in sys.argv[1:]]
    found = [f"{wheel.name}: {fault}" for wheel in wheels for fault in faults_of(wheel)]
    if found or not wheels:
        sys.exit("\n".join(found or ["no wheel was named"]))
    for wheel in wheels:
        print(f"{wheel}: {wheel.stat().st_size / 1e6:.1f} MB, as it should be")


if __name__ == "__main__":
    main()

"""Test suites on the hardware, counted from the XML that pytest writes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from .document import Sheet

FAILURES = 20  # whose messages are kept
MESSAGE = 400  # characters of each
WORKERS = 16  # at most


def counted(xml: Path) -> dict[str, Any]:
    """Numbers of tests that passed, failed (errors are among them) and were skipped; names and messages of failures.

    xml: JUnit's, as pytest writes it.
    """
    cases = list(ElementTree.parse(xml).iter("testcase"))
    failures, skipped = [], []
    for case in cases:
        name = f"{case.get('classname')}::{case.get('name')}"
        for child in case:
            if child.tag in ("failure", "error"):
                failures.append({"test": name, "message": (child.get("message") or "")[:MESSAGE]})
            elif child.tag == "skipped":
                skipped.append(name)
    failed = {failure["test"] for failure in failures}
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": len(failed),
        "skipped": len(skipped),
        "failures": failures[:FAILURES],
    }


def command(suites: list[str], xml: Path) -> list[str]:
    """pytest on some suites, on several processes where xdist is there.

    The project's settings name an option of pytest-timeout, which may not be there, and pytest-benchmark warns about xdist.
    """
    workers = ["-n", str(min(WORKERS, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    lenient = ["-o", "addopts=--import-mode=importlib", "-W", "ignore:Unknown config option", "-p", "no:benchmark"]
    return [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        *workers,
        *lenient,
        "-p",
        "no:cacheprovider",
        f"--junitxml={xml}",
        *suites,
    ]


def main() -> None:
    """Runs suites; ends with an error if a test failed, or on a GPU if none ran."""
    sheet = Sheet.of_this_process()
    xml = sheet.path.parent / "work" / f"{sheet.step.replace('/', '-').replace(' ', '-')}.xml"
    xml.parent.mkdir(exist_ok=True)
    xml.unlink(missing_ok=True)
    # The tests poison fresh memory by a switch of torch that asks for repeatable products too.
    environment = {**os.environ, "TRITON_INTERPRET": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    status = subprocess.run(command(sys.argv[1:], xml), env=environment).returncode
    if not xml.exists():
        sys.exit(f"pytest ended with {status} and wrote no {xml.name}")
    counts = counted(xml)
    sheet.keep("tests", counts)
    if status == 0 and not sheet.dry and counts["passed"] == 0:
        sys.exit("no test ran: all of them were skipped")
    sys.exit(status)


if __name__ == "__main__":
    main()

"""Situations that people meet, each with the test that says what happens then: docs/reliability.md lists them.

A test is marked with :func:`situation`; ``python -m support.situations`` prints the page.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"
Test = TypeVar("Test", bound=Callable[..., Any])

# The subjects in the page's order, each with its heading.
SUBJECTS = {
    "checkpoint": "What a checkpoint says, or lacks",
    "fit": "What an earlier run was made from",
    "file": "What a file says",
    "run": "What happens while a command runs",
    "drop-in": "What is expected of any BERT",
}
OPENING = """# Reliability

Situations that went wrong somewhere, here or in other software, and what happens in them now. Each row is a test, named in
the last column; `make reliability` prints the page from the tests.
"""


class Situation(NamedTuple):
    """One row: where it belongs, what is tried, what happens, and the test that holds it to that."""

    subject: str
    tried: str
    happens: str
    test: str


def situation(subject: str, tried: str, happens: str) -> Callable[[Test], Test]:
    """Marks a test as the proof of what happens in a situation; all three are literal strings.

    Args:
        subject: one of :data:`SUBJECTS`.
        tried: the situation, a noun phrase or a clause for the table's first column.
        happens: the outcome that the test asserts, for the second.
    """
    if subject not in SUBJECTS:
        raise ValueError(f"subject must be one of {', '.join(SUBJECTS)}; got {subject!r}")
    return pytest.mark.situation(subject, tried, happens)


def situations() -> Iterator[Situation]:
    """The situations of all tests, file by file."""
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "situation":
                    subject, tried, happens = (ast.literal_eval(argument) for argument in mark.args)
                    yield Situation(subject, tried, happens, f"{path.relative_to(TESTS)}: {node.name}")


def page() -> str:
    """The text of docs/reliability.md."""
    found = list(situations())
    parts = [OPENING]
    for subject, heading in SUBJECTS.items():
        rows = [row for row in found if row.subject == subject]
        lines = [f"| {row.tried} | {row.happens} | `{row.test}` |" for row in rows]
        parts.append(
            "\n".join([f"## {heading}\n", "| tried | what happens | test |", "| --- | --- | --- |", *lines, ""])
        )
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")

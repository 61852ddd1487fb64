"""Situations that people meet, each with the test that says what happens then: docs/reliability.md lists them.

A test is marked with :func:`situation`; ``python -m support.situations`` prints the page.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    "serve": "What happens to a server",
    "drop-in": "What is expected of any BERT",
}
OPENING = """# Reliability

Situations that went wrong somewhere, here or in other software, and what happens in them now. Each row is a test, named in
the last column; `make reliability` prints the page from the tests.
"""


SUITE = TESTS / "mp_model" / "transformers_suite" / "test_transformers_suite.py"


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


def refusals() -> dict[str, str]:
    """The tests of transformers that a pyramid does not pass, by the beginnings of their names, with the reasons."""
    for node in ast.parse(SUITE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REFUSALS":
            return ast.literal_eval(node.value)
    raise LookupError(f"{SUITE} has no REFUSALS")


def table(heading: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A part of the page."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join([f"## {heading}\n", *(f"| {' | '.join(line)} |" for line in lines), ""])


def page() -> str:
    """The text of docs/reliability.md."""
    found = list(situations())
    parts = [OPENING]
    for subject, heading in SUBJECTS.items():
        rows = [(row.tried, row.happens, f"`{row.test}`") for row in found if row.subject == subject]
        parts.append(table(heading, ("tried", "what happens", "test"), rows))
    refused = [(f"`{name}*`", why) for name, why in refusals().items()]
    parts.append(
        table("Tests of transformers that stock BERT passes and a pyramid refuses", ("tests", "reason"), refused)
    )
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")

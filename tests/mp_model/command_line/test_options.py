"""Options of commands from dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from mp_model.command_line.options import takes_dataclasses


@dataclass(frozen=True)
class Coffee:
    cups: Annotated[int, "Number of cups."]
    sugar: Annotated[float | None, "Grams of sugar."] = None
    milk: Annotated[str | float, "Kind of milk, or grams of it."] = 20
    to_go: Annotated[bool, "Take it away."] = False
    shots: Annotated[int, typer.Option(min=1, help="Shots of espresso.")] = 1


@takes_dataclasses
def order(*, name: Annotated[str, typer.Option()], coffee: Coffee, tip: float = 0.0) -> tuple[Any, ...]:
    """Order coffee."""
    return name, coffee, tip


def invoke(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(order)
    return CliRunner().invoke(app, arguments, standalone_mode=False)


def test_a_field_left_out_has_its_default() -> None:
    result = invoke("--name", "Ada", "--cups", "2")
    assert result.return_value == ("Ada", Coffee(2, milk="20"), 0.0)


def test_fields_are_read_by_their_types() -> None:
    given = ["--name", "Ada", "--tip", "1", "--cups", "2", "--sugar", "2.5", "--milk", "oat", "--to-go", "--shots", "3"]
    assert invoke(*given).return_value == ("Ada", Coffee(2, 2.5, "oat", True, 3), 1.0)


@pytest.mark.parametrize(
    "wrong", [["--cups", "two"], ["--cups", "2", "--shots", "0"], ["--cups", "2", "--no-to-go"], []]
)
def test_what_does_not_fit_is_refused(wrong: list[str]) -> None:
    assert invoke("--name", "Ada", *wrong).exit_code != 0


def test_help_says_each_field_in_its_place() -> None:
    words = " ".join(invoke("--help").stdout.split())
    places = [words.index(said) for said in ("--name", "Number of cups.", "--sugar", "--to-go", "Shots", "--tip")]
    assert places == sorted(places)
    assert "[default: 20]" in words

"""Options of commands, made from dataclasses: each field is an option, and its annotation holds the help."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.models import OptionInfo

LONG_TEXTS_HELP = (
    "Texts of more tokens than the model takes: cut, or windows (read one after the other, until the text is certain)."
)
PRECISION_HELP = "Precision: float32, bfloat16 or int8; auto is the one that the model was saved in or tuned for."


@dataclasses.dataclass(frozen=True)
class Running:
    """The way a model is run on labelled texts."""

    batch_size: Annotated[int, typer.Option(min=1, help="Texts in a batch.")] = 32
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; all processors if left out.")] = None
    device: Annotated[str, "Device of the model."] = "cpu"
    precision: Annotated[str, PRECISION_HELP] = "auto"


def takes_dataclasses(command: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a command that Typer understands from one with dataclasses among its parameters.

    In the place of such a parameter stand options, one for each field, and the command gets the dataclass that they make. A
    field is annotated with its help, ``seed: Annotated[int, "Random seed."] = 0``, or with a ``typer.Option``.
    """
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    kinds: dict[str, Any] = {
        name: hints[name] for name in signature.parameters if dataclasses.is_dataclass(hints[name])
    }
    parameters = []
    for name, parameter in signature.parameters.items():
        if name in kinds:
            parameters += options_of(kinds[name])
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))

    @wraps(command)
    def with_options(**given: Any) -> Any:
        for name, kind in kinds.items():
            given[name] = kind(**{field.name: given.pop(field.name) for field in dataclasses.fields(kind)})
        return command(**given)

    with_options.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def options_of(kind: Any) -> list[inspect.Parameter]:
    """The parameters of a command that stand for a dataclass's fields, in their order."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=_option(field.name, *get_args(hints[field.name])),
        )
        for field in dataclasses.fields(kind)
    ]


def _option(name: str, kind: Any, note: str | OptionInfo) -> Any:
    """The annotation of an option; note: its help, or all that there is to say about it."""
    if isinstance(note, OptionInfo):
        return Annotated[kind, note]
    if kind is bool:  # a flag; Typer would also make its opposite
        return Annotated[bool, typer.Option(f"--{name.replace('_', '-')}", help=note)]
    if str in get_args(kind):  # a word or a number is read as a word
        kind = str
    return Annotated[kind, typer.Option(help=note)]

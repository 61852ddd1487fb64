"""``python -m peers``: measure what is not measured yet, and print the page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import mp_kernels
from mp_model.data.files import whole_file

from .document import Document, machine
from .page import FIGURES, PAGE, page
from .plan import MODELS, Budget
from .running import Runner
from .ways import REFERENCE, ways

ROOT = Path(__file__).parents[2]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def numbers(option: str, value: str) -> list[int]:
    """Whole numbers of at least 1 with commas between them.

    Raises:
        ValueError: something else.
    """
    parts = value.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise ValueError(f"{option} takes whole numbers from 1 with commas between them; got {value!r}")
    return [int(part) for part in parts]


def chosen(kind: str, given: list[str] | None, known: list[str]) -> list[str]:
    """The names that were given, in the order of those that there are; all where none was.

    Raises:
        ValueError: a name that there is not.
    """
    unknown = [name for name in given or [] if name not in known]
    if unknown:
        raise ValueError(f"no {kind} is called {unknown[0]!r}; there are: {'; '.join(known)}")
    return [name for name in known if not given or name in given]


def said(path: Path) -> str:
    """A file's path as a page says it: within the project from there."""
    path = path.resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


@app.command()
def main(
    model: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(MODELS)}; may be repeated.")] = None,
    way: Annotated[list[str] | None, typer.Option(help="Way to measure; may be repeated. Default: all.")] = None,
    texts: Annotated[int, typer.Option(min=2, help="Texts of a case, two batches at least.")] = 64,
    batches: Annotated[str, typer.Option(help="Sizes of batches.")] = "32",
    threads: Annotated[str, typer.Option(help="Numbers of threads.")] = "1",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each way.")] = 3,
    memory: Annotated[bool, typer.Option(help="Read each way's memory too.")] = True,
    pyramid: Annotated[list[Path] | None, typer.Option(help="Fitted folder; may be repeated.")] = None,
    texts_file: Annotated[Path | None, typer.Option(help="Labelled texts for fitted folders.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure what is done once more.")] = False,
    dry: Annotated[
        bool, typer.Option("--dry", help="Try everything on tiny models; nothing is a measurement.")
    ] = False,
    figures: Annotated[Path, typer.Option(help="File of all figures.")] = ROOT / FIGURES,
    work: Annotated[Path, typer.Option(help="Folder for files made from the weights.")] = ROOT / "build" / "peers",
    output: Annotated[Path, typer.Option(help="The page.")] = ROOT / PAGE,
    page_only: Annotated[bool, typer.Option("--page", help="Print the page from the figures there are.")] = False,
) -> None:
    """Measure other engines beside ours on the same weights and texts. What is measured is not measured again."""
    document = Document(figures)
    if not page_only:
        if bool(pyramid) != bool(texts_file):
            raise ValueError("--pyramid and --texts-file go together: a fitted folder, and labelled texts for it")
        if not (dry or mp_kernels.extension.is_built()):
            raise ValueError("the compiled kernels are not built; run make test, or pip install -e .")
        sizes, counts = numbers("--batches", batches), numbers("--threads", threads)
        names, models = chosen("way", way, list(ways())), chosen("model", model, list(MODELS))
        names = names if REFERENCE in names else [REFERENCE, *names]
        document.open(machine(), dry)
        runner = Runner(document, work, Budget(texts, rounds, dry), names, again)
        for count in counts:
            for folder in pyramid or []:
                runner.fitted(folder, texts_file or Path(), count)
            for name in models:
                runner.model(name, count, sizes)
        for name in models if memory else []:
            runner.memory(name)
    with whole_file(output) as stream:
        stream.write(page(document.read(), said(figures), said(output)))
    print(output)


def run() -> None:
    """Runs the command; an error of the user's ends in one line and status 2, a step that failed in status 1."""
    try:
        app()
    except (ValueError, OSError, RuntimeError) as error:
        print(f"peers: {error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, RuntimeError) else 2)


if __name__ == "__main__":
    run()

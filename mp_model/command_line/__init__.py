"""The program ``magic-pyramid``: a file a command, and the options and steps that several share.

Heavy imports wait until a command runs, so that help is shown at once.
"""

from __future__ import annotations

import sys

import typer

from . import classify, demo, evaluate, fit, info, tune

app = typer.Typer(
    name="magic-pyramid",
    help="BERT classifiers that cost a fraction per text: tokens are pruned and samples exit, for real.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command("classify")(classify.classify)
app.command("demo")(demo.demo)
app.command("evaluate")(evaluate.evaluate)
app.command("fit")(fit.fit)
app.command("info")(info.info)
app.command("tune")(tune.tune)


def main() -> None:
    """Entry point of the program; an error of the user's making ends in one line and exit status 2."""
    try:
        app()
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        message = " ".join(str(error).split())  # other libraries' messages have several lines
        typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
        sys.exit(2)

"""The application that commands join, and its entry: a user's mistake is a line, not a trace."""

from collections.abc import Sequence
from typing import Annotated

import typer

import alignment
from alignment.cli.printing import fail
from alignment.errors import UserError

EXAMPLE = "\b\nExample: alignment {}"
app = typer.Typer(
    name="alignment",
    help="Align language models with game theory: preference methods as losses over one pipeline.",
    epilog=EXAMPLE.format("train recipes/quickstart/ipo.yaml"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
recipes_app = typer.Typer(epilog=EXAMPLE.format("recipes list"), no_args_is_help=True, rich_markup_mode=None)
app.add_typer(recipes_app, name="recipes", help="The recipes that come with the package.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake becomes one line a mistake on stderr and exit code 2, without a trace."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="alignment")
    except UserError as error:
        fail(str(error))
    except FileNotFoundError as error:
        fail(f"no such file: '{error.filename}'" if error.filename else str(error))
    except OSError as error:
        # Of a file it is the user's to mend: a folder that is a file, a place that is not theirs.
        if error.filename is None:
            raise
        fail(f"'{error.filename}': {error.strerror}; name another file or folder, or check its permissions")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"alignment {alignment.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass

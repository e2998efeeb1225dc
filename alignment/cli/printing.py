"""What all commands print with: consoles, notes, bars. Imports that cost time stand inside."""

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.table import Table

    from alignment.progress import Progress


def open_console(*, stderr: bool = False) -> "Console":
    """Where a command prints."""
    from rich.console import Console

    # Without a terminal a table is as wide as it needs to be, so that it can be searched line by line.
    stream = sys.stderr if stderr else sys.stdout
    # What is printed is other people's text: nothing in it is read as markup.
    return Console(stderr=stderr, width=None if stream.isatty() else 240, markup=False, emoji=False, highlight=False)


def fail(text: str) -> None:
    """End with exit code 2 and a line for each mistake."""
    console = open_console(stderr=True)
    for line in text.splitlines():
        console.print(f"error: {line}", style="red", soft_wrap=True)
    sys.exit(2)


def print_notes(notes: Sequence[str]) -> None:
    """What the user should know about how a recipe, or what came of it, was made."""
    # Under a launcher every process comes here; one of them speaks.
    if os.environ.get("RANK", "0") == "0":
        for note in notes:
            typer.echo(f"note: {note}", err=True)


def progress_bar() -> "AbstractContextManager[Bars]":
    """Bars on stderr, where that is a terminal."""
    from rich.progress import Progress

    return Progress(console=open_console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def bars(shown: "Bars") -> "Progress":
    """Moves a bar for each thing that is done."""
    tasks: dict[str, Any] = {}

    def report(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = shown.add_task(name, total=total)
        shown.update(tasks[name], completed=done)

    return report


def plain_table(*headings: str) -> "Table":
    """Columns without lines."""
    from rich.table import Table

    return Table(*headings, box=None, pad_edge=False)


def print_plain(table: "Table") -> None:
    """Without blanks at the ends of lines, and with an empty line after it."""
    console = open_console()
    with console.capture() as captured:
        console.print(table)
    typer.echo("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

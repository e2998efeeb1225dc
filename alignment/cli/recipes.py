"""Commands about the recipes that come with the package."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from alignment.cli.app import recipes_app
from alignment.cli.arguments import AsJson
from alignment.errors import UserError


@recipes_app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """List the shipped recipes, with device and time.

    \b
    Example: alignment recipes list
    """
    from alignment.config import recipes_folder, shipped_recipes

    folder = recipes_folder()
    rows = [
        {"recipe": f"recipes/{path.as_posix()}", "measured": _second_line(folder / path)} for path in shipped_recipes()
    ]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    width = max(len(row["recipe"]) for row in rows)
    for row in rows:
        typer.echo(f"{row['recipe']:<{width}}  {row['measured']}")


def _second_line(path: Path) -> str:
    """A recipe opens with two comments: the command that runs it, then the device and the measured time."""
    return path.read_text(encoding="utf-8").splitlines()[1].lstrip("# ")


@recipes_app.command("copy")
def copy_recipes(
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="The folder to copy to; made if missing.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that are there.")] = False,
) -> None:
    """Copy the shipped recipes into a folder, to edit them.

    \b
    Example: alignment recipes copy my-recipes
    """
    from alignment.config import recipes_folder

    folder = recipes_folder()
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    present = [name for name in names if (destination / name).exists()]
    if present and not force:
        more = f" and {len(present) - 1} more" if len(present) > 1 else ""
        raise UserError(f"{destination / present[0]}{more} would be overwritten; name another folder, or add --force")
    for name in names:
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, destination / name)
    typer.echo(f"copied {len(names)} files to {destination}")

"""Arguments and options that several commands take, and how lists in them are read."""

from typing import Annotated

import typer

from alignment.errors import UserError

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe to set, such as training.max_steps=20."),
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run folder, the folder of a model, or a name on the Hub.")
]
CheckpointOption = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Take RUN/checkpoint-N. [default: the final model]")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def split_list(text: str, option: str) -> list[str]:
    """The items between commas; ``option`` is named in the error."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise UserError(f"{option}: expected a list with commas, got '{text}'")
    return items


def read_integer(text: str, option: str) -> int:
    """An integer of a list with commas."""
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{option}: expected integers with commas, got '{text}'") from error

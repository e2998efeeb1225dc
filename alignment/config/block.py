"""What all blocks of all recipes are."""

from pydantic import BaseModel, ConfigDict


class Block(BaseModel):
    """A block of a recipe: strict types, no unknown key."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

"""Recipes: read, extended, overridden, checked. ``load_recipe`` is the entry.

``AlignmentArguments`` and ``build_arguments`` import transformers, so they are imported when they are first used.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.config.compose import Loaded, Override, compose, recipes_folder, shipped_recipes
from alignment.config.data import DataSource, DataSpec, RowsSpec
from alignment.config.needs import card_needs, card_solution, text_gap, unmet_needs
from alignment.config.schema import (
    LoRASpec,
    ModelSpec,
    OpponentSpec,
    PolicySpec,
    Recipe,
    SamplingSpec,
    ScheduleSpec,
    TinySpec,
)
from alignment.config.validation import validate_recipe

if TYPE_CHECKING:
    from alignment.arguments import AlignmentArguments
    from alignment.config.arguments import build_arguments, build_callbacks, build_measures

__all__ = [
    "AlignmentArguments",
    "DataSource",
    "DataSpec",
    "LoRASpec",
    "LoadedRecipe",
    "ModelSpec",
    "OpponentSpec",
    "PolicySpec",
    "Recipe",
    "RowsSpec",
    "SamplingSpec",
    "ScheduleSpec",
    "TinySpec",
    "build_arguments",
    "build_callbacks",
    "build_measures",
    "card_needs",
    "card_solution",
    "load_recipe",
    "recipes_folder",
    "shipped_recipes",
    "text_gap",
    "unmet_needs",
]


LoadedRecipe = Loaded[Recipe]


def load_recipe(path: str | Path, overrides: Sequence[Override] = ()) -> LoadedRecipe:
    """Read a recipe with what it extends, apply ``key.sub=value`` overrides, expand ``${NAME}``, check everything.

    Args:
        path: a file, or the name of a shipped recipe.
        overrides: for example ``training.learning_rate=5e-7``, whose value is read as YAML, or the key and the value.

    Raises:
        UserError: with one line for each mistake, unmet needs of the method first.
    """
    composed = compose(path, overrides, command="train")
    return Loaded(recipe=validate_recipe(composed.tree, composed.problems), notes=composed.notes)


_LAZY = {
    "AlignmentArguments": "alignment.arguments",
    "build_arguments": "alignment.config.arguments",
    "build_callbacks": "alignment.config.arguments",
    "build_measures": "alignment.config.arguments",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'alignment.config' has no attribute '{name}'")

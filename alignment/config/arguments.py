"""From a recipe to the arguments of its trainer."""

from collections.abc import Mapping
from typing import Any

from alignment.arguments import AlignmentArguments
from alignment.config.schema import Recipe
from alignment.errors import UserError


def build_arguments(recipe: Recipe, *, output_dir: str | None = None) -> AlignmentArguments:
    """The arguments of a recipe's trainer.

    Args:
        recipe: a checked recipe.
        output_dir: another folder than the recipe's, for a part of a run.

    Raises:
        UserError: if two training keys contradict one another.
    """
    sampling = recipe.sampling
    try:
        return AlignmentArguments(
            output_dir=output_dir or recipe.output_dir,
            seed=recipe.seed,
            num_completions=sampling.num_completions,
            temperature=sampling.temperature,
            max_new_tokens=sampling.max_new_tokens,
            engine=sampling.engine,
            engine_options=sampling.engine_options,
            responses=sampling.responses,
            opponent_temperature=sampling.opponent.temperature,
            opponent_completions=sampling.opponent.num_completions,
            top_k=sampling.top_k,
            max_prompt_length=recipe.data.max_prompt_length,
            max_completion_length=recipe.data.max_completion_length,
            store_anchors=recipe.anchors.store,
            **_current_names(recipe.training),
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"training: {error}") from error


def _current_names(training: Mapping[str, Any]) -> dict[str, Any]:
    """Recipes say ``gradient_checkpointing``, which every supported transformers has; newer ones renamed it."""
    renamed = {
        old: old.replace("gradient", "activation")
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs")
    }
    known = AlignmentArguments.__dataclass_fields__
    return {renamed[name] if renamed.get(name) in known else name: value for name, value in training.items()}

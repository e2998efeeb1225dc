"""From a recipe to the arguments of its trainer."""

from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from alignment.arguments import AlignmentArguments
from alignment.config.schema import EvaluationSpec, Recipe
from alignment.errors import UserError
from alignment.iterations import StopEarly
from alignment.types import Measure


def build_arguments(recipe: Recipe, *, output_dir: str | None = None) -> AlignmentArguments:
    """The arguments of a recipe's trainer.

    Args:
        recipe: a checked recipe.
        output_dir: another folder than the recipe's, for a part of a run.

    Raises:
        UserError: if two training keys contradict one another.
    """
    sampling, evaluation = recipe.sampling, recipe.evaluation or EvaluationSpec()
    # Evaluations without a gain are counted over continuations.
    patience = {} if recipe.early_stopping is None else {"restore_callback_states_from_checkpoint": True}
    rhythm = {} if evaluation.every is None else {"eval_strategy": "steps", "eval_steps": evaluation.every}
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
            steps_per_rollout=sampling.steps_per_rollout,
            average_decay=None if recipe.average is None else recipe.average.decay,
            max_prompt_length=recipe.data.max_prompt_length,
            # The responses that a round learns from are those that it has sampled.
            max_completion_length=sampling.max_new_tokens
            if recipe.samples_in_rounds
            else recipe.data.max_completion_length,
            store_anchors=recipe.anchors.store,
            scoring_layout=recipe.scoring.layout,
            scoring_logits=recipe.scoring.logits,
            scoring_behaviour=recipe.scoring.behaviour,
            win_rate_completions=evaluation.num_completions,
            win_rate_temperature=evaluation.temperature,
            win_rate_max_new_tokens=recipe.longest_answer,
            win_rate_prompts=evaluation.num_prompts,
            **patience | _current_names(recipe.training) | rhythm,
        )
    except UserError as error:
        raise UserError("\n".join(map(_with_block, str(error).splitlines()))) from None
    except ValueError as error:
        raise UserError(f"training: {error}") from error


def _with_block(line: str) -> str:
    """A line about a field of transformers begins with the field's name; a recipe has it under ``training``."""
    is_field = line.partition(":")[0] in TrainingArguments.__dataclass_fields__
    return f"training.{line}" if is_field else line


def build_callbacks(recipe: Recipe) -> list[TrainerCallback]:
    """What a recipe wants done between steps."""
    spec = recipe.early_stopping
    return [] if spec is None else [StopEarly(spec.patience, spec.threshold)]


def build_measures(recipe: Recipe) -> list[Measure]:
    """What is computed of the policy in every evaluation besides losses and win rates."""
    exact = None if recipe.evaluation is None else recipe.evaluation.exact
    if exact is None:
        return []
    from alignment.textgame import ExactFigures, shared_game

    return [ExactFigures(shared_game(), tau=exact.tau)]


def _current_names(training: Mapping[str, Any]) -> dict[str, Any]:
    """Recipes say ``gradient_checkpointing``, which every supported transformers has; newer ones renamed it."""
    renamed = {
        old: old.replace("gradient", "activation")
        for old in ("gradient_checkpointing", "gradient_checkpointing_kwargs")
    }
    known = AlignmentArguments.__dataclass_fields__
    return {renamed[name] if renamed.get(name) in known else name: value for name, value in training.items()}

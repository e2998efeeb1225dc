"""Recipes that fit a model to rows as they are: demonstrations (``alignment sft``), comparisons (``alignment reward``).

They share the blocks of a training recipe where those apply; ``training`` holds the same verbatim fields with the same
defaults, whatever the defaults of TRL are.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import Field, model_validator

from alignment.config.block import Block
from alignment.config.compose import Loaded, compose
from alignment.config.data import DataSource, RowsSpec, Sources, plain_data
from alignment.config.parsing import dump_yaml
from alignment.config.problems import check_block
from alignment.config.schema import ModelSpec, schema_keys, without_nulls

# What a mixture cannot do, because it trains several models several times: field -> what it may still be.
_NOT_IN_A_MIXTURE = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "resume_from_checkpoint": None,
}


class ComparisonData(RowsSpec):
    """Where comparisons come from."""

    preferences: Sources

    @property
    def sources(self) -> tuple[DataSource, ...]:
        """What is trained on."""
        return self.preferences

    def refusal(self, formats: Collection[str]) -> str | None:
        """Files without feedback compare nothing."""
        return _not_preferences(formats)


class DemonstrationData(RowsSpec):
    """Where demonstrations come from; of ``preferences`` the preferred response is the demonstration."""

    preferences: Sources | None = None
    demonstrations: Sources | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.preferences is None) == (self.demonstrations is None):
            found = "both (switch one off: data.preferences=null)" if self.preferences else "neither"
            raise ValueError(f"expected exactly one of data.preferences and data.demonstrations, got {found}")
        return self

    @property
    def sources(self) -> tuple[DataSource, ...]:
        """What is trained on."""
        return self.preferences or self.demonstrations or ()

    def refusal(self, formats: Collection[str]) -> str | None:
        """Demonstrations are completions, and preferences are not."""
        if self.preferences is not None:
            return _not_preferences(formats)
        wrong = [name for name in formats if name != "completions"]
        if not wrong:
            return None
        return (
            f"expected the format completions in data.demonstrations, found the format {' and '.join(wrong)}; map its "
            "columns, or name the file in data.preferences"
        )


def _not_preferences(formats: Collection[str]) -> str | None:
    # In these formats a row says nothing about how good a response is.
    wrong = [name for name in formats if name in ("prompts", "completions")]
    if not wrong:
        return None
    return (
        f"expected feedback on responses in data.preferences, found the format {' and '.join(wrong)}; map its columns, "
        "or name the file in data.demonstrations, of alignment sft"
    )


class MixtureSpec(Block):
    """Groups of annotators, each with a reward of its own: hard EM of MaxMin-RLHF (arXiv 2402.08925, Alg. 2).

    ``training`` is one M step of one group. The first start deals annotators like cards, and stays where it is if that
    happens to mix the groups evenly; hence several.
    """

    groups: int = Field(ge=2)
    max_iterations: int = Field(default=10, gt=0)
    num_starts: int = Field(default=3, gt=0)


class _FitRecipe(Block):
    policy: ModelSpec
    training: dict[str, Any] = Field(default_factory=dict)
    output_dir: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**31)

    def to_yaml(self) -> str:
        """The resolved recipe as YAML that reads back to an equal one."""
        tree = self.model_dump(mode="json", exclude_none=True)
        return dump_yaml({**tree, "data": plain_data(tree["data"])})


class SFTRecipe(_FitRecipe):
    """Supervised fine-tuning: the likelihood of demonstrations is raised."""

    data: DemonstrationData


class RewardRecipe(_FitRecipe):
    """A Bradley-Terry reward model, or one for each group of annotators."""

    data: ComparisonData
    mixture: MixtureSpec | None = None

    @model_validator(mode="after")
    def _a_mixture_trains_in_pieces(self) -> Self:
        if self.mixture is None:
            return self
        if self.data.eval_fraction == 0:
            raise ValueError(
                "expected data.eval_fraction > 0 with mixture, got 0; only held-out rows can tell whether groups differ"
            )
        wrong = [key for key, allowed in _NOT_IN_A_MIXTURE.items() if self.training.get(key, allowed) != allowed]
        if wrong:
            keys = ", ".join(f"training.{key}" for key in wrong)
            raise ValueError(
                f"expected no {keys} with mixture, which trains several models several times and saves the last ones"
            )
        return self


FitRecipe = TypeVar("FitRecipe", bound=_FitRecipe)


def load_sft_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Loaded[SFTRecipe]:
    """Read a recipe of ``alignment sft``; as :func:`alignment.config.load_recipe`.

    Raises:
        UserError: with one line for each mistake.
    """
    return _load(SFTRecipe, "sft", path, overrides)


def load_reward_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Loaded[RewardRecipe]:
    """Read a recipe of ``alignment reward``; as :func:`alignment.config.load_recipe`.

    Raises:
        UserError: with one line for each mistake.
    """
    return _load(RewardRecipe, "reward", path, overrides)


def _load(kind: type[FitRecipe], command: str, path: str | Path, overrides: Sequence[str]) -> Loaded[FitRecipe]:
    from alignment.config.training import training_keys, training_problems

    composed = compose(path, overrides, command=command)
    tree = without_nulls(composed.tree)
    known = (*schema_keys(kind), *training_keys())
    recipe, problems = check_block(kind, tree, known)
    if isinstance(tree.get("training"), dict):
        problems |= training_problems(tree["training"], known)
    composed.raise_problems(problems)
    assert recipe is not None
    return Loaded(recipe=recipe, notes=composed.notes)

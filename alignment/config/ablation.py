"""Recipes of ``alignment ablate``: which settings of which recipes are compared, over which seeds, at which budget."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from alignment.budgets import planned_verdicts
from alignment.config import Recipe, load_recipe
from alignment.config.block import Block
from alignment.config.compose import Override, compose, find_recipe
from alignment.config.launch import find_launcher
from alignment.config.parsing import dump_yaml, read_mapping
from alignment.config.problems import check_block
from alignment.config.schema import schema_keys, without_nulls
from alignment.errors import UserError
from alignment.evaluation.ablations import is_off
from alignment.values import differences, leaves

# Keys that the ablation sets itself.
_OWN = ("seed", "output_dir")
_FOLDER = "cells"


def _dotted(value: Any) -> Any:
    """Keys of a recipe by their dotted paths, however they were nested."""
    return dict(leaves(value)) if isinstance(value, Mapping) and value else value


Overrides = Annotated[dict[str, Any], BeforeValidator(_dotted)]
Choices = Annotated[dict[str, list[Any]], BeforeValidator(_dotted)]
Seeds = list[Annotated[int, Field(ge=0)]]


class VariantSpec(Block):
    """One of the settings that are compared.

    Attributes:
        recipe: what it changes; ``None`` for the base.
        overrides: keys of the recipe and their values.
        tune: in place of the ablation's.
    """

    recipe: str | None = Field(default=None, min_length=1)
    overrides: Overrides = Field(default_factory=dict)
    tune: Choices | None = None


class BudgetSpec(Block):
    """What every cell may ask of its oracle.

    Attributes:
        oracle_calls: verdicts that a cell learns from; ``None`` for as many as the first one.
        tolerance: by which part of it a cell may differ.
    """

    oracle_calls: int | None = Field(default=None, gt=0)
    tolerance: float = Field(default=0.0, ge=0)


class AblationRecipe(Block):
    """A whole ablation: every variant at every value of the grid, each over the same seeds.

    Attributes:
        base: the recipe of every variant that names none; beside this file, from the working directory, or shipped.
        overrides: keys of every cell.
        variants: what is compared, by name.
        grid: key -> values; every combination is compared.
        tune: key -> values; the best combination is chosen for each variant on ``tuning_seeds``, before it is compared.
        seeds: of the comparison.
        tuning_seeds: of the choice; other ones, so that a lucky seed cannot be chosen and then reported.
        metrics: figure of ``summary.json`` -> which is better. The first one decides; the others are shown.
        budget: the same for every cell.
        launcher: a configuration of ``accelerate launch``; ``None`` for one process.
        output_dir: where everything goes.
    """

    base: str | None = Field(default=None, min_length=1)
    overrides: Overrides = Field(default_factory=dict)
    variants: dict[str, VariantSpec] = Field(default_factory=dict)
    grid: Choices = Field(default_factory=dict)
    tune: Choices = Field(default_factory=dict)
    seeds: Seeds = Field(min_length=1)
    tuning_seeds: Seeds = Field(default_factory=list)
    metrics: dict[str, Literal["lower", "higher"]] = Field(min_length=1)
    budget: BudgetSpec = BudgetSpec()
    launcher: str | None = Field(default=None, min_length=1)
    output_dir: str = Field(min_length=1)

    @model_validator(mode="after")
    def _something_is_compared(self) -> Self:
        if not self.variants and not self.grid:
            raise ValueError("expected variants or a grid, got neither: nothing would be compared")
        nameless = [name for name, spec in self.variants.items() if spec.recipe is None]
        if self.base is None and (nameless or not self.variants):
            where = f"of variant '{nameless[0]}'" if nameless else "that the grid changes"
            raise ValueError(f"expected the recipe {where}, got neither base nor variants.NAME.recipe")
        return self

    @model_validator(mode="after")
    def _choices_are_choices(self) -> Self:
        blocks = {"grid": self.grid, "tune": self.tune}
        blocks |= {f"variants.{name}.tune": spec.tune or {} for name, spec in self.variants.items()}
        for block, choices in blocks.items():
            for key, values in choices.items():
                repeated = [value for place, value in enumerate(values) if value in values[:place]]
                if not values or repeated:
                    found = f"{repeated[0]!r} twice" if values else "none"
                    raise ValueError(f"{block}.{key}: expected a list of different values, got {found}")
        return self

    @model_validator(mode="after")
    def _own_keys_are_its_own(self) -> Self:
        blocks = {"overrides": self.overrides, "grid": self.grid, "tune": self.tune}
        for name, spec in self.variants.items():
            blocks |= {f"variants.{name}.overrides": spec.overrides, f"variants.{name}.tune": spec.tune or {}}
        for block, keys in blocks.items():
            for key in _OWN:
                if key in keys:
                    said = "write seeds at the top level" if key == "seed" else "every cell has a folder of its own"
                    raise ValueError(f"{block}.{key}: the ablation sets it; {said}")
        return self

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        every = [*self.seeds, *self.tuning_seeds]
        repeated = [seed for place, seed in enumerate(every) if seed in every[:place]]
        if repeated:
            raise ValueError(f"expected every seed once in seeds and tuning_seeds, got {repeated[0]} twice")
        return self

    @model_validator(mode="after")
    def _as_many_are_tried(self) -> Self:
        variants = self.variants or {"": VariantSpec()}
        tried = {name: len(list(_combinations(self.choices_of(spec)))) for name, spec in variants.items()}
        if len(set(tried.values())) > 1:
            said = ", ".join(f"{name} {count}" for name, count in tried.items())
            raise ValueError(f"expected as many settings to try for every variant, got {said}; level the lists of tune")
        if (max(tried.values()) > 1) != bool(self.tuning_seeds):
            found = "none" if not self.tuning_seeds else "them with a single setting"
            raise ValueError(
                f"expected tuning_seeds where tune has settings to choose from, and only there, got {found}"
            )
        return self

    def choices_of(self, spec: VariantSpec) -> Mapping[str, list[Any]]:
        """What is tried for a variant."""
        return self.tune if spec.tune is None else spec.tune

    def to_yaml(self) -> str:
        """The resolved recipe as YAML that reads back to an equal one."""
        return dump_yaml(self.model_dump(mode="json", exclude_none=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A run.

    Attributes:
        variant: what is compared.
        trial: the setting that was tried, as text; empty where nothing is tuned.
        seed: of the run.
        is_tuning: whether it only serves the choice of a setting.
        recipe: checked, with its seed and its folder.
        planned: verdicts that it will learn from; ``None`` where only its data tell.
    """

    variant: str
    trial: str
    seed: int
    is_tuning: bool
    recipe: Recipe
    planned: int | None

    @property
    def setting(self) -> str:
        """The cell without its seed."""
        return _joined(self.variant, self.trial)

    @property
    def name(self) -> str:
        """As messages call it."""
        return _joined(self.setting, f"seed {self.seed}")

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.recipe.output_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAblation:
    """A checked ablation.

    Attributes:
        recipe: its keys.
        cells: every run that there may be: all settings on the tuning seeds and on the others.
        launcher: the configuration of ``accelerate launch``, found.
        budget: verdicts that a cell may learn from; ``None`` where nothing says it before the runs.
        notes: what the user should know about how it came about, one line each.
    """

    recipe: AblationRecipe
    cells: tuple[Cell, ...]
    launcher: Path | None
    budget: int | None
    notes: tuple[str, ...]


def load_ablation(path: str | Path, overrides: Sequence[Override] = ()) -> LoadedAblation:
    """Read an ablation and the recipes of all its cells; as :func:`alignment.config.load_recipe`.

    Raises:
        UserError: for mistakes in it, for a cell whose recipe does not resolve, for two settings that are the same, and
            where cells differ in what they would ask of their oracle or in how they are measured.
    """
    composed = compose(path, overrides, command="ablate")
    tree = without_nulls(composed.tree)
    recipe, problems = check_block(AblationRecipe, tree, tuple(schema_keys(AblationRecipe)))
    composed.raise_problems(problems)
    assert recipe is not None
    place = find_recipe(path)[0].parent
    notes = list(composed.notes)
    launcher = None if recipe.launcher is None else find_launcher(_beside(recipe.launcher, place))
    num_processes = 1 if launcher is None else int(read_mapping(launcher).get("num_processes", 1))
    cells = tuple(_cells(recipe, place, num_processes, notes))
    # What is checked does not depend on the seed.
    settings = list({cell.setting: cell for cell in cells}.values())
    _check_different(settings)
    _check_measured_alike(recipe, settings)
    known = [cell.planned for cell in settings if cell.planned is not None]
    loaded = LoadedAblation(
        recipe=recipe,
        cells=cells,
        launcher=launcher,
        budget=recipe.budget.oracle_calls or (known[0] if known else None),
        notes=tuple(dict.fromkeys(notes)),
    )
    _check_budget(loaded, settings)
    return loaded


Change = tuple[str, Any]


def _cells(recipe: AblationRecipe, place: Path, num_processes: int, notes: list[str]) -> Iterator[Cell]:
    for variant, spec, point in _variants(recipe):
        source = spec.recipe or recipe.base
        assert source is not None
        combinations = list(_combinations(recipe.choices_of(spec)))
        for combination in combinations:
            # A single setting is no choice.
            trial = _describe(combination) if len(combinations) > 1 else ""
            folder = Path(recipe.output_dir, _FOLDER, *(_slug(name) for name in (variant, trial) if name))
            changes = [*recipe.overrides.items(), *spec.overrides.items(), *point, *combination]
            try:
                loaded = load_recipe(_beside(source, place), [*changes, ("output_dir", str(folder))])
            except UserError as error:
                lines = str(error).splitlines()
                raise UserError("\n".join(f"{_joined(variant, trial)}: {line}" for line in lines)) from None
            notes.extend(f"{variant}: {note}" for note in loaded.notes)
            planned = planned_verdicts(loaded.recipe, num_processes=num_processes)
            for seed in (*(recipe.tuning_seeds if trial else ()), *recipe.seeds):
                own = {"seed": seed, "output_dir": str(folder / f"seed-{seed}")}
                yield Cell(
                    variant=variant,
                    trial=trial,
                    seed=seed,
                    is_tuning=seed in recipe.tuning_seeds,
                    recipe=loaded.recipe.model_copy(update=own),
                    planned=planned,
                )


def _variants(recipe: AblationRecipe) -> Iterator[tuple[str, VariantSpec, tuple[Change, ...]]]:
    """Each variant at each point of the grid, with the name of both."""
    names = []
    for name, spec in (recipe.variants or {"": VariantSpec()}).items():
        for point in _combinations(recipe.grid):
            names.append(_joined(name, _describe(point)))
            slugs = [_slug(known) for known in names]
            if slugs[-1] in slugs[:-1] or not re.match(r"\w", slugs[-1]):
                raise UserError(
                    "variants: expected names that begin with a letter or a digit and that folders can tell apart, got "
                    f"'{names[-1]}'"
                )
            yield names[-1], spec, point


def _combinations(choices: Mapping[str, list[Any]]) -> Iterator[tuple[Change, ...]]:
    """Every choice of a value for each key; of no keys there is one, which changes nothing."""
    for values in itertools.product(*choices.values()):
        yield tuple(zip(choices, values, strict=True))


def _describe(combination: Sequence[Change]) -> str:
    """``tau=0.04``: the ends of the keys, whole where two end alike."""
    ends = [key.rpartition(".")[2] for key, _ in combination]
    names = [end if ends.count(end) == 1 else key for (key, _), end in zip(combination, ends, strict=True)]
    return _joined(*(f"{name}={value}" for name, (_, value) in zip(names, combination, strict=True)))


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _slug(name: str) -> str:
    """A name as a folder is called."""
    return re.sub(r"[^\w.=+-]+", "_", name)


def _beside(source: str, place: Path) -> str | Path:
    """A file beside the ablation; else whatever the name means from the working directory."""
    return place / source if (place / source).is_file() else source


def made_by(recipe: Recipe) -> dict[str, Any]:
    """What decides a run, but for its seed and its folder."""
    return {key: value for key, value in recipe.model_dump().items() if key not in _OWN}


def _check_different(settings: Sequence[Cell]) -> None:
    for place, cell in enumerate(settings):
        for other in settings[:place]:
            if made_by(cell.recipe) == made_by(other.recipe):
                raise UserError(f"expected different cells, got '{other.setting}' and '{cell.setting}' of one recipe")


def _check_measured_alike(recipe: AblationRecipe, settings: Sequence[Cell]) -> None:
    first = settings[0]
    for cell in settings[1:]:
        differing = differences(_measured_by(first.recipe), _measured_by(cell.recipe))
        for key, (then, now) in differing.items():
            raise UserError(
                f"expected all cells to be measured alike, got {key} {then} in '{first.setting}' and {now} in "
                f"'{cell.setting}'; set it in overrides"
            )
    spec = first.recipe.evaluation
    for metric in recipe.metrics:
        if metric.startswith("exact_") and (spec is None or spec.exact is None):
            raise UserError(f"metrics.{metric}: expected evaluation.exact in the recipes, found none: nothing gives it")
        if metric.startswith("win_rate") and first.recipe.judge is None:
            raise UserError(f"metrics.{metric}: expected evaluation.oracle in the recipes, found none: nobody judges")


def _measured_by(recipe: Recipe) -> dict[str, Any]:
    if recipe.evaluation is None:
        return {"evaluation.oracle": recipe.judge}
    figures = recipe.evaluation.model_dump(exclude={"every"})
    return {"evaluation": {**figures, "oracle": recipe.judge, "max_new_tokens": recipe.longest_answer}}


def _check_budget(loaded: LoadedAblation, settings: Sequence[Cell]) -> None:
    budget, tolerance = loaded.budget, loaded.recipe.budget.tolerance
    off = [
        f"'{cell.setting}' {cell.planned:,}"
        for cell in settings
        if cell.planned is not None and budget is not None and is_off(cell.planned, budget, tolerance)
    ]
    if off:
        raise UserError(
            f"budget: expected {budget:,} verdicts of every cell, within {tolerance:.0%}, got {', '.join(off)}; change "
            "their steps, rounds or data, or raise budget.tolerance"
        )

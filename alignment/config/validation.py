"""Every error of a recipe at once, needs first."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from alignment.config.needs import card_needs, unmet_needs
from alignment.config.problems import check_block, problem_path, unknown_key
from alignment.config.schema import Recipe, schema_keys, without_nulls
from alignment.errors import UserError
from alignment.methods import build_method, load_card

Problems = dict[str, str]


def validate_recipe(tree: Mapping[str, Any], unset: Mapping[str, str]) -> Recipe:
    """Check a whole recipe.

    Args:
        tree: its keys and values, with variables expanded.
        unset: dotted key -> the line about a variable that is not set; what the key holds is then not judged.

    Raises:
        UserError: with one line a mistake: first what the method needs, then the rest.
    """
    # It imports transformers, hence not at the top: `alignment methods` shares this package and stays light.
    from alignment.config.training import training_keys, training_problems

    tree = without_nulls(tree)
    known = (*schema_keys(), *_option_keys(tree), *training_keys())
    recipe, problems = check_block(Recipe, tree, known)
    problems |= _check_method(tree)
    if isinstance(tree.get("training"), dict):
        problems |= training_problems(tree["training"], known)
    for key, spec in _oracles(tree).items():
        problems |= _check_oracle(key, spec)
    # A method or an oracle is judged as a whole, under the name of its block.
    unjudged = {
        *unset,
        *(key.partition(".")[0] for key in unset if key.startswith(("method.", "oracle."))),
        *("evaluation.oracle" for key in unset if key.startswith("evaluation.oracle.")),
    }
    lines = [*unset.values(), *(line for key, line in problems.items() if key not in unjudged)]
    lines = [*_unmet_needs(recipe or _without_mistakes(tree)), *lines]
    if lines or recipe is None:
        raise UserError("\n".join(lines))
    return recipe


def _check_method(tree: Mapping[str, Any]) -> Problems:
    spec = tree.get("method")
    if not isinstance(spec, dict):
        return {}
    declared = _option_keys(tree)
    problems: Problems = {}
    # What a player adds to the method or sets otherwise; without players the method stands for itself.
    own = {f"players.{name}.method": block.get("method", {}) for name, block in _blocks(tree.get("players"))}
    for key, options in (own or {"method": {}}).items():
        merged = {**spec, **options} if isinstance(options, dict) else spec
        unknown = [name for name in merged if declared and name != "name" and f"method.{name}" not in declared]
        for name in unknown:
            place = "method" if name in spec else key
            options_there = [option.replace("method", place, 1) for option in declared]
            problems[f"{place}.{name}"] = unknown_key(f"{place}.{name}", options_there)
        try:
            build_method({name: value for name, value in merged.items() if name not in unknown})
        except UserError as error:
            problems[key] = str(error) if key == "method" else f"{key}: {error}"
    return problems


def _option_keys(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """Dotted paths of what the ``method:`` block may hold; nothing if its method is unknown."""
    spec = tree.get("method")
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        return ("method.name",)
    try:
        card = load_card(spec["name"])
    except UserError:
        return ()
    return ("method.name", *(f"method.{option.name}" for option in dataclasses.fields(cast(Any, card))))


def _oracles(tree: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """All oracles of the recipe by their dotted keys: its own, that of each player, that of its evaluation."""
    evaluation = tree.get("evaluation")
    oracles = {
        "oracle": tree.get("oracle"),
        "evaluation.oracle": evaluation.get("oracle") if isinstance(evaluation, dict) else None,
        **{f"players.{name}.oracle": spec.get("oracle") for name, spec in _blocks(tree.get("players"))},
    }
    return {key: spec for key, spec in oracles.items() if isinstance(spec, dict)}


def _blocks(tree: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(name, spec) for name, spec in tree.items() if isinstance(spec, dict)] if isinstance(tree, dict) else []


def _check_oracle(key: str, spec: Mapping[str, Any]) -> Problems:
    from alignment.oracles import check_oracle

    try:
        check_oracle(spec)
    except UserError as error:
        return {key: str(error) if key == "oracle" else f"{key.removesuffix('.oracle')}: {error}"}
    return {}


def _unmet_needs(recipe: Recipe | None) -> list[str]:
    if recipe is None or not isinstance(recipe.method.get("name"), str):
        return []
    lines = []
    for player, own in recipe.by_player().items():
        try:
            needs = own.build_method().needs
        except UserError:
            # A missing option is reported elsewhere; what the method needs is known without it.
            try:
                needs = card_needs(own.method["name"])
            except UserError:
                return []
        lines += unmet_needs(needs, own, rivals=[name for name in recipe.players or () if name != player])
    return list(dict.fromkeys(lines))


def _without_mistakes(tree: Mapping[str, Any]) -> Recipe | None:
    """The recipe with every mistaken key at its default, so that needs can be checked beside the mistakes."""
    pruned = {"output_dir": "unset", **copy.deepcopy(dict(tree))}
    try:
        return Recipe.model_validate(pruned)
    except ValidationError as error:
        for path in {problem_path(details, pruned) for details in error.errors()}:
            _remove(pruned, path)
    try:
        return Recipe.model_validate({"output_dir": "unset", **pruned})
    except ValidationError:
        return None


def _remove(tree: dict[str, Any], path: tuple[str | int, ...]) -> None:
    block: Any = tree
    for part in path[:-1]:
        block = block.get(part) if isinstance(block, dict) else None
    if isinstance(block, dict) and path:
        block.pop(path[-1], None)

"""From a recipe file and overrides to one tree of values: find, extend, override, expand."""

import copy
import dataclasses
import difflib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar, cast

from alignment.config.parsing import PlainText, parse_scalar, parse_text, read_mapping
from alignment.errors import UserError
from alignment.methods import load_card

Tree = dict[str, Any]
# ``key.sub=value`` with the value as YAML, or the dotted key and the value itself.
Override = str | tuple[str, Any]
Checked = TypeVar("Checked")

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """A recipe before validation.

    Attributes:
        tree: every value, with variables expanded.
        notes: what the user should know, one line each.
        problems: key -> a variable that is not set; all are reported with the errors of validation.
    """

    tree: Tree
    notes: tuple[str, ...]
    problems: Mapping[str, str]

    def raise_problems(self, found: Mapping[str, str] = MappingProxyType({})) -> None:
        """Raise what is wrong, all at once: the variables that are not set, then what else was ``found``.

        Args:
            found: dotted key -> one line; left out where the key's variable is not set.

        Raises:
            UserError: with one line for each mistake, if there is any.
        """
        lines = [*self.problems.values(), *(line for key, line in found.items() if key not in self.problems)]
        if lines:
            raise UserError("\n".join(lines))


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[Checked]):
    """A checked recipe, and what the user should know about how it came about, one line each."""

    recipe: Checked
    notes: tuple[str, ...]


# Folders beside those of the methods: launcher configurations, and blocks that recipes share.
_NO_RECIPES = ("accelerate", "base")


def recipes_folder() -> Path:
    """The folder of the shipped recipes: in a wheel inside the package, in a clone beside it."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise UserError(f"expected the shipped recipes beside or inside {package}, found none; install the package again")


def shipped_recipes() -> tuple[Path, ...]:
    """Paths of the shipped recipes, relative to their folder, sorted."""
    folder = recipes_folder()
    paths = (path.relative_to(folder) for path in folder.rglob("*.yaml"))
    return tuple(sorted(path for path in paths if path.parts[0] not in _NO_RECIPES))


def compose(path: str | Path, overrides: Sequence[Override], *, command: str | None = None) -> Composed:
    """Read a recipe, everything that it extends, and the overrides ``key.sub=value``.

    Args:
        path: a file, or the name of a shipped recipe.
        overrides: as :func:`apply_overrides` takes them.
        command: whose recipe it must be; what its keys have in common with those of another one says little.

    Raises:
        UserError: for a file that is missing or is not YAML, a cycle of ``extends``, a malformed override, or the
            recipe of another command.
    """
    found, notes = find_recipe(path)
    tree, extended_notes = _read_extended(found, ())
    tree, override_notes = apply_overrides(tree, overrides)
    if command is not None:
        _check_command(tree.keys(), path, command)
    problems: dict[str, str] = {}
    tree = {key: _expand(value, key, problems) for key, value in tree.items()}
    # Their keys are not the schema's, which leaves out the nulls of all other blocks.
    tree |= {key: take_back(tree[key]) for key in ("method", "oracle") if isinstance(tree.get(key), dict)}
    return Composed(tree=tree, notes=(*notes, *extended_notes, *override_notes), problems=problems)


def _check_command(keys: Collection[str], path: str | Path, command: str) -> None:
    meant = _commands_of(keys)
    if meant and command not in meant:
        said = " or ".join(f"`alignment {name}`" for name in meant)
        raise UserError(f"{path}: expected a recipe of `alignment {command}`, found one of {said}")


def _commands_of(keys: Collection[str]) -> tuple[str, ...]:
    """Commands whose recipe may have these keys; nothing where no key says it. One of two may be a mistake."""
    if "policies" in keys:
        return ("evaluate",)
    if {"base", "variants", "grid", "tune"} & set(keys):
        return ("ablate",)
    num_of_training = len({"method", "schedule"} & set(keys))
    fits = ("sft", "reward") if "data" in keys and num_of_training < 2 else ()
    return (*(["train"] if num_of_training else []), *fits)


def find_recipe(path: str | Path) -> tuple[Path, tuple[str, ...]]:
    """The file that ``path`` means: itself, or the shipped recipe of that name, which is said in a note."""
    given = Path(path)
    if given.is_file():
        return given, ()
    if given.is_dir():
        raise UserError(f"expected a recipe file, got the folder '{given}'; `alignment recipes list` shows the recipes")
    shipped = shipped_file(given)
    if shipped is not None:
        return shipped, (f"'{given}' is not in this folder; using the shipped recipe {shipped}",)
    matches = difflib.get_close_matches(
        "/".join(_below_recipes(given)), [name.as_posix() for name in shipped_recipes()], n=1, cutoff=0.8
    )
    meant = f"did you mean 'recipes/{matches[0]}'? " if matches else ""
    raise UserError(
        f"no file '{given}', and no shipped recipe of this name; {meant}`alignment recipes list` shows those that are"
    )


def shipped_file(given: Path) -> Path | None:
    """The file of that name, with or without ``recipes/`` before it, in the package's folder of recipes."""
    shipped = recipes_folder().joinpath(*_below_recipes(given))
    return shipped if not given.is_absolute() and shipped.is_file() else None


def _below_recipes(given: Path) -> tuple[str, ...]:
    return given.parts[1:] if given.parts[:1] == ("recipes",) else given.parts


def _read_extended(path: Path, above: tuple[Path, ...]) -> tuple[Tree, tuple[str, ...]]:
    chain = (*above, path.resolve())
    if path.resolve() in above:
        raise UserError("recipes extend one another in a circle: " + " -> ".join(str(item) for item in chain))
    tree = read_mapping(path)
    if "extends" not in tree:
        return tree, ()
    named = tree.pop("extends")
    whole: Tree = {}
    notes: tuple[str, ...] = ()
    for value in named if isinstance(named, list) else [named]:
        base, base_notes = _read_extended(_find_base(value, path), chain)
        whole, swap_notes = _extend(whole, base)
        notes += (*base_notes, *swap_notes)
    whole, swap_notes = _extend(whole, tree)
    return whole, (*notes, *swap_notes)


def _extend(base: Tree, tree: Tree) -> tuple[Tree, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    method = tree.get("method")
    if isinstance(method, dict) and isinstance(base.get("method"), dict):
        base["method"], notes = _swap(base["method"], method)
    return _merge(base, tree), notes


def _find_base(value: Any, path: Path) -> Path:
    if not isinstance(value, str):
        raise UserError(f"{path}: extends: expected the path of a recipe, or a list of them, got {value!r}")
    problems: dict[str, str] = {}
    name = _expand(value, "extends", problems)
    if problems:
        raise UserError(f"{path}: {problems['extends']}")
    for candidate in (path.parent / name, Path(name)):
        if candidate.is_file():
            return candidate
    raise UserError(f"{path}: extends: no file '{name}', neither beside {path.name} nor in the working directory")


def _merge(base: Tree, over: Tree) -> Tree:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        # Another kind of oracle has other keys: those of the base would all be unknown to it.
        if nested and key == "oracle" and value.get("kind") not in (None, merged[key].get("kind")):
            nested = False
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[Override]) -> tuple[Tree, tuple[str, ...]]:
    """Set ``key.sub=value`` in a copy of ``tree``; the value is read as YAML, unless key and value are given apart.

    Where an override changes ``method.name``, options that the new card also declares are kept and the others dropped.
    Where one changes the kind of an oracle, all keys of the old kind are dropped, as they are under ``extends``.

    Returns:
        The tree, and notes of what was dropped.

    Raises:
        UserError: if an override has another form.

    Example:
        >>> apply_overrides({"training": {"max_steps": 3}}, ["training.learning_rate=5e-7"])[0]
        {'training': {'max_steps': 3, 'learning_rate': 5e-07}}
    """
    result: Tree = copy.deepcopy(dict(tree))
    parsed = [_parse_override(override) for override in overrides]
    options = {keys[1]: value for keys, value in parsed if keys[0] == "method" and len(keys) == 2}
    notes: tuple[str, ...] = ()
    if options and isinstance(result.get("method"), dict):
        result["method"], notes = _swap(result["method"], options)
    for keys, value in parsed:
        if keys[-2:] == ["oracle", "kind"]:
            notes += _swap_oracle(result, keys[:-1], value, parsed)
    for keys, value in parsed:
        block = result
        for depth, key in enumerate(keys[:-1], start=1):
            if block.get(key) is None:
                block[key] = {}
            block = block[key]
            if not isinstance(block, dict):
                whole, part = ".".join(keys), ".".join(keys[:depth])
                raise UserError(f"override '{whole}': expected '{part}' to hold keys, but it is {block!r}")
        block[keys[-1]] = value
    return result, notes


def _swap_oracle(
    tree: Tree, path: Sequence[str], kind: Any, parsed: Sequence[tuple[list[str], Any]]
) -> tuple[str, ...]:
    """Empty the block of an oracle of another kind; a note of the keys that no override sets again."""
    block: Any = tree
    for key in path:
        block = block.get(key) if isinstance(block, dict) else None
    if not isinstance(block, dict) or kind is None or block.get("kind") in (None, kind):
        return ()
    again = {keys[-1] for keys, value in parsed if keys[:-1] == path and value is not None}
    dropped = [key for key in block if key not in again]
    said = f"{'.'.join(path)} {block['kind']} -> {kind}: dropped {', '.join(dropped)}"
    block.clear()
    return (said,) if dropped else ()


def take_back(value: Any) -> Any:
    """Nested objects without the keys that null takes back.

    Example:
        >>> take_back({"kind": "panel", "rule": None, "members": {"a": None, "b": {}}})
        {'kind': 'panel', 'members': {'b': {}}}
    """
    if isinstance(value, dict):
        return {key: take_back(item) for key, item in value.items() if item is not None}
    return value


def _parse_override(override: Override) -> tuple[list[str], Any]:
    if not isinstance(override, str):
        return override[0].split("."), override[1]
    key, equals, text = override.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"override '{override}': expected key.sub=value, for example training.learning_rate=1e-6")
    return keys, parse_text(text, f"override '{override}'")


def _swap(old: Tree, new: Tree) -> tuple[Tree, tuple[str, ...]]:
    """The options of ``old`` that the method of ``new`` also declares, and a note that says what became of the rest."""
    name, old_name = new.get("name"), old.get("name")
    if not isinstance(name, str) or name == old_name:
        return old, ()
    try:
        declared = {spec.name for spec in dataclasses.fields(cast(Any, load_card(name)))}
    except UserError:
        # Validation reports the unknown method, with the nearest name.
        return old, ()
    options = {key: value for key, value in old.items() if key != "name"}
    kept = {key: value for key, value in options.items() if key in declared and new.get(key, value) is not None}
    said = {
        "kept": [f"{key}={value}" for key, value in kept.items() if key not in new],
        "dropped": [key for key in options if key not in kept],
        "set": [f"{key}={value}" for key, value in new.items() if key != "name" and value is not None],
    }
    changes = "; ".join(f"{verb} {', '.join(items)}" for verb, items in said.items() if items)
    return {"name": name, **kept}, (f"method {old_name} -> {name}: {changes or 'neither has options'}",)


def _expand(value: Any, key: str, problems: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _expand(item, f"{key}.{name}", problems) for name, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, key, problems) for item in value]
    if not isinstance(value, str):
        return value
    missing: list[str] = []
    text = _VARIABLE.sub(lambda match: _variable(match, missing), value)
    if missing:
        names = ", ".join(missing)
        problems[key] = (
            f"{key}: the environment variable {names} is not set; `export {missing[0]}=...` before the command, "
            f"or give the key itself: {key}=..."
        )
        return value
    if text == value:
        return str(value)
    return parse_scalar(text) if isinstance(value, PlainText) else text


def _variable(match: re.Match[str], missing: list[str]) -> str:
    name, default = match.groups()
    if name == "ALIGNMENT_RECIPES":
        return str(recipes_folder())
    # As in a shell, ":-" also stands for a variable that is set to nothing.
    value = os.environ.get(name, "") or default
    if value is None:
        missing.append(name)
        return ""
    return value

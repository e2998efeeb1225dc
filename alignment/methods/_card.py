"""Cards: the options of a method, checked, and the registry that finds a method by its file name."""

import dataclasses
import functools
import importlib
import json
import pkgutil
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any, ClassVar, Literal, cast, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from alignment.errors import UserError
from alignment.types import Method
from alignment.values import nearest_or_all


def option(
    *,
    default: Any = MISSING,
    paper: str,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    example: Any = None,
    usual: tuple[float, float] | None = None,
) -> Any:
    """A field of a card: what the paper used, and the range in which the loss is defined.

    Args:
        default: none for anything that the paper tunes; then a recipe must set it.
        paper: the paper's value and where it stands; quoted when the option is missing.
        above: exclusive lower bound.
        at_least: inclusive lower bound.
        below: exclusive upper bound.
        at_most: inclusive upper bound.
        example: a value to show the card with, where the option has no default and what the card needs depends on it.
        usual: smallest and largest value that the paper, or who ``paper`` names, used on language models.
    """
    bounds = {">": above, ">=": at_least, "<": below, "<=": at_most}
    metadata: dict[str, Any] = {
        "paper": paper,
        "bounds": {sign: limit for sign, limit in bounds.items() if limit is not None},
    }
    if example is not None:
        metadata["example"] = example
    if usual is not None:
        metadata["usual"] = usual
    if default is MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Options:
    """Base of all cards: checks that every number lies in its declared range.

    A card that overrides ``__post_init__`` calls ``Options.__post_init__(self)`` first: a dataclass with slots is a new
    class, which ``super()`` without arguments does not know.

    Attributes:
        no_solution: why no exact answer exists, where ``solution`` is "none".
        usual_learning_rate: smallest and largest that the papers of this family used, for all weights of a language
            model and batches of 32 to 128 prompts: 3e-7 to 1e-6 in 2405.14734's released recipes of eight methods,
            1e-6 in 2305.18290, 5e-6 in the released code of 2403.07691.
    """

    __slots__ = ()

    no_solution: ClassVar[str] = ""
    usual_learning_rate: ClassVar[tuple[float, float]] = (3e-7, 5e-6)

    @property
    def iterate(self) -> Literal["last", "average"]:
        """Which iterate the theory speaks of."""
        return "last"

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(cast(Any, self)):
            value = self.__getattribute__(spec.name)
            for sign, limit in spec.metadata.get("bounds", {}).items():
                if value is not None and not _holds(value, sign, limit):
                    name = type(self).__module__.rpartition(".")[2]
                    raise UserError(f"method '{name}': expected {spec.name} {sign} {limit:g}, got {value}")


def _holds(value: float, sign: str, limit: float) -> bool:
    return {">": value > limit, ">=": value >= limit, "<": value < limit, "<=": value <= limit}[sign]


@functools.cache
def method_names() -> tuple[str, ...]:
    """Names of all methods in the tree, sorted."""
    package = importlib.import_module("alignment.methods")
    names = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(sorted(name for name in names if not name.startswith("_")))


def load_card(name: str) -> type[Method]:
    """The card class of a method, by name or by dotted path (``mylab.methods:Foo``).

    Raises:
        UserError: if there is none, or something else; the nearest name is suggested.
    """
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        try:
            card = importlib.import_module(module_name).__dict__[attribute]
        # TypeError and ValueError: a name that begins with a dot, and none at all.
        except (ImportError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"method '{name}': expected 'module:Class' that can be imported, got {error!r}") from error
        fault = _why_no_card(card)
        if fault is not None:
            raise UserError(f"method.name: expected 'module:Class' of a method's card, got '{name}', {fault}")
        return cast(type[Method], card)
    if name not in method_names():
        raise UserError(f"unknown method '{name}'{nearest_or_all(name, method_names())}; `alignment methods` lists all")
    return cast(type[Method], importlib.import_module(f"alignment.methods.{name}").METHOD)


def _why_no_card(found: Any) -> str | None:
    """What an object lacks to be the card of a method, after ``got 'module:Class', ``."""
    if not isinstance(found, type):
        return f"of type {type(found).__name__}"
    if not dataclasses.is_dataclass(found):
        return "a class that is no dataclass"
    return None if "needs" in dir(found) else "a dataclass without needs"


def build_method(spec: Mapping[str, Any]) -> Method:
    """Build a method from a recipe's ``method:`` block.

    Args:
        spec: ``name`` and the options of its card.

    Raises:
        UserError: for an unknown name or option (with the nearest match), a value of the wrong type or outside its
            range, or a missing option (quoting the paper's value). All are reported together.

    Example:
        >>> build_method({"name": "dpo", "beta": 0.1}).beta
        0.1
    """
    options = dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f"method.name: expected the name of a method, got {name!r}")
    card = load_card(name)
    fields = {spec.name: spec for spec in dataclasses.fields(cast(Any, card))}
    problems = [f"unknown option '{key}'{nearest_or_all(key, fields)}" for key in options if key not in fields]
    types = get_type_hints(card)
    values = {}
    for key, spec_field in fields.items():
        if key in options:
            try:
                values[key] = _convert(options[key], types[key])
            except (ValidationError, TypeError) as error:
                problems.append(f"{key}: expected {_type_name(types[key])}, got {options[key]!r} ({_reason(error)})")
        elif spec_field.default is MISSING and spec_field.default_factory is MISSING:
            problems.append(f"missing option '{key}'; {spec_field.metadata['paper']}")
    if problems:
        raise UserError(f"method '{name}': " + "; ".join(problems))
    return card(**values)


def example_options(card: type[Method]) -> dict[str, Any]:
    """Options to show what a card needs, where that depends on them; not a recommendation."""
    return {
        spec.name: spec.metadata["example"]
        for spec in dataclasses.fields(cast(Any, card))
        if "example" in spec.metadata
    }


def _convert(value: Any, kind: Any) -> Any:
    # Through JSON, strict: a list may become a tuple, an integer a float, but the string "1/3" never a number.
    return TypeAdapter(kind, config=ConfigDict(strict=True)).validate_json(json.dumps(value))


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")


def _reason(error: ValidationError | TypeError) -> str:
    return error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)

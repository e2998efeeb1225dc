"""Values as they stand in a file, and how an error speaks of them."""

import difflib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from alignment.errors import UserError

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]
JsonObject = dict[str, JsonValue]


class Cell(str):
    """Text of a CSV cell. CSV has no types, so a number or a list may stand in it; in JSON text is text."""

    __slots__ = ()


def read_list(value: JsonValue) -> JsonValue:
    """The value, or the JSON list that a CSV cell holds."""
    if isinstance(value, Cell) and value.lstrip().startswith("["):
        try:
            return json.loads(value)  # type: ignore[no-any-return]
        except ValueError:
            return value
    return value


def read_number(value: JsonValue, name: str, source: str) -> float:
    """A finite number.

    Raises:
        UserError: if it is anything else.
    """
    number = value
    if isinstance(value, Cell):
        try:
            number = float(value)
        except ValueError:
            number = value
    # A bool is an int in Python; true and false here would be labels of another kind, such as KTO's.
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        found = str(number) if isinstance(number, float) else kind(value)
        raise UserError(f"{source}: expected a finite number in {name!r}, found {found}; repair or remove the row")
    return float(number)


def is_number(value: JsonValue) -> bool:
    """Whether it is a number and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def kind(value: JsonValue) -> str:
    """What a value is, for an error."""
    if isinstance(value, str):
        return f"the string {str(value[:40])!r}"
    if isinstance(value, dict):
        return f"an object with the keys {listed(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "null" if value is None else f"{value!r}"


def listed(names: Iterable[str]) -> str:
    """Names of columns, quoted."""
    return ", ".join(repr(name) for name in names) or "no columns"


def nearest(name: str, known: Collection[str]) -> str:
    """The end of an error about an unknown name that has listed the known ones."""
    close = close_name(name, known)
    return "; choose one of them" if close is None else f"; did you mean {close!r}?"


def nearest_or_all(name: str, known: Collection[str]) -> str:
    """The same of one that has not: where nothing is near it lists them, unless they are many."""
    close = close_name(name, known)
    listed_all = f" (known: {', '.join(sorted(known))})" if len(known) <= 12 else ""
    return listed_all if close is None else f"; did you mean {close!r}?"


def close_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that is spelt most like this one, if any is."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What stands at the ends of nested objects, by dotted keys; an empty object is an end.

    Example:
        >>> dict(leaves({"a": {"b": 1, "c": {}}, "d": [2]}))
        {'a.b': 1, 'a.c': {}, 'd': [2]}
    """
    if not isinstance(tree, Mapping) or not tree:
        yield prefix.removesuffix("."), tree
        return
    for key, value in tree.items():
        yield from leaves(value, f"{prefix}{key}.")


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two nested objects: dotted key -> both values, ``None`` where one has none.

    Example:
        >>> differences({"seed": 0, "data": {"path": "a"}}, {"seed": 1, "data": {"path": "a"}})
        {'seed': (0, 1)}
    """
    before, now = dict(leaves(first)), dict(leaves(second))
    return {key: (before.get(key), now.get(key)) for key in sorted(before | now) if before.get(key) != now.get(key)}

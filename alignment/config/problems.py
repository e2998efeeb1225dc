"""Errors of validation, one line each: the dotted key, what was expected, what was found, the nearest known key."""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Spec = TypeVar("Spec", bound=BaseModel)

_EXPECTED = {
    "string_type": "text",
    "string_too_short": "some text",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a block of keys",
    "model_type": "a block of keys",
    "list_type": "a list",
    "tuple_type": "text or a list of texts",
    "too_short": "a longer list",
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:g}",
    "less_than_equal": "a number <= {le:g}",
    "literal_error": "{expected}",
}

# What other trainers call fields of transformers, in the training block or without one.
_CALLED = {
    "lr": "learning_rate",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "steps": "max_steps",
    "scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "wandb": "report_to",
}


def check_block(kind: type[Spec], tree: Any, known: Collection[str]) -> tuple[Spec | None, dict[str, str]]:
    """The block that ``tree`` describes, or ``None`` and what is wrong with it: dotted key -> one line.

    Args:
        kind: of the block.
        tree: its keys and values.
        known: dotted paths of all keys, for the nearest match of an unknown one.
    """
    try:
        return kind.model_validate(tree), {}
    except ValidationError as error:
        return None, _describe(error, tree, known)


def _describe(error: ValidationError, tree: Any, known: Collection[str]) -> dict[str, str]:
    expected: dict[str, list[str]] = {}
    lines: dict[str, str] = {}
    for details in error.errors():
        key = ".".join(str(part) for part in problem_path(details, tree))
        kind = details["type"]
        if kind == "extra_forbidden":
            lines[key] = unknown_key(key, known)
        elif kind == "missing":
            lines[key] = f"{key}: expected a value, got none; the key is required"
        elif kind == "value_error":
            lines[key] = f"{key}: {details['ctx']['error']}" if key else str(details["ctx"]["error"])
        else:
            # The branches of a union fail one by one: `int` and then `text` become "an integer or text".
            message = _EXPECTED[kind].format(**details.get("ctx", {})) if kind in _EXPECTED else details["msg"]
            expected.setdefault(key, []).append(message)
            lines[key] = f"{key}: expected {' or '.join(dict.fromkeys(expected[key]))}, got {show(details['input'])}"
    return lines


def problem_path(details: ErrorDetails, tree: Any) -> tuple[str | int, ...]:
    """The part of an error's location that exists in ``tree``: pydantic adds the branches of unions to it."""
    return tuple(_walk(details, tree))


def _walk(details: ErrorDetails, node: Any) -> Iterator[str | int]:
    last = len(details["loc"]) - 1
    for depth, part in enumerate(details["loc"]):
        entries = dict(enumerate(node)) if isinstance(node, list | tuple) else node
        if isinstance(entries, Mapping) and part in entries:
            node = entries[part]
        elif not (details["type"] == "missing" and depth == last):
            continue
        yield part


def unknown_key(key: str, known: Collection[str]) -> str:
    """``unknown key 'method.nme'; did you mean 'method.name'?``

    What other trainers call a key of ``training`` comes first, then a key of the same name in another block, then the
    nearest spelling in the same block, then anywhere.
    """
    # Items of a list share the keys of their block.
    parent, _, leaf = re.sub(r"\.\d+(?=\.)", "", key).rpartition(".")
    called = f"training.{_CALLED.get(leaf)}"
    if parent in ("", "training") and called in known:
        return f"unknown key '{key}'; did you mean '{called}'?"
    namesakes = [name for name in known if name.rpartition(".")[2] == leaf]
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    strangers = [name for name in known if name not in siblings.values() and name != parent]
    # Within a block only the last part counts: the shared prefix would make any two keys look alike.
    near = [siblings[match] for match in difflib.get_close_matches(leaf, siblings, n=1)]
    matches = (
        difflib.get_close_matches(key, namesakes, n=1, cutoff=0.0)
        or near
        or difflib.get_close_matches(key, strangers, n=1, cutoff=0.8)
    )
    if matches:
        return f"unknown key '{key}'; did you mean '{matches[0]}'?"
    listed = f" (known: {', '.join(sorted(siblings.values()))})" if 0 < len(siblings) <= 12 else ""
    return f"unknown key '{key}'{listed}"


def show(value: Any) -> str:
    """A value for an error line, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

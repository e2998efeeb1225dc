"""The ``training:`` block: fields of ``transformers.TrainingArguments``, checked before anything is built.

This module imports transformers, which takes seconds; it is imported when a recipe is validated, not before.
"""

import enum
import functools
import json
import types
from collections.abc import Collection, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import TrainingArguments

from alignment.config.problems import show, unknown_key

# Fields that transformers 5 removed -> what to write instead.
_REMOVED = {
    "overwrite_output_dir": "name another output_dir",
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "evaluation_strategy": "write training.eval_strategy",
    "no_cuda": "write training.use_cpu",
    "save_safetensors": "leave it out, safetensors is the only format",
    "warmup_ratio": "write training.warmup_steps, which takes a fraction below 1 as well",
    "group_by_length": "write training.train_sampling_strategy: group_by_length",
    "include_tokens_per_second": "write training.include_num_input_tokens_seen",
    "jit_mode_eval": "write training.torch_compile",
    "past_index": "leave it out, nothing reads it",
    "half_precision_backend": "leave it out, training.bf16 and training.fp16 choose the precision",
    "push_to_hub_model_id": "write training.hub_model_id",
    "include_inputs_for_metrics": "write training.include_for_metrics: [inputs]",
    "use_mps_device": "leave it out, the device is found",
}

# Fields that another key owns, or that our trainer does not read.
_NOT_HERE = {
    "output_dir": "it is a key of its own: write output_dir at the top level",
    "seed": "it is a key of its own: write seed at the top level",
    "remove_unused_columns": "it is always false, because the collator needs every column",
    "label_smoothing_factor": "no preference loss reads it; methods have options of their own for label noise",
    "do_train": "nothing reads it",
    "do_eval": "nothing reads it; training.eval_strategy decides",
    "do_predict": "nothing reads it",
}

_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "text", dict: "a block of keys"}


@functools.cache
def _fields() -> Mapping[str, Any]:
    hints = get_type_hints(TrainingArguments)
    return {name: hints[name] for name in TrainingArguments.__dataclass_fields__}


def training_keys() -> tuple[str, ...]:
    """Dotted paths of all keys that the block may hold."""
    return tuple(f"training.{name}" for name in _fields() if name not in _NOT_HERE)


def training_problems(block: Mapping[str, Any], known: Collection[str]) -> dict[str, str]:
    """What is wrong with a ``training:`` block: dotted key -> one line.

    Args:
        block: its keys and values.
        known: dotted paths of all keys of the recipe, for the nearest match.
    """
    problems = {}
    for name, value in block.items():
        key = f"training.{name}"
        if name in _NOT_HERE:
            problems[key] = f"{key}: {_NOT_HERE[name]}"
        elif name not in _fields():
            if name in _REMOVED:
                problems[key] = f"{key}: transformers 5 removed it; {_REMOVED[name]}"
            else:
                problems[key] = unknown_key(key, known)
        elif not _fits(value, _fields()[name]):
            problems[key] = f"{key}: expected {_describe(_fields()[name])}, got {show(value)}"
    return problems


def _fits(value: Any, kind: Any) -> bool:
    choices = _choices(kind)
    if choices and isinstance(value, str):
        return value in choices
    try:
        # Strict, through JSON: an integer may become a float, but the string "1/3" never a number.
        TypeAdapter(kind, config=ConfigDict(strict=True, arbitrary_types_allowed=True)).validate_json(json.dumps(value))
    except (ValidationError, TypeError):
        return False
    return True


def _choices(kind: Any) -> list[str]:
    """Values of the enumeration in ``SomeEnum | str``: any other text would fail later."""
    enums = [part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, enum.Enum)]
    return [str(member.value) for part in enums for member in part]


def _describe(kind: Any) -> str:
    choices = _choices(kind)
    if choices:
        return "one of " + ", ".join(choices)
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_describe(part) for part in get_args(kind) if part is not type(None)))
    if get_origin(kind) is Literal:
        return " or ".join(str(value).lower() for value in get_args(kind))
    if get_origin(kind) is list:
        return "a list"
    return _NAMES.get(get_origin(kind) or kind, str(kind))

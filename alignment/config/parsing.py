"""YAML 1.2 (core schema) on PyYAML, whose own rules are those of YAML 1.1.

Under 1.1 ``5e-7`` is text, ``no`` is false, ``012`` is ten and ``1:30`` is ninety. Under 1.2 ``5e-7`` is a number and
the others are the text or the number that they look like. A key that stands twice in one mapping is an error.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

from alignment.errors import UserError
from alignment.values import kind

_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("null", r"~|null|Null|NULL|"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
)


class PlainText(str):
    """Text that stood unquoted: after ``${NAME}`` is expanded in it, it is read again as a scalar."""

    __slots__ = ()


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str | None, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {key: list(pairs) for key, pairs in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012


def _int(loader: _Loader, node: ScalarNode) -> int:
    # Base 0 knows 0x and 0o, but refuses 012, which is twelve in YAML 1.2.
    return int(node.value, 0 if node.value[:2] in {"0x", "0o"} else 10)


def _float(loader: _Loader, node: ScalarNode) -> float:
    text = node.value.lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _text(loader: _Loader, node: ScalarNode) -> str:
    return PlainText(node.value) if node.style is None else node.value


def _mapping(loader: _Loader, node: MappingNode) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, ScalarNode):
            raise UserError(f"{_place(key_node)}: expected a name as the key, got a {key_node.id}")
        if key_node.value in mapping:
            raise UserError(f"{_place(key_node)}: the key '{key_node.value}' stands twice in one block; remove one")
        mapping[key_node.value] = loader.construct_object(value_node, deep=True)
    return mapping


for _name, _pattern in _SCALARS:
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), None)
    # On top of the rules of 1.1: what either version would not read back as text is quoted.
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), None)
_Loader.add_constructor(_TAG + "int", _int)
_Loader.add_constructor(_TAG + "float", _float)
_Loader.add_constructor(_TAG + "str", _text)
_Loader.add_constructor(_TAG + "map", _mapping)


def parse_text(text: str, source: str) -> Any:
    """The value of a YAML document; unquoted text comes back as ``PlainText``.

    Args:
        text: the document.
        source: where it comes from, for the error.

    Raises:
        UserError: if it is not YAML, or a key stands twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        lines = text.splitlines()
        place = f"{source}:{mark.line + 1}" if mark else source
        hint = (
            "; inside braces quote it: '${NAME}'" if mark and "${" in "".join(lines[mark.line : mark.line + 1]) else ""
        )
        raise UserError(f"{place}: expected YAML, got {error.problem}{hint}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{source}: expected YAML, got {error}") from error


def parse_scalar(text: str) -> Any:
    """The value of an unquoted scalar: a number, a boolean, null or text; never a list or a mapping.

    Example:
        >>> parse_scalar("5e-7"), parse_scalar("no"), parse_scalar("1/3")
        (5e-07, 'no', '1/3')
    """
    for name, pattern in _SCALARS:
        if re.fullmatch(pattern, text):
            return yaml.load(text, Loader=_Loader) if name != "null" else None
    return text


def dump_yaml(tree: Any) -> str:
    """YAML that readers of both versions understand alike, keys in the order of ``tree``."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        UserError: if the file holds anything else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected a YAML file in UTF-8, found other bytes ({error.reason})") from error
    value = parse_text(text, str(path))
    if not isinstance(value, dict):
        found = "nothing: the file is empty" if value is None else kind(value)
        raise UserError(f"{path}: expected keys with their values, found {found}")
    return value


def _place(node: Node) -> str:
    return f"line {node.start_mark.line + 1}"

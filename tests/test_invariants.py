"""docs/invariants.md states what is proven: each of 112 rows names tests that name it too, or says why none does."""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "invariants.md"

# The contract is about every method at once; its docstrings say what is true, not the number.
WITHOUT_NUMBER = {112}

_SPAN = r"`[\w/]+\.py::test_\w+`"


@dataclass(frozen=True)
class Row:
    """A row of the page: what holds, the tests that show it, and what nothing shows."""

    number: int
    statement: str
    tests: tuple[tuple[str, str], ...]
    excuse: str | None


def _row(line: str) -> Row:
    """``| 12 | statement | tests; not shown: reason |`` or ``| 12 | statement | none: reason |``.

    Tests stand between backticks, ``file::function``, separated by commas or ``<br>``.
    """
    _, number, statement, shown, _ = (cell.strip() for cell in re.split(r"(?<!\\)\|", line))
    cell = re.fullmatch(rf"(?:({_SPAN}(?:(?:, |<br>){_SPAN})*)(?:; not shown: (.+))?|none: (.+))", shown)
    assert cell, (
        f"invariant {number}: expected tests, 'none: reason', or tests and '; not shown: reason', found {shown}"
    )
    listed, part, whole = cell.groups()
    tests = re.findall(r"`([^`]+)::(\w+)`", listed or "")
    return Row(int(number), statement, tuple(tests), part or whole)


ROWS = [_row(line) for line in PAGE.read_text().splitlines() if re.match(r"\| *\d", line)]


@cache
def _functions(path: str) -> dict[str, str]:
    """The tests of a file and their docstrings."""
    tree = ast.parse((TESTS / path).read_text())
    found = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))
    return {node.name: ast.get_docstring(node) or "" for node in found}


def _numbers(docstring: str) -> set[int]:
    """What a docstring says it shows: "Invariants 33 to 35", "invariants 82, 83 and 90", "[49, 50]", "[3, FP]"."""
    numbers: set[int] = set()
    for listed in re.findall(r"(?:[Ii]nvariants? |^\[)(\d+(?:(?:, | and | to )\d+)*)", docstring):
        numbers |= {int(number) for number in re.findall(r"\d+", listed)}
        for low, high in re.findall(r"(\d+) to (\d+)", listed):
            numbers |= set(range(int(low), int(high) + 1))
    return numbers


def test_every_invariant_is_stated_and_shown_or_excused() -> None:
    """Numbers 1 to 112 in order, each exactly once; every statement and every excuse is a sentence."""
    assert [row.number for row in ROWS] == list(range(1, 113))
    for row in ROWS:
        assert len(row.statement) > 30 and row.statement.endswith((".", ".)")), row.number
        assert row.tests or row.excuse
        assert row.excuse is None or len(row.excuse) > 30, row.number
        assert len(set(row.tests)) == len(row.tests), row.number


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.number))
def test_the_page_is_true(row: Row) -> None:
    """Every test that the page names exists, and its docstring names the number."""
    for path, name in row.tests:
        assert (TESTS / path).is_file() and name in _functions(path), f"invariant {row.number}: no {path}::{name}"
        said = _numbers(_functions(path)[name])
        assert row.number in said or row.number in WITHOUT_NUMBER, (
            f"{path}::{name} names {sorted(said)}, not {row.number}"
        )


def test_docstrings_are_read_as_meant() -> None:
    """The reader itself: lists, ranges, brackets; no number that is only near the word."""
    assert _numbers("Invariants 33 to 35: tau = 0") == {33, 34, 35}
    assert _numbers("Theorem, invariants 82, 83 and 90.") == {82, 83, 90}
    assert _numbers("[49, 50] eta = 2") == {49, 50} and _numbers("[3, FP] pi = 4") == {3}
    assert _numbers("Invariant 45, tau 0.01, 50 games") == {45} and _numbers("A list [1, 2] of 3") == set()


def test_rows_are_read_as_meant() -> None:
    """Both separators, both kinds of excuse, an escaped bar; a test without its function is no test."""
    one, two = "`games/test_a.py::test_b`", "`test_c.py::test_d`"
    tests = (("games/test_a.py", "test_b"), ("test_c.py", "test_d"))
    assert _row(rf"| 7 | $a \| b$ | {one}<br>{two}; not shown: c. |") == Row(7, r"$a \| b$", tests, "c.")
    assert _row(f"| 7 | s | {one}, {two} |") == Row(7, "s", tests, None)
    assert _row("| 7 | s | none: no such thing |") == Row(7, "s", (), "no such thing")
    for cell in ("", "`test_a.py`", f"{one}; see there", f"none: x | {one}"):
        with pytest.raises((AssertionError, ValueError)):
            _row(f"| 7 | s | {cell} |")

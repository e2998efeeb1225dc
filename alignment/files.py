"""Local text files: objects from JSON lines, JSON lists and CSV, plain or packed, and what is written whole.

It needs no library.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from alignment.errors import UserError
from alignment.values import Cell, JsonObject, JsonValue, kind, listed

SUFFIXES = (".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")
# The csv module refuses cells above 128 KiB unless told otherwise; long conversations are longer.
_MAX_CELL = 2**31 - 1


def read_file(path: Path, label: str) -> Iterator[tuple[int, JsonObject]]:
    """The rows of a file with their line (``.jsonl``, ``.csv``) or place in the list (``.json``), from 1.

    Args:
        path: a file that exists and ends in one of ``SUFFIXES``.
        label: how errors call it.

    Raises:
        UserError: if it cannot be read; the message names the line.
    """
    lines = _read_lines(path, label)
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix == ".csv":
        yield from _parse_csv(lines, label)
        return
    for number, value in _parse_list(path, "".join(lines)) if suffix == ".json" else _parse_lines(lines, label):
        if not isinstance(value, dict):
            raise UserError(f"{label}:{number}: expected an object with named columns, found {kind(value)}; repair it")
        yield number, value


def _read_lines(path: Path, label: str) -> Iterator[str]:
    number = 0
    try:
        # utf-8-sig also reads files without the byte order mark that some editors write.
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as file:
            for line in file:
                number += 1
                yield line
    except UnicodeDecodeError as error:
        raise UserError(f"{label}: expected UTF-8 text after line {number}, found {error.reason}; convert it") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{label}: expected a whole gzip file, found a broken one after line {number} ({error}); fetch it again"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: expected a readable file, found: {error.strerror}; check its permissions") from None


def _parse_lines(lines: Iterator[str], label: str) -> Iterator[tuple[int, JsonValue]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{label}:{number}: expected one JSON object on the line, found {error}; repair it"
            ) from None
        yield number, value


def _parse_list(path: Path, text: str) -> Iterator[tuple[int, JsonValue]]:
    if not text.strip():
        return iter(())
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{path}: expected one JSON value, found {error}; repair it, or call it .jsonl if each line is an object"
        ) from None
    lists = [item for item in value.values() if isinstance(item, list)] if isinstance(value, dict) else [value]
    if len(lists) != 1 or not isinstance(lists[0], list):
        found = f"an object with {len(lists)} lists" if isinstance(value, dict) else kind(value)
        raise UserError(f"{path}: expected a list of rows, or an object with one list, found {found}; keep one list")
    return enumerate(lists[0], start=1)


def _parse_csv(lines: Iterator[str], label: str) -> Iterator[tuple[int, JsonObject]]:
    """Cells stay text. A reader that guesses types (pandas, and ``datasets`` by it) turns the reply "4" into a number
    and the reply "NA" into a missing one."""
    csv.field_size_limit(_MAX_CELL)
    rows = csv.reader(lines, strict=True)
    try:
        header = next(rows, [])
        if len(set(header)) < len(header):
            raise UserError(f"{label}:1: expected different names of columns, found {listed(header)}; rename one")
        mark = next((mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]), None)
        if mark:
            raise UserError(f"{label}:1: expected columns divided by ',', found {mark!r}; save the file with commas")
        number = rows.line_num + 1
        for cells in rows:
            if cells and len(cells) != len(header):
                raise UserError(
                    f"{label}:{number}: expected {len(header)} cells, as the first line names, found {len(cells)}; "
                    "quote cells that hold commas or line breaks"
                )
            if cells:
                yield number, dict(zip(header, map(_read_cell, cells), strict=True))
            number = rows.line_num + 1
    except csv.Error as error:
        raise UserError(f"{label}:{rows.line_num}: expected a row of CSV, found {error}; repair it") from None


def _read_cell(text: str) -> JsonValue:
    """Text, or the conversation or response objects that were written into the cell as JSON."""
    if text.startswith("[") and text[1:].lstrip().startswith("{"):
        try:
            value = json.loads(text)
        except ValueError:
            return Cell(text)
        if all(isinstance(item, dict) for item in value):
            return value  # type: ignore[no-any-return]
    return Cell(text)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all: a process that is killed leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value whole."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write objects whole, a line each."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

"""Files of published judgements -> records that know the line they stand in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.errors import UserError
from alignment.files import SUFFIXES, read_file
from alignment.values import Cell, JsonObject, JsonValue, close_name, kind, listed, read_number


@dataclass(frozen=True, slots=True)
class Record:
    """An object of a file.

    Attributes:
        source: ``file:line``, or ``file:place`` of a JSON list.
        values: its columns.
    """

    source: str
    values: JsonObject

    def value(self, name: str) -> JsonValue:
        """What stands in a column, which may be null.

        Raises:
            UserError: if there is no such column; the message names the one that is spelt most like it.
        """
        if name not in self.values:
            close = close_name(name, self.values)
            advice = f"did you mean {close!r}?" if close else "rename the column, or give another file or kind"
            raise UserError(f"{self.source}: expected a column {name!r}, found {listed(self.values)}; {advice}")
        return self.values[name]

    def number(self, name: str) -> float:
        """A finite number.

        Raises:
            UserError: for anything else, null included.
        """
        return read_number(self.value(name), name, self.source)

    def number_or_none(self, name: str) -> float | None:
        """A finite number; ``None`` for null, NaN, and a cell that is empty or says nan.

        Raises:
            UserError: for anything else.
        """
        value = self.value(name)
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            return None
        # CSV has no NaN but its name.
        if isinstance(value, Cell) and value.strip().lower() == "nan":
            return None
        return read_number(value, name, self.source)

    def integer(self, name: str) -> int:
        """A whole number.

        Raises:
            UserError: for anything else.
        """
        number = self.number(name)
        if number != int(number):
            raise UserError(f"{self.source}: expected a whole number in {name!r}, found {number}; repair the row")
        return int(number)

    def text(self, name: str) -> str:
        """Text, which may be empty.

        Raises:
            UserError: for anything else, null included.
        """
        value = self.value(name)
        if not isinstance(value, str):
            raise UserError(f"{self.source}: expected text in {name!r}, found {kind(value)}; repair or remove the row")
        return str(value)

    def name(self, *names: str) -> str:
        """What identifies something, text or number, in the first of these columns that is there.

        Raises:
            UserError: if none is there, or it is neither text nor a number.
        """
        column = next((name for name in names if name in self.values), names[0])
        value = self.value(column)
        if not isinstance(value, str | int) or value == "":
            raise UserError(f"{self.source}: expected a name in {column!r}, found {kind(value)}; repair the row")
        return str(value)


def read_records(path: Path, *columns: str) -> tuple[Record, ...]:
    """The objects of a JSON, JSON lines or CSV file, packed or not; one at least.

    Args:
        path: the file.
        columns: that the first one must have.

    Raises:
        UserError: if the file is of another kind, broken or empty, or lacks a column.
    """
    if not path.is_file():
        raise UserError(f"{path}: expected a file, found none; check the path")
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}; convert it or rename it")
    records = tuple(Record(f"{path.name}:{number}", values) for number, values in read_file(path, path.name))
    if not records:
        raise UserError(f"{path}: expected rows, found none; the file is empty")
    for column in columns:
        records[0].value(column)
    return records


def check_distinct(keys: Sequence[object], records: Sequence[Record], what: str) -> None:
    """Refuse two records of one thing: it would count twice.

    Raises:
        UserError: naming both places.
    """
    first: dict[object, str] = {}
    for key, record in zip(keys, records, strict=True):
        if key in first:
            said = str(key)
            raise UserError(
                f"{record.source}: expected {what} once, found {said[:60]!r} also at {first[key]}; remove one of them"
            )
        first[key] = record.source

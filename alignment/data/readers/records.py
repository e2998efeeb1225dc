"""One row as it stands in a file, read by our names of columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignment.data.readers.proposals import as_yaml, propose_column
from alignment.data.rows import Comparison, OracleScores, Row, Skipped, Turn
from alignment.errors import UserError
from alignment.values import Cell, JsonObject, JsonValue, kind, listed, read_number

ColumnSpec = str | Sequence[str] | Mapping[str, str | Sequence[str]]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A response that was left out of a list that stays, why, and the row it came from."""

    reason: str
    source: str


Outcome = Row | Skipped | Dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the rows of one file are written, decided once from its first row.

    Args:
        format: a name of the table in ``alignment.data.readers``.
        kind: the format with what else must not change from row to row; ``None`` where the recipe names the format.
        columns: our name -> the file's: one column, several, or for the scores of several oracles a name for each.
        mapped: our names that the recipe maps; the other columns were found.
        prompt_role: the role of a prompt given as a string.
        labels: text of a label -> its meaning, where the recipe says it.
        annotators: what becomes of several labels of one row.
        scores_as: what becomes of the scores of a list.
        numbers: our names of the optional columns of numbers that the first row has.
        first: the source of the first row.
    """

    format: str
    kind: str | None
    columns: Mapping[str, ColumnSpec]
    mapped: frozenset[str]
    prompt_role: str
    labels: Mapping[str, str] | None
    annotators: str
    scores_as: str
    numbers: frozenset[str]
    first: str


@dataclass(frozen=True, slots=True)
class Record:
    """One row as it stands in the file."""

    values: JsonObject
    source: str
    layout: Layout

    def spec(self, name: str) -> ColumnSpec:
        """What the file calls our ``name``."""
        return self.layout.columns.get(name, name)

    def column(self, name: str) -> str:
        """The same as one text, for errors and for specs of one column."""
        spec = self.spec(name)
        return spec if isinstance(spec, str) else ", ".join(spec)

    def has(self, name: str) -> bool:
        """Whether the row has the column, or one of the columns."""
        return any(column in self.values for column in spec_columns(self.spec(name)))

    def given(self, name: str) -> bool:
        """Whether one of the columns holds anything: tables hold null where a row has no such value."""
        return is_given(self.values, self.spec(name))

    def require(self, name: str) -> JsonValue:
        column = self.column(name)
        if column not in self.values:
            raise self.missing(name, column)
        return self.values[column]

    def missing(self, name: str, column: str) -> UserError:
        found = list(self.values)
        return UserError(
            f"{self.source}: expected a column {column!r} (format {self.layout.format!r}), found {listed(found)}; add "
            f"it, or map another column to it: {as_yaml({name: propose_column(name, found) or 'NAME'})}"
        )

    def text(self, name: str) -> str:
        value = self.require(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a string", value)
        return value

    def number(self, name: str, default: float) -> float:
        """The number in an optional column; a file has it in every row or in none."""
        if self.has(name) != (name in self.layout.numbers):
            here, first = ("has", "does not") if self.has(name) else ("lacks", "has it")
            raise UserError(
                f"{self.source}: expected the column {self.column(name)!r} in every row or in none; this row {here} it "
                f"and the first row {first}; repair the file"
            )
        if not self.has(name):
            return default
        return read_number(self.values[self.column(name)], name, self.source)

    def identity(self, name: str) -> str | None:
        """Who compared, or the group: a string or an integer."""
        value = self.values.get(self.column(name))
        if value is not None and not isinstance(value, str | int):
            raise self.wrong(name, "a string or an integer", value)
        # CSV has no null, only an empty cell.
        return None if value is None or (isinstance(value, Cell) and not value) else str(value)

    def wrong(self, name: str, expected: str, found: JsonValue) -> UserError:
        return UserError(
            f"{self.source}: expected {expected} in the column {self.column(name)!r}, found {kind(found)}; "
            "repair the row, or name the right column with columns={...}"
        )

    def skip(self, reason: str) -> tuple[Skipped]:
        return (Skipped(reason, self.source),)

    def row(
        self,
        prompt: tuple[Turn, ...],
        responses: tuple[str, ...] = (),
        comparisons: tuple[Comparison, ...] = (),
        scores: tuple[float, ...] | None = None,
        panel: tuple[OracleScores, ...] = (),
        annotator: str | None = None,
    ) -> Row:
        return Row(
            prompt=prompt,
            responses=responses,
            comparisons=comparisons,
            scores=scores,
            panel=panel,
            weight=self.number("weight", 1.0),
            annotator=self.identity("annotator") if annotator is None else annotator,
            group=self.identity("group"),
            source=self.source,
        )


def spec_columns(spec: ColumnSpec) -> tuple[str, ...]:
    """The file's columns that a mapping names."""
    if isinstance(spec, str):
        return (spec,)
    if isinstance(spec, Mapping):
        return tuple(column for part in spec.values() for column in spec_columns(part))
    return tuple(spec)


def is_given(values: JsonObject, spec: ColumnSpec) -> bool:
    """Whether one of the columns is there and not null."""
    return any(values.get(column) is not None for column in spec_columns(spec))

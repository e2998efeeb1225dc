"""Verdicts between named systems: files that say who wrote what, with or without the texts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.data.readers.labels import label_text, label_words
from alignment.data.readers.read import open_rows, source_labels
from alignment.data.readers.records import ColumnSpec, spec_columns
from alignment.data.readers.tables import Origin
from alignment.data.readers.turns import PROMPT_COLUMNS
from alignment.errors import UserError
from alignment.values import JsonObject, JsonValue, listed

_PROBABILITY = {"left": 1.0, "tie": 0.5, "right": 0.0}
_LABELS = ("label", "winner")


@dataclass(frozen=True, slots=True, kw_only=True)
class Battle:
    """One annotator's verdict on two systems.

    Attributes:
        prompt: what names the prompt: its text, or an id.
        systems: who wrote the left answer and the right one.
        win: probability that left is better: 1, 1/2 or 0.
        annotator: the column of the verdict where there are several, or what the column ``annotator`` says.
        lengths: of the two answers in characters, where the file holds them.
        source: ``"file:line"``.
    """

    prompt: str
    systems: tuple[str, str]
    win: float
    annotator: str | None
    lengths: tuple[int, int] | None
    source: str


def read_battles(
    path: str | Path | Sequence[str | Path],
    *,
    systems: str | Sequence[str],
    separator: str = "_",
    columns: Mapping[str, ColumnSpec] | None = None,
    labels: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> tuple[Battle, ...]:
    """Read verdicts between systems. Answers need not be there: a row without text still has a verdict.

    Args:
        path: files, as :func:`alignment.data.read_rows` takes them.
        systems: the two columns that name the systems, or one that holds both names.
        separator: between the two names in one column; it stands there once.
        columns: our name -> the file's, of ``prompt`` (several are joined), ``label`` (several are annotators),
            ``annotator`` and ``responses`` (two).
        labels: text of a label -> ``"left"``, ``"right"``, ``"tie"`` or ``"skip"``.
        limit: stop after this many rows.

    Raises:
        UserError: for a column that is not there, and a label whose meaning is not known; with file and line.
    """
    names = [str(path)] if isinstance(path, str | Path) else [str(item) for item in path]
    named = columns or {}
    unknown = [name for name in named if name not in ("prompt", "label", "annotator", "responses")]
    if unknown:
        raise UserError(
            f"expected columns of prompt, label, annotator, responses with systems, found {unknown[0]!r}; remove it"
        )
    battles: list[Battle] = []
    for name, label in zip(names, source_labels(names), strict=True):
        for number, values in open_rows(name, label, Origin()):
            if limit is not None and number > limit:
                break
            battles += _read_row(_Columns(values, f"{label}:{number}", named), systems, separator, labels)
    if not battles:
        raise UserError(f"{', '.join(names)}: expected one verdict at least, found none")
    return tuple(battles)


@dataclass(frozen=True, slots=True)
class _Columns:
    values: JsonObject
    source: str
    named: Mapping[str, ColumnSpec]

    def get(self, column: str) -> JsonValue:
        if column not in self.values:
            raise UserError(f"{self.source}: expected a column {column!r}, found {listed(self.values)}; correct it")
        return self.values[column]

    def find(self, name: str, usual: Sequence[str]) -> tuple[str, ...]:
        """The columns that stand for one of ours: those that are named, or the first usual one."""
        if name in self.named:
            return spec_columns(self.named[name])
        found = next((column for column in usual if column in self.values), None)
        if found is None:
            raise UserError(
                f"{self.source}: expected a column for {name!r}, found {listed(self.values)}; name it: columns: "
                f"{{{name}: NAME}}"
            )
        return (found,)


def _read_row(
    row: _Columns, systems: str | Sequence[str], separator: str, labels: Mapping[str, str] | None
) -> Iterator[Battle]:
    left, right = _systems(row, systems, separator)
    prompt = "\n\n".join(str(row.get(column)) for column in row.find("prompt", (*PROMPT_COLUMNS, "question_id")))
    lengths = None
    if "responses" in row.named:
        texts = [row.get(column) for column in spec_columns(row.named["responses"])]
        if len(texts) != 2:
            raise UserError(f"{row.source}: expected two columns of responses, found {len(texts)}; name both")
        # A spreadsheet turned some answers into truth values: what they said is lost, the verdict is not.
        if isinstance(texts[0], str) and isinstance(texts[1], str):
            lengths = (len(texts[0]), len(texts[1]))
    verdicts = row.find("label", _LABELS)
    annotator = row.values.get(spec_columns(row.named.get("annotator", "annotator"))[0])
    for column in verdicts:
        meaning = _meaning(row, column, labels)
        if meaning != "skip":
            yield Battle(
                prompt=prompt,
                systems=(left, right),
                win=_PROBABILITY[meaning],
                annotator=column if len(verdicts) > 1 else None if annotator is None else str(annotator),
                lengths=lengths,
                source=row.source,
            )


def _systems(row: _Columns, systems: str | Sequence[str], separator: str) -> tuple[str, str]:
    found = [str(row.get(column)) for column in ([systems] if isinstance(systems, str) else systems)]
    names = found[0].split(separator) if len(found) == 1 else found
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise UserError(
            f"{row.source}: expected two different systems, found {listed(names)}; name two columns (systems: [A, B]), "
            f"or one that holds two names with one separator ({separator!r}) between them"
        )
    return names[0], names[1]


def _meaning(row: _Columns, column: str, labels: Mapping[str, str] | None) -> str:
    text = label_text(row.get(column))
    known = label_words("labelled") if labels is None else {label_text(word): what for word, what in labels.items()}
    if known.get(text) not in ("left", "right", "tie", "skip"):
        raise UserError(
            f"{row.source}: expected a label of {listed(known)} in the column {column!r}, found {text!r}; say what "
            "every label means: labels: {1: left, 2: right, 0: tie} (or skip)"
        )
    return known[text]

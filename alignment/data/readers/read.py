"""Files, saved data sets and the Hub, one after the other, into one list of rows."""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignment.data.readers.detect import Reading, check_kind, detect_layout
from alignment.data.readers.labels import parse_completion, parse_labelled, parse_unpaired
from alignment.data.readers.lists import parse_ranked, parse_scored
from alignment.data.readers.pairs import parse_hh, parse_implicit, parse_pair
from alignment.data.readers.records import ColumnSpec, Dropped, Outcome, Record
from alignment.data.readers.tables import HUB, Origin, is_saved, read_hub, read_parquet, read_saved
from alignment.data.readers.turns import is_blank, read_prompt
from alignment.data.rows import Row, describe_skipped
from alignment.errors import UserError
from alignment.files import SUFFIXES, read_file
from alignment.values import JsonObject

_IN_MEMORY = "rows in memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """What was read and what was left out.

    Args:
        rows: in the order of the files.
        skipped: reason -> the sources (``"file:line"``) left out for it.
        dropped: reason -> the sources of the responses left out of a list that stays, once for each response.
        formats: the format of each file, as named or as detected.
        num_read: how many rows of the files were looked at; one with labels of several annotators may give several.
    """

    rows: tuple[Row, ...]
    skipped: Mapping[str, tuple[str, ...]]
    dropped: Mapping[str, tuple[str, ...]]
    formats: tuple[str, ...]
    num_read: int

    @property
    def num_tied(self) -> int:
        """How many rows hold a pair with the probability 1/2."""
        return sum(any(comparison.probability == 0.5 for comparison in row.comparisons) for row in self.rows)

    def summary(self) -> str:
        """One line: how many rows, of which format, how many of them tied, and what was left out."""
        names = " and ".join(dict.fromkeys(self.formats))
        origin = f" from {self.num_read:,}" if len(self.rows) > self.num_read else ""
        tied = f", {self.num_tied:,} tied" if self.num_tied else ""
        dropped = f"; {describe_skipped(self.dropped, verb='dropped')}" if self.dropped else ""
        return f"{len(self.rows):,} rows{origin} ({names}){tied}; {describe_skipped(self.skipped)}{dropped}"


def read_rows(
    path: str | Path | Sequence[str | Path] | Iterable[Mapping[str, Any]],
    *,
    format: str = "auto",
    columns: Mapping[str, ColumnSpec] | None = None,
    labels: Mapping[str, str] | None = None,
    annotators: Literal["separate", "mean"] = "separate",
    scores_as: Literal["given", "win_rates"] = "given",
    prompt_role: Literal["text", "user"] = "text",
    config: str | None = None,
    split: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    limit: int | None = None,
) -> ReadResult:
    """Read preference or prompt data.

    Args:
        path: one or several of: a file (``.jsonl``: an object a line; ``.json``: a list, or an object with one list;
            ``.csv``: names in the first line; each plain or ``.gz``; ``.parquet``), a folder that
            ``datasets.save_to_disk`` wrote, and ``hf://owner/name``, a data set on the Hub. Or rows in memory by their
            columns: a ``datasets.Dataset``, or dicts.
        format: a format of the table in :mod:`alignment.data.readers`, or ``"auto"``: detected from the columns of each
            file's first row.
        columns: our name -> the file's name, such as ``{"prompt": "instruction"}``. A list joins the columns of a
            prompt by a blank line, and names the columns of the responses, of their scores or ranks, or of the
            annotators' labels. A mapping names the scores of several oracles.
        labels: text of a label -> ``"left"``, ``"right"``, ``"tie"`` or ``"skip"``; of unpaired rows ``"good"``,
            ``"bad"`` or ``"skip"``. Words that can mean one thing only need no entry.
        annotators: several labels of one row become a row each, or one row with their mean.
        scores_as: the scores of a list stay as given, or each becomes the share of the list (itself as a half) that it
            beats, in [0, 1], as for a ranked list: for losses that read scores as probabilities.
        prompt_role: what a prompt given as a string becomes: ``"text"``, never passed through a chat template, or
            ``"user"``, one turn of a conversation.
        config: of a data set on the Hub.
        split: of a data set on the Hub or a saved one; needed where there are several.
        revision: a branch, tag or commit on the Hub.
        streaming: fetch rows from the Hub one after the other until ``limit``.
        limit: stop after this many rows.

    Returns:
        The rows, what was left out and why.

    Raises:
        UserError: if a file cannot be read or understood, or no row is left.
    """
    given = [path] if isinstance(path, str | Path) else list(path)
    if not given:
        raise UserError("expected at least one data file, found an empty list; name a .jsonl or .json file")
    in_memory = [dict(item) for item in given if isinstance(item, Mapping)]
    if 0 < len(in_memory) < len(given):
        raise UserError(f"expected rows or paths, found {len(in_memory)} rows among {len(given)}; read them apart")
    names = [_IN_MEMORY] if in_memory else [str(item) for item in given]
    reading = Reading(
        format=format,
        columns=columns or {},
        labels=labels,
        annotators=annotators,
        scores_as=scores_as,
        prompt_role=prompt_role,
    )
    origin = Origin(config=config, split=split, revision=revision, streaming=streaming)
    _check_origin(names, origin, limit)
    collected = _Collected(limit)
    if in_memory:
        _read_source(enumerate(in_memory, start=1), "row", reading, collected)
        return collected.result(names)
    for name, label in zip(names, source_labels(names), strict=True):
        if not collected.is_full:
            _read_source(open_rows(name, label, origin), label, reading, collected)
    return collected.result(names)


class _Collected:
    """What has been read so far."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.rows: list[Row] = []
        self.skipped: dict[str, list[str]] = {}
        self.dropped: dict[str, list[str]] = {}
        self.formats: list[str] = []
        self.num_read = 0

    @property
    def is_full(self) -> bool:
        return self.limit is not None and len(self.rows) >= self.limit

    def add(self, outcomes: tuple[Outcome, ...]) -> None:
        self.num_read += 1
        for outcome in outcomes:
            if isinstance(outcome, Row):
                self.rows.append(outcome)
            else:
                reasons = self.dropped if isinstance(outcome, Dropped) else self.skipped
                reasons.setdefault(outcome.reason, []).append(outcome.source)

    def result(self, names: list[str]) -> ReadResult:
        result = ReadResult(
            rows=tuple(self.rows[: self.limit]),
            skipped={reason: tuple(sources) for reason, sources in self.skipped.items()},
            dropped={reason: tuple(sources) for reason, sources in self.dropped.items()},
            formats=tuple(self.formats),
            num_read=self.num_read,
        )
        if not result.rows:
            raise UserError(
                f"{', '.join(names)}: expected at least one usable row, found none: "
                f"{describe_skipped(result.skipped)}; repair the file"
            )
        return result


def _read_source(
    numbered: Iterator[tuple[int, JsonObject]], label: str, reading: Reading, collected: _Collected
) -> None:
    first = next(numbered, None)
    if first is None:
        raise UserError(f"{label}: expected at least one row, found none; the file is empty")
    layout = detect_layout(reading, first[1], f"{label}:{first[0]}")
    collected.formats.append(layout.format)
    parse = _PARSERS[layout.format]
    for number, values in itertools.chain([first], numbered):
        source = f"{label}:{number}"
        check_kind(layout, values, source)
        collected.add(parse(Record(values, source, layout)))
        if collected.is_full:
            return


def _parse_prompt(record: Record) -> tuple[Outcome, ...]:
    prompt = read_prompt(record)
    if prompt[-1].role == "assistant":
        return record.skip("prompt ends with an assistant turn")
    return record.skip("empty prompt") if is_blank(prompt) else (record.row(prompt),)


_PARSERS: dict[str, Callable[[Record], tuple[Outcome, ...]]] = {
    "pairs": parse_pair,
    "implicit": parse_implicit,
    "hh": parse_hh,
    "labelled": parse_labelled,
    "ranked": parse_ranked,
    "scored": parse_scored,
    "unpaired": parse_unpaired,
    "completions": parse_completion,
    "prompts": _parse_prompt,
}


# Sources


def source_labels(names: list[str]) -> list[str]:
    """How errors and reports call each source: the last part of the path where that tells them apart."""
    short = [name.removeprefix(HUB) if name.startswith(HUB) else Path(name).name for name in names]
    counts = Counter(short)
    return [own if counts[own] == 1 else name for own, name in zip(short, names, strict=True)]


def _check_origin(names: list[str], origin: Origin, limit: int | None) -> None:
    is_on_hub = [name.startswith(HUB) for name in names]
    given = {"config": origin.config, "revision": origin.revision, "streaming": origin.streaming or None}
    for key, value in given.items():
        if value is not None and not any(is_on_hub):
            raise UserError(
                f"{names[0]}: expected {key} only with a data set on the Hub (hf://owner/name), found a local path; "
                f"remove {key}"
            )
    if origin.streaming and limit is None:
        raise UserError(
            f"{names[0]}: expected a limit with streaming, found none; the rows are kept in memory: set limit"
        )
    if origin.split is not None and not any(is_on_hub) and not any(is_saved(Path(name)) for name in names):
        raise UserError(
            f"{names[0]}: expected a split only for a data set on the Hub or a saved one, found a file; remove split"
        )


def open_rows(name: str, label: str, origin: Origin) -> Iterator[tuple[int, JsonObject]]:
    """The rows of a file, a saved data set or one on the Hub as they stand there, with their numbers."""
    if name.startswith(HUB):
        repository = name.removeprefix(HUB)
        if repository.startswith("datasets/") or repository.count("/") > 1:
            raise UserError(
                f"{name}: expected hf://owner/name, found more than that; name the data set, not a file in it"
            )
        return read_hub(repository, label, origin)
    path = Path(name)
    if not path.exists():
        raise UserError(f"{path}: expected a file, found nothing; check the path")
    if path.is_dir():
        if is_saved(path):
            return read_saved(path, label, origin)
        raise UserError(
            f"{path}: expected a file, found a directory that datasets.save_to_disk did not write; name the data file "
            "inside it"
        )
    if path.suffix == ".parquet":
        return read_parquet(path, label)
    if not path.name.endswith(SUFFIXES):
        known = ", ".join((*SUFFIXES, ".parquet"))
        raise UserError(f"{path}: expected a file ending in {known}, found {path.name!r}; convert it")
    return read_file(path, label)

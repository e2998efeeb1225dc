r"""Preference files of several formats -> rows.

| format | columns |
|---|---|
| ``pairs`` | ``prompt``, ``chosen``, ``rejected``: strings or conversations; these may hold the prompt themselves |
| ``hh`` | ``chosen``, ``rejected``: transcripts of ``"\n\nHuman:"`` and ``"\n\nAssistant:"`` turns |
| ``ranked`` | ``prompt``, ``responses``: best first, strings or objects with a ``response`` or ``text`` key |
| ``scored`` | ``prompt``, ``responses``, ``scores``; the scores may stand inside the response objects |
| ``prompts`` | one of ``prompt``, ``instruction``, ``messages``, ``turns`` |

Optional in all: ``weight``, ``annotator``, ``group``. Optional in ``pairs`` and ``hh``: ``preference``, the probability
that chosen beats rejected.

A file that cannot be understood is an error that names the file and the row. A row that can be understood and holds no
preference (an empty reply, two equal replies, replies to different prompts) is left out and counted.
"""

import difflib
import gzip
import itertools
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alignment.data.rows import RAW_TEXT, Comparison, Row, Skipped, Turn, describe_skipped
from alignment.errors import UserError

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]
JsonObject = dict[str, JsonValue]

_COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "responses",
    "response",
    "scores",
    "preference",
    "weight",
    "annotator",
    "group",
)
_PROMPT_COLUMNS = ("prompt", "instruction", "messages", "turns")
_RESPONSE_KEYS = ("response", "text")
_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """What was read and what was left out.

    Args:
        rows: in the order of the files.
        skipped: reason -> the sources (``"file:line"``) left out for it.
        formats: the format of each file, as named or as detected.
    """

    rows: tuple[Row, ...]
    skipped: Mapping[str, tuple[str, ...]]
    formats: tuple[str, ...]

    def summary(self) -> str:
        """One line: how many rows, of which format, and what was left out."""
        names = " and ".join(dict.fromkeys(self.formats))
        return f"{len(self.rows):,} rows ({names}); {describe_skipped(self.skipped)}"


def read_rows(
    path: str | Path | Sequence[str | Path],
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    prompt_role: Literal["text", "user"] = "text",
) -> ReadResult:
    """Read preference or prompt files.

    Args:
        path: one file or a list of files: ``.jsonl`` (an object a line) or ``.json`` (a list, or an object with one
            list), plain or ``.gz``.
        format: a format of the table above, or ``"auto"``: detected from the columns of each file's first row.
        columns: our name -> the file's name, such as ``{"prompt": "instruction"}``.
        prompt_role: what a prompt given as a string becomes: ``"text"``, never passed through a chat template, or
            ``"user"``, one turn of a conversation.

    Returns:
        The rows, what was left out and why.

    Raises:
        UserError: if a file cannot be read or understood, or no row is left.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(item) for item in path]
    if not paths:
        raise UserError("expected at least one data file, found an empty list; name a .jsonl or .json file")
    _check_options(format, columns or {}, prompt_role)
    names = Counter(item.name for item in paths)
    rows: list[Row] = []
    skipped: dict[str, list[str]] = {}
    formats: list[str] = []
    for item in paths:
        label = item.name if names[item.name] == 1 else str(item)
        layout: _Layout | None = None
        for number, values in _read_objects(item, label):
            source = f"{label}:{number}"
            if layout is None:
                layout = _detect_layout(format, columns or {}, prompt_role, values, source)
                formats.append(layout.format)
            parsed = _PARSERS[layout.format](_Record(values, source, layout))
            if isinstance(parsed, Row):
                rows.append(parsed)
            else:
                skipped.setdefault(parsed.reason, []).append(parsed.source)
        if layout is None:
            raise UserError(f"{item}: expected at least one row, found none; the file is empty")
    result = ReadResult(
        rows=tuple(rows),
        skipped={reason: tuple(sources) for reason, sources in skipped.items()},
        formats=tuple(formats),
    )
    if not rows:
        files = ", ".join(str(item) for item in paths)
        raise UserError(
            f"{files}: expected at least one usable row, found none: {describe_skipped(result.skipped)}; repair the "
            "file"
        )
    return result


def rank_scores(num_responses: int) -> tuple[float, ...]:
    """Scores of a list that is only ranked, best first.

    LiPO (arXiv 2402.01878, section 3): psi_i is the mean over j of P(y_i beats y_j), j = i included with 1/2. For the
    k-th best of G that is (G - k + 1/2) / G.

    Returns:
        G numbers in (0, 1), falling, with the mean 1/2.

    Example:
        >>> rank_scores(2)
        (0.75, 0.25)
    """
    return tuple((num_responses - k + 0.5) / num_responses for k in range(1, num_responses + 1))


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the rows of one file are written, decided once from its first row."""

    format: str
    columns: Mapping[str, str]
    prompt_column: str
    prompt_role: str
    numbers: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Record:
    """One row as it stands in the file."""

    values: JsonObject
    source: str
    layout: _Layout

    def column(self, name: str) -> str:
        return self.layout.prompt_column if name == "prompt" else self.layout.columns.get(name, name)

    def has(self, name: str) -> bool:
        return self.column(name) in self.values

    def require(self, name: str) -> JsonValue:
        column = self.column(name)
        if column not in self.values:
            raise UserError(
                f"{self.source}: expected a column {column!r} (format {self.layout.format!r}), found "
                f"{_listed(self.values)}; add it, or map another column to it with columns={{{name!r}: ...}}"
            )
        return self.values[column]

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
        return _number(self.values[self.column(name)], name, self.source)

    def label(self, name: str) -> str | None:
        value = self.values.get(self.column(name))
        if value is not None and not isinstance(value, str | int):
            raise self.wrong(name, "a string or an integer", value)
        return None if value is None else str(value)

    def wrong(self, name: str, expected: str, found: JsonValue) -> UserError:
        return UserError(
            f"{self.source}: expected {expected} in the column {self.column(name)!r}, found {_kind(found)}; "
            "repair the row, or name the right column with columns={...}"
        )

    def row(
        self,
        prompt: tuple[Turn, ...],
        responses: tuple[str, ...] = (),
        comparisons: tuple[Comparison, ...] = (),
        scores: tuple[float, ...] | None = None,
    ) -> Row:
        return Row(
            prompt=prompt,
            responses=responses,
            comparisons=comparisons,
            scores=scores,
            weight=self.number("weight", 1.0),
            annotator=self.label("annotator"),
            group=self.label("group"),
            source=self.source,
        )


# Files


def _read_objects(path: Path, label: str) -> Iterator[tuple[int, JsonObject]]:
    """The objects of a file with their line (``.jsonl``) or place in the list (``.json``), from 1."""
    if path.is_dir():
        raise UserError(f"{path}: expected a file, found a directory; name the data file inside it")
    if not path.exists():
        raise UserError(f"{path}: expected a file, found nothing; check the path")
    if not path.name.endswith(_SUFFIXES):
        raise UserError(f"{path}: expected a file ending in {', '.join(_SUFFIXES)}, found {path.name!r}; convert it")
    lines = _read_lines(path, label)
    is_list = path.name.removesuffix(".gz").endswith(".json")
    numbered = _parse_list(path, "".join(lines)) if is_list else _parse_lines(lines, label)
    for number, value in numbered:
        if not isinstance(value, dict):
            raise UserError(f"{label}:{number}: expected an object with named columns, found {_kind(value)}; repair it")
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
        found = f"an object with {len(lists)} lists" if isinstance(value, dict) else _kind(value)
        raise UserError(f"{path}: expected a list of rows, or an object with one list, found {found}; keep one list")
    return enumerate(lists[0], start=1)


# Options and detection


def _check_options(format: str, columns: Mapping[str, str], prompt_role: str) -> None:
    if format != "auto" and format not in _PARSERS:
        raise UserError(f"expected format auto, {', '.join(_PARSERS)}, found {format!r}{_nearest(format, _PARSERS)}")
    if prompt_role not in (RAW_TEXT, "user"):
        raise UserError(f"expected prompt_role 'text' or 'user', found {prompt_role!r}; a string has no other role")
    for name in columns:
        if name not in _COLUMNS:
            raise UserError(f"expected columns of {', '.join(_COLUMNS)}, found {name!r}{_nearest(name, _COLUMNS)}")


def _detect_layout(
    format: str, columns: Mapping[str, str], prompt_role: str, first: JsonObject, source: str
) -> _Layout:
    named = {name for name in _COLUMNS if columns.get(name, name) in first}
    missing = [name for name in columns if name not in named and name not in ("scores", "response")]
    if missing:
        raise UserError(
            f"{source}: expected a column {columns[missing[0]]!r}, which columns maps to {missing[0]!r}, found "
            f"{_listed(first)}; correct the mapping"
        )
    found = _detect_format(first, named, columns, source) if format == "auto" else format
    prompt_column = columns.get("prompt", "prompt")
    if found == "prompts" and "prompt" not in columns:
        prompt_column = next((name for name in _PROMPT_COLUMNS if name in first), "prompt")
    return _Layout(
        format=found,
        columns=columns,
        prompt_column=prompt_column,
        prompt_role=prompt_role,
        numbers=frozenset({"preference", "weight"} & named),
    )


def _detect_format(first: JsonObject, named: set[str], columns: Mapping[str, str], source: str) -> str:
    if named & {"chosen", "rejected"}:
        chosen = first.get(columns.get("chosen", "chosen"))
        is_transcript = isinstance(chosen, str) and _HH_TURN.match(chosen) is not None
        return "hh" if is_transcript and "prompt" not in named else "pairs"
    if "responses" in named:
        # Scores that are mapped are asked for: a file that lacks them must fail, not turn into a ranked one.
        return "scored" if "scores" in columns or "scores" in named else "ranked"
    if any(name in first for name in _PROMPT_COLUMNS) or "prompt" in named:
        return "prompts"
    raise UserError(
        f"{source}: expected the columns of a known format ({', '.join(_PARSERS)}), found {_listed(first)}; name the "
        "format and map the columns, such as columns={'prompt': 'question'}"
    )


# One parser for each format


def _parse_pair(record: _Record) -> Row | Skipped:
    chosen, rejected = record.require("chosen"), record.require("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt = _prompt_turns(record)
        return _pair_row(record, (prompt, prompt), (chosen, rejected))
    conversations = (_turns(record, "chosen", chosen), _turns(record, "rejected", rejected))
    if record.has("prompt"):
        prompt = _prompt_turns(record)
        if prompt[0].role == RAW_TEXT:
            prompt = (Turn("user", prompt[0].content),)
        if not all(_agrees(prompt, turns) for turns in conversations):
            return Skipped("prompt column differs from the conversation", record.source)
        conversations = (_with_prompt(prompt, conversations[0]), _with_prompt(prompt, conversations[1]))
    return _split_last_replies(record, conversations)


def _parse_hh(record: _Record) -> Row | Skipped:
    chosen = _transcript_turns(record, "chosen")
    rejected = _transcript_turns(record, "rejected")
    return _split_last_replies(record, (chosen, rejected))


def _parse_ranked(record: _Record) -> Row | Skipped:
    if record.has("scores"):
        raise UserError(
            f"{record.source}: expected responses without scores (format 'ranked'), found a column "
            f"{record.column('scores')!r}; name format='scored' to use it"
        )
    responses = _response_texts(record)
    comparisons = tuple(Comparison(i, j) for i, j in itertools.combinations(range(len(responses)), 2))
    return _list_row(record, responses, comparisons, rank_scores(len(responses)), min_responses=2)


def _parse_scored(record: _Record) -> Row | Skipped:
    responses = _response_texts(record)
    scores = _scores(record, len(responses))
    comparisons = tuple(_by_score(i, j, scores) for i, j in itertools.combinations(range(len(responses)), 2))
    return _list_row(record, responses, comparisons, scores, min_responses=1)


def _parse_prompt(record: _Record) -> Row | Skipped:
    prompt = _prompt_turns(record)
    extra = record.values.get("input")
    if record.layout.prompt_column == "instruction" and "prompt" not in record.layout.columns and extra:
        raise UserError(
            f"{record.source}: expected the whole prompt in one column, found 'instruction' and 'input'; join the two, "
            "or leave 'input' out with columns={'prompt': 'instruction'}"
        )
    if prompt[-1].role == "assistant":
        return Skipped("prompt ends with an assistant turn", record.source)
    if _is_blank(prompt):
        return Skipped("empty prompt", record.source)
    return record.row(prompt)


_PARSERS: dict[str, Callable[[_Record], Row | Skipped]] = {
    "pairs": _parse_pair,
    "hh": _parse_hh,
    "ranked": _parse_ranked,
    "scored": _parse_scored,
    "prompts": _parse_prompt,
}


# Parts of rows


def _split_last_replies(record: _Record, conversations: tuple[tuple[Turn, ...], tuple[Turn, ...]]) -> Row | Skipped:
    """The reply is the last turn, the prompt all before it: never the longest common prefix, which would move turns
    into the reply where the two conversations part early."""
    if any(turns[-1].role != "assistant" for turns in conversations):
        return Skipped("no final assistant reply", record.source)
    prompts = (conversations[0][:-1], conversations[1][:-1])
    return _pair_row(record, prompts, (conversations[0][-1].content, conversations[1][-1].content))


def _pair_row(
    record: _Record, prompts: tuple[tuple[Turn, ...], tuple[Turn, ...]], replies: tuple[str, str]
) -> Row | Skipped:
    preference = record.number("preference", 1.0)
    if not 0.0 <= preference <= 1.0:
        raise UserError(
            f"{record.source}: expected a preference in [0, 1], found {preference}; it is the probability that chosen "
            "beats rejected"
        )
    if prompts[0] != prompts[1]:
        return Skipped("prompts differ", record.source)
    if _is_blank(prompts[0]):
        return Skipped("empty prompt", record.source)
    if not all(reply.strip() for reply in replies):
        return Skipped("empty reply", record.source)
    if replies[0].strip() == replies[1].strip():
        return Skipped("chosen equals rejected", record.source)
    return record.row(prompts[0], replies, (Comparison(0, 1, preference),))


def _list_row(
    record: _Record,
    responses: tuple[str, ...],
    comparisons: tuple[Comparison, ...],
    scores: tuple[float, ...],
    *,
    min_responses: int,
) -> Row | Skipped:
    prompt = _prompt_turns(record)
    if _is_blank(prompt):
        return Skipped("empty prompt", record.source)
    if len(responses) < min_responses:
        return Skipped(f"fewer than {min_responses} responses", record.source)
    if not all(response.strip() for response in responses):
        return Skipped("empty reply", record.source)
    if len(responses) > 1 and len({response.strip() for response in responses}) == 1:
        return Skipped("all responses equal", record.source)
    return record.row(prompt, responses, comparisons, scores)


def _by_score(i: int, j: int, scores: tuple[float, ...]) -> Comparison:
    winner, loser = (i, j) if scores[i] >= scores[j] else (j, i)
    return Comparison(winner, loser, 0.5 if scores[i] == scores[j] else 1.0)


def _response_texts(record: _Record) -> tuple[str, ...]:
    value = record.require("responses")
    if not isinstance(value, list):
        raise record.wrong("responses", "a list", value)
    key = record.layout.columns.get("response")
    return tuple(_response_text(record, item, (key,) if key else _RESPONSE_KEYS) for item in value)


def _response_text(record: _Record, item: JsonValue, keys: tuple[str, ...]) -> str:
    if isinstance(item, str):
        return item
    text = next((item[key] for key in keys if key in item), None) if isinstance(item, dict) else None
    if not isinstance(text, str):
        raise record.wrong("responses", f"strings, or objects with a string under {' or '.join(keys)}", item)
    return text


def _scores(record: _Record, num_responses: int) -> tuple[float, ...]:
    if record.has("scores"):
        value = record.require("scores")
    else:
        responses = record.require("responses")
        key = record.column("scores")
        inside = isinstance(responses, list) and all(isinstance(item, dict) and key in item for item in responses)
        if not inside:
            raise UserError(
                f"{record.source}: expected scores in a column {key!r} or inside every response object, found neither; "
                "add them, or name the column with columns={'scores': ...}"
            )
        value = [item[key] for item in responses]  # type: ignore[union-attr,index,call-overload]
    if not isinstance(value, list) or len(value) != num_responses:
        found = f"{len(value)} scores" if isinstance(value, list) else _kind(value)
        raise UserError(
            f"{record.source}: expected one score for each of the {num_responses} responses, found {found}; "
            "score all responses of the row"
        )
    return tuple(_number(score, "scores", record.source) for score in value)


def _number(value: JsonValue, name: str, source: str) -> float:
    # A bool is an int in Python; true and false here would be labels of another kind, such as KTO's.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        found = str(value) if isinstance(value, float) else _kind(value)
        raise UserError(f"{source}: expected a finite number in {name!r}, found {found}; repair or remove the row")
    return float(value)


def _prompt_turns(record: _Record) -> tuple[Turn, ...]:
    value = record.require("prompt")
    if isinstance(value, str):
        return (Turn(record.layout.prompt_role, value),)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        # MT-Bench: the questions of one user, to be answered one after the other.
        return tuple(Turn("user", str(item)) for item in value)
    return _turns(record, "prompt", value)


def _turns(record: _Record, name: str, value: JsonValue) -> tuple[Turn, ...]:
    if not isinstance(value, list) or not value:
        raise record.wrong(name, "a string, or a conversation of at least one turn, as in the other columns", value)
    # Arena-Hard writes its single questions without a role.
    no_roles = name == "prompt" and not any(isinstance(item, dict) and "role" in item for item in value)
    return tuple(_turn(record, name, item, "user" if no_roles else None) for item in value)


def _turn(record: _Record, name: str, item: JsonValue, default_role: str | None) -> Turn:
    role = item.get("role", default_role) if isinstance(item, dict) else None
    content = item.get("content") if isinstance(item, dict) else None
    if not isinstance(role, str) or not isinstance(content, str) or role == RAW_TEXT:
        raise record.wrong(name, "turns as objects with the strings 'role' and 'content'", item)
    return Turn(role, content)


def _agrees(prompt: tuple[Turn, ...], turns: tuple[Turn, ...]) -> bool:
    """Whether the turns are only the reply, or a conversation that holds the prompt."""
    return turns[0].role == "assistant" or _holds(prompt, turns)


def _holds(prompt: tuple[Turn, ...], turns: tuple[Turn, ...]) -> bool:
    return turns[: len(prompt)] == prompt or (len(prompt) == 1 and prompt[0] in turns)


def _with_prompt(prompt: tuple[Turn, ...], turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    return turns if _holds(prompt, turns) else prompt + turns


def _transcript_turns(record: _Record, name: str) -> tuple[Turn, ...]:
    """The turns of a transcript, without the blanks around each: they belong to the transcript's layout."""
    head, *parts = _HH_TURN.split(record.text(name))
    if head.strip() or not parts:
        raise record.wrong(name, r"a transcript that starts with '\n\nHuman:'", record.text(name))
    return tuple(Turn(_HH_ROLES[role], content.strip()) for role, content in zip(parts[::2], parts[1::2], strict=True))


def _is_blank(prompt: tuple[Turn, ...]) -> bool:
    return not any(turn.content.strip() for turn in prompt)


# Wording


def _kind(value: JsonValue) -> str:
    if isinstance(value, str):
        return f"the string {value[:40]!r}"
    if isinstance(value, dict):
        return f"an object with the keys {_listed(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "null" if value is None else f"{value!r}"


def _listed(values: JsonObject) -> str:
    return ", ".join(repr(name) for name in values) or "no columns"


def _nearest(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "; choose one of them"

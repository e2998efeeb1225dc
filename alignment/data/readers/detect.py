"""How the rows of a file are written: decided once from its first row, and checked on every other one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignment.data.readers.labels import MEANINGS, label_text
from alignment.data.readers.proposals import as_yaml, propose_column, propose_columns
from alignment.data.readers.records import ColumnSpec, Layout, is_given, spec_columns
from alignment.data.readers.turns import PROMPT_COLUMNS, ends_with_reply, is_transcript
from alignment.data.rows import RAW_TEXT
from alignment.errors import UserError
from alignment.values import JsonObject, JsonValue, is_number, listed, nearest, read_list

_PAIR = ("prompt", "chosen", "rejected", "preference")
_READ_BY = {
    "pairs": _PAIR,
    "implicit": _PAIR[1:],
    "hh": _PAIR[1:],
    "labelled": ("prompt", "responses", "response", "label"),
    "ranked": ("prompt", "responses", "response", "ranks"),
    "scored": ("prompt", "responses", "response", "scores"),
    "unpaired": ("prompt", "completion", "label"),
    "completions": ("prompt", "completion"),
    "prompts": ("prompt",),
}
_OPTIONAL = ("weight", "annotator", "group")
FORMATS = tuple(_READ_BY)
COLUMNS = tuple(dict.fromkeys(name for names in (*_READ_BY.values(), _OPTIONAL) for name in names))
# Which of ours may stand in several columns of the file.
_SEVERAL = ("prompt", "responses", "scores", "ranks", "label")
# Keys of response objects: they need not be columns.
_INSIDE = ("response", "scores", "ranks")
_SCORE_NAME = re.compile(r"scor|rating|reward|judge|stars|grade|quality|win", re.I)
_RANK_NAMES = ("ranks", "rank")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a recipe wants its files read; see :func:`alignment.data.readers.read_rows`."""

    format: str = "auto"
    columns: Mapping[str, ColumnSpec]
    labels: Mapping[str, str] | None = None
    annotators: str = "separate"
    scores_as: str = "given"
    prompt_role: str = RAW_TEXT

    def __post_init__(self) -> None:
        if self.format != "auto" and self.format not in FORMATS:
            raise UserError(
                f"expected format auto, {', '.join(FORMATS)}, found {self.format!r}{nearest(self.format, FORMATS)}"
            )
        if self.prompt_role not in (RAW_TEXT, "user"):
            raise UserError(
                f"expected prompt_role 'text' or 'user', found {self.prompt_role!r}; a string has no other role"
            )
        if self.annotators not in ("separate", "mean"):
            raise UserError(f"expected annotators 'separate' or 'mean', found {self.annotators!r}; choose one of them")
        if self.scores_as not in ("given", "win_rates"):
            raise UserError(f"expected scores_as 'given' or 'win_rates', found {self.scores_as!r}; choose one of them")
        for name, spec in self.columns.items():
            _check_column(name, spec)
        for text, meaning in (self.labels or {}).items():
            known = sorted({word for words in MEANINGS.values() for word in words})
            if meaning not in known:
                raise UserError(
                    f"expected labels to mean {', '.join(known)}, found {meaning!r} for {text!r}"
                    f"{nearest(meaning, known)}"
                )


def detect_layout(reading: Reading, first: JsonObject, source: str) -> Layout:
    """The layout of a file from its first row.

    Raises:
        UserError: if the columns fit no format, or a mapped column is not there; the message proposes a mapping.
    """
    _check_mapped(reading.columns, first, source)
    columns = dict(reading.columns)
    if reading.format in ("auto", "scored") and _is_list(first, columns):
        columns |= _find_numbers(first, columns, source, format=reading.format)
    elif reading.format == "ranked" and "ranks" not in columns:
        columns |= _find_ranks(first, columns)
    columns |= _find_prompt(first, columns)
    mapped = frozenset(reading.columns)
    kind = _find_kind(first, columns, mapped)
    if reading.format == "auto":
        _check_kind(kind, first, reading, source)
    format = _format_of(kind, first, columns) if reading.format == "auto" else reading.format
    _check_read(reading, format, source)
    return Layout(
        format=format,
        kind=kind if reading.format == "auto" else None,
        columns=columns,
        mapped=mapped,
        prompt_role=reading.prompt_role,
        labels=None if reading.labels is None else _read_labels(reading.labels, format),
        annotators=reading.annotators,
        scores_as=reading.scores_as,
        numbers=frozenset(name for name in ("preference", "weight") if is_in(first, columns.get(name, name))),
        first=source,
    )


def check_kind(layout: Layout, values: JsonObject, source: str) -> None:
    """A row of another kind than the first one is an error: its tokens or its feedback would mean something else."""
    if layout.kind is None:
        return
    kind = _find_kind(values, layout.columns, layout.mapped)
    # A missing prompt is the parser's error, which says more.
    if kind is None or kind == layout.kind or (kind, layout.kind) == ("implicit", "pairs of strings"):
        return
    raise UserError(
        f"{source}: expected one format in a file; found {layout.kind} first at {layout.first} and {kind} first at "
        f"{source}: split the file"
    )


def is_in(values: JsonObject, spec: ColumnSpec) -> bool:
    """Whether the row has one of the columns."""
    return any(column in values for column in spec_columns(spec))


# Options


def _check_column(name: str, spec: ColumnSpec) -> None:
    if name not in COLUMNS:
        raise UserError(f"expected columns of {', '.join(COLUMNS)}, found {name!r}{nearest(name, COLUMNS)}")
    if isinstance(spec, Mapping) and name != "scores":
        raise UserError(f"expected one column or a list for {name!r}, found names of oracles; only scores have oracles")
    if not isinstance(spec, str) and name not in _SEVERAL:
        raise UserError(f"expected one column for {name!r}, found several; only {', '.join(_SEVERAL)} may have several")
    if not spec_columns(spec):
        raise UserError(f"expected at least one column for {name!r}, found none; remove the key")


def _check_read(reading: Reading, format: str, source: str) -> None:
    """What nothing would read is an error."""
    unread = [name for name in reading.columns if name not in (*_READ_BY[format], *_OPTIONAL)]
    if unread:
        known = ", ".join((*_READ_BY[format], *_OPTIONAL))
        raise UserError(
            f"{source}: expected columns that the format {format!r} reads ({known}), found {unread[0]!r}; remove it "
            "or name another format"
        )
    if reading.labels is not None and format not in MEANINGS:
        raise UserError(
            f"{source}: expected labels only for {listed(MEANINGS)}, found the format {format!r}; remove them"
        )
    if reading.scores_as == "win_rates" and format != "scored":
        raise UserError(
            f"{source}: expected scored lists (format 'scored') with scores_as: win_rates, found the format "
            f"'{format}'; remove the key"
        )
    if reading.annotators == "mean" and (format != "labelled" or isinstance(reading.columns.get("label", ""), str)):
        raise UserError(
            f"{source}: expected several columns of labels with annotators: mean, found one or none; name them: "
            "columns: {label: [FIRST, SECOND]}"
        )


def _read_labels(labels: Mapping[str, str], format: str) -> dict[str, str]:
    for text, meaning in labels.items():
        if meaning not in MEANINGS[format]:
            raise UserError(
                f"expected labels of the format {format!r} to mean {', '.join(MEANINGS[format])}, found {meaning!r} "
                f"for {text!r}; correct labels"
            )
    read = {label_text(text): meaning for text, meaning in labels.items()}
    if len(read) < len(labels):
        raise UserError(
            f"expected different labels, found one twice in {listed(labels)} (case does not count); remove one"
        )
    return read


def _check_mapped(columns: Mapping[str, ColumnSpec], first: JsonObject, source: str) -> None:
    for name, spec in columns.items():
        # Mapped keys of response objects are looked for in every row.
        missing = [] if name in _INSIDE else [column for column in spec_columns(spec) if column not in first]
        if missing:
            proposal = propose_column(missing[0], list(first)) or propose_column(name, list(first))
            advice = (
                f"did you mean {as_yaml({name: _replace(spec, missing[0], proposal)})}?" if proposal else "correct it"
            )
            raise UserError(
                f"{source}: expected a column {missing[0]!r}, which columns maps to {name!r}, found {listed(first)}; "
                f"{advice}"
            )


def _replace(spec: ColumnSpec, wrong: str, right: str) -> str | list[str]:
    return right if isinstance(spec, str) else [right if name == wrong else name for name in spec_columns(spec)]


# Kinds of rows


def _find_kind(values: JsonObject, columns: Mapping[str, ColumnSpec], mapped: frozenset[str]) -> str | None:
    """The format of a row, with what else must be the same in all rows of a file."""

    def given(name: str) -> bool:
        return is_given(values, columns.get(name, name))

    if given("chosen") or given("rejected"):
        chosen = values.get(str(columns.get("chosen", "chosen")))
        if not isinstance(chosen, str) and chosen is not None:
            return "pairs of conversations"
        if given("prompt"):
            return "pairs of strings"
        return "hh" if is_transcript(chosen) else "implicit"
    if given("responses"):
        return _list_kind(values, columns, mapped)
    if given("completion"):
        return "unpaired" if given("label") else "completions"
    return "prompts" if given("prompt") else None


def _list_kind(values: JsonObject, columns: Mapping[str, ColumnSpec], mapped: frozenset[str]) -> str:
    if not _is_list(values, columns):
        return "labelled"
    # Scores that are mapped are asked for: a file that lacks them must fail, not turn into a ranked one.
    if "ranks" in columns or "scores" in mapped:
        return "scored" if "scores" in columns else "ranked"
    spec = columns.get("scores", "scores")
    is_scored = is_given(values, spec) or spec in _inner_keys(values, columns) or _candidates(values, columns)
    return "scored" if is_scored else "ranked"


def _is_list(values: JsonObject, columns: Mapping[str, ColumnSpec]) -> bool:
    """Whether the row has responses that are ranked or scored, not labelled."""
    if not is_given(values, columns.get("responses", "responses")):
        return False
    if "label" in columns:
        return False
    return not (is_given(values, "label") and len(_responses(values, columns)) == 2)


def _responses(values: JsonObject, columns: Mapping[str, ColumnSpec]) -> list[JsonValue]:
    spec = columns.get("responses", "responses")
    if not isinstance(spec, str):
        return [values.get(column) for column in spec_columns(spec)]
    value = read_list(values.get(spec))
    return value if isinstance(value, list) else []


def _check_kind(kind: str | None, first: JsonObject, reading: Reading, source: str) -> None:
    proposal = propose_columns(first)
    if kind is None:
        advice = as_yaml(proposal or {"prompt": "NAME", "chosen": "NAME", "rejected": "NAME"})
        raise UserError(
            f"{source}: expected the columns of a known format ({', '.join(FORMATS)}), found {listed(first)}; name the "
            f"format and map the columns, such as {advice}"
        )
    if kind == "prompts" and "responses" in proposal and "prompt" not in reading.columns:
        responses = proposal["responses"]
        raise UserError(
            f"{source}: expected prompts alone or a known format, found the responses "
            f"{listed([responses] if isinstance(responses, str) else responses)} "
            f"among {listed(first)}; map them: {as_yaml(proposal)}, or leave them out: format: prompts"
        )
    prompt = proposal.get("prompt")
    if kind == "implicit" and prompt is not None:
        raise UserError(
            f"{source}: expected a column 'prompt', found {listed(first)}; map it: {as_yaml({'prompt': prompt})}, or "
            "name format: implicit where 'chosen' and 'rejected' begin with the prompt"
        )


def _format_of(kind: str | None, first: JsonObject, columns: Mapping[str, ColumnSpec]) -> str:
    assert kind is not None
    if kind == "prompts" and ends_with_reply(first.get(str(columns.get("prompt")))):
        return "completions"
    return kind.partition(" of ")[0]


# Columns that the recipe leaves open


def _find_prompt(first: JsonObject, columns: Mapping[str, ColumnSpec]) -> dict[str, ColumnSpec]:
    if "prompt" in columns:
        return {}
    chosen = first.get(str(columns.get("chosen", "chosen")))
    # A conversation of several turns holds its prompt; a column of messages beside it may hold the whole conversation.
    known = ("prompt",) if isinstance(chosen, list) and len(chosen) > 1 else PROMPT_COLUMNS
    return {"prompt": next((name for name in known if is_given(first, name)), "prompt")}


def _find_numbers(
    first: JsonObject, columns: Mapping[str, ColumnSpec], source: str, *, format: str
) -> dict[str, ColumnSpec]:
    """The column or key of the scores, where exactly one is called like a score; of the ranks, where there is one."""
    if "scores" in columns or "ranks" in columns:
        return {}
    candidates = _candidates(first, columns)
    if is_given(first, "scores") or "scores" in _inner_keys(first, columns):
        return {"scores": "scores"}
    scores = [name for name in candidates if _SCORE_NAME.search(name)]
    if len(scores) == 1:
        return {"scores": scores[0]}
    if candidates and not (format == "auto" and not scores and _find_ranks(first, columns)):
        several = ", ".join(f"{name}: {name}" for name in candidates)
        raise UserError(
            f"{source}: expected one column of scores beside the responses, found {listed(candidates)}; say which: "
            f"columns: {{scores: {candidates[0]}}}, or all, as several oracles: columns: {{scores: {{{several}}}}}, or "
            "none: format: ranked (best first)"
        )
    return _find_ranks(first, columns) if format == "auto" else {}


def _find_ranks(first: JsonObject, columns: Mapping[str, ColumnSpec]) -> dict[str, ColumnSpec]:
    inner = _inner_keys(first, columns)
    name = next((name for name in _RANK_NAMES if name in inner or isinstance(first.get(name), list)), None)
    return {} if name is None else {"ranks": name}


def _candidates(values: JsonObject, columns: Mapping[str, ColumnSpec]) -> list[str]:
    """Columns with a number for each response, and keys with a number in each response object."""
    responses = _responses(values, columns)
    replies = spec_columns(columns.get("responses", "responses"))
    outer = [
        name for name, value in values.items() if name not in replies and _is_vector(read_list(value), len(responses))
    ]
    inner = [
        name
        for name in _inner_keys(values, columns)
        if all(isinstance(item, dict) and is_number(item[name]) for item in responses)
    ]
    return [name for name in dict.fromkeys([*outer, *inner]) if name not in _RANK_NAMES]


def _is_vector(value: JsonValue, size: int) -> bool:
    return isinstance(value, list) and len(value) == size > 0 and all(map(is_number, value))


def _inner_keys(values: JsonObject, columns: Mapping[str, ColumnSpec]) -> Sequence[str]:
    """The keys that all response objects have."""
    responses = _responses(values, columns)
    objects = [item for item in responses if isinstance(item, dict)]
    if not objects or len(objects) < len(responses):
        return []
    return [name for name in objects[0] if all(name in item for item in objects)]

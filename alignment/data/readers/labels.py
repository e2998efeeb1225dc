"""Rows with labels: which of two responses wins, by one or several annotators; or whether one response is good."""

import re
from collections.abc import Mapping

from alignment.data.readers.lists import response_text, response_values
from alignment.data.readers.pairs import fault_of, split_replies
from alignment.data.readers.records import Outcome, Record
from alignment.data.readers.turns import (
    as_spoken,
    is_blank,
    is_conversation,
    join_conversation,
    read_prompt,
    read_turns,
)
from alignment.data.rows import Comparison, Skipped, Turn
from alignment.errors import UserError
from alignment.values import JsonValue, listed

MEANINGS = {"labelled": ("left", "right", "tie", "skip"), "unpaired": ("good", "bad", "skip")}
"""What a label may mean, by format."""

# Words that mean one thing only. A 0 may be a tie or the first response, so it must be declared.
_WORDS: dict[str, dict[str, str]] = {
    "labelled": {
        **dict.fromkeys(("1", "a", "left", "first", "model_a"), "left"),
        **dict.fromkeys(("2", "b", "right", "second", "model_b"), "right"),
        **dict.fromkeys(("tie", "draw", "tie (bothbad)"), "tie"),
    },
    "unpaired": {
        **dict.fromkeys(("true", "1", "good", "desirable"), "good"),
        **dict.fromkeys(("false", "0", "bad", "undesirable"), "bad"),
    },
}
_EXAMPLES = {"labelled": "labels: {1: left, 2: right, 0: tie}", "unpaired": "labels: {yes: good, no: bad}"}
_PROBABILITY = {"left": 1.0, "tie": 0.5, "right": 0.0}


def parse_labelled(record: Record) -> tuple[Outcome, ...]:
    """A tie is kept: both responses with the probability 1/2."""
    values = response_values(record)
    if len(values) != 2:
        raise UserError(
            f"{record.source}: expected two responses that a label compares, found {len(values)}; name the two columns "
            "with columns: {responses: [LEFT, RIGHT]}"
        )
    verdicts = _verdicts(record)
    if any(isinstance(value, str) for value in values) and not all(isinstance(value, str | dict) for value in values):
        # Spreadsheets turn the reply TRUE into a truth value; what it said is lost.
        return record.skip("reply is not text")
    found = _prompt_and_replies(record, values)
    if isinstance(found, str):
        return record.skip(found)
    prompt, replies = found
    fault = fault_of(prompt, replies, equal="all responses equal")
    if fault is not None:
        return record.skip(fault)
    return _vote(record, prompt, replies, verdicts)


def parse_unpaired(record: Record) -> tuple[Outcome, ...]:
    verdict = _meaning(record, record.column("label"), record.require("label"))
    prompt, reply = read_completion(record)
    fault = _fault(prompt, reply)
    if fault is not None:
        return record.skip(fault)
    if verdict == "skip":
        return record.skip("no verdict")
    assert reply is not None
    return (record.row(prompt, (reply,), scores=(1.0 if verdict == "good" else 0.0,)),)


def parse_completion(record: Record) -> tuple[Outcome, ...]:
    prompt, reply = read_completion(record)
    fault = _fault(prompt, reply)
    if fault is not None:
        return record.skip(fault)
    assert reply is not None
    return (record.row(prompt, (reply,)),)


def read_completion(record: Record) -> tuple[tuple[Turn, ...], str | None]:
    """The prompt and its completion; ``None`` for the completion where the last turn is not the assistant's."""
    prompt = read_prompt(record)
    if record.layout.format == "completions" and not record.given("completion"):
        turns = prompt
    else:
        value = record.require("completion")
        if isinstance(value, str):
            return prompt, str(value)
        reply = read_turns(record, "completion", value)
        turns = join_conversation(as_spoken(prompt), reply) or reply
    return (turns[:-1], turns[-1].content) if turns[-1].role == "assistant" else (turns, None)


def label_text(value: JsonValue) -> str:
    """A label as a recipe writes it.

    Example:
        >>> [label_text(value) for value in (1, 2.0, "0.0", True, None, " A ")]
        ['1', '2', '0', 'true', 'null', 'a']
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    # Tables with gaps hold whole numbers as floats, and CSV files made of them say 1.0.
    return re.sub(r"(?<=^[0-9])\.0+$", "", str(value).strip().casefold())


def label_words(format: str) -> Mapping[str, str]:
    """Labels that can mean one thing only, with what they mean."""
    return _WORDS[format]


def _vote(
    record: Record, prompt: tuple[Turn, ...], replies: tuple[str, str], verdicts: Mapping[str | None, str]
) -> tuple[Outcome, ...]:
    votes = {annotator: verdict for annotator, verdict in verdicts.items() if verdict != "skip"}
    left_out = (Skipped("no verdict", record.source),) * (len(verdicts) - len(votes))
    if record.layout.annotators == "mean":
        if not votes:
            return left_out[:1]
        mean = sum(_PROBABILITY[verdict] for verdict in votes.values()) / len(votes)
        return (record.row(prompt, replies, (_compare(mean),)),)
    rows = (
        record.row(prompt, replies, (_compare(_PROBABILITY[verdict]),), annotator=annotator)
        for annotator, verdict in votes.items()
    )
    return (*rows, *left_out)


def _fault(prompt: tuple[Turn, ...], reply: str | None) -> str | None:
    if reply is None:
        return "no final assistant reply"
    if not prompt or is_blank(prompt):
        return "empty prompt"
    return None if reply.strip() else "empty reply"


def _compare(probability: float) -> Comparison:
    """The left response wins with this probability; the winner stands first."""
    return Comparison(0, 1, probability) if probability >= 0.5 else Comparison(1, 0, 1.0 - probability)


def _verdicts(record: Record) -> dict[str | None, str]:
    """Annotator -> verdict; the annotators of several columns are called as the columns."""
    spec = record.spec("label")
    if isinstance(spec, str):
        return {record.identity("annotator"): _meaning(record, spec, record.require("label"))}
    verdicts: dict[str | None, str] = {}
    for column in spec:
        if column not in record.values:
            raise record.missing("label", column)
        verdicts[column] = _meaning(record, column, record.values[column])
    return verdicts


def _meaning(record: Record, column: str, value: JsonValue) -> str:
    format, declared = record.layout.format, record.layout.labels
    text = label_text(value)
    known = _words(record) if declared is None else declared
    if text not in known:
        expected = "a common word for a label" if declared is None else f"a label of {listed(declared)}"
        raise UserError(
            f"{record.source}: expected {expected} in the column {column!r}, found {text!r}; say what every label "
            f"means, such as {_EXAMPLES[format]} (or {', '.join(MEANINGS[format])})"
        )
    return known[text]


def _words(record: Record) -> Mapping[str, str]:
    format, spec = record.layout.format, record.spec("responses")
    if format != "labelled" or isinstance(spec, str):
        return _WORDS[format]
    # A label may name the winning column.
    return _WORDS[format] | dict(zip((label_text(column) for column in spec), ("left", "right"), strict=False))


def _prompt_and_replies(record: Record, values: list[JsonValue]) -> tuple[tuple[Turn, ...], tuple[str, str]] | str:
    if all(isinstance(value, list) and is_conversation(value) for value in values):
        # Arenas give two whole conversations.
        left, right = (read_turns(record, "responses", value) for value in values)
        return split_replies(record, left, right)
    return read_prompt(record), (response_text(record, values[0]), response_text(record, values[1]))

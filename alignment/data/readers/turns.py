"""Prompts, conversations and transcripts -> turns."""

import re

from alignment.data.readers.records import Record
from alignment.data.rows import RAW_TEXT, Turn
from alignment.errors import UserError
from alignment.values import JsonObject, JsonValue, listed, read_list

PROMPT_COLUMNS = ("prompt", "instruction", "conversations", "messages", "turns")
_TRANSCRIPT_TURN = re.compile(r"\n\n(Human|Assistant):")
_TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}
# The names that ShareGPT files give to roles.
_SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
}
# How turns are asked for in errors.
_TURNS = "turns as objects with the strings 'role' and 'content', or 'from' and 'value'"


def is_transcript(value: JsonValue) -> bool:
    """Whether a text begins as hh transcripts do."""
    return isinstance(value, str) and _TRANSCRIPT_TURN.match(value) is not None


def is_conversation(value: JsonValue) -> bool:
    """Whether the value is meant as turns: a list that is no list of strings, or one turn alone."""
    if isinstance(value, list):
        return not (value and all(isinstance(item, str) for item in value))
    return isinstance(value, dict)


def ends_with_reply(value: JsonValue) -> bool:
    """Whether the value is a conversation whose last turn is the assistant's."""
    last = value[-1] if isinstance(value, list) and value else None
    if not isinstance(last, dict):
        return False
    return last.get("role") == "assistant" or _SPEAKERS.get(str(last.get("from"))) == "assistant"


def is_blank(prompt: tuple[Turn, ...]) -> bool:
    """Whether no turn says anything."""
    return not any(turn.content.strip() for turn in prompt)


def read_prompt(record: Record) -> tuple[Turn, ...]:
    """The prompt of a row: text of one column, text joined of several, or turns."""
    spec = record.spec("prompt")
    value = record.require("prompt") if isinstance(spec, str) else _join(record)
    _check_whole(record)
    if isinstance(value, str):
        return (Turn(record.layout.prompt_role, str(value)),)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        # MT-Bench: the questions of one user, to be answered one after the other.
        return tuple(Turn("user", str(item)) for item in value)
    return read_turns(record, "prompt", value)


def read_turns(record: Record, name: str, value: JsonValue) -> tuple[Turn, ...]:
    """The turns of a conversation; one turn may stand alone, as ShareGPT's preference files write their replies."""
    items = [value] if isinstance(value, dict) else read_list(value)
    if not isinstance(items, list) or not items:
        raise record.wrong(name, "a string, or a conversation of at least one turn, as in the other columns", value)
    # Arena-Hard writes its single questions without a role.
    no_roles = name == "prompt" and not any(isinstance(item, dict) and {"role", "from"} & item.keys() for item in items)
    return tuple(_read_turn(record, name, item, "user" if no_roles else None) for item in items)


def read_transcript(record: Record, name: str) -> tuple[Turn, ...]:
    """The turns of a transcript, without the blanks around each: they belong to the transcript's layout."""
    head, *parts = _TRANSCRIPT_TURN.split(record.text(name))
    if head.strip() or not parts:
        raise record.wrong(name, r"a transcript that starts with '\n\nHuman:'", record.text(name))
    return tuple(
        Turn(_TRANSCRIPT_ROLES[role], content.strip()) for role, content in zip(parts[::2], parts[1::2], strict=True)
    )


def join_conversation(prompt: tuple[Turn, ...], turns: tuple[Turn, ...]) -> tuple[Turn, ...] | None:
    """The whole conversation, where ``turns`` are only the reply or hold the prompt; ``None`` where they disagree."""
    if turns[: len(prompt)] == prompt or (len(prompt) == 1 and prompt[0] in turns):
        return turns
    return prompt + turns if turns[0].role == "assistant" else None


def as_spoken(prompt: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """A raw prompt as the user's turn, for a reply that is a conversation."""
    return (Turn("user", prompt[0].content),) if prompt[0].role == RAW_TEXT else prompt


def _join(record: Record) -> str:
    """The texts of several columns, a blank line between them; empty ones do not count."""
    columns = record.spec("prompt")
    parts: list[str] = []
    if not record.has("prompt"):
        raise record.missing("prompt", record.column("prompt"))
    for column in columns:
        value = record.values.get(column)
        if value is not None and not isinstance(value, str):
            raise record.wrong("prompt", "strings, to be joined,", value)
        parts.append(value or "")
    return "\n\n".join(part for part in parts if part.strip())


def _check_whole(record: Record) -> None:
    if "prompt" not in record.layout.mapped and record.spec("prompt") == "instruction" and record.values.get("input"):
        raise UserError(
            f"{record.source}: expected the whole prompt in one column, found 'instruction' and 'input'; join the two "
            "with columns: {prompt: [instruction, input]}, or leave 'input' out with columns: {prompt: instruction}"
        )


def _read_turn(record: Record, name: str, item: JsonValue, default_role: str | None) -> Turn:
    if not isinstance(item, dict):
        raise record.wrong(name, _TURNS, item)
    if "from" in item and "role" not in item:
        return _read_spoken(record, name, item)
    role, content = item.get("role") or default_role, item.get("content")
    if isinstance(content, list) and isinstance(role, str):
        raise UserError(
            f"{record.source}: expected a string as the 'content' of a turn in {record.column(name)!r}, found a list "
            "of parts, as models of images read them; put the text of the parts into one string"
        )
    if not isinstance(role, str) or not isinstance(content, str) or role == RAW_TEXT:
        raise record.wrong(name, _TURNS, item)
    return Turn(role, content)


def _read_spoken(record: Record, name: str, item: JsonObject) -> Turn:
    speaker, content = item["from"], item.get("value")
    if not isinstance(speaker, str) or not isinstance(content, str):
        raise record.wrong(name, _TURNS, item)
    if speaker not in _SPEAKERS:
        raise UserError(
            f"{record.source}: expected turns in {record.column(name)!r} from {listed(_SPEAKERS)}, found {speaker!r}; "
            "rename the speaker"
        )
    return Turn(_SPEAKERS[speaker], content)

"""Rows of a chosen and a rejected reply: strings, conversations, transcripts."""

from alignment.data.readers.proposals import as_yaml, propose_column
from alignment.data.readers.records import Outcome, Record
from alignment.data.readers.turns import (
    as_spoken,
    is_blank,
    join_conversation,
    read_prompt,
    read_transcript,
    read_turns,
)
from alignment.data.rows import Comparison, Turn
from alignment.errors import UserError
from alignment.values import listed

_Turns = tuple[Turn, ...]
_Found = tuple[_Turns, tuple[str, str]]


def parse_pair(record: Record) -> tuple[Outcome, ...]:
    chosen, rejected = record.require("chosen"), record.require("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _pair(record, (read_prompt(record), (str(chosen), str(rejected))))
    left, right = read_turns(record, "chosen", chosen), read_turns(record, "rejected", rejected)
    return _pair(record, split_replies(record, left, right))


def parse_implicit(record: Record) -> tuple[Outcome, ...]:
    """The prompt is the common start, up to the blank before the word in which the two part.

    trl's ``extract_prompt`` cuts at the same place, except that it may cut inside a word.
    """
    chosen, rejected = record.text("chosen"), record.text("rejected")
    prompt = _common_start(chosen, rejected)
    if not prompt:
        proposal = as_yaml({"prompt": propose_column("prompt", list(record.values)) or "NAME"})
        raise UserError(
            f"{record.source}: expected a column 'prompt', or {record.column('chosen')!r} and "
            f"{record.column('rejected')!r} that begin with the same prompt, found {listed(record.values)} without a "
            f"common start; add it, or map one: {proposal}"
        )
    replies = chosen[len(prompt) :], rejected[len(prompt) :]
    return _pair(record, ((Turn(record.layout.prompt_role, prompt),), replies))


def parse_hh(record: Record) -> tuple[Outcome, ...]:
    return _pair(record, _split(read_transcript(record, "chosen"), read_transcript(record, "rejected")))


def split_replies(record: Record, left: _Turns, right: _Turns) -> _Found | str:
    """The shared prompt and the two replies of two conversations, or why there are none."""
    if not record.given("prompt"):
        return _split(left, right)
    prompt = as_spoken(read_prompt(record))
    whole = join_conversation(prompt, left), join_conversation(prompt, right)
    if whole[0] is None or whole[1] is None:
        return "prompt column differs from the conversation"
    return _split(whole[0], whole[1])


def fault_of(prompt: _Turns, replies: tuple[str, str], *, equal: str) -> str | None:
    """Why two replies to a prompt cannot be compared, if so; ``equal`` is the reason where they are the same."""
    if is_blank(prompt):
        return "empty prompt"
    if not all(reply.strip() for reply in replies):
        return "empty reply"
    return equal if replies[0].strip() == replies[1].strip() else None


def _split(left: _Turns, right: _Turns) -> _Found | str:
    """The reply is the last turn, the prompt all before it: never the longest common prefix, which would move turns
    into the reply where the two conversations part early."""
    if left[-1].role != "assistant" or right[-1].role != "assistant":
        return "no final assistant reply"
    if left[:-1] != right[:-1]:
        return "prompts differ"
    return left[:-1], (left[-1].content, right[-1].content)


def _pair(record: Record, found: _Found | str) -> tuple[Outcome, ...]:
    preference = record.number("preference", 1.0)
    if not 0.0 <= preference <= 1.0:
        raise UserError(
            f"{record.source}: expected a preference in [0, 1], found {preference}; it is the probability that chosen "
            "beats rejected"
        )
    if isinstance(found, str):
        return record.skip(found)
    prompt, replies = found
    fault = fault_of(prompt, replies, equal="chosen equals rejected")
    return record.skip(fault) if fault is not None else (record.row(prompt, replies, (Comparison(0, 1, preference),)),)


def _common_start(left: str, right: str) -> str:
    size = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    shared = left[:size]
    if all(text[size : size + 1].strip() == "" for text in (left, right)):
        return shared.rstrip()
    # Inside a word: back to the blank before it.
    return shared[: max(shared.rfind(blank) for blank in " \n\t") + 1].rstrip()

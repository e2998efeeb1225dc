"""The one shape that every data file is turned into: a prompt, G responses, and what somebody said about them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from alignment.errors import UserError

RAW_TEXT = "text"
"""The role of a prompt that is plain text and must not pass through a chat template."""

_SOURCES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation, or with the role ``"text"`` a whole raw prompt."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """Somebody compared two responses of one prompt.

    Args:
        winner: index of the response named the winner.
        loser: index of the other one.
        probability: P(winner beats loser), in [0, 1]; 0.5 is a tie.
    """

    winner: int
    loser: int
    probability: float = 1.0


@dataclass(frozen=True, slots=True)
class OracleScores:
    """What one oracle of several said about the responses of a row: a number for each, larger is better."""

    oracle: str
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A prompt with its responses and the feedback on them.

    Args:
        prompt: the turns before the reply. A raw prompt is one turn with the role ``"text"``.
        responses: G replies; empty where only the prompt is known.
        comparisons: at most one for each unordered pair of responses.
        scores: one number for each response, larger is better, or ``None``.
        panel: the scores of several oracles in place of ``comparisons`` and ``scores``, which are one oracle's.
        weight: multiplies the loss of this row.
        annotator: who compared, where the file says so.
        group: the group that the annotator belongs to, where the file says so.
        source: ``"file:line"``, for error messages and reports.

    Raises:
        UserError: if the parts do not fit one another; the message starts with the source.
    """

    prompt: tuple[Turn, ...]
    responses: tuple[str, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    scores: tuple[float, ...] | None = None
    panel: tuple[OracleScores, ...] = ()
    weight: float = 1.0
    annotator: str | None = None
    group: str | None = None
    source: str

    @property
    def num_verdicts(self) -> int:
        """How often somebody was asked: once for each comparison; without any, once for each score."""
        scores = len(self.scores or ()) + sum(len(member.scores) for member in self.panel)
        return len(self.comparisons) or scores

    def __post_init__(self) -> None:
        _check_prompt(self)
        _check_text(self)
        _check_comparisons(self)
        _check_panel(self)
        _check_numbers(self)


class PromptText(str):
    """A prompt as one text, which remembers its turns for oracles that render them by a template of their own."""

    turns: tuple[Turn, ...]

    def __new__(cls, text: str, turns: tuple[Turn, ...]) -> "PromptText":
        made = super().__new__(cls, text)
        made.turns = turns
        return made


def prompt_text(row: Row) -> PromptText:
    """The prompt as an oracle reads it: a single turn as it stands, a conversation with a line for each turn's role.

    Example:
        >>> prompt_text(Row(prompt=(Turn("user", "Hi"), Turn("assistant", "Hello"), Turn("user", "Bye")), source="a:1"))
        'user: Hi\\nassistant: Hello\\nuser: Bye'
    """
    if len(row.prompt) == 1:
        return PromptText(row.prompt[0].content, row.prompt)
    return PromptText("\n".join(f"{turn.role}: {turn.content}" for turn in row.prompt), row.prompt)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that was left out, why, and where it came from."""

    reason: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a step of the preparation left in.

    Args:
        rows: in their order.
        removed: reason -> the sources left out for it.
    """

    rows: tuple[Row, ...]
    removed: Mapping[str, tuple[str, ...]]


def describe_skipped(skipped: Mapping[str, tuple[str, ...]], *, verb: str = "skipped") -> str:
    """Say in one line what was left out.

    Args:
        skipped: reason -> the sources left out for it.
        verb: what happened to them.

    Returns:
        The total, then each reason with its count and first sources.

    Example:
        >>> describe_skipped({"empty reply": ("a.jsonl:3",), "prompts differ": ("a.jsonl:5", "a.jsonl:9")})
        'skipped 3: 1 empty reply (a.jsonl:3), 2 prompts differ (a.jsonl:5, a.jsonl:9)'
    """
    if not skipped:
        return f"{verb} 0"
    total = sum(len(sources) for sources in skipped.values())
    reasons = ", ".join(
        f"{len(sources):,} {reason} ({shorten_sources(sources)})" for reason, sources in skipped.items()
    )
    return f"{verb} {total:,}: {reasons}"


def shorten_sources(sources: tuple[str, ...]) -> str:
    """The first few sources, and dots where there are more."""
    dots = ", ..." if len(sources) > _SOURCES_SHOWN else ""
    return ", ".join(sources[:_SOURCES_SHOWN]) + dots


def _check_prompt(row: Row) -> None:
    if not row.prompt:
        raise UserError(f"{row.source}: expected a prompt of at least one turn, found none; give the row a prompt")
    if len(row.prompt) > 1 and any(turn.role == RAW_TEXT for turn in row.prompt):
        raise UserError(
            f"{row.source}: expected a raw prompt to be one turn with the role {RAW_TEXT!r}, found "
            f"{len(row.prompt)} turns; use roles such as 'user' and 'assistant' in a conversation"
        )


def _check_text(row: Row) -> None:
    # JSON can write half of a surrogate pair; tokenizers and hashes fail on it far from here.
    for text in (*(turn.content for turn in row.prompt), *row.responses):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{row.source}: expected text that UTF-8 can hold, found {text[error.start : error.end]!r} at "
                f"character {error.start}; remove or repair the row"
            ) from None


def _check_comparisons(row: Row) -> None:
    asked: set[frozenset[int]] = set()
    for comparison in row.comparisons:
        pair = frozenset((comparison.winner, comparison.loser))
        if len(pair) == 1 or not all(0 <= index < len(row.responses) for index in pair):
            raise UserError(
                f"{row.source}: expected a comparison between two of the {len(row.responses)} responses, found "
                f"{comparison.winner} against {comparison.loser}; indices start at 0"
            )
        if pair in asked:
            raise UserError(
                f"{row.source}: expected one comparison for each pair of responses, found two of "
                f"{comparison.winner} and {comparison.loser}; give each annotator a row"
            )
        # Written so that nan fails as well.
        if not 0.0 <= comparison.probability <= 1.0:
            raise UserError(
                f"{row.source}: expected a preference in [0, 1], found {comparison.probability}; "
                "it is the probability that the winner beats the loser"
            )
        asked.add(pair)


def _check_panel(row: Row) -> None:
    names = [judge.oracle for judge in row.panel]
    if len(set(names)) < len(names):
        raise UserError(f"{row.source}: expected each oracle once, found {', '.join(names)}; give them different names")
    if row.panel and (row.comparisons or row.scores is not None):
        raise UserError(
            f"{row.source}: expected a panel of oracles, or the comparisons and scores of one, found both; a "
            "comparison does not say whose it is"
        )


def _check_numbers(row: Row) -> None:
    for scores in (*([] if row.scores is None else [row.scores]), *(judge.scores for judge in row.panel)):
        if len(scores) != len(row.responses):
            raise UserError(
                f"{row.source}: expected one score for each of the {len(row.responses)} responses, found "
                f"{len(scores)}; score all responses or none"
            )
        if not all(math.isfinite(score) for score in scores):
            raise UserError(f"{row.source}: expected finite scores, found {list(scores)}; remove or repair the row")
    if not (math.isfinite(row.weight) and row.weight >= 0.0):
        raise UserError(f"{row.source}: expected a weight of at least 0, found {row.weight}; remove or repair the row")

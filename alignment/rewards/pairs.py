"""Rows -> pairs of texts for Bradley-Terry, and the preferred response of a row.

A list becomes all its strict pairs, each with the same weight; InstructGPT (arXiv 2203.02155, eq. 1) divides by their
number, which TRL's loss cannot. Ties say nothing to Bradley-Terry, and are left out and counted.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from alignment.data import EncodedRow, Row
from alignment.data.rows import describe_skipped
from alignment.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPair:
    """A winner and a loser with their prompt, as token ids, and the row that compares them."""

    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    row: Row


@dataclass(frozen=True, slots=True, kw_only=True)
class StrictPairs:
    """Pairs, and what was left out: reason -> the sources, once for each pair (or row) left out."""

    pairs: tuple[TextPair, ...]
    skipped: Mapping[str, tuple[str, ...]]

    def summary(self) -> str:
        """One line."""
        return f"{len(self.pairs):,} pairs; {describe_skipped(self.skipped, verb='left out')}"


def strict_pairs(encoded: Sequence[EncodedRow]) -> StrictPairs:
    """The pairs of which one response is better for certain.

    Raises:
        UserError: for a row with a weight or a graded preference, which TRL's loss cannot honour, or with several
            oracles.
    """
    pairs: list[TextPair] = []
    skipped: dict[str, list[str]] = {}
    for item in encoded:
        check_plain(item.row, "alignment reward")
        compared = list(_compared(item.row))
        if not compared:
            skipped.setdefault("without comparison", []).append(item.row.source)
        for winner, loser, is_tie in compared:
            chosen, rejected = (item.prompt_ids + item.completion_ids[i] for i in (winner, loser))
            if is_tie:
                skipped.setdefault("tied", []).append(item.row.source)
            elif chosen == rejected:
                skipped.setdefault("equal once truncated", []).append(item.row.source)
            else:
                pairs.append(TextPair(chosen_ids=chosen, rejected_ids=rejected, row=item.row))
    return StrictPairs(pairs=tuple(pairs), skipped={reason: tuple(sources) for reason, sources in skipped.items()})


def check_plain(row: Row, command: str) -> None:
    """Refuse what TRL's losses would not see.

    Raises:
        UserError: for a weight other than 1, or a panel of oracles.
    """
    if row.weight != 1.0:
        raise UserError(
            f"{row.source}: expected the weight 1, found {row.weight:g}; `{command}` trains through TRL, whose loss "
            "has no weights: remove the column, or repeat rows"
        )
    if row.panel:
        names = ", ".join(judge.oracle for judge in row.panel)
        raise UserError(
            f"{row.source}: expected the feedback of one oracle, found {names}; name one in columns: {{scores: ...}}"
        )


def preferred(row: Row) -> int | None:
    """Index of the response that every other one loses to, or ``None``; a single response counts if it is not bad.

    Example:
        >>> from alignment.data import Comparison, Turn
        >>> prompt = (Turn("text", "Hi"),)
        >>> pair = Row(prompt=prompt, responses=("?", "Ho"), comparisons=(Comparison(1, 0),), source="a:1")
        >>> preferred(pair), preferred(Row(prompt=prompt, responses=("Ho",), source="a:2"))
        (1, 0)
    """
    if len(row.responses) == 1:
        is_bad = row.scores is not None and row.scores[0] <= 0.5
        return None if is_bad else 0
    beaten = {(winner, loser) for winner, loser, is_tie in _compared(row, is_graded=True) if not is_tie}
    everybody = range(len(row.responses))
    return next((i for i in everybody if all((i, j) in beaten for j in everybody if j != i)), None)


def _compared(row: Row, *, is_graded: bool = False) -> Iterator[tuple[int, int, bool]]:
    """Winner, loser, whether it is a tie; graded preferences are refused unless they are read as who is likelier."""
    for comparison in row.comparisons:
        probability = comparison.probability
        if probability not in (0.0, 0.5, 1.0) and not is_graded:
            raise UserError(
                f"{row.source}: expected a certain preference or a tie, found the probability {probability:g}; "
                "`alignment reward` trains through TRL, whose loss has no soft labels: give each annotator a row "
                "(annotators: separate), or round"
            )
        order = (comparison.winner, comparison.loser)
        yield (*(order if probability >= 0.5 else order[::-1]), probability == 0.5)
    if not row.comparisons and row.scores is not None:
        for i, j in itertools.combinations(range(len(row.scores)), 2):
            order = (i, j) if row.scores[i] >= row.scores[j] else (j, i)
            yield (*order, row.scores[i] == row.scores[j])

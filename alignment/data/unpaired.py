"""Single labelled responses, for losses that compare no pairs: groups taken apart, and completions of other prompts."""

from collections.abc import Sequence
from dataclasses import replace

from alignment.data.rows import Row
from alignment.data.tokens import EncodedRow
from alignment.errors import UserError


def unpair_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """One row for each labelled response; its score is the label: 1 desirable, 0 undesirable, or a probability.

    A compared response is labelled by the mean of its comparisons, so the winner of a hard pair is desirable and its
    loser undesirable, and both responses of a tie get 1/2. Responses without comparison are labelled by their scores.
    A response without either is left out.

    Raises:
        UserError: for a score outside [0, 1] that is the only label, or if no label is left.

    Example:
        >>> from alignment.data import Comparison, Turn
        >>> prompt, comparisons = (Turn("text", "Hi"),), (Comparison(0, 1),)
        >>> pair = Row(prompt=prompt, responses=("Ho", "?"), comparisons=comparisons, source="a:1")
        >>> [(row.responses, row.scores) for row in unpair_rows([pair])]
        [(('Ho',), (1.0,)), (('?',), (0.0,))]
    """
    singles = tuple(
        replace(row, responses=(response,), comparisons=(), scores=(label,))
        for row in rows
        for response, label in zip(row.responses, _labels(row), strict=True)
        if label is not None
    )
    if not singles:
        raise UserError(f"expected responses with labels or comparisons, found none in {len(rows)} rows")
    return singles


def with_mismatched(encoded: Sequence[EncodedRow]) -> tuple[EncodedRow, ...]:
    """Give every row the completion of the next row whose prompt differs, in a circle.

    Raises:
        UserError: if all prompts are equal.
    """
    if len({item.prompt_ids for item in encoded}) < 2:
        raise UserError("expected at least two different prompts: a completion of another prompt serves as a baseline")
    mismatched: list[EncodedRow] = []
    stranger, past = encoded[0], None
    # Walked backwards, the nearest following row with another prompt is known in constant time.
    for item in (*reversed(encoded), *reversed(encoded)):
        if past is not None and past.prompt_ids != item.prompt_ids:
            stranger = past
        mismatched.append(replace(item, mismatched_ids=stranger.completion_ids[0]))
        past = item
    # The first lap only finds out what follows the last row.
    return tuple(reversed(mismatched[len(encoded) :]))


def _labels(row: Row) -> list[float | None]:
    votes: list[list[float]] = [[] for _ in row.responses]
    for comparison in row.comparisons:
        votes[comparison.winner].append(comparison.probability)
        votes[comparison.loser].append(1.0 - comparison.probability)
    labels: list[float | None] = [sum(vote) / len(vote) if vote else None for vote in votes]
    for i, score in enumerate(row.scores or ()):
        if labels[i] is None:
            if not 0.0 <= score <= 1.0:
                raise UserError(
                    f"{row.source}: expected a label 1 (desirable) or 0 (undesirable), found the score {score:g}; "
                    "compare the responses or label them"
                )
            labels[i] = score
    return labels

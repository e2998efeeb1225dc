"""Which rows to train on: bounds on length, margin, agreement, and on the shape of the text in any language."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from alignment.data.rows import Kept, Row
from alignment.errors import UserError

_WINDOW = 16
_TIE = -1


def filter_rows(
    rows: Sequence[Row],
    *,
    max_prompt_chars: int | None = None,
    min_response_chars: int | None = None,
    max_response_chars: int | None = None,
    max_length_ratio: float | None = None,
    min_margin: float | None = None,
    min_agreement: float | None = None,
    min_letters: float | None = None,
    max_repetition: float | None = None,
    distinct_responses: bool = False,
) -> Kept:
    """Leave out rows that break a bound; a list is left out as a whole if one of its responses does.

    Args:
        rows: any.
        max_prompt_chars: of all turns of the prompt together, in characters.
        min_response_chars: of each response.
        max_response_chars: of each response.
        max_length_ratio: the longest response over the shortest one, in characters.
        min_margin: the largest difference of two scores in a row (of the oracle that differs most), or for comparisons
            the largest ``|2 p - 1|``: 0 is a tie, 1 is certain.
        min_agreement: share of the votes on a pair that its most frequent verdict (left, right, tie) has. All rows
            with the same prompt and responses vote; a preference p between 1/2 and 1 gives each side its part.
        min_letters: share of letters, marks and digits of any script among the characters that are no spaces, in each
            response.
        max_repetition: 1 - distinct / all windows of 16 characters, in each response: 0 for ordinary text, near 1 for a
            loop.
        distinct_responses: leave out rows in which two responses are the same text.

    Returns:
        The rows that stay, and the sources of the others by the first bound that they break.

    Raises:
        UserError: if a bound asks for feedback that a row does not hold.
    """
    agreement = _agreement(rows) if min_agreement is not None else {}
    bounds: Mapping[str, Callable[[Row], bool] | None] = {
        f"prompt longer than {max_prompt_chars} characters": None
        if max_prompt_chars is None
        else lambda row: sum(len(turn.content) for turn in row.prompt) > max_prompt_chars,
        f"response shorter than {min_response_chars} characters": None
        if min_response_chars is None
        else lambda row: any(len(text) < min_response_chars for text in row.responses),
        f"response longer than {max_response_chars} characters": None
        if max_response_chars is None
        else lambda row: any(len(text) > max_response_chars for text in row.responses),
        f"responses differ in length by more than {max_length_ratio} times": None
        if max_length_ratio is None
        else lambda row: _length_ratio(row) > max_length_ratio,
        "two responses are the same": None
        if not distinct_responses
        else lambda row: len(set(row.responses)) < len(row.responses),
        f"margin below {min_margin}": None if min_margin is None else lambda row: _margin(row) < min_margin,
        f"agreement below {min_agreement}": None
        if min_agreement is None
        # Thirds of three annotators must pass a bound that is written as 0.667 or computed.
        else lambda row: agreement[_content(row)] < min_agreement - 1e-3,
        f"fewer than {min_letters} letters and digits": None
        if min_letters is None
        else lambda row: any(letter_share(text) < min_letters for text in row.responses),
        f"repetition above {max_repetition}": None
        if max_repetition is None
        else lambda row: any(repetition(text) > max_repetition for text in row.responses),
    }
    active = {reason: breaks for reason, breaks in bounds.items() if breaks is not None}
    kept: list[Row] = []
    removed: dict[str, list[str]] = {}
    for row in rows:
        reason = next((reason for reason, breaks in active.items() if breaks(row)), None)
        if reason is None:
            kept.append(row)
        else:
            removed.setdefault(reason, []).append(row.source)
    return Kept(rows=tuple(kept), removed={reason: tuple(sources) for reason, sources in removed.items()})


def letter_share(text: str) -> float:
    """Share of letters, marks and digits among the characters that are no spaces, in [0, 1]; 0 for a blank text.

    Example:
        >>> letter_share("नमस्ते!"), letter_share("-----")
        (0.857..., 0.0)
    """
    counts = Counter(unicodedata.category(character)[0] for character in text if not character.isspace())
    total = counts.total()
    return (counts["L"] + counts["M"] + counts["N"]) / total if total else 0.0


def repetition(text: str) -> float:
    """How much a text repeats itself: 1 - distinct / all windows of 16 characters, in [0, 1).

    Example:
        >>> repetition("No sentence like this one occurs twice."), repetition("ha " * 100) > 0.95
        (0.0, True)
    """
    flat = " ".join(text.split())
    windows = [flat[start : start + _WINDOW] for start in range(len(flat) - _WINDOW + 1)]
    return 1.0 - len(set(windows)) / len(windows) if windows else 0.0


def _length_ratio(row: Row) -> float:
    lengths = [len(text) for text in row.responses]
    return max(lengths) / max(min(lengths), 1) if lengths else 1.0


def _margin(row: Row) -> float:
    spreads = [max(scores) - min(scores) for scores in (row.scores, *(judge.scores for judge in row.panel)) if scores]
    certainties = [abs(2.0 * comparison.probability - 1.0) for comparison in row.comparisons]
    if not spreads and not certainties:
        raise UserError(f"{row.source}: expected scores or comparisons for min_margin, found none; remove the bound")
    return max(spreads or certainties)


def _content(row: Row) -> tuple[object, ...]:
    return (*((turn.role, turn.content) for turn in row.prompt), *sorted(row.responses))


def _agreement(rows: Sequence[Row]) -> dict[tuple[object, ...], float]:
    votes: dict[tuple[object, ...], Counter[str | int]] = defaultdict(Counter)
    for row in rows:
        if len(row.comparisons) != 1 or len(row.responses) != 2:
            raise UserError(
                f"{row.source}: expected pairs with one comparison for min_agreement, found {len(row.responses)} "
                f"responses and {len(row.comparisons)} comparisons; remove the bound"
            )
        (comparison,) = row.comparisons
        ballot = votes[_content(row)]
        if comparison.probability == 0.5:
            ballot[_TIE] += 1
        else:
            # Counters of floats: a preference of 2/3 is two votes of three.
            ballot[row.responses[comparison.winner]] += comparison.probability  # type: ignore[assignment]
            ballot[row.responses[comparison.loser]] += 1.0 - comparison.probability  # type: ignore[assignment]
    return {content: max(ballot.values()) / ballot.total() for content, ballot in votes.items()}

"""Rows -> strict pairs: what is a pair, what is left out and counted, what is refused."""

import pytest

from alignment.data import Comparison, EncodedRow, OracleScores, Row, Turn
from alignment.errors import UserError
from alignment.rewards.pairs import preferred, strict_pairs


def row(*comparisons: Comparison, scores: tuple[float, ...] | None = None, size: int = 2, **options: object) -> Row:
    responses = tuple("abcdef"[:size])
    return Row(
        prompt=(Turn("text", "?"),),
        responses=responses,
        comparisons=comparisons,
        scores=scores,
        source="f:1",
        **options,
    )


def encoded(item: Row, ids: tuple[tuple[int, ...], ...] | None = None) -> EncodedRow:
    return EncodedRow(prompt_ids=(7,), completion_ids=ids or tuple((g,) for g in range(len(item.responses))), row=item)


def ids(*items: Row) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(pair.chosen_ids, pair.rejected_ids) for pair in strict_pairs([encoded(item) for item in items]).pairs]


def test_pairs_carry_the_prompt_and_the_winner_first() -> None:
    """A certain preference for the one named loser turns the pair round."""
    assert ids(row(Comparison(1, 0))) == [((7, 1), (7, 0))]
    assert ids(row(Comparison(1, 0, 0.0))) == [((7, 0), (7, 1))]


def test_a_list_gives_all_its_strict_pairs() -> None:
    assert ids(row(scores=(1.0, 3.0, 1.0), size=3)) == [((7, 1), (7, 0)), ((7, 1), (7, 2))]


def test_what_is_left_out_is_counted() -> None:
    items = [
        encoded(row(Comparison(0, 1, 0.5))),
        encoded(row(scores=(1.0,), size=1)),
        encoded(row(Comparison(0, 1)), ids=((5,), (5,))),
    ]
    found = strict_pairs(items)
    assert not found.pairs
    assert {reason: len(sources) for reason, sources in found.skipped.items()} == {
        "tied": 1,
        "without comparison": 1,
        "equal once truncated": 1,
    }
    assert found.summary().startswith("0 pairs; left out 3: ")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (row(Comparison(0, 1), weight=0.0), "f:1: expected the weight 1, found 0"),
        (row(Comparison(0, 1, 0.8)), "f:1: .* found the probability 0.8"),
        (row(panel=(OracleScores("x", (1.0, 2.0)),)), "f:1: .* found x"),
    ],
)
def test_what_the_loss_would_not_see_is_refused(item: Row, message: str) -> None:
    with pytest.raises(UserError, match=message):
        strict_pairs([encoded(item)])


@pytest.mark.parametrize(
    ("item", "best"),
    [
        (row(Comparison(1, 0)), 1),
        (row(Comparison(1, 0, 0.2)), 0),
        (row(Comparison(0, 1, 0.5)), None),
        (row(scores=(1.0, 2.0, 3.0), size=3), 2),
        (row(scores=(1.0, 3.0, 3.0), size=3), None),
        (row(Comparison(0, 1), Comparison(1, 2), Comparison(2, 0), size=3), None),
        (row(Comparison(0, 1), size=3), None),
        (row(scores=(1.0,), size=1), 0),
        (row(scores=(0.0,), size=1), None),
        (row(scores=(0.5,), size=1), None),
        (row(size=1), 0),
        (row(), None),
    ],
)
def test_the_preferred_response_beats_every_other(item: Row, best: int | None) -> None:
    assert preferred(item) == best

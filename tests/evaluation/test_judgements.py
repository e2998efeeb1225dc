"""Votes, positions, lengths and agreement, by hand."""

import numpy as np
import pytest

from alignment.errors import UserError
from alignment.evaluation.judgements import (
    Judgement,
    agreements,
    longer_rate,
    majority,
    position_rate,
    prompt_tables,
    systems_matrix,
)


def judged(prompt: str, left: str, right: str, win: float, annotator: str | None = None) -> Judgement:
    return Judgement(prompt=prompt, left=left, right=right, win=win, annotator=annotator)


def test_the_majority_is_the_most_frequent_verdict() -> None:
    """Two against one; one each is a tie; a vote in the other order counts turned; probabilities are averaged."""
    votes = majority(
        [
            judged("p", "a", "b", 1.0),
            judged("p", "b", "a", 0.0),
            judged("p", "a", "b", 0.0),
            judged("q", "a", "b", 1.0),
            judged("q", "a", "b", 0.5),
            judged("r", "a", "b", 0.9),
            judged("r", "b", "a", 0.3),
        ]
    )
    assert [(one.prompt, one.left, one.win) for one in votes] == [("p", "a", 1.0), ("q", "a", 0.5), ("r", "a", 0.8)]


def test_tables_are_of_systems_or_of_a_prompt() -> None:
    votes = [judged("p", "b", "a", 1.0), judged("p", "b", "c", 0.0), judged("q", "a", "b", 0.5)]
    matrix = systems_matrix(votes)
    assert matrix.names == ("a", "b", "c") and matrix.num_prompts == 2
    assert matrix.wins_KK[1, 0] == 0.75 and matrix.wins_KK[2, 1] == 1.0 and np.isnan(matrix.wins_KK[0, 2])
    first, second = prompt_tables(votes)
    assert first.shape == (3, 3) and first[0, 1] == 1.0 and second.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_kappa_by_hand() -> None:
    """10 pairs: 4 both win, 3 both lose, 1 both tie, 2 apart: .8 agree. By chance (6 * 4 + 3 * 5 + 1 * 1) / 100 = .4:
    kappa (.8 - .4) / (1 - .4). The second annotator saw every pair the other way round."""
    ours = [1.0] * 6 + [0.0] * 3 + [0.5]
    theirs = [1.0] * 4 + [0.0] * 5 + [0.5]
    votes = [judged(str(n), "x", "y", win, "ours") for n, win in enumerate(ours)]
    votes += [judged(str(n), "y", "x", 1.0 - win, "theirs") for n, win in enumerate(theirs)]
    (found,) = agreements([*votes, judged("z", "x", "y", 1.0, "ours")])
    assert found.annotators == ("ours", "theirs") and found.num_pairs == 10
    assert (found.share, found.kappa) == pytest.approx((0.8, 0.4 / 0.6))
    with pytest.raises(UserError, match="found two of 'ours'"):
        agreements([*votes, judged("0", "y", "x", 1.0, "ours")])


def test_a_better_system_in_front_is_no_taste_for_a_position() -> None:
    """a beats b with .9 wherever it stands and stands first three times in four: the first wins .7, the taste is .5.

    With .1 more for whoever stands first, a wins 1.0 and b .2: the mean is .6.
    """

    def votes(first: list[float], second: list[float]) -> list[Judgement]:
        as_first = [judged(f"{n}", "a", "b", win) for n, win in enumerate(first)]
        return as_first + [judged(f"x{n}", "b", "a", win) for n, win in enumerate(second)]

    fair = votes(([1.0] * 9 + [0.0]) * 3, [0.0] * 9 + [1.0])
    assert np.mean([one.win for one in fair]) == pytest.approx(0.7)
    found = position_rate(fair, is_named=True)
    assert found is not None and found.mean == pytest.approx(0.5) and found.low < 0.5 < found.high
    tilted = position_rate(votes([1.0] * 30, [0.0] * 8 + [1.0] * 2), is_named=True)
    assert tilted is not None and tilted.mean == pytest.approx(0.6)
    assert position_rate(votes([1.0], []), is_named=True) is None
    plain = position_rate(fair, is_named=False)
    assert plain is not None and plain.mean == pytest.approx(0.7)


def test_one_verdict_in_either_order_shows_no_taste() -> None:
    """Each of the two is read as 3 wins in 5 over one prompt: the mean has the variance .6 * .4 / 2 = .12."""
    found = position_rate([judged("p", "a", "b", 1.0), judged("q", "b", "a", 1.0)], is_named=True)
    assert found is not None and found.mean == 1.0 and found.low < 0.1
    found = position_rate([judged("p", "a", "b", 1.0), judged("q", "b", "a", 0.0)], is_named=True)
    assert found is not None and found.mean == 0.5
    # k = t^2 .12 / .25 with t = 12.706: the interval reaches sqrt(k / 4 + k^2 / 4) / (1 + k).
    assert found.high - 0.5 == pytest.approx(0.4968, abs=1e-4)


def test_the_taste_for_a_position_is_covered() -> None:
    """200 simulated sets of 100 prompts in either order: the interval holds the truth, .58, in 91 to 99 %."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        first, second = rng.random(100) < 0.88, rng.random(100) < 0.28
        votes = [judged(str(n), "a", "b", float(win)) for n, win in enumerate(first)]
        votes += [judged(str(n), "b", "a", float(win)) for n, win in enumerate(second)]
        found = position_rate(votes, is_named=True)
        assert found is not None
        held += found.low <= 0.58 <= found.high
    assert 0.91 <= held / 200 <= 0.99


def test_the_longer_text_is_counted_where_lengths_differ() -> None:
    lengths = [(10, 5), (5, 10), (7, 7), (3, 4)]
    votes = [
        Judgement(prompt=str(n), left="a", right="b", win=win, lengths=pair)
        for n, (pair, win) in enumerate(zip(lengths, [1.0, 1.0, 1.0, 0.5], strict=True))
    ]
    found = longer_rate(votes)
    assert found is not None and found.mean == pytest.approx((1.0 + 0.0 + 0.5) / 3) and found.num_prompts == 3
    assert longer_rate([judged("p", "a", "b", 1.0)]) is None

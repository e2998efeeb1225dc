"""MT-Bench: grades and comparisons, their rules, and what is refused."""

from typing import Any

import pytest

from alignment.errors import UserError
from alignment.evaluation.mt_bench import pairwise_scores, parse_rating, single_scores
from alignment.evaluation.published import Record


def grades(*rows: tuple[int, int, Any], model: str = "ours") -> list[Record]:
    """(question, turn, score) each."""
    return [
        Record(
            f"f:{place}",
            {"question_id": question, "turn": turn, "score": score, "model": model, "judge": ["gpt-4", f"t{turn}"]},
        )
        for place, (question, turn, score) in enumerate(rows, start=1)
    ]


def pairs(*rows: tuple[Any, Any], models: tuple[str, str] = ("a", "b"), start: int = 0) -> list[Record]:
    """(winner of the first order, of the second) each."""
    names = {"model_1": models[0], "model_2": models[1], "judge": ["gpt-4", "pair-v2"], "turn": 1}
    return [
        Record(f"f:{start + place}", {"question_id": start + place, "g1_winner": first, "g2_winner": second} | names)
        for place, (first, second) in enumerate(rows)
    ]


def test_the_average_is_over_rows_and_not_over_turns() -> None:
    """Turn 1: 8 and 6, mean 7. Turn 2: 2, and one that could not be read. Average 16 / 3, not (7 + 2) / 2."""
    (found,) = single_scores(grades((1, 1, 8), (2, 1, 6), (1, 2, 2), (2, 2, -1)))
    assert (found.turn_1, found.turn_2) == (7.0, 2.0)
    assert found.average == pytest.approx(16 / 3)
    assert (found.n_rated, found.n_questions, found.n_dropped, found.judge) == (3, 2, 1, "gpt-4")
    assert 1.0 <= found.low < found.average < found.high <= 10.0


def test_grades_that_are_none_are_dropped() -> None:
    """Null, the sign of a parse failure, and numbers off the scale."""
    (found,) = single_scores(grades((1, 1, None), (2, 1, -1), (3, 1, 0), (4, 1, 42), (5, 1, 10)))
    assert (found.average, found.n_rated, found.n_dropped, found.turn_2) == (10.0, 1, 4, None)


def test_a_grade_is_read_from_the_judgement() -> None:
    record = grades((1, 1, 0))[0]
    values = {name: value for name, value in record.values.items() if name != "score"}
    (found,) = single_scores([Record("f:1", values | {"judgment": "Fine. Rating: [[7]]"})])
    assert found.average == 7.0
    assert parse_rating("[[6.5]] and [[2]]") == 6.5 and parse_rating("nonsense") is None


def test_models_are_sorted_and_intervals_are_over_questions() -> None:
    """Two turns of a question with the same grade say no more than one: the interval is that of the questions."""
    once = single_scores(grades(*[(place, 1, 3 + place % 5) for place in range(20)]))[0]
    twice = single_scores(grades(*[(place, turn, 3 + place % 5) for place in range(20) for turn in (1, 2)]))[0]
    assert (once.low, once.high) == pytest.approx((twice.low, twice.high))
    found = single_scores(grades((1, 1, 2), model="worse") + grades((1, 1, 9), model="better"))
    assert [score.model for score in found] == ["better", "worse"]


def test_a_win_needs_both_orders() -> None:
    """a: one win, one loss; ties: said twice, said once, orders that contradict. One pair is an error."""
    found = pairwise_scores(
        pairs(
            ("model_1", "model_1"),
            ("model_2", "model_2"),
            ("tie", "tie"),
            ("model_1", "tie"),
            ("model_1", "model_2"),
            ("error", "model_1"),
        )
    )
    for score in found:
        assert (score.n_wins, score.n_losses, score.n_ties, score.n_dropped) == (1, 1, 3, 1)
        assert score.win_rate == score.loss_rate == pytest.approx(20.0)
        assert score.win_rate_adjusted == pytest.approx(50.0)


def test_the_first_model_wins_by_its_name() -> None:
    """A sign error would give b the win."""
    found = {score.model: score for score in pairwise_scores(pairs(("model_1", "model_1")))}
    assert found["a"].win_rate == 100.0 and found["b"].win_rate == 0.0
    assert (found["a"].low, found["a"].high) == (0.0, 100.0)


def test_against_a_baseline() -> None:
    records = pairs(("model_1", "model_1")) + pairs(("model_2", "model_2"), models=("b", "c"), start=1)
    (found,) = pairwise_scores(records, baseline="a")
    assert (found.model, found.n_losses) == ("b", 1)
    with pytest.raises(UserError, match="expected comparisons with the baseline d, found none"):
        pairwise_scores(records, baseline="d")


def test_a_word_that_is_no_winner_is_dropped() -> None:
    found = pairwise_scores(pairs(("both!", "model_1"), ("tie", "tie")))
    assert [(score.n_dropped, score.n_ties) for score in found] == [(1, 1), (1, 1)]


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(UserError, match=r"f:2: expected an answer once, found .* also at f:1"):
        single_scores(grades((1, 1, 8), (1, 1, 6)))
    with pytest.raises(UserError, match="f:1: expected turn 1 or 2, found 3"):
        single_scores(grades((1, 3, 8)))
    with pytest.raises(UserError, match="expected one grade at least of ours by gpt-4, found none"):
        single_scores(grades((1, 1, -1)))
    with pytest.raises(UserError, match="f:0: expected two models, found a twice"):
        pairwise_scores(pairs(("tie", "tie"), models=("a", "a")))
    with pytest.raises(UserError, match="expected a comparison once"):
        pairwise_scores(pairs(("tie", "tie")) * 2)
    with pytest.raises(UserError, match="expected one verdict at least on a by gpt-4, found none"):
        pairwise_scores(pairs(("error", "error")))

"""The data sets of the world say what their descriptions promise."""

import pytest
import torch

from alignment.data import Row, prompt_text
from alignment.textgame import VIEWS, TextGame, count_rows, draw_rows
from alignment.textgame.views import SEVERAL


def places(text: TextGame, row: Row) -> tuple[int, list[int]]:
    """The numbers of a row's question and answers."""
    x = text.world.questions.index(prompt_text(row))
    return x, [text.world.answers[x].index(answer) for answer in row.responses]


def test_questions_take_turns(text: TextGame) -> None:
    for name in VIEWS:
        rows = draw_rows(text, name, 31)
        assert [prompt_text(row) for row in rows] == [*text.world.questions, text.world.questions[0]]
        assert rows == draw_rows(text, name, 31) and (name == "prompts" or rows != draw_rows(text, name, 31, seed=1))


def test_an_address_knows_what_its_rows_hold(text: TextGame) -> None:
    """Without drawing them; several answers may be more or fewer than sixteen."""
    for name in VIEWS:
        for answers in (None, 4) if name in SEVERAL else (None,):
            rows = draw_rows(text, name, 2, answers=answers)
            address = f"textgame://{name}" + (f"?answers={answers}" if answers else "")
            assert count_rows(address, 2) == (2, sum(row.num_verdicts for row in rows)), address
            assert answers is None or {len(row.responses) for row in rows} == {answers}


def test_a_list_scores_the_share_of_pairs_that_an_answer_won(text: TextGame) -> None:
    (row,) = draw_rows(text, "lists", 1)
    assert row.scores is not None
    assert sum(row.scores) * 15 == pytest.approx(len(row.comparisons)) and len(row.comparisons) == 120
    for g, score in enumerate(row.scores):
        assert score * 15 == pytest.approx(sum(comparison.winner == g for comparison in row.comparisons))


def test_a_label_is_good_as_often_as_an_answer_beats_another_one(text: TextGame) -> None:
    """Given the answer the label is Bernoulli of its P(y > ref): the sum lies within four standard errors."""
    excess, variance = 0.0, 0.0
    for row in draw_rows(text, "labels", 900):
        assert row.scores is not None
        x, (a,) = places(text, row)
        p = float(text.crowd_preferences[x, a] @ text.ref_XA[x])
        sign = 1.0 if p > 0.5 else -1.0
        excess += sign * (row.scores[0] - p)
        variance += p * (1 - p)
    assert abs(excess) < 4 * variance**0.5


def test_votes_are_those_of_the_named_annotator(text: TextGame) -> None:
    """The minority holds 12 % of the votes, and whoever is named votes by their own utility."""
    rows = draw_rows(text, "votes", 900)
    assert {row.group for row in rows} == {"schools", "minority"}
    assert sum(row.group == "minority" for row in rows) == pytest.approx(108, abs=4 * (900 * 0.12 * 0.88) ** 0.5)
    for row in rows:
        assert row.annotator is not None
        x, drawn = places(text, row)
        s = text.world.minority if row.group == "minority" else int(row.annotator.removeprefix("school ")) - 1
        utility_A = text.world.utilities_SXA[s, x]
        comparison = row.comparisons[0]
        advantage = float(utility_A[drawn[comparison.winner]] - utility_A[drawn[comparison.loser]])
        # Four logits a unit: a vote against three units has a probability below 1e-5.
        assert advantage > -3.0


def test_scores_are_the_groups_win_probabilities(text: TextGame) -> None:
    (row,) = draw_rows(text, "scores", 1)
    x, drawn = places(text, row)
    for member in row.panel:
        expected_G = text.group_preferences[member.oracle][x, drawn] @ text.ref_XA[x]
        torch.testing.assert_close(torch.tensor(member.scores, dtype=torch.float64), expected_G)

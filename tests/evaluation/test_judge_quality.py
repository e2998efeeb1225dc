"""Judges on pairs with a known answer: LLMBar's published statistics exactly, and the rules at their edges."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.errors import UserError
from alignment.evaluation.judge_quality import Answer, cohens_kappa, judge_quality, read_verdicts
from alignment.evaluation.published import Record, read_records

FindData = Callable[[str], Path]


def verdict(**changes: Any) -> Record:
    return Record("f:1", {"idx": 0, "label": 1, "winner_noswap": "1", "winner_swap": "1"} | changes)


def counted(text: str) -> tuple[int, int]:
    """``95 / 100 = 95.0%`` as published."""
    count, _, rest = text.partition(" / ")
    return int(count), int(rest.partition(" = ")[0])


def test_published_statistics(real_data: FindData) -> None:
    """12 of 12 sets: right in each order, in both, and the same in both. Kappa in the ten sets without a gap."""
    found = read_verdicts(read_records(real_data("preferences/llmbar_judge_verdicts.jsonl.gz")))
    published = json.loads(real_data("preferences/llmbar_judge_statistics_published.json").read_text())
    assert len(found) == len(published) == 12
    complete = 0
    for expected in published:
        quality = found[expected["subset"], expected["judge"], expected["prompt"]]
        assert (quality.n_correct, quality.n) == counted(expected["correct_False"])
        assert (quality.n_correct_swapped, quality.n) == counted(expected["correct_True"])
        assert (quality.n_both_correct, quality.n) == counted(expected["correct_both"])
        assert (quality.n_agree, quality.n) == counted(expected["equal"])
        assert quality.accuracy == pytest.approx(float(expected["correct_average"].rstrip("%")))
        if quality.n_missing == 0:
            complete += 1
            assert quality.kappa == pytest.approx(expected["kappa_agreement"], abs=1e-6)
    assert complete == 10


def test_a_missing_verdict_is_wrong_and_agrees_with_nothing() -> None:
    found = judge_quality([1, 2], [None, 2], [None, 2])
    assert (found.n, found.n_correct, found.n_both_correct, found.n_agree, found.n_missing) == (2, 1, 1, 1, 2)
    assert found.accuracy == 50.0 and found.agreement == 50.0


def test_a_judge_that_looks_at_places_only() -> None:
    """Always the first one shown: 1 as given, 2 when swapped. Half right, never agreeing, bias 1/2, kappa as low as it
    goes: no agreement, and by chance none either, since each order has one answer."""
    gold: list[Answer] = [1, 2] * 6
    found = judge_quality(gold, [1] * 12, [2] * 12)
    assert found.accuracy == 50.0 and found.both_correct == found.agreement == 0.0
    assert found.position_bias == found.position_bias_high == 50.0
    assert found.position_bias_low is not None and 0.0 < found.position_bias_low < 25.0
    assert found.kappa == 0.0


def test_the_sign_of_position_bias() -> None:
    """The second one shown wins: -1/2."""
    assert judge_quality([1, 1], [2, 2], [1, 1]).position_bias == -50.0


def test_a_perfect_judge() -> None:
    found = judge_quality([1, 2, 1], [1, 2, 1], [1, 2, 1])
    assert found.accuracy == found.high == found.both_correct == 100.0 and found.low < 50.0
    assert found.position_bias == 0.0 and found.kappa == 1.0


def test_a_judge_that_says_nothing() -> None:
    found = judge_quality([1], [None], [None])
    assert found.accuracy == 0.0 and found.position_bias is None and found.kappa is None and found.n_missing == 2


def test_kappa_by_hand() -> None:
    """Agreement 3/4; answer 1 has shares 1/2 and 3/4: chance 3/8 + 1/8 = 1/2; (3/4 - 1/2) / (1/2)."""
    assert cohens_kappa(np.array([1, 1, 2, 2]), np.array([1, 1, 2, 1])) == 0.5
    assert cohens_kappa(np.array([1, 1]), np.array([1, 1])) is None


def test_kappa_is_of_pairs_with_both_verdicts() -> None:
    """The four pairs above, and two that lack one."""
    found = judge_quality([1] * 6, [1, 1, 2, 2, None, 1], [1, 1, 2, 1, 1, None])
    assert found.kappa == 0.5 and found.n_missing == 2


def test_nonsense_counts_as_missing() -> None:
    (found,) = read_verdicts([verdict(winner_noswap="banana", winner_swap=1), verdict(idx=1)]).values()
    assert (found.n_missing, found.n_correct, found.n_correct_swapped) == (1, 1, 2)


@pytest.mark.parametrize("one", [1, 1.0, "1", "1.0", " 1 ", "1e0"])
def test_numbers_are_read_however_they_are_written(one: Any) -> None:
    """``1.0`` is what pandas makes of 1 in a column with gaps."""
    (found,) = read_verdicts([verdict(label=one, winner_noswap=one, winner_swap=one)]).values()
    assert (found.n_missing, found.n_both_correct) == (0, 1)


@pytest.mark.parametrize("word", ["A", 0, 1.5, True])
def test_a_column_of_other_words_is_refused(word: Any) -> None:
    """It would be a judge that is always wrong; a judge that says nothing stays one."""
    message = f"f:1: expected 1 or 2 in 'winner_swap', found neither in 2 rows that have something, first {word!r}"
    with pytest.raises(UserError, match=message):
        read_verdicts([verdict(winner_swap=word), verdict(idx=1, winner_swap=word), verdict(idx=2, winner_swap=None)])
    (found,) = read_verdicts([verdict(winner_swap=None), verdict(idx=1, winner_swap="nan")]).values()
    assert found.n_missing == 2


def test_what_cannot_be_scored_is_named() -> None:
    with pytest.raises(UserError, match="f:1: expected 1 or 2 in 'label', the better answer, found 0"):
        read_verdicts([verdict(label=0)])
    with pytest.raises(UserError, match="f:1: expected a pair once"):
        read_verdicts([verdict(), verdict()])
    with pytest.raises(UserError, match=r"expected a column 'winner_swap', found .*; did you mean 'winner_noswap'"):
        read_verdicts([Record("f:1", {"idx": 0, "label": 1, "winner_noswap": "1"})])
    with pytest.raises(UserError, match="expected pairs, found none"):
        judge_quality([], [], [])

"""Bounds on rows: what stays, what goes, and for which reason."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.data import Comparison, OracleScores, Row, Turn, filter_rows, read_rows
from alignment.data.filters import letter_share, repetition
from alignment.errors import UserError


def pair(left: str, right: str, *, probability: float = 1.0, source: str = "a:1", prompt: str = "Why?") -> Row:
    return Row(
        prompt=(Turn("user", prompt),),
        responses=(left, right),
        comparisons=(Comparison(0, 1, probability),),
        source=source,
    )


@pytest.mark.parametrize(
    ("bound", "good", "bad", "reason"),
    [
        ({"max_prompt_chars": 4}, pair("a", "b"), pair("a", "b", prompt="Whyy?"), "prompt longer than 4 characters"),
        ({"min_response_chars": 2}, pair("aa", "bb"), pair("aa", "b"), "response shorter than 2 characters"),
        ({"max_response_chars": 2}, pair("aa", "bb"), pair("aaa", "b"), "response longer than 2 characters"),
        ({"max_length_ratio": 2.0}, pair("aaaa", "bb"), pair("aaaaa", "bb"), "responses differ in length by more"),
        ({"distinct_responses": True}, pair("a", "b"), pair("a", "a"), "two responses are the same"),
        # |2 p - 1| = 0.6 and 0.4.
        ({"min_margin": 0.5}, pair("a", "b", probability=0.8), pair("a", "b", probability=0.7), "margin below 0.5"),
        ({"min_margin": 0.5}, pair("a", "b", probability=0.2), pair("a", "b", probability=0.3), "margin below 0.5"),
        ({"min_letters": 0.5}, pair("ab..", "b"), pair("a..", "b"), "fewer than 0.5 letters"),
        ({"max_repetition": 0.5}, pair("a", "b"), pair("a", "ab" * 40), "repetition above 0.5"),
    ],
)
def test_each_bound_alone(bound: dict, good: Row, bad: Row, reason: str) -> None:
    result = filter_rows([good, bad], **bound)
    assert result.rows == (good,)
    assert [(name[: len(reason)], sources) for name, sources in result.removed.items()] == [(reason, ("a:1",))]
    assert filter_rows([good, bad]).rows == (good, bad), "no bound, nothing removed"


def test_the_margin_of_scores_is_their_spread() -> None:
    scored = Row(prompt=(Turn("user", "x"),), responses=("a", "b", "c"), scores=(0.1, 0.5, 0.3), source="a:1")
    assert filter_rows([scored], min_margin=0.39).rows and not filter_rows([scored], min_margin=0.41).rows
    panel = Row(
        prompt=(Turn("user", "x"),),
        responses=("a", "b"),
        panel=(OracleScores("helpful", (1.0, 1.1)), OracleScores("harmless", (0.0, 3.0))),
        source="a:2",
    )
    assert filter_rows([panel], min_margin=3.0).rows
    with pytest.raises(UserError, match="a:3: expected scores or comparisons for min_margin"):
        filter_rows([Row(prompt=(Turn("user", "x"),), source="a:3")], min_margin=1.0)


def test_agreement_counts_the_votes_on_one_pair() -> None:
    """Two of three say left, in rows of different orientation; a tie is a verdict of its own; 2/3 is two votes."""
    votes = [pair("a", "b"), pair("a", "b"), pair("b", "a")]
    assert filter_rows(votes, min_agreement=0.667).rows == tuple(votes)
    assert filter_rows(votes, min_agreement=0.7).rows == ()
    assert filter_rows([pair("a", "b"), pair("a", "b", probability=0.5)], min_agreement=0.6).rows == ()
    assert len(filter_rows([pair("a", "b", probability=2 / 3)], min_agreement=0.66).rows) == 1
    assert filter_rows([pair("a", "b", probability=2 / 3)], min_agreement=0.7).rows == ()
    listed = Row(prompt=(Turn("user", "x"),), responses=("a", "b"), scores=(1.0, 0.0), source="a:9")
    with pytest.raises(UserError, match="a:9: expected pairs with one comparison"):
        filter_rows([listed], min_agreement=0.5)


def test_full_agreement_on_pandalm_is_what_its_readme_counts(real_data: Callable[[str], Path]) -> None:
    """Its three annotators agree on 879 of 999 pairs; 60 pairs have a reply that is no text and are not read."""
    result = read_rows(
        real_data("preferences/pandalm_testset_v1.jsonl.gz"),
        columns={
            "prompt": ["instruction", "input"],
            "responses": ["response1", "response2"],
            "label": ["annotator1", "annotator2", "annotator3"],
        },
        labels={"1": "left", "2": "right", "0": "tie"},
    )
    kept = filter_rows(result.rows, min_agreement=1.0)
    pairs = {row.source for row in kept.rows}
    assert len(result.rows) == 2817
    # 60 pairs are missing: between 819 (all of them agreed) and 879.
    assert 819 <= len(pairs) <= 879 and len(kept.rows) == 3 * len(pairs)


def test_white_space_does_not_repeat() -> None:
    """A table of blanks is one blank a gap: no window of it comes twice."""
    assert repetition("name" + " " * 60 + "value" + "\n" * 40 + "colour" + "\t" * 40 + "green") == 0.0


@given(st.text(max_size=80))
def test_shares_lie_in_the_unit_interval_and_do_not_see_a_copy(text: str) -> None:
    assert 0.0 <= letter_share(text) <= 1.0
    assert 0.0 <= repetition(text) < 1.0
    assert letter_share(text * 3) == pytest.approx(letter_share(text))
    assert repetition(text * 3) >= repetition(text)

"""Single labelled responses and completions of other prompts."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from alignment.data import Comparison, EncodedRow, Row, Turn, unpair_rows, with_mismatched
from alignment.errors import UserError


def row(*, comparisons: tuple[Comparison, ...] = (), scores: tuple[float, ...] | None = None, size: int = 2) -> Row:
    return Row(
        prompt=(Turn("text", "q"),),
        responses=tuple("abcdef"[:size]),
        comparisons=comparisons,
        scores=scores,
        weight=2.0,
        source="f:1",
    )


@pytest.mark.parametrize(
    ("source", "labels"),
    [
        (row(comparisons=(Comparison(1, 0),)), [0.0, 1.0]),
        (row(comparisons=(Comparison(0, 1, 0.5),)), [0.5, 0.5]),
        (row(scores=(1.0,), size=1), [1.0]),
        # b beats a and loses to c with 3/4; d met nobody and has no label.
        (row(comparisons=(Comparison(1, 0), Comparison(2, 1, 0.75)), size=4), [0.0, 0.625, 0.75]),
    ],
)
def test_labels_are_mean_wins(source: Row, labels: list[float]) -> None:
    singles = unpair_rows([source])
    assert [single.scores for single in singles] == [(label,) for label in labels]
    assert all(len(single.responses) == 1 and single.weight == 2.0 for single in singles)


def test_scores_that_are_no_labels_are_named() -> None:
    with pytest.raises(UserError, match=r"f:1: expected a label .* found the score 7"):
        unpair_rows([row(scores=(7.0, 1.0))])
    with pytest.raises(UserError, match="found none in 1 rows"):
        unpair_rows([row()])


@given(st.lists(st.integers(0, 3), min_size=2, max_size=12).filter(lambda prompts: len(set(prompts)) > 1))
def test_the_stranger_is_the_next_row_with_another_prompt(prompts: list[int]) -> None:
    """Against the obvious search, in a circle."""
    encoded = [
        EncodedRow(prompt_ids=(prompt,), completion_ids=((100 + i,),), row=row()) for i, prompt in enumerate(prompts)
    ]
    found = [item.mismatched_ids for item in with_mismatched(encoded)]
    size = len(prompts)
    expected = [next(j % size for j in range(i + 1, i + size) if prompts[j % size] != prompts[i]) for i in range(size)]
    assert found == [(100 + j,) for j in expected]


def test_one_prompt_has_no_stranger() -> None:
    encoded = [EncodedRow(prompt_ids=(1,), completion_ids=((2,),), row=row())] * 2
    with pytest.raises(UserError, match="two different prompts"):
        with_mismatched(encoded)

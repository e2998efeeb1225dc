"""Batches: the masks count the tokens, the feedback is antisymmetric, and no prompt is on both sides of a split."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.data.collate import collate, split_rows
from alignment.data.rows import Comparison, OracleScores, Row, Turn
from alignment.data.tokens import EncodedRow
from alignment.errors import UserError

PAD = 0


def make(
    prompt: tuple[int, ...],
    *completions: tuple[int, ...],
    comparisons: tuple[Comparison, ...] = (),
    scores: tuple[float, ...] | None = None,
    weight: float = 1.0,
) -> EncodedRow:
    row = Row(
        prompt=(Turn("text", "q"),),
        responses=tuple(str(ids) for ids in completions),
        comparisons=comparisons,
        scores=scores,
        weight=weight,
        source="f:1",
    )
    return EncodedRow(prompt_ids=prompt, completion_ids=completions, row=row)


def test_the_layout_of_a_small_batch() -> None:
    """Written out by hand: all completions start at one column; a missing response holds its prompt."""
    batch = collate([make((1, 2, 3), (4,), (5, 6)), make((7,), (8, 9))], pad_token_id=PAD)
    completions = batch.completions
    assert completions.input_ids_BGT.tolist() == [
        [[1, 2, 3, 4, 0], [1, 2, 3, 5, 6]],
        [[0, 0, 7, 8, 9], [0, 0, 7, 0, 0]],
    ]
    assert completions.attention_mask_BGT.int().tolist() == [
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
        [[0, 0, 1, 1, 1], [0, 0, 1, 0, 0]],
    ]
    assert completions.completion_mask_BGT.int().tolist() == [
        [[0, 0, 0, 1, 0], [0, 0, 0, 1, 1]],
        [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]],
    ]
    assert completions.valid_BG.tolist() == [[True, True], [True, False]]
    assert completions.lengths_BG.tolist() == [[1, 2], [2, 0]]
    assert batch.prompt_ids_BT.tolist() == [[1, 2, 3], [0, 0, 7]]
    assert batch.prompt_mask_BT.int().tolist() == [[1, 1, 1], [0, 0, 1]]
    assert tuple(row.source for row in batch.rows) == ("f:1", "f:1")
    assert completions.input_ids_BGT.dtype == torch.int64 and completions.completion_mask_BGT.dtype == torch.bool


def test_preferences_and_scores_of_ragged_groups() -> None:
    nan = float("nan")
    batch = collate(
        [
            make((1,), (2,), (3,), (4,), comparisons=(Comparison(0, 1, 0.8), Comparison(2, 0)), scores=(2.0, 1.0, 3.0)),
            make((1,), (2,), (3,), comparisons=(Comparison(1, 0),), weight=0.5),
        ],
        pad_token_id=PAD,
    )
    expected_1BGG = torch.tensor(
        [
            [
                [[0.5, 0.8, 0.0], [0.2, 0.5, nan], [1.0, nan, 0.5]],
                [[0.5, 0.0, nan], [1.0, 0.5, nan], [nan, nan, 0.5]],
            ]
        ]
    )
    torch.testing.assert_close(batch.feedback.prefs_KBGG, expected_1BGG, equal_nan=True)
    expected_1BG = torch.tensor([[[2.0, 1.0, 3.0], [nan, nan, nan]]])
    torch.testing.assert_close(batch.feedback.scores_KBG, expected_1BG, equal_nan=True)
    assert batch.row_weight_B.tolist() == [1.0, 0.5]
    assert batch.feedback.wins_KBG is None


def test_a_panel_ties_where_its_scores_do() -> None:
    """Each oracle by itself: the larger score wins for certain, equal ones are a tie, in either order."""
    item = make((1,), (2,), (3,))
    panel = (OracleScores("brief", (1.0, 1.0)), OracleScores("kind", (0.0, 3.0)))
    feedback = collate([replace(item, row=replace(item.row, panel=panel))], pad_token_id=PAD).feedback
    assert feedback.prefs_KBGG is not None
    assert feedback.prefs_KBGG[:, 0].tolist() == [[[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.0], [1.0, 0.5]]]


def test_feedback_that_nobody_gave_is_absent() -> None:
    pairs = collate([make((1,), (2,), (3,), comparisons=(Comparison(0, 1),))], pad_token_id=PAD)
    assert pairs.feedback.kinds() == ("prefs",)
    unpaired = collate([make((1,), (2,), scores=(1.0,)), make((1,), (3,), scores=(0.0,))], pad_token_id=PAD)
    assert unpaired.feedback.kinds() == ("scores",)


def test_prompts_alone_have_an_empty_group() -> None:
    batch = collate([make((1, 2)), make((3,))], pad_token_id=PAD)
    assert batch.prompt_ids_BT.tolist() == [[1, 2], [0, 3]]
    assert batch.completions.valid_BG.shape == (2, 0) and batch.completions.input_ids_BGT.shape == (2, 0, 2)
    assert batch.feedback.kinds() == ()


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(UserError, match="at least one row to collate"):
        collate([], pad_token_id=PAD)


tokens = st.lists(st.integers(0, 9), min_size=1, max_size=6).map(tuple)
rows = st.builds(lambda prompt, completions: make(prompt, *completions), tokens, st.lists(tokens, max_size=4))


@given(encoded=st.lists(rows, min_size=1, max_size=5), pad_token_id=st.integers(0, 9))
def test_masks_count_the_tokens_and_select_them(encoded: list[EncodedRow], pad_token_id: int) -> None:
    """For rows of any lengths, and a padding token that is also an ordinary one."""
    batch = collate(encoded, pad_token_id=pad_token_id)
    completions = batch.completions
    for b, item in enumerate(encoded):
        assert batch.prompt_ids_BT[b][batch.prompt_mask_BT[b]].tolist() == list(item.prompt_ids)
        assert completions.valid_BG[b].sum() == len(item.completion_ids)
        for g in range(completions.valid_BG.shape[1]):
            ids = item.completion_ids[g] if completions.valid_BG[b, g] else ()
            input_ids_T, seen_T = completions.input_ids_BGT[b, g], completions.attention_mask_BGT[b, g]
            assert input_ids_T[completions.completion_mask_BGT[b, g]].tolist() == list(ids)
            assert input_ids_T[seen_T].tolist() == [*item.prompt_ids, *ids]
            assert bool(seen_T[batch.prompt_ids_BT.shape[1] - 1])
            # Without a gap: attended columns are one run.
            assert seen_T.int().diff().abs().sum() <= 2


@given(
    probabilities=st.lists(st.floats(0, 1), min_size=6, max_size=6),
    asked=st.lists(st.booleans(), min_size=6, max_size=6),
    order=st.permutations(range(4)),
)
def test_preferences_are_antisymmetric(probabilities: list[float], asked: list[bool], order: list[int]) -> None:
    pairs = itertools.combinations(order, 2)
    comparisons = tuple(
        Comparison(i, j, p) for (i, j), p, wanted in zip(pairs, probabilities, asked, strict=True) if wanted
    )
    if not comparisons:
        return
    batch = collate([make((1,), *((n,) for n in range(4)), comparisons=comparisons)], pad_token_id=PAD)
    assert batch.feedback.prefs_KBGG is not None
    prefs_GG = batch.feedback.prefs_KBGG[0, 0]
    asked_GG = ~prefs_GG.isnan()
    assert asked_GG.sum() == 4 + 2 * len(comparisons) and bool((asked_GG == asked_GG.T).all())
    torch.testing.assert_close((prefs_GG + prefs_GG.T)[asked_GG], torch.ones(int(asked_GG.sum())))
    for comparison in comparisons:
        assert float(prefs_GG[comparison.winner, comparison.loser]) == pytest.approx(comparison.probability, abs=1e-7)


# The split


def prompt_rows(num_prompts: int, copies: int = 3) -> list[Row]:
    return [
        Row(prompt=(Turn("text", f"q{n}"),), responses=(str(c),), source=f"f:{n}-{c}")
        for c in range(copies)
        for n in range(num_prompts)
    ]


def test_a_prompt_is_on_one_side_and_no_row_is_lost() -> None:
    rows = prompt_rows(40)
    train, evaluation = split_rows(rows, 0.25, seed=0)
    assert len({row.prompt for row in evaluation}) == 10
    assert not {row.prompt for row in train} & {row.prompt for row in evaluation}
    assert sorted(row.source for row in (*train, *evaluation)) == sorted(row.source for row in rows)
    assert [row for row in rows if row in set(train)] == list(train)


def test_the_split_depends_on_the_seed_and_not_on_the_order() -> None:
    rows = prompt_rows(40)
    first = {row.prompt for row in split_rows(rows, 0.25, seed=0)[1]}
    assert {row.prompt for row in split_rows(rows[::-1], 0.25, seed=0)[1]} == first
    assert {row.prompt for row in split_rows(rows, 0.25, seed=1)[1]} != first


def test_a_fraction_of_zero_keeps_all_rows_for_training() -> None:
    rows = prompt_rows(3)
    assert split_rows(rows, 0.0, seed=0) == (tuple(rows), ())


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match=r"eval_fraction in \[0, 1\)"):
        split_rows(prompt_rows(3), fraction, seed=0)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_an_empty_side_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match="enough prompts for both sides"):
        split_rows(prompt_rows(3), fraction, seed=0)

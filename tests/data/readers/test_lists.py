"""Lists: ranks and scores of one or several oracles give the preferences that their definitions name."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignment.data.collate import collate
from alignment.data.readers import rank_scores, read_rows
from alignment.data.readers.lists import _by_merit, _mean_wins
from alignment.data.rows import Comparison, OracleScores, Row
from alignment.data.tokens import EncodedRow
from alignment.errors import UserError

Write = Callable[..., Path]
Fails = Callable[..., str]

LIST = {"prompt": "q", "responses": ["a", "b", "c"]}


def inside(**columns: list[Any]) -> dict[str, Any]:
    """The list with further keys inside its response objects."""
    objects = [{"text": text} for text in LIST["responses"]]
    for name, values in columns.items():
        for item, value in zip(objects, values, strict=True):
            item[name] = value
    return {"prompt": "q", "responses": objects}


# Ranks


def test_ranks_count_from_the_best_in_any_order_and_with_ties(write: Write) -> None:
    """Second, first, first: the wins of b over the list are 1/2 (itself) + 1/2 (c) + 1 (a), of 3."""
    for row in (LIST | {"ranks": [2, 1, 1]}, inside(rank=[2, 1, 1])):
        result = read_rows(write(row))
        assert result.formats == ("ranked",)
        assert result.rows[0].scores == pytest.approx((1 / 6, 2 / 3, 2 / 3))
        assert result.rows[0].comparisons == (Comparison(1, 0), Comparison(2, 0), Comparison(1, 2, 0.5))
        assert result.num_tied == 1


@given(size=st.integers(1, 8))
def test_mean_wins_of_an_order_are_the_rank_scores(size: int) -> None:
    assert _mean_wins([-float(k) for k in range(size)]) == pytest.approx(rank_scores(size))


@given(merits=st.lists(st.integers(0, 3).map(float), min_size=2, max_size=6))
def test_mean_wins_are_the_row_means_of_the_comparisons(merits: list[float]) -> None:
    prefs_GG = torch.full((len(merits), len(merits)), 0.5)
    for i, j in itertools.combinations(range(len(merits)), 2):
        comparison = _by_merit(i, j, merits)
        prefs_GG[comparison.winner, comparison.loser] = comparison.probability
        prefs_GG[comparison.loser, comparison.winner] = 1.0 - comparison.probability
    assert _mean_wins(merits) == pytest.approx(prefs_GG.mean(1).tolist())


# Scores of one oracle


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(LIST | {"scores": [1, 3, 2]}, id="column"),
        pytest.param(LIST | {"ratings": [1, 3, 2]}, id="column of another name"),
        pytest.param(inside(scores=[1, 3, 2]), id="inside"),
        pytest.param(inside(judge_p_win=[1, 3, 2], model=["x", "y", "z"]), id="inside, of another name"),
        pytest.param(inside(score=[1, 3, 2], length=[9, 9, 9]), id="beside what is no score"),
    ],
)
def test_scores_are_found_where_only_one_column_can_be_meant(write: Write, row: dict[str, Any]) -> None:
    result = read_rows(write(row))
    assert result.formats == ("scored",) and result.rows[0].scores == (1.0, 3.0, 2.0)
    assert result.rows[0].comparisons == (Comparison(1, 0), Comparison(2, 0), Comparison(1, 2))


@pytest.mark.parametrize(
    "row",
    [
        inside(helpful=[1, 2, 3]),
        inside(score=[1, 2, 3], reward=[3, 2, 1]),
        LIST | {"ratings": [1, 2, 3], "judge": [1, 2, 3]},
    ],
)
def test_scores_that_may_be_several_things_must_be_named(
    write: Write, reading_fails: Fails, row: dict[str, Any]
) -> None:
    message = reading_fails(write(row), "expected one column of scores beside the responses")
    for way in ("columns: {scores: ", "as several oracles: columns: {scores: {", "format: ranked (best first)"):
        assert way in message
    assert read_rows(write(row), format="ranked").rows[0].scores == pytest.approx(rank_scores(3))


def test_a_column_of_scores_for_each_column_of_responses(write: Write) -> None:
    row = {"prompt": "q", "x": "a", "y": "b", "x_score": 1, "y_score": 2}
    result = read_rows(write(row), columns={"responses": ["x", "y"], "scores": ["x_score", "y_score"]})
    assert result.rows[0].responses == ("a", "b") and result.rows[0].scores == (1.0, 2.0)


def test_an_empty_response_leaves_its_list_and_not_the_list_the_data(write: Write) -> None:
    """The other scores and ranks stay with their responses; a list of one compares nothing."""
    rows = [
        LIST | {"responses": ["a", " ", "c"], "scores": [1, 3, 2]},
        LIST | {"responses": ["", "", "c"], "scores": [1, 3, 2]},
    ]
    result = read_rows(write(*rows))
    (row,) = result.rows
    assert row.responses == ("a", "c") and row.scores == (1.0, 2.0) and row.comparisons == (Comparison(1, 0),)
    assert result.dropped == {"empty response of a list": ("data.jsonl:1",)}
    assert result.skipped == {"empty reply": ("data.jsonl:2",)}
    assert result.summary().endswith("dropped 1: 1 empty response of a list (data.jsonl:1)")
    (ranked,) = read_rows(write({"prompt": "q", "responses": ["a", "", "c"]})).rows
    assert ranked.responses == ("a", "c") and ranked.scores == pytest.approx(rank_scores(2))


# Several oracles


@pytest.mark.parametrize(
    ("row", "scores"),
    [
        pytest.param(LIST | {"scores": {"kind": [1, 2, 3], "true": [3, 2, 2]}}, None, id="object of lists"),
        pytest.param(
            inside(scores=[{"kind": 1, "true": 3}, {"kind": 2, "true": 2}, {"kind": 3, "true": 2}]), None, id="objects"
        ),
        pytest.param(inside(kind=[1, 2, 3], true=[3, 2, 2]), {"kind": "kind", "true": "true"}, id="keys"),
        pytest.param(LIST | {"k": [1, 2, 3], "t": [3, 2, 2]}, {"kind": "k", "true": "t"}, id="columns"),
        pytest.param(
            LIST | {f"k{g}": g for g in (1, 2, 3)} | {"t1": 3, "t2": 2, "t3": 2},
            {"kind": ["k1", "k2", "k3"], "true": ["t1", "t2", "t3"]},
            id="columns for each response",
        ),
    ],
)
def test_several_oracles_give_a_panel(write: Write, row: dict[str, Any], scores: Any) -> None:
    result = read_rows(write(row), columns=None if scores is None else {"scores": scores})
    (read,) = result.rows
    assert read.panel == (OracleScores("kind", (1.0, 2.0, 3.0)), OracleScores("true", (3.0, 2.0, 2.0)))
    assert read.scores is None and read.comparisons == ()


def test_a_matrix_of_scores_has_a_line_for_each_oracle(write: Write, reading_fails: Fails) -> None:
    (row,) = read_rows(write(LIST | {"scores": [[1, 2, 3], [3, 2, 2]]})).rows
    assert [judge.oracle for judge in row.panel] == ["0", "1"]
    reading_fails(write(LIST | {"scores": [[1, 2], [3, 2], [0, 0]]}), "each of the 3 responses, found 2 scores")
    objects = inside(scores=[{"kind": 1}, {"true": 2}, {"kind": 3}])
    reading_fails(write(objects), "scores of the same oracles for every response")


def encode(row: Row) -> EncodedRow:
    return EncodedRow(prompt_ids=(1,), completion_ids=tuple((g,) for g, _ in enumerate(row.responses)), row=row)


def test_a_panel_is_one_oracle_after_the_other_in_a_batch(write: Write) -> None:
    """Each oracle's preferences and scores equal those of a file that holds this oracle alone."""
    kind, true = [1, 3.5, 2], [3, 2, 2]
    (panel,) = read_rows(write(LIST | {"scores": {"kind": kind, "true": true}})).rows
    feedback = collate([encode(panel)], pad_token_id=0).feedback
    assert feedback.scores_KBG is not None and feedback.prefs_KBGG is not None
    assert feedback.scores_KBG.shape == (2, 1, 3) and feedback.prefs_KBGG.shape == (2, 1, 3, 3)
    for k, scores in enumerate((kind, true)):
        alone = collate([encode(read_rows(write(LIST | {"scores": scores})).rows[0])], pad_token_id=0).feedback
        torch.testing.assert_close(feedback.scores_KBG[k : k + 1], alone.scores_KBG)
        torch.testing.assert_close(feedback.prefs_KBGG[k : k + 1], alone.prefs_KBGG)


def test_a_ragged_panel_is_padded_with_nan(write: Write) -> None:
    rows = [
        LIST | {"scores": [[1, 2, 3], [3, 2, 2]]},
        {"prompt": "q", "responses": ["a", "b"], "scores": [[1, 2], [2, 1]]},
    ]
    feedback = collate([encode(row) for row in read_rows(write(*rows)).rows], pad_token_id=0).feedback
    assert feedback.scores_KBG is not None and feedback.prefs_KBGG is not None
    assert math.isnan(feedback.scores_KBG[1, 1, 2]) and math.isnan(feedback.prefs_KBGG[1, 1, 0, 2])
    assert float(feedback.prefs_KBGG[1, 1, 0, 1]) == 1.0 and float(feedback.prefs_KBGG[0, 1, 0, 1]) == 0.0


def test_rows_of_other_oracles_share_no_batch(write: Write) -> None:
    rows = [
        LIST | {"scores": {"kind": [1, 2, 3], "true": [3, 2, 1]}},
        LIST | {"scores": {"true": [1, 2, 3], "kind": [3, 2, 1]}},
    ]
    encoded = [encode(row) for row in read_rows(write(*rows)).rows]
    with pytest.raises(UserError, match=r"data\.jsonl:2: expected the same oracles in all rows, found true, kind here"):
        collate(encoded, pad_token_id=0)


# Columns and keys


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"prompt": {"a": "prompt"}}, "only scores have oracles"),
        ({"chosen": ["a", "b"]}, "expected one column for 'chosen', found several"),
        ({"prompt": []}, "expected at least one column for 'prompt'"),
        ({"scores": {"kind": "nowhere"}}, "expected scores in a column 'nowhere' or inside every response object"),
        ({"responses": "response"}, r"did you mean columns: \{responses: responses\}\?"),
    ],
)
def test_wrong_columns_are_refused(write: Write, reading_fails: Fails, columns: dict[str, Any], message: str) -> None:
    reading_fails(write(LIST), message, columns=columns)


def test_scores_can_become_win_rates(tmp_path: Path) -> None:
    """Scores 9, 3, 3, 1 of four: the first beats three and half of itself, 3.5/4; the tied ones 1 + 2/2, 2/4; 0.5/4."""
    path = tmp_path / "lists.jsonl"
    line = {"prompt": "x", "responses": ["a", "b", "c", "d"], "scores": [9, 3, 3, 1]}
    panel = {**line, "scores": {"help": [9, 3, 3, 1], "harm": [1, 2, 3, 4]}}
    path.write_text(json.dumps(line))
    (row,) = read_rows(path, scores_as="win_rates").rows
    assert row.scores == (0.875, 0.5, 0.5, 0.125)
    assert read_rows(path).rows[0].scores == (9.0, 3.0, 3.0, 1.0)
    assert row.comparisons == read_rows(path).rows[0].comparisons
    path.write_text(json.dumps(panel))
    (row,) = read_rows(path, scores_as="win_rates").rows
    assert [judge.scores for judge in row.panel] == [(0.875, 0.5, 0.5, 0.125), (0.125, 0.375, 0.625, 0.875)]
    path.write_text(json.dumps({"prompt": "x", "chosen": "a", "rejected": "b"}))
    with pytest.raises(
        UserError, match=r"expected scored lists .* with scores_as: win_rates, found the format 'pairs'"
    ):
        read_rows(path, scores_as="win_rates")

"""Rows refuse parts that do not fit one another, and name where they come from."""

import math
from typing import Any

import pytest

from alignment.data.rows import Comparison, OracleScores, Row, Turn, describe_skipped
from alignment.errors import UserError

RIGHT: dict[str, Any] = {
    "prompt": (Turn("user", "q"),),
    "responses": ("a", "b"),
    "comparisons": (Comparison(0, 1),),
    "scores": (1.0, 0.0),
    "source": "file.jsonl:7",
}
BARE: dict[str, Any] = {"comparisons": (), "scores": None}


def test_a_row_of_a_prompt_alone_needs_no_feedback() -> None:
    row = Row(prompt=(Turn("text", "q"),), source="file.jsonl:1")
    assert row.responses == () and row.comparisons == () and row.scores is None and row.weight == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ()}, "at least one turn"),
        ({"prompt": (Turn("text", "a"), Turn("user", "b"))}, "raw prompt to be one turn"),
        ({"responses": ("a", "half of a pair: \ud83d")}, r"UTF-8 can hold, found '\\ud83d' at character 16"),
        ({"comparisons": (Comparison(0, 2),)}, "0 against 2"),
        ({"comparisons": (Comparison(-1, 1),)}, "-1 against 1"),
        ({"comparisons": (Comparison(1, 1),)}, "1 against 1"),
        ({"comparisons": (Comparison(0, 1), Comparison(1, 0))}, "one comparison for each pair"),
        ({"comparisons": (Comparison(0, 1, math.nan),)}, r"in \[0, 1\], found nan"),
        ({"comparisons": (Comparison(0, 1, 1.5),)}, r"in \[0, 1\], found 1.5"),
        ({"comparisons": (Comparison(0, 1, -0.5),)}, r"in \[0, 1\], found -0.5"),
        ({"scores": (1.0,)}, "one score for each of the 2 responses, found 1"),
        ({"scores": (1.0, math.nan)}, "finite scores"),
        ({"panel": (OracleScores("k", (1.0, 0.0)),)}, "a panel of oracles, or the comparisons and scores of one"),
        (BARE | {"panel": (OracleScores("k", (1.0,)),)}, "one score for each of the 2 responses, found 1"),
        (BARE | {"panel": (OracleScores("k", (1.0, math.inf)),)}, "finite scores"),
        (BARE | {"panel": (OracleScores("k", (1.0, 0.0)),) * 2}, "each oracle once, found k, k"),
        ({"weight": -1.0}, "weight of at least 0"),
        ({"weight": math.nan}, "weight of at least 0"),
        ({"weight": math.inf}, "weight of at least 0"),
    ],
)
def test_a_wrong_row_is_refused_with_its_source(change: dict[str, Any], message: str) -> None:
    Row(**RIGHT)
    with pytest.raises(UserError, match=message) as caught:
        Row(**(RIGHT | change))
    assert str(caught.value).startswith("file.jsonl:7: ")
    assert "\n" not in str(caught.value)


def test_skipped_rows_are_counted_by_reason_and_long_lists_of_sources_are_cut() -> None:
    text = describe_skipped({"empty reply": tuple(f"f:{n}" for n in range(1200)), "prompts differ": ("f:9",)})
    assert text == "skipped 1,201: 1,200 empty reply (f:0, f:1, f:2, ...), 1 prompts differ (f:9)"
    assert describe_skipped({}) == "skipped 0"

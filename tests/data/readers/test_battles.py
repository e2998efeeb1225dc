"""Verdicts between named systems."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.data import read_battles
from alignment.errors import UserError

FindData = Callable[[str], Path]


def written(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "battles.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_two_columns_of_systems_and_a_winner(tmp_path: Path) -> None:
    """Arena files have no texts; `tie (bothbad)` is a tie."""
    rows = [
        {"question_id": n, "model_a": "x", "model_b": "y", "winner": winner}
        for n, winner in enumerate(["model_a", "model_b", "tie", "tie (bothbad)"])
    ]
    found = read_battles(written(tmp_path, *rows), systems=["model_a", "model_b"])
    assert [battle.win for battle in found] == [1.0, 0.0, 0.5, 0.5]
    assert found[1].systems == ("x", "y") and found[1].prompt == "1" and found[1].source == "battles.jsonl:2"
    assert found[0].annotator is None and found[0].lengths is None


def test_several_annotators_and_a_joined_column(tmp_path: Path) -> None:
    row = {"instruction": "Do", "input": "it", "pair": "x-1_y", "a": 1, "b": 0, "c": 9, "left": "yes", "right": True}
    found = read_battles(
        written(tmp_path, row, row | {"right": "no"}),
        systems="pair",
        columns={"prompt": ["instruction", "input"], "label": ["a", "b", "c"], "responses": ["left", "right"]},
        labels={"1": "left", "0": "tie", "9": "skip"},
    )
    assert [(battle.annotator, battle.win) for battle in found] == [("a", 1.0), ("b", 0.5)] * 2
    assert found[0].systems == ("x-1", "y") and found[0].prompt == "Do\n\nit"
    assert found[0].lengths is None and found[2].lengths == (3, 2)


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"id": 1, "a": "x", "b": "y", "winner": "a"}, {}, r"battles.jsonl:1: expected a column for 'prompt', found"),
        (
            {"prompt": 1, "a": "x", "b": "y", "winner": "?"},
            {},
            r"expected a label of .* in the column 'winner', found '\?'",
        ),
        ({"prompt": 1, "a": "x", "b": "x", "winner": "a"}, {}, "expected two different systems, found"),
        ({"prompt": 1, "pair": "x_y_z", "winner": "a"}, {"systems": "pair"}, "one separator"),
        ({"prompt": 1, "a": "x", "b": "y", "winner": "a"}, {"columns": {"scores": "s"}}, "found 'scores'; remove it"),
        ({"prompt": 1, "a": "x", "winner": "a"}, {}, "expected a column 'b'"),
    ],
)
def test_what_is_no_verdict_is_named(
    tmp_path: Path, row: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_battles(written(tmp_path, row), **{"systems": ["a", "b"], **options})


def test_pandalm_has_a_verdict_where_a_text_is_missing(real_data: FindData) -> None:
    """999 pairs x 3: rows whose reply is empty are read, too."""
    found = read_battles(
        real_data("preferences/pandalm_testset_v1.jsonl.gz"),
        systems="cmp_key",
        columns={"prompt": ["instruction", "input"], "label": ["annotator1", "annotator2", "annotator3"]},
        labels={"1": "left", "2": "right", "0": "tie"},
    )
    assert len(found) == 2997 and len({name for battle in found for name in battle.systems}) == 5

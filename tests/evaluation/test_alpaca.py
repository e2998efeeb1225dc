"""AlpacaEval's win rates: the published figures to a millionth, and what a file of judgements must hold."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignment.errors import UserError
from alignment.evaluation.alpaca import (
    Judgements,
    alpaca_score,
    annotations,
    read_instructions,
    read_judgements,
    win_shares,
)

FindData = Callable[[str], Path]

PUBLISHED = {
    "alpaca_eval_2": [
        "FuseChat-Gemma-2-9B-Instruct",
        "alpaca-7b",
        "claude-2.1",
        "gpt-3.5-turbo-0301",
        "phi-2",
        "vicuna-13b-v1.5",
    ],
    "alpaca_eval_1_gpt4": ["claude-2", "phi-2", "zephyr-7b-beta"],
}
FILES = [
    pytest.param(version, f"alpaca_eval/{prefix}_{model}.csv", model, id=f"{prefix}-{model}")
    for prefix, version in (("ae2", "alpaca_eval_2"), ("ae1", "alpaca_eval_1_gpt4"))
    for model in PUBLISHED[version]
]


def judged(*preferences: float, length: float = 10.0) -> Judgements:
    lengths = np.full(len(preferences), length)
    return Judgements(preference_N=np.array(preferences), length_1_N=lengths, length_2_N=lengths)


def row(**changes: Any) -> dict[str, Any]:
    plain = {"instruction": "Why?", "output_1": "No.", "output_2": "Because.", "preference": 2.0}
    return plain | {"generator_1": "base", "generator_2": "ours"} | changes


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def put(*rows: dict[str, Any], name: str = "annotations.json") -> Path:
        (tmp_path / name).write_text(json.dumps(rows))
        return tmp_path / name

    return put


@pytest.mark.parametrize(("version", "name", "model"), FILES)
def test_published_figures(real_data: FindData, version: str, name: str, model: str) -> None:
    """Nine models: rates and error to 1e-6 points, counts exactly."""
    found = alpaca_score(read_judgements(real_data(name)))
    expected = json.loads(real_data("alpaca_eval/expected.json").read_text())[version][model]
    for field in ("win_rate", "standard_error", "discrete_win_rate"):
        assert getattr(found, field) == pytest.approx(expected[field], abs=1e-6)
    for field in ("n_wins", "n_wins_base", "n_draws", "n_total"):
        assert getattr(found, field) == expected[field]
    if found.n_total + found.n_dropped == 805:  # The published length is that of all answers, judged or not.
        assert found.avg_length == expected["avg_length"]
    assert found.low < found.win_rate < found.high


def test_each_code_of_a_preference() -> None:
    """Wins 2 and 1.7, a loss, draws 1.5 and 0, and two that are none: (1 + .7 + 0 + .5 + .5) / 5 = .54."""
    found = alpaca_score(judged(2.0, 1.7, 1.0, 1.5, 0.0, math.nan, 2.5))
    assert found.win_rate == pytest.approx(54.0)
    assert (found.n_wins, found.n_wins_base, found.n_draws, found.n_total, found.n_dropped) == (2, 1, 2, 5, 2)
    # 1.7 is a win: (2 + 1) / 5.
    assert found.discrete_win_rate == pytest.approx(60.0)
    # Squared deviations .46^2 + .16^2 + .54^2 + 2 * .04^2 = .532; error sqrt(.532 / 4 / 5).
    assert found.standard_error == pytest.approx(100.0 * math.sqrt(0.532 / 20.0))


def test_the_sign_of_a_preference() -> None:
    """2 is the model's, as everywhere in AlpacaEval: a reader that has it the other way round fails here."""
    assert win_shares(np.array([2.0, 1.0])).tolist() == [1.0, 0.0]


def test_discrete_equals_plain_for_verdicts() -> None:
    found = alpaca_score(judged(2.0, 1.0, 1.0, 1.5, 2.0))
    assert found.discrete_win_rate == found.win_rate == pytest.approx(50.0)


def test_one_verdict_has_no_error() -> None:
    found = alpaca_score(judged(2.0))
    assert found.win_rate == 100.0 and found.standard_error is None and (found.low, found.high) == (0.0, 100.0)


def test_no_verdict_is_an_error() -> None:
    """A judge that says nothing that can be read."""
    with pytest.raises(UserError, match="expected one verdict at least, found none in 2 rows"):
        alpaca_score(judged(math.nan, 9.0))


def test_what_is_written_is_read(write: Callable[..., Path]) -> None:
    """Probabilities through annotations.json and back: the win rate is their mean, no verdict is dropped."""
    wins = [0.9, 0.25, math.nan, 0.5]
    outputs = (["a"] * 4, ["bb", "cccc", "d", "éé"])
    rows = annotations(list("wxyz"), *outputs, wins, generator_1="base", generator_2="ours", annotator="judge")
    assert rows[2]["preference"] is None
    found = read_judgements(write(*rows))
    assert found.model == "ours" and not found.is_same and found.ids_N is None
    assert found.length_2_N.tolist() == [2, 4, 1, 2]
    score = alpaca_score(found)
    assert score.win_rate == pytest.approx(55.0) and (score.n_draws, score.n_dropped, score.avg_length) == (1, 1, 2)
    with pytest.raises(UserError, match=r"found 1.5 in row 0"):
        annotations(["w"], ["a"], ["b"], [1.5], generator_1="base", generator_2="ours", annotator="judge")


def test_instructions_are_numbered_by_the_official_set(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text("".join(json.dumps({"instruction": text}) + "\n" for text in ("How?", "Why?")))
    numbers = read_instructions(tmp_path / "set.jsonl")
    assert numbers == {"How?": 0, "Why?": 1}
    path = write(row(), row(instruction="How?"))
    assert read_judgements(path, instructions=numbers).ids_N == (1, 0)
    with pytest.raises(UserError, match=r"json:1: expected an instruction of the set, found 'Why\?'"):
        read_judgements(path, instructions={"How?": 0})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(), row()], r"json:2: expected an instruction once, found 'Why\?' also at annotations.json:1"),
        ([row(output_2=None)], r"json:1: expected text in 'output_2', found null"),
        ([row(preference="the second")], r"json:1: expected a finite number in 'preference', found the string"),
        ([{"prefrence": 1.0}], r"json:1: expected a column 'preference', found 'prefrence'; did you mean 'prefrence'"),
        ([row(), row(instruction="How?", generator_2="b")], r"expected one model in 'generator_2', found ours, b"),
        ([], r"expected rows, found none"),
    ],
)
def test_what_cannot_be_read_is_named(write: Callable[..., Path], rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_judgements(write(*rows))


def test_one_of_several_models(write: Callable[..., Path]) -> None:
    path = write(row(), row(generator_2="b", preference=1.0))
    assert read_judgements(path, model="b").preference_N.tolist() == [1.0]
    with pytest.raises(UserError, match="expected the model 'c' in 'generator_2', found ours, b"):
        read_judgements(path, model="c")


def test_nan_in_a_cell_is_no_verdict(tmp_path: Path) -> None:
    """As in JSON; infinity is a mistake in both."""
    path = tmp_path / "a.csv"
    path.write_text("preference,len_1,len_2\nnan,7,9\nNaN,7,9\n,7,9\n2,7,9\n")
    found = alpaca_score(read_judgements(path))
    assert (found.n_total, found.n_dropped) == (1, 3)
    path.write_text("preference,len_1,len_2\ninf,7,9\n")
    with pytest.raises(UserError, match="csv:2: expected a finite number in 'preference', found inf"):
        read_judgements(path)


def test_one_of_several_models_in_a_table(tmp_path: Path) -> None:
    """The rows of both would be counted together: 1 of 2 instructions in place of 2 of 2 or 0 of 2."""
    rows = [f"{n},{name},{win},7,9" for name, win in (("ours", 2), ("b", 1)) for n in range(2)]
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["instruction_id,generator_2,preference,len_1,len_2", *rows]))
    found = read_judgements(path, model="b")
    assert (found.preference_N.tolist(), found.model) == ([1.0, 1.0], "b")
    with pytest.raises(UserError, match="expected one model in 'generator_2', found ours, b"):
        read_judgements(path)
    with pytest.raises(UserError, match="expected the model 'zzz' in 'generator_2', found ours, b"):
        read_judgements(path, model="zzz")


@pytest.mark.parametrize(
    "rows",
    [
        [row(generator_2="base"), row(instruction="How?", generator_2="base")],
        [row(output_2="No.", preference=1.5), row(instruction="How?", output_2="No.", preference=1.5)],
    ],
    ids=["name", "answers"],
)
def test_the_baseline_is_known(write: Callable[..., Path], rows: list[dict[str, Any]]) -> None:
    assert read_judgements(write(*rows)).is_same


def test_the_baseline_is_known_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("preference,len_1,len_2\n1.5,7,7\n0,9,9\n")
    assert read_judgements(tmp_path / "a.csv").is_same
    (tmp_path / "a.csv").write_text("preference,len_1,len_2\n1.5,7,7\n0,9,8\n")
    assert not read_judgements(tmp_path / "a.csv").is_same
    (tmp_path / "a.csv").write_text("preference,len_1,len_2\n1.5,7,-7\n")
    with pytest.raises(UserError, match=r"csv:2: expected a length in 'len_2', found -7"):
        read_judgements(tmp_path / "a.csv")

"""Reward models on pairs: equal scores, sections and their weights, and both forms of a file."""

import json
from pathlib import Path

import pytest

from alignment.errors import UserError
from alignment.evaluation.reward_accuracy import (
    SECTIONS,
    PairAccuracy,
    pair_accuracies,
    read_pair_scores,
    section_scores,
)


def accuracy(subset: str, value: float) -> PairAccuracy:
    return PairAccuracy(subset=subset, accuracy=value, low=0.0, high=100.0, n_pairs=1, n_equal=0)


def test_equal_scores_are_no_wins() -> None:
    found = pair_accuracies([2.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0], ["a", "a", "b", "b"])
    assert [(item.subset, item.accuracy, item.n_pairs, item.n_equal) for item in found] == [
        ("a", 50.0, 2, 1),
        ("b", 50.0, 2, 0),
    ]


def test_the_counts_of_the_sections() -> None:
    """2,985 pairs in RewardBench, of which math-prm has 447 and counts for 984."""
    totals = {section: sum(counts.values()) for section, counts in SECTIONS.items()}
    assert totals == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    assert sum(totals.values()) - 984 + 447 == 2985
    assert len({subset for counts in SECTIONS.values() for subset in counts}) == 23


def test_a_section_is_weighted_by_its_counts() -> None:
    """Reasoning: math-prm right, the six languages of code wrong: half, because 984 is six times 164."""
    code = [accuracy(f"hep-{name}", 0.0) for name in ("cpp", "go", "java", "js", "python", "rust")]
    found = section_scores([accuracy("math-prm", 100.0), *code])
    assert found is not None and found.sections == {"Reasoning": 50.0} and found.score is None
    assert len(found.missing) == 16


def test_the_score_is_the_mean_of_the_sections() -> None:
    values = {"Chat": 90.0, "Chat Hard": 50.0, "Safety": 80.0, "Reasoning": 60.0}
    every = [accuracy(subset, values[section]) for section, counts in SECTIONS.items() for subset in counts]
    found = section_scores(every)
    assert found is not None and found.sections == pytest.approx(values) and found.missing == ()
    assert found.score == pytest.approx(70.0)


def test_other_subsets_have_no_sections() -> None:
    assert section_scores([accuracy("chat", 100.0)]) is None


def test_both_forms_of_a_file(tmp_path: Path) -> None:
    """RewardBench's own is an object of lists; rows are read as well, under several names."""
    (tmp_path / "own.json").write_text(
        json.dumps({"model": "m", "subset": ["a", "b"], "scores_chosen": [1, 2], "scores_rejected": [0, 3]})
    )
    (tmp_path / "rows.jsonl").write_text(
        '{"chosen_score": 1, "rejected_score": 0, "subset": "a"}\n'
        '{"chosen_score": 2, "rejected_score": 3, "subset": "b"}\n'
    )
    (tmp_path / "rows.csv").write_text("score_chosen,score_rejected\n1,0\n2,3\n")
    (tmp_path / "list.json").write_text('[{"scores_chosen": 1.0, "scores_rejected": 0.0}]')
    assert read_pair_scores(tmp_path / "own.json") == ([1.0, 2.0], [0.0, 3.0], ["a", "b"])
    assert read_pair_scores(tmp_path / "rows.jsonl") == ([1.0, 2.0], [0.0, 3.0], ["a", "b"])
    assert read_pair_scores(tmp_path / "rows.csv") == ([1.0, 2.0], [0.0, 3.0], ["all", "all"])
    assert read_pair_scores(tmp_path / "list.json") == ([1.0], [0.0], ["all"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"scores_chosen": [1], "scores_rejected": []}', "lists of equal length, found scores_chosen: 1"),
        ("a.json", '{"scores_chosen": [], "scores_rejected": []}', "expected rows, found none"),
        ("a.json", "{", "expected one JSON value"),
        ("a.json", '{"scores_chosen": ["x"], "scores_rejected": [1]}', r"a.json:1: expected a finite number"),
        ("a.csv", "score_chosen\n1\n", r"a.csv:2: expected a column 'scores_rejected', found 'score_chosen'"),
        ("a.csv", "score_chosen,score_rejected\n,1\n", r"a.csv:2: expected a finite number in 'score_chosen'"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_pair_scores(tmp_path / name)

"""The data block as a whole: its steps in their order, what it refuses, and its account."""

import json
from pathlib import Path

import pytest

from alignment.config import DataSpec
from alignment.errors import UserError
from alignment.preparation import PreparedData, prepare_data


def write(path: Path, prompts: list[str], *, chosen: str = "yes, {}", rejected: str = "no, {}") -> str:
    lines = [{"prompt": text, "chosen": chosen.format(text), "rejected": rejected.format(text)} for text in prompts]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def prepare(block: dict, *, seed: int = 0) -> tuple[PreparedData, list[str]]:
    said: list[str] = []
    return prepare_data(DataSpec.model_validate(block), seed=seed, announce=said.append), said


def questions(name: str, size: int) -> list[str]:
    return [f"{name} question number {i}" for i in range(size)]


def test_one_source_is_what_it_was(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", questions("first", 20))
    for preferences in ({"path": path}, [{"path": path}]):
        data, said = prepare({"preferences": preferences, "eval_fraction": 0.25})
        assert (len(data.train), len(data.evaluation)) == (15, 5)
        assert said == ["data: 20 rows (pairs); skipped 0"]


def test_copies_are_gone_before_the_split(tmp_path: Path) -> None:
    """The copy differs in case, so that the split alone would take it for another prompt."""
    first = write(tmp_path / "a.jsonl", questions("first", 20))
    second = write(tmp_path / "b.jsonl", [text.upper() for text in questions("first", 20)])
    block = {"preferences": [{"path": first}, {"path": second}], "eval_fraction": 0.25}
    data, said = prepare({**block, "duplicates": {"remove": "exact"}})
    assert len(data.train) + len(data.evaluation) == 20
    assert said[2].startswith("duplicates: removed 20: 20 same as an earlier row (b.jsonl:1 = a.jsonl:1")
    assert len(data.report["duplicates"]["same as an earlier row"]) == 20
    assert sum(map(len, (prepare(block)[0].train, prepare(block)[0].evaluation))) == 40


def test_filters_hold_for_both_sides(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", questions("first", 20))
    held_out = write(tmp_path / "b.jsonl", questions("second", 12))
    block = {"preferences": {"path": path}, "evaluation": {"path": held_out}}
    data, said = prepare({**block, "filters": {"max_prompt_chars": len("first question number 1")}})
    assert len(data.train) == 10
    assert len(data.evaluation) == 0 or len(data.evaluation) < 12
    assert any(line.startswith("filters: removed 10") for line in said)
    assert any(line.startswith("filters of evaluation: removed") for line in said)
    with pytest.raises(UserError, match=r"data\.filters: expected rows to stay, found none"):
        prepare({**block, "filters": {"max_prompt_chars": 3}})


def test_shared_prompts_are_refused_or_removed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", questions("first", 20))
    held_out = write(tmp_path / "b.jsonl", ["FIRST question number 3", *questions("second", 3)])
    block = {"preferences": {"path": path}, "evaluation": {"path": held_out}}
    with pytest.raises(UserError, match=r"found 1 that are, first a\.jsonl:4 = b\.jsonl:1; set data\.decontaminate"):
        prepare(block)
    data, said = prepare({**block, "decontaminate": {}})
    assert (len(data.train), len(data.evaluation)) == (19, 4)
    assert "decontaminate: removed 1: 1 prompt holds an evaluation prompt (a.jsonl:4 ~ b.jsonl:1 (100%))" in said


def test_other_sets_can_be_named_to_decontaminate_against(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", questions("first", 20))
    benchmark = tmp_path / "bench.jsonl"
    benchmark.write_text(json.dumps({"instruction": "first question number 7"}) + "\n")
    data, _ = prepare(
        {
            "preferences": {"path": path},
            "eval_fraction": 0.0,
            "decontaminate": {"against": {"path": str(benchmark)}},
        }
    )
    assert len(data.train) == 19


def test_sources_are_mixed_by_weight_after_the_split(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", questions("first", 200))
    second = write(tmp_path / "b.jsonl", questions("second", 20))
    block = {
        "preferences": [{"path": first, "weight": 1.0}, {"path": second, "weight": 1.0}],
        "eval_fraction": 0.1,
        "mixing": {"stop": "all_exhausted"},
    }
    data, said = prepare(block)
    assert len(data.evaluation) == 22, "a tenth of the different prompts, none of them twice"
    assert not {row.prompt for row in data.train} & {row.prompt for row in data.evaluation}
    assert len({row.prompt for row in data.train}) == 198 < len(data.train)
    assert said[-1].startswith(f"mixture (all_exhausted): {len(data.train):,} rows; ")
    assert prepare(block)[0].train == data.train
    assert prepare(block, seed=1)[0].train != data.train


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"preferences": [{"path": "a", "weight": 1}, {"path": "b"}]}, "expected a weight for each of several sources"),
        ({"preferences": {"path": "a", "weight": 1}}, "expected a weight for each of several sources"),
        ({"preferences": {"path": "a"}, "mixing": {"stop": "all_exhausted"}}, "expected sources with weights"),
        ({"preferences": {"path": "a"}, "evaluation": {"path": "b", "weight": 1}}, "expected weights only in"),
        ({"preferences": {"path": "a"}, "evaluation": {"path": "b"}, "eval_fraction": 0.1}, "got both"),
        (
            {"preferences": {"path": "a"}, "duplicates": {"remove": "exact", "similarity": 0.9}},
            "only with remove",
        ),
        ({"preferences": []}, "at least 1 item"),
    ],
)
def test_blocks_that_contradict_themselves_are_refused(block: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSpec.model_validate(block)

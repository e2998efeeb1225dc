"""The public files, read by the recipes that the text beside the recipes shows; every trap of theirs is counted here.

The expected counts are taken from the raw JSON by other code than the reader's.
"""

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.config import DataSource, load_recipe
from alignment.data import ReadResult, read_rows, split_rows
from alignment.preparation import read_source

FindData = Callable[[str], Path]
Fails = Callable[..., str]

README = Path(__file__).parents[3] / "recipes" / "README.md"
RECIPE = "method: {name: dpo, beta: 0.1}\npolicy: {tiny: {}}\nschedule: {kind: offline}\noutput_dir: runs/test\n"
SHOWN = [block.split("```")[0] for block in README.read_text().split("```yaml\n")[2:]]
MIXTURE, *BLOCKS = [block for block in SHOWN if "preferences:" in block]

HH = "preferences/hh_harmless_base_test.jsonl.gz"
PANDALM = "preferences/pandalm_testset_v1.jsonl.gz"
KWAY = "preferences/alpaca_eval_kway8.jsonl.gz"
LLMBAR = "preferences/llmbar_natural_gptinst.jsonl.gz"


def shown_source(tmp_path: Path, name: str, occurrence: int = 0, *overrides: str) -> DataSource:
    """The data block of the text that names this file, as the rest of a recipe would load it."""
    block = [block for block in BLOCKS if name in block][occurrence]
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + block)
    (source,) = load_recipe(path, list(overrides)).recipe.data.sources
    return source


def raw_rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def counts(reasons: dict[str, tuple[str, ...]] | Any) -> dict[str, int]:
    return {reason: len(sources) for reason, sources in reasons.items()}


@pytest.fixture
def read(tmp_path: Path, real_data: FindData) -> Callable[..., ReadResult]:
    def read_shown(name: str, occurrence: int = 0, *overrides: str) -> ReadResult:
        real_data(name)
        return read_source(shown_source(tmp_path, name, occurrence, *overrides))

    return read_shown


def test_every_block_of_the_text_is_a_valid_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNMENT_REAL_DATA", os.environ.get("ALIGNMENT_REAL_DATA", "data"))
    assert len(BLOCKS) == 6
    for block in BLOCKS:
        name = Path(yaml.safe_load(block)["data"]["preferences"]["path"]).name
        assert shown_source(tmp_path, name).path


def test_the_mixture_of_the_text_is_a_valid_block(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE + MIXTURE)
    data = load_recipe(tmp_path / "recipe.yaml").recipe.data
    assert [source.weight for source in data.sources] == [3, 1]
    assert data.decontaminate is not None and data.decontaminate.against[0].path == ("prompts/alpaca_eval.jsonl",)


def test_hh(read: Callable[..., ReadResult]) -> None:
    """2,312 pairs, of which 4 have an empty final reply and 5 part before the last turn, as the file's card says."""
    result = read(HH)
    assert result.formats == ("hh",) and (result.num_read, len(result.rows), result.num_tied) == (2312, 2303, 0)
    assert counts(result.skipped) == {"empty reply": 4, "prompts differ": 5} and not result.dropped
    # Counted apart from this reader: transcripts with more than one human turn, skipped ones included.
    assert 1640 <= sum(len(row.prompt) > 1 for row in result.rows) <= 1650


def test_pandalm_keeps_every_vote(read: Callable[..., ReadResult], real_data: FindData) -> None:
    """999 pairs x 3 annotators. Beside the ties, two traps: 54 empty replies, and 6 that a spreadsheet made a bool."""
    result = read(PANDALM)
    raw = raw_rows(real_data(PANDALM))
    kept = {
        number: row
        for number, row in enumerate(raw, start=1)
        if all(isinstance(row[name], str) and row[name].strip() for name in ("response1", "response2"))
    }
    assert (result.num_read, len(kept)) == (999, 939)
    assert counts(result.skipped) == {"empty reply": 54, "reply is not text": 6}
    expected = Counter(
        (f"pandalm_testset_v1.jsonl.gz:{number}", name, row[name])
        for number, row in kept.items()
        for name in ("annotator1", "annotator2", "annotator3")
    )
    verdicts = {(0, 1.0): 1, (1, 1.0): 2, (0, 0.5): 0}
    found = Counter(
        (row.source, row.annotator, verdicts[row.comparisons[0].winner, row.comparisons[0].probability])
        for row in result.rows
    )
    assert found == expected and len(result.rows) == 2817
    ties = sum(row[f"annotator{n}"] == 0 for row in kept.values() for n in (1, 2, 3))
    assert result.num_tied == ties == 316
    assert result.summary().startswith("2,817 rows from 999 (labelled), 316 tied; skipped 60: 54 empty reply (")


def test_pandalm_prompts_are_instruction_and_input(read: Callable[..., ReadResult], real_data: FindData) -> None:
    prompts = {row.prompt for row in read(PANDALM).rows}
    raw = raw_rows(real_data(PANDALM))
    joined = {"\n\n".join(row[name] for name in ("instruction", "input") if row[name].strip()) for row in raw}
    assert {turn.content for (turn,) in prompts} <= joined
    assert any(not row["input"] for row in raw) and all(turn.role == "user" for (turn,) in prompts)


def test_pandalm_rows_of_a_prompt_stay_together(read: Callable[..., ReadResult]) -> None:
    rows = read(PANDALM).rows
    train, held_out = split_rows(rows, 0.1, seed=0)
    assert len(train) + len(held_out) == len(rows) and held_out
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}


def test_pandalm_annotators_agree_on_most_pairs(read: Callable[..., ReadResult], real_data: FindData) -> None:
    """On 879 of 999, says the card: there the mean of the three votes is 0, 1/2 or 1."""
    raw = raw_rows(real_data(PANDALM))
    assert sum(row["annotator1"] == row["annotator2"] == row["annotator3"] for row in raw) == 879
    result = read(PANDALM, 0, "data.preferences.annotators=mean")
    value = {1: 1.0, 2: 0.0, 0: 0.5}
    means = {
        f"pandalm_testset_v1.jsonl.gz:{number}": sum(value[row[f"annotator{n}"]] for n in (1, 2, 3)) / 3
        for number, row in enumerate(raw, start=1)
    }
    assert len(result.rows) == 939 and all(row.annotator is None for row in result.rows)
    for row in result.rows:
        (comparison,) = row.comparisons
        left_wins = comparison.probability if comparison.winner == 0 else 1.0 - comparison.probability
        assert left_wins == pytest.approx(means[row.source])


@pytest.mark.parametrize(("occurrence", "format"), [(0, "scored"), (1, "ranked")])
def test_kway(read: Callable[..., ReadResult], real_data: FindData, occurrence: int, format: str) -> None:
    """250 lists of 8, best first, some with equal scores; 5 lists hold an empty response and are lists of 7."""
    result = read(KWAY, occurrence)
    assert result.formats == (format,) and len(result.rows) == result.num_read == 250
    assert counts(result.dropped) == {"empty response of a list": 5} and not result.skipped
    assert Counter(len(row.responses) for row in result.rows) == {8: 245, 7: 5}
    for row, raw in zip(result.rows, raw_rows(real_data(KWAY)), strict=True):
        kept = [item for item in raw["responses"] if item["response"].strip()]
        assert row.responses == tuple(item["response"] for item in kept)
        assert len(row.comparisons) == len(kept) * (len(kept) - 1) // 2
        assert row.scores is not None and list(row.scores) == sorted(row.scores, reverse=True)
        if format == "scored":
            assert row.scores == tuple(item["judge_p_win_vs_baseline"] for item in kept)


def test_kway_ties_are_counted(read: Callable[..., ReadResult], real_data: FindData) -> None:
    lists = [
        [item["judge_p_win_vs_baseline"] for item in row["responses"] if item["response"].strip()]
        for row in raw_rows(real_data(KWAY))
    ]
    assert read(KWAY).num_tied == sum(len(set(scores)) < len(scores) for scores in lists) > 0


def test_llmbar(read: Callable[..., ReadResult], real_data: FindData) -> None:
    result = read(LLMBAR)
    assert len(result.rows) == result.num_read == 192 and not result.skipped and result.num_tied == 0
    winners = [row.comparisons[0].winner + 1 for row in result.rows]
    assert winners == [row["label"] for row in raw_rows(real_data(LLMBAR))]


@pytest.mark.parametrize(
    ("name", "num_rows", "num_turns"),
    [("alpaca_eval_805", 805, 1), ("mt_bench_80", 80, 2), ("arena_hard_v0.1_500", 500, 1)],
)
def test_prompts(real_data: FindData, name: str, num_rows: int, num_turns: int) -> None:
    result = read_rows(real_data(f"prompts/prompts_{name}.jsonl.gz"), prompt_role="user")
    assert len(result.rows) == num_rows and not result.skipped
    assert all(len(row.prompt) == num_turns and row.prompt[0].role == "user" for row in result.rows)


def test_files_that_need_a_mapping_propose_it(real_data: FindData, reading_fails: Fails) -> None:
    """PandaLM's and LLMBar's labels are no probabilities; read as such they would train on noise."""
    panda, llmbar = real_data(PANDALM), real_data(LLMBAR)
    pair = {"chosen": "output_1", "rejected": "output_2", "prompt": "input", "preference": "label"}
    reading_fails(llmbar, r"gz:5: expected a preference in \[0, 1\], found 2.0", columns=pair)
    mapping = r"columns: \{prompt: input, responses: \[output_1, output_2\], label: label\}"
    reading_fails(llmbar, f"columns of a known format .*{mapping}")
    mapping = (
        r"columns: \{prompt: \[instruction, input\], responses: \[response1, response2\], "
        r"label: \[annotator1, annotator2, annotator3\]\}"
    )
    reading_fails(panda, mapping)


def test_files_without_responses_are_refused(real_data: FindData, reading_fails: Fails) -> None:
    """Battles and judgements name models and lengths, not texts."""
    for name in ("preferences/arena_hard_historical_battles_2136.jsonl.gz", "alpaca_eval/ae1_phi-2.csv"):
        reading_fails(real_data(name), "expected the columns of a known format")

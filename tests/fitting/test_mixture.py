"""Groups of annotators on text: found, trained, saved, judged on held-out rows, and every refusal."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification

from alignment.cli import main
from alignment.config.fitting import load_reward_recipe
from alignment.fitting import reward
from tests.fitting.data import annotated_pairs, write

OVERRIDES = ["mixture.groups=2", "data.eval_fraction=0.3", "training.num_train_epochs=2"]


def test_the_run_folder_holds_every_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One iteration of one start."""
    path = write(tmp_path, annotated_pairs(num_annotators=5, num_pairs=4, is_split=True))
    overrides = [*OVERRIDES, "mixture.num_starts=1", "mixture.max_iterations=1", "training.num_train_epochs=1"]
    recipe = load_reward_recipe(path, overrides).recipe
    result = reward.run(recipe)
    assert load_reward_recipe(result.folder / "recipe.yaml").recipe == recipe
    for name in ("group_0", "group_1", "single"):
        assert AutoModelForSequenceClassification.from_pretrained(result.model_folder / name).config.num_labels == 1
    said = capsys.readouterr().err
    assert "start 0, iteration 0: log-likelihood" in said and "nothing to separate" in said
    table = [line for line in said.splitlines() if line.startswith("group_")]
    assert len(table) == 2 and all(f"annotator {h}" in "".join(table) for h in range(5))


@pytest.mark.slow
def test_two_groups_are_found_on_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Invariant 101: eight annotators, half of whom want the opposite: all in their group, each group's model is right.

    The first start deals two of each kind to each group and learns nothing; a later one finds them.
    """
    path = write(tmp_path, annotated_pairs(num_annotators=8, num_pairs=12, is_split=True))
    result = reward.run(load_reward_recipe(path, OVERRIDES).recipe)
    summary = json.loads((result.folder / "summary.json").read_text())
    assert summary["agreement"] == 1.0 and summary["sizes"] == [4, 4] and summary["is_separable"]
    assert summary["use"] == ["group_0", "group_1"]
    assert all(b >= a for a, b in zip(summary["log_likelihoods"], summary["log_likelihoods"][1:], strict=False))
    # One reward for both can be right half of the time.
    assert result.after["accuracy"] > 0.9 and result.after["accuracy of one reward"] < 0.7
    said = capsys.readouterr().err
    assert "agreement with the groups in the rows: 1.0000" in said and "the groups differ" in said
    assert "annotator 0, annotator 1, annotator 4, annotator 5" in said
    logged = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert {line.get("group") for line in logged} == {0, 1, None}


@pytest.mark.slow
def test_annotators_of_one_mind_are_left_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, annotated_pairs(num_annotators=6, num_pairs=12, is_split=False))
    result = reward.run(load_reward_recipe(path, OVERRIDES).recipe)
    summary = json.loads((result.folder / "summary.json").read_text())
    assert not summary["is_separable"] and summary["use"] == ["single"]
    said = capsys.readouterr().err
    assert "nothing to separate" in said and "use: single" in said
    assert result.after["accuracy of one reward"] > 0.9


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        ({"annotator": None}, [], "rows.jsonl:1: expected an annotator in every row with mixture, found none"),
        ({"group": "other"}, [], "expected one group for each annotator"),
        ({}, ["mixture.groups=9"], "expected a number of groups from 2 to the 4 annotators"),
        ({}, ["training.eval_strategy=epoch"], "expected no training.eval_strategy with mixture"),
        ({}, ["data.eval_fraction=0"], "expected data.eval_fraction > 0 with mixture"),
        ({}, ["mixture.group=2"], "unknown key 'mixture.group'; did you mean 'mixture.groups'?"),
    ],
)
def test_refusals(
    change: dict, overrides: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = annotated_pairs(num_annotators=4, num_pairs=5, is_split=True)
    rows[0] = {key: value for key, value in {**rows[0], **change}.items() if value is not None}
    with pytest.raises(SystemExit) as stop:
        main(["reward", str(write(tmp_path, rows)), *OVERRIDES, *overrides])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert stop.value.code == 2 and len(errors) == 1 and message in errors[0]

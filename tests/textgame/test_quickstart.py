"""Every method has a recipe that plays the text game, and it runs; so does the example in Python."""

import json
import math
import runpy
from pathlib import Path

import pytest

from alignment import loop
from alignment.budgets import planned_verdicts
from alignment.config import load_recipe, recipes_folder
from alignment.methods import method_names

FOLDER = recipes_folder() / "quickstart"
SMALL = (
    *("training.max_steps=2", "training.warmup_steps=0", "training.logging_steps=1", "training.disable_tqdm=true"),
    *("evaluation.every=null", "evaluation.num_completions=1"),
)
OF_KIND = {
    "offline": ("data.preferences.limit=30", "data.evaluation.limit=30", "training.per_device_train_batch_size=15"),
    "online": (),
    "iterative": ("data.prompts.limit=15", "schedule.rounds=2", "training.per_device_train_batch_size=5"),
}


def test_every_method_has_one_and_nothing_else_does() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(method_names())


def test_all_are_compared_by_the_same_verdicts() -> None:
    """403,200 of them; what learns from a data set goes once over it, with as many answers as the others."""
    for path in sorted(FOLDER.glob("*.yaml")):
        recipe = load_recipe(path).recipe
        verdicts = planned_verdicts(recipe)
        assert verdicts == 403_200 or (verdicts is not None and verdicts < 403_200 and path.stem in ("aot", "kto"))
        if not (recipe.samples_in_rounds or recipe.build_method().needs.samples_in_batches):
            training, (source,) = recipe.training, recipe.data.sources
            steps = training["max_steps"] * training["per_device_train_batch_size"]
            answers = {"comparisons": 16, "lists": 16, "pairs": 2, "labels": 1}[
                source.path[0].removeprefix("textgame://")
            ]
            assert source.limit == steps and steps * answers == 53_760, path


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(method_names()))
def test_two_steps(name: str, tmp_path: Path) -> None:
    path = FOLDER / f"{name}.yaml"
    kind = load_recipe(path).recipe.schedule.kind
    loop.run(load_recipe(path, [*SMALL, *OF_KIND[kind], f"output_dir={tmp_path / 'run'}"]).recipe)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0.0 < summary["after"]["exact_gap"] != summary["before"]["exact_gap"]
    logs = (tmp_path / "run").rglob("metrics.jsonl")
    losses = [line["loss"] for log in logs for line in map(json.loads, log.read_text().splitlines()) if "loss" in line]
    assert losses and all(math.isfinite(loss) for loss in losses)
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_the_example_in_python_lowers_the_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / "python_api.py"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("exact_gap")]
    before, after = (float(number) for number in line.removeprefix("exact_gap").split("->"))
    assert after < 0.6 * before

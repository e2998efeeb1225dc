"""``alignment ablate``: what it refuses before it spends, what it never repeats, and what it says of what it ran.

Cells are run by a stand-in for ``accelerate launch`` that writes a summary; one slow test launches real ones.
"""

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from alignment import ablation as command
from alignment.ablation import ablate
from alignment.checkpoints import STATE_FILE
from alignment.cli import main
from alignment.config.ablation import LoadedAblation, load_ablation
from alignment.errors import UserError
from alignment.evaluation.ablations import Ablated

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
SHIPPED = sorted((RECIPES / "ablations").glob("*.yaml"))

# Accuracy is beta plus a hundredth of the seed, less the square of the learning rate's distance from 1e-3.
STAND_IN = """
import json, pathlib, re, sys
recipe = pathlib.Path(sys.argv[1])
folder, text = recipe.parent, recipe.read_text()
beta, rate = (float(re.search(rf"{key}: (\\\\S+)", text)[1]) for key in ("beta", "learning_rate"))
seed = int(re.search(r"(?m)^seed: (\\\\d+)", text)[1])
with (folder.parent / f"seed-{seed}.calls").open("a") as calls:
    print(*sys.argv[2:], file=calls)
trouble = folder.parents[2] / f"fail-{beta}-{seed}"
if trouble.exists():
    print("Traceback (most recent call last):\\\\nalignment.errors.UserError: the disk is full\\\\nlast words")
    sys.exit(3)
figures = {"accuracy": beta + seed / 100 - (1000 * rate - 1) ** 2, "loss": 1.0}
figures |= {"of apo_zero": 2.0} if "name: apo_zero" in text else {}
summary = {"before": {"accuracy": 0.5}, "after": figures, "seconds": 10.0, "oracle_calls": 108 + (beta == 0.3)}
(folder / "summary.json").write_text(json.dumps(summary))
"""


def tree(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "base": str(RECIPES / "dpo" / "tiny.yaml"),
        "grid": {"method.beta": [0.1, 0.5]},
        "overrides": {"training.learning_rate": 1e-3},
        "seeds": [0, 1],
        "metrics": {"accuracy": "higher", "loss": "lower"},
        "output_dir": str(folder / "out"),
        **changes,
    }


def load(folder: Path, *overrides: str, **changes: Any) -> LoadedAblation:
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump(tree(folder, **changes), sort_keys=False))
    return load_ablation(path, overrides)


def run(loaded: LoadedAblation, announce: Callable[[str], None] = lambda line: None) -> Ablated:
    """Ablate with the stand-in, which starts in a hundredth of the time."""

    def launch(recipe: Path, overrides: Sequence[str]) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", STAND_IN.replace("\\\\", "\\"), str(recipe), *overrides]

    return ablate(loaded, jobs=2, announce=announce, progress=lambda *_: None, launch=launch)


def calls(folder: Path) -> dict[str, list[str]]:
    """What each cell was launched with, launch by launch."""
    return {
        path.relative_to(folder / "out" / "cells").with_suffix("").as_posix(): path.read_text().splitlines()
        for path in sorted(folder.glob("out/cells/**/*.calls"))
    }


def stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Of the summaries of finished cells."""
    found = {path: path.stat() for path in folder.glob("out/cells/**/summary.json")}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


# Before anything is run ---------------------------------------------------------------------------------------------

QUICKSTART = {name: {"recipe": str(RECIPES / "quickstart" / f"{name}.yaml")} for name in ("dpo", "egpo", "spo")}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"sedes": [0]}, "unknown key 'sedes'; did you mean 'seeds'?"),
    "an unknown key of the recipe": ({"grid": {"method.bet": [0.1, 0.2]}}, r"bet=0.1: .*unknown key 'method.bet'"),
    "nothing to compare": ({"grid": {}}, "expected variants or a grid, got neither"),
    "an empty list": ({"grid": {"method.beta": []}}, "grid.method.beta: expected a list of different values, got none"),
    "a value twice": ({"grid": {"method.beta": [0.1, 0.1]}}, "expected a list of different values, got 0.1 twice"),
    "a seed twice": ({"seeds": [0, 1, 0]}, "expected every seed once in seeds and tuning_seeds, got 0 twice"),
    "a seed that was tuned on": (
        {"tuning_seeds": [1], "tune": {"training.weight_decay": [0.0, 0.1]}},
        "expected every seed once in seeds and tuning_seeds, got 1 twice",
    ),
    "seeds among the keys": ({"grid": {"seed": [0, 1]}}, "grid.seed: the ablation sets it; write seeds"),
    "no recipe": ({"base": None}, "expected the recipe that the grid changes, got neither base nor"),
    "a cell twice": (
        {"grid": {}, "variants": {"a": {}, "b": {"overrides": {"method.beta": 0.1}}}},
        "expected different cells, got 'a' and 'b' of one recipe",
    ),
    "a recipe that does not resolve": ({"base": "nowhere.yaml"}, "beta=0.1: no file 'nowhere.yaml'"),
    "names that are one folder": ({"variants": {"a b": {}, "a_b": {}}}, "that folders can tell apart, got 'a_b"),
    "a name that is no folder": ({"variants": {"../a": {}}}, "begin with a letter or a digit"),
    "tuning without seeds": ({"tune": {"training.weight_decay": [0.0, 0.1]}}, "expected tuning_seeds where tune has"),
    "seeds without tuning": ({"tuning_seeds": [9]}, "and only there, got them with a single setting"),
    "more effort for one": (
        {"variants": {"a": {}, "b": {"tune": {"training.weight_decay": [0.0, 0.1]}}}, "tuning_seeds": [9]},
        "expected as many settings to try for every variant, got a 1, b 2",
    ),
    "another budget": (
        {
            "variants": QUICKSTART,
            "grid": {},
            "overrides": {"evaluation.max_new_tokens": 20},
            "budget": {"oracle_calls": 100_800},
        },
        "budget: expected 100,800 verdicts of every cell, within 0%, got 'dpo' 403,200, 'egpo' 403,200",
    ),
    "budgets that differ": (
        {
            "variants": {**QUICKSTART, "spo": {**QUICKSTART["spo"], "overrides": {"training.max_steps": 7}}},
            "grid": {},
            "overrides": {"evaluation.max_new_tokens": 20},
        },
        "budget: expected 403,200 verdicts of every cell, within 0%, got 'spo' 12,600",
    ),
    "another measure": (
        {"variants": QUICKSTART, "grid": {}, "overrides": {}},
        r"expected all cells to be measured alike, got evaluation.max_new_tokens 32 in 'dpo' and 20 in 'egpo'",
    ),
    "a figure that nothing gives": (
        {"metrics": {"exact_gap": "lower"}},
        "metrics.exact_gap: expected evaluation.exact",
    ),
    "a rate that nobody judges": ({"metrics": {"win_rate_vs_ref": "higher"}}, "found none: nobody judges"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_found_before_anything_is_run(case: str, tmp_path: Path) -> None:
    changes, expected = BAD[case]
    with pytest.raises(UserError, match=expected):
        load(tmp_path, **changes)
    assert not (tmp_path / "out").exists()


def test_cells_are_every_variant_at_every_point_of_the_grid(tmp_path: Path) -> None:
    """Keys may be nested or dotted, here and on the command line; each cell has a name, a folder and its own seed."""
    loaded = load(
        tmp_path,
        "overrides.training.max_steps=3",
        "seeds=[4, 5]",
        variants={"long": {"overrides": {"training": {"warmup_steps": 2}}}, "short": {}},
    )
    first, *_, last = loaded.cells
    assert [cell.name for cell in loaded.cells] == [
        f"{variant}, beta={beta}, seed {seed}"
        for variant in ("long", "short")
        for beta in (0.1, 0.5)
        for seed in (4, 5)
    ]
    assert first.folder == tmp_path / "out" / "cells" / "long_beta=0.1" / "seed-4"
    assert (first.recipe.seed, first.recipe.method["beta"], first.recipe.training["warmup_steps"]) == (4, 0.1, 2)
    assert (last.recipe.seed, last.recipe.method["beta"]) == (5, 0.5) and "warmup_steps" not in last.recipe.training
    assert {cell.recipe.training["max_steps"] for cell in loaded.cells} == {3}
    assert loaded.budget is None, "only the data tell how many verdicts a file holds"


def test_a_tolerance_lets_budgets_differ(tmp_path: Path) -> None:
    variants = {**QUICKSTART, "spo": {**QUICKSTART["spo"], "overrides": {"training.max_steps": 200}}}
    changes = {"variants": variants, "grid": {}, "overrides": {"evaluation.max_new_tokens": 20}}
    loaded = load(tmp_path, **changes, budget={"tolerance": 0.11})
    assert {cell.variant: cell.planned for cell in loaded.cells} == {"dpo": 403_200, "egpo": 403_200, "spo": 360_000}
    with pytest.raises(UserError, match="within 10%, got 'spo' 360,000"):
        load(tmp_path, **changes, budget={"tolerance": 0.1})


def test_the_processes_of_a_launch_have_a_batch_each(tmp_path: Path) -> None:
    loaded = load(tmp_path, launcher="recipes/accelerate/ddp_cpu.yaml", variants={"egpo": QUICKSTART["egpo"]}, grid={})
    assert {cell.planned for cell in loaded.cells} == {2 * 403_200}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_shipped_ones_are_fair(path: Path) -> None:
    """Every cell resolves, at a budget that is written down, and as many settings are tried for each variant."""
    loaded = load_ablation(path)
    assert {cell.planned for cell in loaded.cells} == {loaded.recipe.budget.oracle_calls}
    tried = [
        {cell.trial for cell in loaded.cells if cell.variant == name} for name in {c.variant for c in loaded.cells}
    ]
    assert len(set(map(len, tried))) == 1 and len(loaded.recipe.seeds) >= 3


def test_the_four_that_are_promised_are_shipped() -> None:
    assert {path.stem for path in SHIPPED} == {"methods_equal_budget", "tau", "opponents", "list_size"}


# What is run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three calls: one cell fails; it is tried again alone; nothing is left to do."""
    folder = tmp_path_factory.mktemp("story")
    trouble = folder / "out" / "fail-0.1-1"
    trouble.parent.mkdir()
    trouble.touch()
    said: list[str] = []
    failed = run(load(folder), said.append)
    failed_files = {path.name: path.read_text() for path in (folder / "out").iterdir() if path.is_file()}
    before = stamps(folder)
    trouble.unlink()
    whole = run(load(folder))
    after, tried = stamps(folder), calls(folder)
    again = run(load(folder))
    return {
        "folder": folder,
        "failed": failed,
        "failed_files": failed_files,
        "whole": whole,
        "again": again,
        "said": said,
        "before": before,
        "after": after,
        "calls": tried,
        "last": (stamps(folder), calls(folder)),
    }


def test_a_failed_cell_is_shown_and_stops_no_other(story: Mapping[str, Any]) -> None:
    found: Ablated = story["failed"]
    (outcome,) = found.failed
    assert (outcome.name, outcome.state) == ("beta=0.1, seed 1", "failed")
    assert outcome.error == "alignment.errors.UserError: the disk is full (exit code 3)", (
        "the error, not the last words"
    )
    assert len(story["before"]) == 3
    assert [row.num_finished for row in found.rows] == [2, 1]
    assert any(line.startswith("beta=0.1, seed 1: failed, alignment.errors.UserError") for line in story["said"])
    for name in ("report.html", "table.md"):
        assert "the disk is full" in story["failed_files"][name], name
    assert "beta=0.1: 1 of 2 seeds" in story["failed_files"]["table.md"]


def test_finished_cells_are_never_run_again(story: Mapping[str, Any]) -> None:
    """The same files, not only the same content."""
    assert {path: story["after"][path] for path in story["before"]} == story["before"] and len(story["after"]) == 4
    tried = story["calls"]
    assert {cell: len(lines) for cell, lines in tried.items()} == {
        f"beta={beta}/seed-{seed}": 2 if (beta, seed) == (0.1, 1) else 1 for beta in (0.1, 0.5) for seed in (0, 1)
    }
    assert story["last"] == (story["after"], tried)
    assert story["again"] == story["whole"] and story["whole"].failed == ()


def test_the_table_is_that_of_the_runs(story: Mapping[str, Any]) -> None:
    """Accuracies .1 and .5, a hundredth more with each seed: every difference is .4, so its variance is 0."""
    found: Ablated = story["whole"]
    assert [row.variant for row in found.rows] == ["beta=0.5", "beta=0.1"], "the higher first"
    means = [row.means["accuracy"] for row in found.rows]
    assert [mean.mean for mean in means if mean] == pytest.approx([0.505, 0.105])
    (pair,) = found.comparisons
    assert pair.better == "beta=0.5" and found.rows[0].better_than == ("beta=0.1",)
    assert found.start == 0.5 and found.rows[0].oracle_calls == 108 and found.rows[0].seconds == 10.0


def test_it_is_written_as_json_csv_markdown_and_a_figure(story: Mapping[str, Any]) -> None:
    folder, found = story["folder"] / "out", story["whole"]
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(found.to_json()))
    with (folder / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["beta=0.5", "beta=0.1"]
    assert float(rows[0]["means.accuracy.mean"]) == found.rows[0].means["accuracy"].mean
    with (folder / "comparisons.csv").open() as file:
        assert next(csv.DictReader(file))["better"] == "beta=0.5"
    with (folder / "runs.csv").open() as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["finished"] * 4
    assert "| beta=0.5 | 0.505 [0.441, 0.569] |" in (folder / "table.md").read_text()
    assert "beta=0.5 is better" in (folder / "report.html").read_text()
    figure = ElementTree.parse(folder / "figure.svg").getroot()
    rings = [item for item in figure.iter("{http://www.w3.org/2000/svg}circle") if item.get("class") == "ring"]
    assert len(rings) == 4
    assert load_ablation(folder / "ablation.yaml").recipe == load(story["folder"]).recipe


def test_the_command_says_by_its_exit_code_that_a_cell_failed(
    story: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, code in (("whole", 0), ("failed", 1)):
        monkeypatch.setattr(command, "ablate", lambda *_, found=story[name], **__: found)
        with pytest.raises(SystemExit) as stopped:
            main(["ablate", str(story["folder"] / "ablation.yaml"), "--json"])
        assert stopped.value.code == code
        assert json.loads(capsys.readouterr().out)["rows"][0]["variant"] == "beta=0.5"
    with pytest.raises(SystemExit) as stopped:
        main(["ablate", str(story["folder"] / "ablation.yaml")])
    shown = capsys.readouterr()
    assert "not told apart" in shown.out and "note: beta=0.1, seed 1 failed" in shown.err


def test_a_metric_that_no_cell_has_stops_after_the_first(tmp_path: Path) -> None:
    """Two cells at a time: at most the two that are under way, of eight. Corrected, the ablation goes on from there."""
    eight = {"grid": {"method.beta": [0.1, 0.2, 0.3, 0.5]}}
    message = (
        r"metrics\.acuracy: expected a figure of summary.json, found accuracy, loss in .*; did you mean 'accuracy'"
    )
    with pytest.raises(UserError, match=message):
        run(load(tmp_path, **eight, metrics={"acuracy": "higher"}))
    begun = calls(tmp_path)
    assert 1 <= len(begun) <= 4
    with pytest.raises(UserError, match=message):
        run(load(tmp_path, **eight, metrics={"acuracy": "higher"}))
    assert calls(tmp_path) == begun, "what ended before says it before anything is run"
    assert run(load(tmp_path, **eight)).failed == () and all(len(lines) == 1 for lines in calls(tmp_path).values())


def test_a_metric_that_is_shown_and_that_no_cell_can_have_stops_after_the_first(tmp_path: Path) -> None:
    """Cells of one method have the same figures."""
    eight = {"grid": {"method.beta": [0.1, 0.2, 0.3, 0.5]}}
    message = r"metrics\.los: expected a figure of summary.json, found accuracy, loss in .*; did you mean 'loss'"
    for _ in range(2):
        with pytest.raises(UserError, match=message):
            run(load(tmp_path, **eight, metrics={"accuracy": "higher", "los": "lower"}))
        assert 1 <= len(calls(tmp_path)) <= 4
    found = run(load(tmp_path, **eight, metrics={"accuracy": "higher", "loss": "lower"}))
    assert found.failed == () and all(len(lines) == 1 for lines in calls(tmp_path).values())


def test_a_metric_that_is_shown_may_be_one_of_another_method(tmp_path: Path) -> None:
    """Of the second method alone here; where neither has it, the first cell of that one says so."""
    methods = {"dpo": {}, "apo_zero": {"overrides": {"method.name": "apo_zero"}}}
    metrics = {"accuracy": "higher", "of apo_zero": "lower"}
    found = run(load(tmp_path, grid={}, variants=methods, overrides={"method.beta": 0.1}, metrics=metrics))
    assert {row.variant: row.means["of apo_zero"] is None for row in found.rows} == {"dpo": True, "apo_zero": False}
    with pytest.raises(UserError, match=r"metrics\.of kto: expected a figure .*, found accuracy, loss, of apo_zero in"):
        run(load(tmp_path, grid={}, variants=methods, metrics={"accuracy": "higher", "of kto": "lower"}))


def test_another_recipe_is_refused_where_a_cell_has_ended(story: Mapping[str, Any], tmp_path: Path) -> None:
    """By the key that differs, before anything is run; a new value or seed beside the others is none."""
    folder = tmp_path / "story"
    shutil.copytree(story["folder"], folder)
    before, tried = stamps(folder), calls(folder)
    with pytest.raises(UserError, match=r"with other values of training\.learning_rate \(0\.001 then, 0\.002 now\)"):
        run(load(folder, "overrides.training.learning_rate=2e-3"))
    assert (stamps(folder), calls(folder)) == (before, tried)
    found = run(load(folder, "grid.method.beta=[0.1, 0.3, 0.5]"))
    assert {path: stamps(folder)[path] for path in before} == before and len(found.rows) == 3
    assert [note for note in found.notes if "another budget" in note] == [
        f"beta=0.3, seed {seed} learned from 109 verdicts, not 108: another budget" for seed in range(2)
    ]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    theirs = tmp_path / "out" / "cells" / "beta=0.5" / "seed-1"
    theirs.mkdir(parents=True)
    (theirs / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"seed-1: expected a folder of this ablation, found other files"):
        run(load(tmp_path))
    assert (theirs / "thesis.tex").exists() and calls(tmp_path) == {}


def test_a_killed_cell_goes_on_where_it_can(tmp_path: Path) -> None:
    """From its last whole checkpoint by the same recipe; anew where it was another, or where none is whole."""
    loaded = load(tmp_path, seeds=[0])
    first, second = (cell.folder for cell in loaded.cells)
    for folder, recipe in ((first, loaded.cells[0].recipe), (second, loaded.cells[0].recipe)):
        (folder / "checkpoint-7").mkdir(parents=True)
        (folder / "checkpoint-7" / STATE_FILE).touch()
        (folder / "cell.yaml").write_text(recipe.to_yaml())
    run(loaded)
    assert calls(tmp_path) == {
        "beta=0.1/seed-0": ["training.disable_tqdm=true training.resume_from_checkpoint=last"],
        "beta=0.5/seed-0": ["training.disable_tqdm=true"],
    }
    assert (first / "checkpoint-7").exists() and not (second / "checkpoint-7").exists()


def test_what_outlived_a_killed_call_is_waited_for(tmp_path: Path) -> None:
    """A process that inherited the lock still works on the cell: it is neither doubled nor run again."""
    loaded = load(tmp_path, seeds=[0], grid={"method.beta": [0.1]})
    (cell,) = loaded.cells
    cell.folder.mkdir(parents=True)
    (cell.folder / "cell.yaml").write_text(cell.recipe.to_yaml())
    said: list[str] = []
    found: list[Ablated] = []
    with (cell.folder.parent / ".seed-0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=lambda: found.append(run(loaded, said.append)))
        second.start()
        deadline = time.monotonic() + 20.0
        while not any("another process is at work" in line for line in said):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        summary = {"before": {}, "after": {"accuracy": 0.7, "loss": 1.0}, "seconds": 1.0, "oracle_calls": 1}
        (cell.folder / "summary.json").write_text(json.dumps(summary))
    second.join(20.0)
    assert calls(tmp_path) == {}
    mean = found[0].rows[0].means["accuracy"]
    assert mean is not None and mean.mean == 0.7


def test_the_setting_is_chosen_on_seeds_that_are_not_reported(tmp_path: Path) -> None:
    """1e-3 is best. Where it fails on the tuning seed the next one is taken, and the failure is shown."""
    changes = {"tune": {"training.learning_rate": [5e-4, 1e-3]}, "tuning_seeds": [7], "overrides": {}, "seeds": [1]}
    found = run(load(tmp_path, **changes))
    assert {row.trial for row in found.rows} == {"learning_rate=0.001"}
    assert [item.is_chosen for item in found.tried] == [False, True] * 2
    assert set(calls(tmp_path)) == {
        f"beta={beta}/learning_rate={run}"
        for beta in (0.1, 0.5)
        for run in ("0.0005/seed-7", "0.001/seed-7", "0.001/seed-1")
    }
    mean = found.rows[1].means["accuracy"]
    assert mean is not None and mean.mean == pytest.approx(0.11), "of seed 1 alone"
    summary = tmp_path / "out" / "cells" / "beta=0.1" / "learning_rate=0.001" / "seed-7" / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "after": {"accuracy": float("nan")}}))
    found = run(load(tmp_path, **changes))
    assert {row.variant: row.trial for row in found.rows}["beta=0.1"] == "learning_rate=0.0005"
    (failed,) = found.failed
    assert failed.is_tuning and failed.error == "expected a finite accuracy in summary.json, found nan"


def killed_and_run_again(words: Sequence[str], folder: Path, num_ended: int, seconds: float) -> dict[str, Any]:
    """The command, killed with all that it started when so many cells have ended and another is at work; then again.

    Returns:
        What the second call found, as JSON.
    """
    words = [sys.executable, "-m", "alignment", "ablate", *words, f"output_dir={folder / 'out'}", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    deadline = time.monotonic() + seconds
    said = folder / "said.txt"
    with said.open("w") as output:
        first = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True)
        try:
            while len(stamps(folder)) < num_ended or len(list(folder.glob("out/cells/**/log.txt"))) <= num_ended:
                assert time.monotonic() < deadline and first.poll() is None, said.read_text()
                time.sleep(0.05)
        finally:
            os.killpg(first.pid, signal.SIGKILL)
            first.wait()
    before = stamps(folder)
    second = subprocess.run(
        words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=deadline - time.monotonic()
    )
    assert second.returncode == 0, second.stderr
    assert {path: stamps(folder)[path] for path in before} == before and len(before) >= num_ended
    found: dict[str, Any] = json.loads(second.stdout)
    assert {outcome["state"] for outcome in found["outcomes"]} == {"finished"}
    return found


@pytest.mark.slow
def test_killed_half_way_and_run_again_no_finished_cell_is_repeated(tmp_path: Path) -> None:
    """Two real cells through ``accelerate launch``; everything is killed while the second one is at work."""
    small = {
        "policy.tiny": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 300},
        "training.max_steps": 2,
        "training.per_device_train_batch_size": 4,
    }
    load(tmp_path, seeds=[0], overrides=small)
    found = killed_and_run_again([str(tmp_path / "ablation.yaml")], tmp_path, num_ended=1, seconds=290.0)
    assert [outcome["oracle_calls"] for outcome in found["outcomes"]] == [108, 108]
    log = (tmp_path / "out" / "cells" / "beta=0.5" / "seed-0" / "log.txt").read_text()
    assert "; 1 process; " in log


@pytest.mark.bench
@pytest.mark.timeout(1000)
def test_five_methods_over_three_seeds_take_fifteen_minutes_on_two_cores(tmp_path: Path) -> None:
    """Tuning, a kill half-way and all that is lost by it included; methods that sample beat the one that does not.

    With three seeds the fourth of them may vary too much to tell: a p-value must be below .005 to .0125.
    """
    shipped = RECIPES / "ablations" / "methods_equal_budget.yaml"
    found = killed_and_run_again([str(shipped), "--jobs", "2"], tmp_path, num_ended=12, seconds=900.0)
    assert {outcome["oracle_calls"] for outcome in found["outcomes"]} == {86_400}
    assert len(found["rows"]) == 5 and all(row["num_finished"] == 3 for row in found["rows"])
    against_dpo = [pair for pair in found["comparisons"] if "dpo" in (pair["first"], pair["second"])]
    assert sum(pair["better"] not in (None, "dpo") for pair in against_dpo) >= 3
    assert not [pair for pair in found["comparisons"] if pair["better"] == "dpo"]

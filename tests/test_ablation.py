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
summary = {"before": {"accuracy": 0.5}, "after": figures, "seconds": 10.0, "oracle_calls": 108 + (beta == 0.3)}
(folder / "summary.json").write_text(json.dumps(summary))
"""


def tree(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "base": str(RECIPES / "dpo" / "tiny.yaml"),
        "grid": {"method.beta": [0.1, 0.5]},
        "overrides": {"training.learning_rate": 1e-3},
        "seeds": [0, 1, 2],
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
    "a recipe that does not resolve": ({"base": "nowhere.yaml"}, "beta=0.1: no recipe 'nowhere.yaml'"),
    "names that are one folder": ({"variants": {"a b": {}, "a  b": {"overrides": {"seed": 1}}}}, "the ablation sets"),
    "a name that is no folder": ({"variants": {"../a": {}}}, "begin with a letter or a digit"),
    "tuning without seeds": ({"tune": {"training.weight_decay": [0.0, 0.1]}}, "expected tuning_seeds where tune has"),
    "seeds without tuning": ({"tuning_seeds": [9]}, "and only there, got them with a single setting"),
    "more effort for one": (
        {"variants": {"a": {}, "b": {"tune": {"training.weight_decay": [0.0, 0.1]}}}, "tuning_seeds": [9]},
        "expected as many settings to try for every variant, got a 1, b 2",
    ),
    "another budget": (
        {"variants": QUICKSTART, "grid": {}, "budget": {"oracle_calls": 100_800}, "overrides": {}},
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
    "a figure that nothing gives": ({"metrics": {"exact_gap": "lower"}}, "metrics.exact_gap: expected evaluation.exact"),
    "a rate that nobody judges": ({"metrics": {"win_rate_vs_ref": "higher"}}, "found none: nobody judges"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_found_before_anything_is_run(case: str, tmp_path: Path) -> None:
    changes, expected = BAD[case]
    with pytest.raises(UserError, match=expected):
        load(tmp_path, **changes)
    assert not (tmp_path / "out").exists()

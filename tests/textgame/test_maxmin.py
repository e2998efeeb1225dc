"""MaxMin on the text game's groups: the worst group against the exact value, and what the plain mean does to it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def row_of(mode: str, *, steps: int) -> dict[str, Any]:
    """What ``scripts/bench/maxmin.py`` says of a mode."""
    command = [
        sys.executable,
        str(ROOT / "scripts" / "bench" / "maxmin.py"),
        "--modes",
        mode,
        "--steps",
        str(steps),
        "--json",
    ]
    output = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=ROOT, check=True).stdout
    (row,) = json.loads(output.splitlines()[-1])["rows"]
    return row


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_worst_group_comes_near_the_exact_value() -> None:
    """The worst group's mean over all questions goes 95 % of the way to the convex dual's optimum."""
    row = row_of("mirror", steps=950)
    assert row["exact"] > 0.6
    assert row["way"] >= 0.95


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_crowd_leaves_the_minority_behind() -> None:
    """The mean of the same groups by their share, as one oracle: the minority goes less than half of the way."""
    row = row_of("crowd", steps=100)
    assert row["groups"]["minority"] < row["groups"]["schools"]
    assert row["way"] <= 0.5

"""The benches of a training step run, and say what they promise; what they measure is no matter at this size."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def found_by(script: str, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "scripts" / "bench" / script), "--quick", "--json", *options]
    output = subprocess.run(command, capture_output=True, text=True, timeout=580, cwd=ROOT, check=True)
    return dict(json.loads(output.stdout.splitlines()[-1]))


def test_offline_step() -> None:
    found = found_by("offline_step.py")
    seconds = found["seconds"]
    assert set(seconds) == {"ours", "ours_stored", "dense", "bare", "bare_stored", "trl", "trl_stored"}
    assert found["speedup_fresh"] == pytest.approx(seconds["trl"] / seconds["ours"])
    assert found["speedup_stored"] == pytest.approx(seconds["trl_stored"] / seconds["ours_stored"])
    assert found["over_bare"] == pytest.approx(seconds["ours"] / seconds["bare"] - 1)
    assert found["computed_tokens"] == pytest.approx(1.0, abs=0.05)
    assert found["peak_memory_ratio_above_imports"] > 0 and 0 < found["peak_memory_ratio"] < 2


def test_listwise_step() -> None:
    found = found_by("listwise_step.py")
    assert found["completions"] == 8 and found["speedup"] > 0 and found["speedup_stored"] > 0
    assert 0 < found["max_relative_gradient_error"] <= 1e-5


def test_scaling() -> None:
    found = found_by("scaling.py", "--only", "opponents")
    assert set(found["opponents"]["shared"]) == {"1", "3"} and "growth_per_opponent" in found["opponents"]

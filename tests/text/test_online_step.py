"""The bench of an online step: its parts are a whole, and are those of the method."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = "--layers 1 --width 16 --heads 2 --intermediate 16 --vocabulary 64 --prompt-tokens 8 --new-tokens 2"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["egpo", "nash_md", "maxmin"])
def test_its_parts_sum_to_the_step(method: str) -> None:
    """Every part is seen, none is counted twice, and the shares follow; how long they take is no matter here."""
    command = [sys.executable, str(ROOT / "scripts" / "bench" / "online_step.py"), *SMALL.split()]
    options = ["--prompts", "2", "--steps", "2", "--method", method, "--json"]
    output = subprocess.run([*command, *options], capture_output=True, text=True, timeout=240, cwd=ROOT, check=True)
    found = json.loads(output.stdout.splitlines()[-1])
    seconds, step = found["seconds"], found["seconds_per_step"]
    assert found["method"] == method and found["parameters"] > 0
    assert set(seconds) == {"generation", "oracle", "anchors", "forward", "backward", "optimizer", "rest"}
    assert all(value > 0 for value in seconds.values())
    assert sum(seconds.values()) == pytest.approx(step, rel=1e-9)
    assert found["outside"] == pytest.approx(seconds["rest"] / step)
    assert found["outside_with_optimizer"] == pytest.approx((seconds["rest"] + seconds["optimizer"]) / step)

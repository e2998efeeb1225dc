"""Methods against the exact answers of the game, from samples only; ``scripts/bench/textgame.py`` has them all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["online_ipo", "inpo"])
def test_a_method_closes_nine_tenths_of_its_gap(name: str) -> None:
    """An online and an iterative method end at most at a tenth of the gap, at half of the bench's budget."""
    bench = str(ROOT / "scripts" / "bench" / "textgame.py")
    command = [sys.executable, bench, "--methods", name, "--budget", "360000", "--json"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=1200, cwd=ROOT, check=True).stdout
    (row,) = json.loads(output.splitlines()[-1])["rows"]
    assert row["gap_start"] > 0.1
    assert row["gap_end"] <= 0.1 * row["gap_start"]

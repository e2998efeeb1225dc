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
    command = [sys.executable, str(ROOT / "scripts" / "bench" / script), "--json", *options]
    output = subprocess.run(command, capture_output=True, text=True, timeout=580, cwd=ROOT, check=True)
    return dict(json.loads(output.stdout.splitlines()[-1]))


def test_offline_step() -> None:
    found = found_by("offline_step.py", "--quick")
    seconds = found["seconds"]
    assert set(seconds) == {"ours", "ours_stored", "dense", "bare", "bare_stored", "trl", "trl_stored"}
    assert found["speedup_fresh"] == pytest.approx(seconds["trl"] / seconds["ours"])
    assert found["speedup_stored"] == pytest.approx(seconds["trl_stored"] / seconds["ours_stored"])
    assert found["over_bare"] == pytest.approx(seconds["ours"] / seconds["bare"] - 1)
    assert found["computed_tokens"] == pytest.approx(1.0, abs=0.05)
    assert found["peak_memory_ratio_above_imports"] > 0 and 0 < found["peak_memory_ratio"] < 2
    assert set(found["mapped_mb"]) == {"ours", "trl"}


def test_listwise_step() -> None:
    found = found_by("listwise_step.py", "--quick")
    assert found["completions"] == 8 and found["speedup"] > 0 and found["speedup_stored"] > 0
    assert 0 < found["max_relative_gradient_error"] <= 1e-5


def test_scaling() -> None:
    found = found_by("scaling.py", "--quick", "--only", "opponents")
    assert set(found["opponents"]["shared"]) == {"1", "3"} and "growth_per_opponent" in found["opponents"]


@pytest.mark.gpu
def test_kernels_agree_on_a_gpu() -> None:
    """FlexAttention among them, in float32 and bfloat16."""
    found = found_by("gpu_step.py", "--model=tiny", "--work=lipo", "--prompt=128", "--response=32", "--steps=2")
    result = found["models"]["tiny"]
    assert set(result["lipo"]) == {"shared, flex", "shared", "dense"} and result["agreement"]["agrees"]


def test_gpu_step_in_the_precision_of_a_gpu() -> None:
    """Steps of so coarse weights are not lost, or the trainer would refuse them."""
    sizes = ("--dtype=bfloat16", "--prompt=32", "--response=8", "--steps=2")
    found = found_by("gpu_step.py", "--model=tiny", "--work=lipo,egpo", *sizes)
    assert found["dtype"] == "bfloat16"
    assert all(set(found["models"]["tiny"][work]) == {"shared", "dense"} for work in ("lipo", "egpo"))


def test_gpu_step() -> None:
    """On a CPU with a tiny shape: every contender, and the comparison of what they compute."""
    sizes = ("--prompt=32", "--response=8", "--steps=2")
    found = found_by("gpu_step.py", "--model=tiny", "--work=dpo,egpo", *sizes)
    result = found["models"]["tiny"]
    assert {work: set(result[work]) for work in ("dpo", "egpo")} == {
        "dpo": {"shared", "dense", "trl"},
        "egpo": {"shared", "dense"},
    }
    # Eight responses of 8 tokens: of pairs with four prompts of 32, and in EGPO's iteration twice as many.
    for work, tokens in (("dpo", 4 * 32 + 8 * 8), ("egpo", 2 * (4 * 32 + 8 * 8))):
        for one in result[work].values():
            assert one["tokens_per_second"] * one["seconds"] == pytest.approx(tokens)
            assert 0 < one["share_of_peak"] < 1
        # Of a process; the plan is of its tensors, some of them 160 tokens more where prompts are not shared.
        plans = {name: one["planned_mb"] for name, one in result[work].items() if name != "trl"}
        assert 0 < plans["shared"] < plans["dense"] < min(one["peak_mb"] for one in result[work].values())
    assert all(0 < one["sampling_seconds"] < one["seconds"] for one in result["egpo"].values())
    compared = result["agreement"]
    assert compared["agrees"] and compared["float32"]["shared"]["gradient"] < 1e-5
    # Rounded to eight bits, and not compared with itself.
    assert all(1e-4 < one["gradient"] < 0.05 for one in compared["bfloat16"].values())

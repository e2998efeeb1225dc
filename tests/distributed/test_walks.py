"""Methods of every kind on two processes, through the launcher's shipped configurations: the path of one process."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignment.config import load_recipe
from alignment.config.launch import read_launch
from alignment.planning import run_of
from alignment.planning.memory import memory_lines
from tests.distributed.launches import ROOT, launcher, needs_compiler

METHODS = ("dpo", "lipo", "inpo", "egpo", "nash")
WALKS = (*METHODS, *(f"{name}_lora" for name in METHODS), "lipo_accumulated", "lipo_tied")
SAMPLED = ("egpo_sampled", "md_sampled", "md_sampled_lora")
CASES = (*WALKS, *SAMPLED)
_OFFLOADED = "offload_optimizer_device: cpu"
# Where a process holds a part of the weights only.
_DIVIDES = ("zero3_cpu", "fsdp2")
STAGES = {"zero1_cpu": 1, "zero2_cpu": 2, "zero3_cpu": 3}

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Walk:
    """What a case left: of each process what it held, and the weights as they were saved."""

    ranks: list[dict[str, Any]]
    start: dict[str, torch.Tensor]
    final: dict[str, torch.Tensor]


def walk(folder: Path, config: str | Path | None, cases: Sequence[str] = CASES) -> dict[str, Walk]:
    """Cases in one launch on two processes; without a configuration on one."""
    beginning = [sys.executable] if config is None else launcher(config)
    command = [*beginning, "tests/distributed/walks.py", str(folder), *cases]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-5000:]
    return {case: read(folder / case) for case in cases}


def shipped(config: str) -> Path:
    """A launcher's configuration."""
    return ROOT / "recipes" / "accelerate" / f"{config}.yaml"


def read(folder: Path) -> Walk:
    """A case's folder."""
    ranks = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    start, final = (load_file(next((folder / when).glob("*model.safetensors"))) for when in ("start", "final"))
    if folder.name.endswith("tied"):
        # DeepSpeed writes copies, and so twice what is embedding and head.
        embedding = final["model.embed_tokens.weight"]
        assert torch.equal(final.pop("lm_head.weight", embedding), embedding)
    return Walk(ranks, start, final)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Walk]:
    """On one process."""
    return walk(tmp_path_factory.mktemp("alone"), None)


@pytest.fixture(
    scope="module", params=["ddp_cpu", "fsdp2", *(pytest.param(name, marks=needs_compiler) for name in STAGES)]
)
def config(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def together(config: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Walk]:
    """On two, by a configuration."""
    return walk(tmp_path_factory.mktemp(config), config)


def test_the_launch_is_what_it_says(config: str, together: dict[str, Walk]) -> None:
    """Two processes that talk, and under ZeRO and FSDP2 half of the weights on each, but for odd rows and padding."""
    stage = STAGES.get(config, 0)
    kind = {"ddp_cpu": "MULTI_CPU", "fsdp2": "FSDP"}.get(config, "DEEPSPEED")
    for found in together.values():
        assert [rank["world_size"] for rank in found.ranks] == [2, 2]
        for rank in found.ranks:
            assert (rank["backend"], rank["stage"], rank["type"]) == ("gloo", stage, kind)
            share = rank["total"] if config == "ddp_cpu" else rank["total"] / 2
            assert abs(rank["own"] - share) <= 64


def test_the_optimizer_holds_what_is_planned(config: str, together: dict[str, Walk]) -> None:
    """Two moments of what it steps, and under ZeRO that itself, but for odd rows and padding."""
    launch = replace(read_launch(shipped(config), None), processes=2)
    run = run_of(load_recipe(ROOT / "recipes" / "dpo" / "tiny.yaml").recipe, launch)
    for rank in (rank for found in together.values() for rank in found.ranks):
        outline = replace(run.outline, parameters=rank["total"], trained=rank["total"])
        lines = memory_lines(replace(run, outline=outline), memory=None)
        (planned,) = (line.training for line in lines if line.name == "optimizer")
        held = rank["moments"] + (4 * rank["own"] if launch.is_zero else 0)
        assert abs(held - planned) <= 3 * 4 * 64


def test_frozen_models_are_divided_as_the_policy_is(config: str, together: dict[str, Walk]) -> None:
    """The reference, and a slow target; an adapter's reference is its base, and stored log-probs need none."""
    for case, found in together.items():
        has_models = not case.endswith("lora") and case != "inpo"
        share = 0.0 if not has_models else 0.5 if config in _DIVIDES else 1.0
        assert [rank["frozen"] for rank in found.ranks] == pytest.approx([share, share], abs=5e-3), case


@pytest.mark.parametrize("case", CASES)
def test_the_path_is_that_of_one_process(case: str, together: dict[str, Walk], alone: dict[str, Walk]) -> None:
    """The same losses and weights to 1e-5, where weights have moved a hundred times that, sampled answers or not.

    Both are float32, and Adam divides by its epsilon at the least, so that rounding stays rounding: 1e-6 is seen. A
    look-ahead that is not taken back is 5e-2 away.
    """
    assert_same(together[case], alone[case])
    assert max(distances(alone[case].start, alone[case].final)) > 1e-3


@pytest.mark.parametrize("case", SAMPLED)
def test_the_trained_policy_answers_as_that_of_one_process(
    case: str, config: str, together: dict[str, Walk], alone: dict[str, Walk]
) -> None:
    """With weights that are gathered for it, by processes that ask different numbers of questions.

    Gathered once, they are whole from one forward to the next; where they are divided they are not otherwise.
    """
    (expected,) = alone[case].ranks
    ranks = together[case].ranks
    for rank in ranks:
        assert rank["answers"][: len(expected["answers"])] == expected["answers"]
        assert rank["stays_whole"] == ([False, True, False] if config in _DIVIDES else [True] * 3)
    assert len(ranks[0]["answers"]) < len(ranks[1]["answers"])


@needs_compiler
@pytest.mark.parametrize("config", ["zero2_cpu", "zero3_cpu"])
def test_a_look_ahead_is_taken_back_where_the_optimizer_is_offloaded(
    config: str, alone: dict[str, Walk], tmp_path: Path
) -> None:
    """DeepSpeed then holds the gradients of all groups while it steps one, and would have its own Adam for it."""
    offloaded = tmp_path / "offloaded.yaml"
    offloaded.write_text(shipped(config).read_text().replace("offload_optimizer_device: none", _OFFLOADED))
    cases = ("egpo", "egpo_lora")
    found = walk(tmp_path / "walk", offloaded, cases)
    for case in cases:
        assert [rank["is_offloaded"] for rank in found[case].ranks] == [True, True]
        assert_same(found[case], alone[case])


def assert_same(found: Walk, expected: Walk) -> None:
    """Losses as every process logs them, and saved weights."""
    for rank in found.ranks:
        assert rank["losses"] == pytest.approx(expected.ranks[0]["losses"], rel=0, abs=1e-5)
    assert max(distances(found.final, expected.final)) < 1e-5


def distances(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[float]:
    """Largest difference of each tensor."""
    assert first.keys() == second.keys()
    return [float((first[name] - second[name]).abs().max()) for name in first]

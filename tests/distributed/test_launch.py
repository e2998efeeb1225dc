"""A launch that cannot do what is asked, or is not what was asked for, is refused before anything is built."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import DeepSpeedPlugin

from alignment.arguments import AlignmentArguments
from alignment.errors import UserError
from alignment.launch import check_deepspeed, check_launch, check_stages
from alignment.methods import build_method
from tests.distributed.launches import ROOT


def test_what_is_missing_is_said_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alignment.launch.importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("alignment.launch.shutil.which", lambda tool: None)
    check_deepspeed(on_cpu=False)
    with pytest.raises(UserError, match=r"found no g\+\+ and no ninja; install them"):
        check_deepspeed(on_cpu=True)
    monkeypatch.setattr("alignment.launch.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="expected the extra `deepspeed`, found none"):
        check_deepspeed(on_cpu=False)


@pytest.mark.parametrize(
    ("zero", "message"),
    [
        ({"stage": 0}, "zero_stage: expected 1, 2 or 3 for a method of 2 stages"),
        (
            {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme"}},
            "offload_optimizer_device: expect",
        ),
        (
            {"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/nvme"}},
            "offload_param_device: expected none",
        ),
    ],
)
def test_weights_out_of_reach_cannot_be_returned(zero: dict[str, object], message: str) -> None:
    plugin = DeepSpeedPlugin(hf_ds_config={"zero_optimization": zero, "train_micro_batch_size_per_gpu": 1})
    check_stages(build_method({"name": "dpo", "beta": 0.1}).needs, plugin)
    with pytest.raises(UserError, match=message):
        check_stages(build_method({"name": "egpo", "tau": 0.1}).needs, plugin)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "asks for 2 processes, but each would train alone"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "asks for several processes, but each"),
        ({"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP, but on a CPU nothing would be sharded"),
    ],
)
def test_a_launch_that_is_something_else(
    environment: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process in place of several, and plain copies in place of shards; a lone process is what it is."""
    args = AlignmentArguments(output_dir=str(tmp_path), use_cpu=True)
    for name in ("WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP"):
        monkeypatch.delenv(name, raising=False)
    check_launch(args)
    # Set by a scheduler or a shell, it is no request.
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    check_launch(args)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        check_launch(args)


@pytest.mark.distributed
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "options", [("--cpu", "--num_processes", "2"), ("--config_file", "recipes/accelerate/fsdp2.yaml")], ids=" ".join
)
def test_launchers_that_silently_do_something_else(options: tuple[str, ...], tmp_path: Path) -> None:
    """As accelerate itself starts them on a machine without a GPU: nothing is trained."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", *options, "--num_processes", "2"),
        *("--main_process_port", "0", "scripts/train.py", "recipes/dpo/tiny.yaml", f"output_dir={tmp_path}"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode != 0 and "error: the launch asks for" in done.stderr
    assert not list(tmp_path.iterdir())

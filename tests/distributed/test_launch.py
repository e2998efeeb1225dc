"""A launch that cannot do what is asked, or is not what was asked for, is refused before anything is built."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import DeepSpeedPlugin
from transformers import TrainingArguments

from alignment.arguments import AlignmentArguments
from alignment.errors import UserError
from alignment.launch import check_deepspeed, check_launch, check_precision, check_stages
from alignment.methods import build_method
from alignment.sharding import move_towards
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


def weights_of(dtype: torch.dtype, *, size: float = 0.02) -> torch.nn.Linear:
    model = torch.nn.Linear(8, 8, bias=False, dtype=dtype)
    torch.nn.init.constant_(model.weight, size)
    return model


def test_weights_are_fine_enough_for_their_steps(tmp_path: Path) -> None:
    """Where it is refused a step changes no weight of that size; where it is allowed it may."""
    dpo = build_method({"name": "dpo", "beta": 0.1}).needs
    for rate, dtype in itertools.product((1e-6, 1e-4, 1e-3), (torch.bfloat16, torch.float32)):
        args = AlignmentArguments(output_dir=str(tmp_path), learning_rate=rate)
        model = weights_of(dtype)
        before = model.weight.detach().clone()
        model.weight.grad = torch.ones_like(model.weight)
        torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0).step()
        is_lost = torch.equal(model.weight, before)
        assert is_lost == (dtype == torch.bfloat16 and rate == 1e-6)
        if is_lost:
            with pytest.raises(UserError, match=r"steps of 1e-06 \(training.learning_rate\) are lost in bfloat16"):
                check_precision(weights_of(dtype), dpo, args, keeps_average=False)
        else:
            check_precision(weights_of(dtype), dpo, args, keeps_average=False)
    # Its step is as large as the gradient makes it.
    plain = AlignmentArguments(output_dir=str(tmp_path), learning_rate=1e-6, optim="sgd")
    check_precision(weights_of(torch.bfloat16), dpo, plain, keeps_average=False)
    check_precision(weights_of(torch.bfloat16).requires_grad_(False), dpo, plain, keeps_average=True)


def test_fsdp_steps_in_float32_under_a_mixed_precision_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate widens what is trained where the launch has one."""
    dpo = build_method({"name": "dpo", "beta": 0.1}).needs
    args = AlignmentArguments(output_dir=str(tmp_path), learning_rate=1e-6)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check_precision(weights_of(torch.bfloat16), dpo, args, keeps_average=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(UserError, match=r"steps of 1e-06 \(training.learning_rate\) are lost in bfloat16"):
        check_precision(weights_of(torch.bfloat16), dpo, args, keeps_average=False)


@pytest.mark.parametrize(
    ("method", "keeps_average", "message"),
    [
        ({"name": "nash_mp", "tau": 0.1, "eta": 0.2, "decay": 0.9}, False, "a slow target would lose"),
        ({"name": "dpo", "beta": 0.1}, True, "an average would lose"),
    ],
)
def test_what_moves_slowly_needs_float32(
    method: dict[str, Any], keeps_average: bool, message: str, tmp_path: Path
) -> None:
    """A hundredth of three times the distance to the next bfloat16 number, over and over: nothing."""
    slow, policy = weights_of(torch.bfloat16), weights_of(torch.bfloat16, size=0.02 + 3 * 1.2e-4)
    before = slow.weight.detach().clone()
    for _ in range(1000):
        move_towards(slow, policy, 0.01)
    assert torch.equal(slow.weight, before) and not torch.equal(policy.weight, before)
    args = AlignmentArguments(output_dir=str(tmp_path), learning_rate=1e-2)
    needs = build_method(method).needs
    with pytest.raises(UserError, match=message):
        check_precision(policy, needs, args, keeps_average=keeps_average)
    check_precision(weights_of(torch.float32), needs, args, keeps_average=keeps_average)


def test_one_process_has_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch without a launcher on a machine of four: else Trainer would divide batches among them."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 1 if self._n_gpu == 1 else 4))
    plain, ours = (
        make(output_dir=str(tmp_path), per_device_train_batch_size=3)
        for make in (TrainingArguments, AlignmentArguments)
    )
    assert (plain.train_batch_size, ours.train_batch_size, ours.effective_batch) == (12, 3, 3)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "asks for 2 processes, but each would train alone"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "asks for several processes, but each"),
    ],
)
def test_a_launch_that_is_something_else(
    environment: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process in place of several; a lone process is what it is."""
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


@pytest.mark.parametrize(
    ("version", "saved", "message"),
    [
        ("1", "FULL_STATE_DICT", "got 1 and FULL_STATE_DICT"),
        ("2", "SHARDED_STATE_DICT", "got 2 and SHARDED_STATE_DICT"),
        ("2", "FULL_STATE_DICT", "the launch asks for FSDP, but on a CPU nothing would be sharded"),
    ],
)
def test_other_kinds_of_fsdp_are_refused(
    version: str, saved: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of another form, models that are saved in parts, and plain copies in place of shards."""
    args = AlignmentArguments(output_dir=str(tmp_path))
    check_launch(args)
    for key, value in (("ACCELERATE_USE_FSDP", "true"), ("FSDP_VERSION", version), ("FSDP_STATE_DICT_TYPE", saved)):
        monkeypatch.setenv(key, value)
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

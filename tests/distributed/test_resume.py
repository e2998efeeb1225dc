"""Runs on several processes that are killed and resumed, on as many processes and on another number."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from alignment.checkpoints import join_parts, last_checkpoint
from alignment.errors import UserError
from tests.distributed.launches import ROOT, command, launch, losses, needs_compiler, parameters

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

SAVES = (
    *("training.save_strategy=steps", "training.save_steps=1", "data.eval_fraction=0", "training.eval_strategy=no"),
    # A run that is to be longer has another schedule.
    "training.lr_scheduler_type=constant",
)
RESUMES = "training.resume_from_checkpoint=last"
DPO, EGPO = "recipes/dpo/tiny.yaml", "recipes/egpo/tiny.yaml"
# The second group of weights has no decay, and epsilon keeps rounding small.
ADAM = (
    *("training.optim=adamw_torch", "training.learning_rate=1e-3", "training.weight_decay=0.5"),
    "training.adam_epsilon=1e-3",
)
# The state of a checkpoint has tensors then.
AVERAGE = ("average.decay=1",)

# A slow target is a frozen model that moves; its loss is large, and so is what rounding adds to it.
TARGET = ("method={name: nash_mp, tau: 0.1, eta: 0.2, decay: 0.5}", "training.learning_rate=1e-4")


@pytest.mark.parametrize(
    ("config", "sharding"), [pytest.param("zero3_cpu", "ZeRO-3", marks=needs_compiler), ("fsdp2", "FSDP")]
)
def test_killed_and_resumed(config: str, sharding: str, tmp_path: Path) -> None:
    """Weights, moments and stages of extragradient, in parts on two processes: bit for bit the uninterrupted run."""
    options = (*SAVES, "training.optim=adamw_torch", "training.learning_rate=1e-3", "training.max_steps=6")
    launch(tmp_path / "whole", processes=2, batch=2, recipe=EGPO, overrides=options, config=config)
    broken = tmp_path / "broken"
    line = command(broken, processes=2, batch=2, recipe=EGPO, overrides=options, config=config)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 280
    while not list(broken.glob("checkpoint-*/alignment_state.pt")) and time.monotonic() < deadline:
        time.sleep(0.01)
    # The workers first: without the launcher they would go on.
    for part in (*psutil.Process(process.pid).children(recursive=True), process):
        part.send_signal(signal.SIGKILL)
    process.wait()
    assert list(broken.glob("checkpoint-*/alignment_state.pt")) and not (broken / "final").exists()
    said = launch(broken, processes=1, batch=4, recipe=EGPO, overrides=(*options, RESUMES), fails=True)
    expected = f"expected the launch that divided the optimizer's state, {sharding} on 2 process(es), found whole on 1"
    assert expected in said
    launch(broken, processes=2, batch=2, recipe=EGPO, overrides=(*options, RESUMES), config=config)
    assert losses(broken) == losses(tmp_path / "whole")
    assert torch.equal(parameters(broken), parameters(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("config", "recipe", "options", "processes", "others"),
    [
        pytest.param("ddp_cpu", DPO, (), 2, 1, id="ddp_cpu"),
        # Within an epoch that ends between the processes: its last rows come twice, and count once.
        pytest.param("ddp_cpu", DPO, ("data.preferences.limit=30",), 2, 2, id="ddp_cpu-ragged"),
        pytest.param("fsdp2", DPO, ADAM, 2, 4, id="fsdp2-more"),
        # Wrappers around the layers, which give weights other names.
        pytest.param("fsdp2 recomputed", EGPO, (*ADAM, *AVERAGE, *TARGET), 2, 2, id="fsdp2-target"),
        pytest.param("zero2_cpu", DPO, ADAM, 2, 1, id="zero2_cpu", marks=needs_compiler),
        pytest.param("zero3_cpu", DPO, ADAM, 2, 1, id="zero3_cpu", marks=needs_compiler),
        pytest.param("zero3_cpu", EGPO, (*ADAM, *AVERAGE), 1, 2, id="zero3_cpu-more", marks=needs_compiler),
        pytest.param("zero3_cpu", EGPO, (*ADAM, *AVERAGE, *TARGET), 2, 1, id="zero3_cpu-target", marks=needs_compiler),
    ],
)
def test_resumed_on_another_number_of_processes(
    config: str, recipe: str, options: tuple[str, ...], processes: int, others: int, tmp_path: Path
) -> None:
    """Of the same effective batch: the path, and the count of verdicts, of one that did it alone."""
    run, alone = tmp_path / "run", tmp_path / "alone"
    begins, ends = (*SAVES, *options, "training.max_steps=2"), (*SAVES, *options, "training.max_steps=4")
    launch(run, processes=processes, batch=8 // processes, recipe=recipe, overrides=begins, config=config)
    launch(run, processes=others, batch=8 // others, recipe=recipe, overrides=(*ends, RESUMES), config=config)
    launch(alone, processes=1, batch=8, recipe=recipe, overrides=ends)
    expected = losses(alone)
    # What rounding adds to a mean is of the size of its terms.
    assert losses(run) == pytest.approx(expected, rel=0, abs=1e-5 * max(1.0, *map(abs, expected)))
    assert len(losses(run)) == 4
    torch.testing.assert_close(parameters(run), parameters(alone), rtol=0, atol=1e-5)
    counts = [json.loads((folder / "summary.json").read_text())["oracle_calls"] for folder in (run, alone)]
    assert counts[0] == counts[1] > 0
    # What ZeRO's parts were joined to is gone.
    assert not list(run.rglob("*_universal"))


def test_another_effective_batch_is_refused(tmp_path: Path) -> None:
    """It would be another training."""
    overrides = (*SAVES, "training.max_steps=2")
    launch(tmp_path / "run", processes=2, batch=4, recipe=DPO, overrides=overrides)
    overrides = (*SAVES, RESUMES, "training.max_steps=4")
    said = launch(tmp_path / "run", processes=1, batch=4, recipe=DPO, overrides=overrides, fails=True)
    assert "expected an effective batch of 8 prompts, as before on 2 process(es), found 4 on 1" in said


@needs_compiler
def test_state_that_cannot_be_joined_is_refused(tmp_path: Path) -> None:
    """Of plain SGD, which has no moments; and parts of which some are missing."""
    overrides = (*SAVES, "training.max_steps=1")
    launch(tmp_path, processes=2, batch=4, recipe=DPO, overrides=overrides, config="zero3_cpu")
    with pytest.raises(UserError, match=r"a state of Adam's kind in .*; it said: KeyError"):
        join_parts(last_checkpoint(tmp_path), num_parts=2)
    with pytest.raises(UserError, match=r"the parts of 3 processes in .*, found 2"):
        join_parts(last_checkpoint(tmp_path), num_parts=3)

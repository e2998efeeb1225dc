"""Runs on several processes that are killed and resumed, on as many processes and on fewer."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.distributed.launches import ROOT, command, launch, losses, needs_compiler, parameters

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(900)]

SAVES = (
    *("training.save_strategy=steps", "training.save_steps=1", "data.eval_fraction=0", "training.eval_strategy=no"),
    # A run that is to be longer has another schedule.
    "training.lr_scheduler_type=constant",
)
RESUMES = "training.resume_from_checkpoint=last"


@needs_compiler
def test_killed_under_zero3_and_resumed(tmp_path: Path) -> None:
    """Weights, moments and stages of extragradient, in parts on two processes: bit for bit the uninterrupted run."""
    recipe, options = (
        "recipes/egpo/tiny.yaml",
        (*SAVES, "training.optim=adamw_torch", "training.learning_rate=1e-3", "training.max_steps=6"),
    )
    launch(tmp_path / "whole", processes=2, batch=2, recipe=recipe, overrides=options, config="zero3_cpu")
    broken = tmp_path / "broken"
    line = command(broken, processes=2, batch=2, recipe=recipe, overrides=options, config="zero3_cpu")
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
    said = launch(broken, processes=1, batch=4, recipe=recipe, overrides=(*options, RESUMES), fails=True)
    assert "expected the launch that divided the optimizer's state, ZeRO-3 on 2 process(es), found whole on 1" in said
    launch(broken, processes=2, batch=2, recipe=recipe, overrides=(*options, RESUMES), config="zero3_cpu")
    assert losses(broken) == losses(tmp_path / "whole")
    assert torch.equal(parameters(broken), parameters(tmp_path / "whole"))


def test_resumed_on_another_number_of_processes(tmp_path: Path) -> None:
    """Begun on two, ended on one with the same effective batch: the path of one. Another effective batch is refused."""
    recipe = "recipes/dpo/tiny.yaml"
    launch(tmp_path / "run", processes=2, batch=4, recipe=recipe, overrides=(*SAVES, "training.max_steps=2"))
    overrides = (*SAVES, RESUMES, "training.max_steps=4")
    said = launch(tmp_path / "run", processes=1, batch=4, recipe=recipe, overrides=overrides, fails=True)
    assert "expected an effective batch of 8 prompts, as before on 2 process(es), found 4 on 1" in said
    launch(tmp_path / "run", processes=1, batch=8, recipe=recipe, overrides=overrides)
    launch(tmp_path / "alone", processes=1, batch=8, recipe=recipe, overrides=(*SAVES, "training.max_steps=4"))
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), rel=0, abs=1e-5)
    assert len(losses(tmp_path / "run")) == 4
    torch.testing.assert_close(parameters(tmp_path / "run"), parameters(tmp_path / "alone"), rtol=0, atol=1e-5)

"""Two processes on the CPU: the launch is what it says, and the result is that of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]


def launch(output: Path, *, processes: int, batch: int, recipe: str, overrides: tuple[str, ...] = ()) -> str:
    """Train through the shipped launcher configuration; what it printed."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/ddp_cpu.yaml"),
        *("--num_processes", str(processes), "--main_process_port", "0"),
        *("scripts/train.py", recipe, f"output_dir={output}", f"training.per_device_train_batch_size={batch}"),
        *("training.max_steps=3", "training.optim=sgd", "training.learning_rate=0.5", "training.max_grad_norm=0"),
        *("training.disable_tqdm=true", *overrides),
    ]
    if processes == 1:
        command = [sys.executable, *command[command.index("scripts/train.py") :]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def parameters(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder / "final")
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Invariant 111: two ranks of 4 prompts and one of 8, same rows, plain SGD: the same parameters to 1e-5."""
    recipe = "recipes/quickstart/dpo.yaml"
    said = launch(tmp_path / "two", processes=2, batch=4, recipe=recipe)
    assert "2 process(es), MULTI_CPU" in said and "effective batch 8" in said
    assert said.count("policy:") == 1, "one process speaks"
    alone = launch(tmp_path / "one", processes=1, batch=8, recipe=recipe)
    assert "1 process(es), NO" in alone and "effective batch 8" in alone
    first, second = parameters(tmp_path / "two"), parameters(tmp_path / "one")
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)


def test_lists_on_two_processes_equal_one(tmp_path: Path) -> None:
    """The same for lists of two to four responses with row weights, whose loss is a mean over pairs of all ranks."""
    answers = ["red", "a kind of green", "blue, I think", "no colour at all"]
    lines = [
        {
            "prompt": f"Question {i}: which colour?",
            "responses": answers[: 2 + i % 3],
            "scores": [1.0 - 0.25 * k for k in range(2 + i % 3)],
            "weight": 0.5 + i % 4,
        }
        for i in range(48)
    ]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    overrides = (
        "method={name: lipo, beta: 0.5}",
        f"data={{preferences: {{path: {tmp_path / 'lists.jsonl'}}}, eval_fraction: 0.25}}",
    )
    recipe = "recipes/quickstart/dpo.yaml"
    said = launch(tmp_path / "two", processes=2, batch=4, recipe=recipe, overrides=overrides)
    assert "2 process(es), MULTI_CPU" in said and "effective batch 8" in said
    launch(tmp_path / "one", processes=1, batch=8, recipe=recipe, overrides=overrides)
    torch.testing.assert_close(parameters(tmp_path / "two"), parameters(tmp_path / "one"), rtol=0, atol=1e-5)
    launch(tmp_path / "unweighted", processes=1, batch=4, recipe=recipe, overrides=overrides)
    assert (parameters(tmp_path / "unweighted") - parameters(tmp_path / "one")).abs().max() > 1e-4


def test_two_stages_on_two_processes(tmp_path: Path) -> None:
    """Extragradient with rollouts on both ranks runs, and ends with finite weights."""
    said = launch(tmp_path / "egpo", processes=2, batch=2, recipe="recipes/quickstart/egpo.yaml")
    assert "2 process(es), MULTI_CPU" in said and "win rate" in said
    assert parameters(tmp_path / "egpo").isfinite().all()

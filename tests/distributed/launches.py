"""Launch a recipe on several processes as a user does, and read what it left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]


def launch(
    output: Path,
    *,
    processes: int,
    batch: int,
    recipe: str,
    overrides: tuple[str, ...] = (),
    config: str = "ddp_cpu",
    fails: bool = False,
) -> str:
    """Three steps of plain SGD through a shipped launcher configuration, or on one process; what was printed."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"recipes/accelerate/{config}.yaml"),
        *("--num_processes", str(processes), "--main_process_port", "0"),
        *("scripts/train.py", recipe, f"output_dir={output}", f"training.per_device_train_batch_size={batch}"),
        *("training.max_steps=3", "training.optim=sgd", "training.learning_rate=0.5", "training.max_grad_norm=0"),
        *("training.logging_steps=1", "training.disable_tqdm=true", *overrides),
    ]
    if processes == 1:
        command = [sys.executable, *command[command.index("scripts/train.py") :]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=290)
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stderr


def losses(folder: Path) -> list[float]:
    """The logged losses, one a step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def parameters(folder: Path) -> torch.Tensor:
    """All weights of the saved model in one row."""
    model = AutoModelForCausalLM.from_pretrained(folder / "final")
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def write_lists(path: Path) -> tuple[str, ...]:
    """Lists of two to four responses with row weights, and the overrides that train on them listwise."""
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
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return (
        "method={name: lipo, beta: 0.5}",
        f"data={{preferences: {{path: {path}}}, eval_fraction: 0.25}}",
    )

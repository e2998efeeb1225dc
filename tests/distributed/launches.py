"""Launch a recipe on several processes as a user does, and read what it left."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or shutil.which("ninja") is None,
    reason="DeepSpeed compiles its communication on a CPU: install g++ and ninja",
)


def launcher(config: str | Path, *, processes: int = 2) -> list[str]:
    """The beginning of a command, before the script: a shipped configuration by its name, or a file.

    That of FSDP2 is for GPUs: here its processes are on a CPU, in float32. ``fsdp2 recomputed`` is the same with
    activations that are computed again.
    """
    name, _, is_recomputed = str(config).partition(" ")
    shipped = Path("recipes", "accelerate", f"{name}.yaml") if isinstance(config, str) else config
    line = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(shipped)]
    line += ["--num_processes", str(processes), "--main_process_port", "0"]
    if name != "fsdp2":
        return line
    again = ("--fsdp_activation_checkpointing", "true") if is_recomputed else ()
    return [*line, "--mixed_precision", "no", *again, "tests/distributed/as_gpu.py"]


def command(
    output: Path, *, processes: int, batch: int, recipe: str, overrides: tuple[str, ...] = (), config: str = "ddp_cpu"
) -> list[str]:
    """Three steps of plain SGD through a shipped launcher configuration, or alone: on one process without DeepSpeed."""
    line = [
        *launcher(config, processes=processes),
        *("scripts/train.py", recipe, f"output_dir={output}", f"training.per_device_train_batch_size={batch}"),
        *("training.max_steps=3", "training.optim=sgd", "training.learning_rate=0.5", "training.max_grad_norm=0"),
        *("training.logging_steps=1", "training.disable_tqdm=true", *overrides),
    ]
    return (
        line
        if processes > 1 or config.startswith("zero")
        else [sys.executable, *line[line.index("scripts/train.py") :]]
    )


def launch(output: Path, *, fails: bool = False, **options: Any) -> str:
    """Run :func:`command` with these options; what was printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command(output, **options), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=290
    )
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

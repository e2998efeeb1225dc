"""What every run writes into its folder, whatever it trains, and how its processes part."""

import importlib.metadata
import json
import platform
import time
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

import alignment

_SECONDS_TO_SETTLE = 1.0
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "peft", "tokenizers")


def write_header(folder: Path, recipe: str, checkpoint: Path | None) -> None:
    """The resolved recipe and the versions; metrics begin anew, or after the checkpoint that is resumed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe)
    versions = {"python": platform.python_version(), "alignment": alignment.__version__}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    (folder / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")
    metrics = folder / "metrics.jsonl"
    if checkpoint is None:
        metrics.unlink(missing_ok=True)
    elif metrics.exists():
        # What was logged after the checkpoint will be logged again; a line may be torn where the run was killed.
        step = int(checkpoint.name.removeprefix("checkpoint-"))
        lines = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
        metrics.write_text("".join(line for line in lines if 0 < json.loads(line)["step"] <= step))


class MetricsFile(TrainerCallback):
    """Appends every log line as JSON.

    Args:
        path: the file.
        labels: keys that every line gets besides the step.
    """

    def __init__(self, path: Path, **labels: int) -> None:
        self.path = path
        self.labels = labels

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **self.labels, **logs}) + "\n")


def end_processes(trainer: Trainer) -> None:
    """End the process group, when its threads have nothing left to do.

    A thread of gloo takes the GIL once more after the last collective. A destructor that joins it earlier holds the GIL
    and waits forever, or aborts; without the pause one launch in six did.
    """
    if trainer.args.world_size > 1:
        trainer.accelerator.wait_for_everyone()
        time.sleep(_SECONDS_TO_SETTLE)
    trainer.accelerator.end_training()

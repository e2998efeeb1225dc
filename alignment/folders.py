"""What every run writes into its folder, whatever it trains, and how its processes part."""

import importlib.metadata
import json
import platform
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

import alignment
from alignment.config import Recipe
from alignment.config.parsing import parse_text
from alignment.errors import UserError
from alignment.model_card import model_card

_SECONDS_TO_SETTLE = 1.0
_PACKAGES = ("torch", "transformers", "trl", "accelerate", "datasets", "peft", "tokenizers")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a run leaves.

    Attributes:
        folder: the run folder.
        model_folder: the final model, in the ordinary Hugging Face (or, with LoRA, PEFT) format.
        before: metrics on the held-out rows at the start, by name; empty without held-out rows.
        after: the same at the end.
    """

    folder: Path
    model_folder: Path
    before: dict[str, float]
    after: dict[str, float]


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


def run_card(recipe: Recipe, *, before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """The README of a run's model; see :func:`alignment.model_card.model_card`."""
    return model_card(
        recipe.build_method(),
        name=recipe.method["name"],
        base_model=recipe.policy.model,
        data=tuple(path for source in recipe.data.sources for path in source.path),
        recipe=recipe.to_yaml(),
        before=before,
        after=after,
    )


class RunFiles(TrainerCallback):
    """Appends every log line to ``metrics.jsonl`` as JSON, and puts the recipe into every checkpoint.

    Args:
        folder: the run folder.
        recipe: the resolved recipe.
        labels: keys that every line gets besides the step.
    """

    def __init__(self, folder: Path, recipe: str, **labels: int) -> None:
        self.folder = folder
        self.recipe = recipe
        self.labels = labels

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": state.global_step, **self.labels, **logs}) + "\n")

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            (self.folder / f"checkpoint-{state.global_step}" / "recipe.yaml").write_text(self.recipe)


# What may differ between a run and its continuation: how long, where, and what is seen of it.
_FREE = re.compile(
    r"output_dir|schedule\.rounds|evaluation\..+|training\.(resume_from_checkpoint|max_steps|num_train_epochs|disable_tqdm|report_to|run_name"
    r"|(logging|eval|save|hub|dataloader)_\w+|push_to_hub)"
)


def check_same_recipe(checkpoint: Path, recipe: str) -> None:
    """Refuse to continue a run by another recipe.

    Args:
        checkpoint: one without a recipe, from a trainer in Python, is not compared.
        recipe: the resolved one of the continuation.

    Raises:
        UserError: naming the keys that differ.
    """
    path = checkpoint / "recipe.yaml"
    if not path.exists():
        return
    before, now = (dict(_leaves(parse_text(text, str(path)))) for text in (path.read_text(), recipe))
    differing = [key for key in sorted(before | now) if before.get(key) != now.get(key) and not _FREE.fullmatch(key)]
    if differing:
        said = ", ".join(f"{key} ({before.get(key)} then, {now.get(key)} now)" for key in differing)
        raise UserError(
            f"{checkpoint}: expected the recipe that the checkpoint was made by, found other values of {said}; set "
            "them back, or start anew in another output_dir"
        )


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict):
        yield prefix.removesuffix("."), tree
        return
    for key, value in tree.items():
        yield from _leaves(value, f"{prefix}{key}.")


def end_processes(trainer: Trainer) -> None:
    """End the process group, when its threads have nothing left to do.

    A thread of gloo takes the GIL once more after the last collective. A destructor that joins it earlier holds the GIL
    and waits forever, or aborts; without the pause one launch in six did.
    """
    if trainer.args.world_size > 1:
        trainer.accelerator.wait_for_everyone()
        time.sleep(_SECONDS_TO_SETTLE)
    trainer.accelerator.end_training()

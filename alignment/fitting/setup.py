"""What both commands share: arguments, and the table at the end."""

from collections.abc import Mapping
from dataclasses import MISSING
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table
from transformers import TrainingArguments
from trl import RewardConfig, SFTConfig

from alignment.arguments import range_problems
from alignment.config.fitting import RewardRecipe, SFTRecipe
from alignment.errors import UserError
from alignment.optimizer_options import check_optimizer

Config = TypeVar("Config", SFTConfig, RewardConfig)

WRITTEN_LAST = "trainer_state.json"
"""Of a checkpoint by TRL: transformers writes it after weights, optimizer and the states of generators."""


def build_config(kind: type[Config], recipe: SFTRecipe | RewardRecipe, **overrides: object) -> Config:
    """TRL's arguments with the defaults of transformers, so that ``training`` means the same in every recipe.

    TRL's own would switch on bfloat16 and gradient checkpointing, and change the learning rate and the logging.

    Raises:
        UserError: for a number that no training is possible with, keys that contradict one another, or options of which
            no optimizer or scheduler is made.
    """
    problems = [f"training.{line}" for line in range_problems(recipe.training)]
    if recipe.training.get("eval_strategy", "no") != "no" and not recipe.data.holds_out:
        problems.append(
            "training.eval_strategy: expected held-out rows (data.evaluation or data.eval_fraction), got none; name "
            "some, or write training.eval_strategy=no"
        )
    if problems:
        raise UserError("\n".join(problems))
    own, theirs = TrainingArguments.__dataclass_fields__, kind.__dataclass_fields__
    defaults = {
        name: spec.default
        for name, spec in own.items()
        if spec.default is not MISSING and spec.default != theirs[name].default
    }
    fixed = {"output_dir": recipe.output_dir, "seed": recipe.seed, "report_to": "none", "max_length": None}
    if not torch.cuda.is_available():
        fixed["use_cpu"] = True
    try:
        config = kind(**(defaults | fixed | recipe.training | overrides))
    except ValueError as error:
        raise UserError(f"training: {error}") from error
    check_optimizer(config)
    return config


def print_table(before: Mapping[str, float], after: Mapping[str, float], console: Console) -> None:
    """How the held-out metrics moved; nothing without held-out rows."""
    if not after:
        return
    table = Table("held-out rows", "before", "after", "change", box=None, pad_edge=False)
    for name, end in after.items():
        table.add_row(name, f"{before[name]:.4f}", f"{end:.4f}", f"{end - before[name]:+.4f}")
    console.print(table)

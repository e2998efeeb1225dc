"""What both commands share: rows, arguments, the resumed checkpoint, the table at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase, TrainingArguments
from trl import RewardConfig, SFTConfig

from alignment.arguments import range_problems
from alignment.checkpoints import last_checkpoint
from alignment.config.fitting import ComparisonData, DemonstrationData, RewardRecipe, SFTRecipe
from alignment.data import EncodedRow, Row
from alignment.errors import UserError
from alignment.optimizer_options import check_optimizer
from alignment.preparation import PreparedData, encode_as_asked, prepare_data

Config = TypeVar("Config", SFTConfig, RewardConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """What a run leaves.

    Attributes:
        folder: the run folder.
        model_folder: the final model in the ordinary format; of a mixture, the folder that holds each of its models.
        before: metrics on the held-out rows at the start, by name; empty without held-out rows.
        after: the same at the end.
    """

    folder: Path
    model_folder: Path
    before: dict[str, float]
    after: dict[str, float]


def prepare(data: ComparisonData | DemonstrationData, seed: int, console: Console) -> PreparedData:
    """The rows of the block, and a line about each step."""
    return prepare_data(data, seed=seed, announce=console.print)


def encode(
    name: str,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    data: ComparisonData | DemonstrationData,
    console: Console,
) -> tuple[EncodedRow, ...]:
    """Rows as our token ids, and a line about them."""
    if not rows:
        return ()
    result, is_cached = encode_as_asked(rows, tokenizer, data)
    origin = " (from the cache)" if is_cached else ""
    console.print(f"{name}: {result.summary()}{origin}")
    return result.rows


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


def find_checkpoint(asked: str | None, folder: Path) -> Path | None:
    """Where to resume: ``last`` is the last checkpoint of the run folder that was not broken off."""
    if asked != "last":
        return None if asked is None else Path(asked)
    # Transformers writes it after weights, optimizer and the states of generators.
    return last_checkpoint(folder, written_last="trainer_state.json")


def print_table(before: Mapping[str, float], after: Mapping[str, float], console: Console) -> None:
    """How the held-out metrics moved; nothing without held-out rows."""
    if not after:
        return
    table = Table("held-out rows", "before", "after", "change", box=None, pad_edge=False)
    for name, end in after.items():
        table.add_row(name, f"{before[name]:.4f}", f"{end:.4f}", f"{end - before[name]:+.4f}")
    console.print(table)

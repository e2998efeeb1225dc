"""What both commands share: rows, arguments, the resumed checkpoint, the table at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from trl import RewardConfig, SFTConfig

from alignment.config import DataSource
from alignment.config.fitting import ComparisonData, DemonstrationData, RewardRecipe, SFTRecipe
from alignment.data import EncodedRow, Row, encode_rows, split_rows
from alignment.errors import UserError
from alignment.loop import read_source

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


def read(source: DataSource, key: str, expects_feedback: bool, console: Console) -> tuple[Row, ...]:
    """Read a source and say what was found.

    Raises:
        UserError: for a file of the other kind.
    """
    result = read_source(source)
    console.print(f"data: {result.summary()}", markup=False, highlight=False)
    # In these formats a row says nothing about how good a response is.
    without = {"prompts", "completions"} if expects_feedback else set(result.formats) - {"completions"}
    if wrong := [name for name in dict.fromkeys(result.formats) if name in without]:
        expected = "feedback on responses" if expects_feedback else "the format completions"
        other = "data.demonstrations, of alignment sft" if expects_feedback else "data.preferences"
        raise UserError(
            f"{', '.join(source.path)}: expected {expected} in {key}, found the format {' and '.join(wrong)}; map its "
            f"columns, or name the file in {other}"
        )
    return result.rows


def split(
    rows: Sequence[Row], data: ComparisonData | DemonstrationData, seed: int
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Training and held-out rows; no prompt is on both sides."""
    return split_rows(rows, data.eval_fraction, seed)


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
    result = encode_rows(
        rows,
        tokenizer,
        max_prompt_length=data.max_prompt_length,
        max_completion_length=data.max_completion_length,
    )
    console.print(f"{name}: {result.summary()}", markup=False, highlight=False)
    return result.rows


def build_config(kind: type[Config], recipe: SFTRecipe | RewardRecipe, **overrides: object) -> Config:
    """TRL's arguments with the defaults of transformers, so that ``training`` means the same in every recipe.

    TRL's own would switch on bfloat16 and gradient checkpointing, and change the learning rate and the logging.
    """
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
        return kind(**(defaults | fixed | recipe.training | overrides))
    except ValueError as error:
        raise UserError(f"training: {error}") from error


def find_checkpoint(asked: str | None, folder: Path) -> Path | None:
    """Where to resume: ``last`` is the last checkpoint of the run folder."""
    if asked != "last":
        return None if asked is None else Path(asked)
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if last is None:
        raise UserError(f"expected a checkpoint to resume from in {folder}, found none")
    return Path(last)


def print_table(before: Mapping[str, float], after: Mapping[str, float], console: Console) -> None:
    """How the held-out metrics moved; nothing without held-out rows."""
    if not after:
        return
    table = Table("held-out rows", "before", "after", "change", box=None, pad_edge=False)
    for name, end in after.items():
        table.add_row(name, f"{before[name]:.4f}", f"{end:.4f}", f"{end - before[name]:+.4f}")
    console.print(table)

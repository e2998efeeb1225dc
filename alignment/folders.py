"""What every run writes into its folder, whatever it trains."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from alignment.config import Recipe
from alignment.config.parsing import parse_text, read_mapping
from alignment.errors import UserError
from alignment.evaluation import Met
from alignment.evaluation.manifests import versions
from alignment.files import write_json, write_json_lines, write_whole
from alignment.model_card import model_card
from alignment.oracles import Accounts, deciding_keys
from alignment.progress import run_console
from alignment.values import differences, leaves


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
    write_whole(folder / "recipe.yaml", recipe)
    write_json(folder / "versions.json", versions("trl", "accelerate", "datasets", "peft"))
    metrics = folder / "metrics.jsonl"
    if checkpoint is None:
        metrics.unlink(missing_ok=True)
    elif metrics.exists():
        # What was logged after the checkpoint will be logged again; a line may be torn where the run was killed.
        step = int(checkpoint.name.removeprefix("checkpoint-"))
        lines = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
        write_whole(metrics, "".join(line for line in lines if json.loads(line)["step"] <= step))


def write_summary(
    folder: Path,
    *,
    before: Mapping[str, float],
    after: Mapping[str, float],
    average: Mapping[str, float],
    seconds: float,
    oracle_calls: int,
) -> None:
    """The ends of a run as ``summary.json``: where it is, the run has ended.

    Args:
        folder: the run folder.
        before: metrics at the start, by name.
        after: at the end.
        average: of the average of the policies' weights; nothing where none is kept.
        seconds: of sampling, judging and training, without evaluations.
        oracle_calls: verdicts that were trained on: questions to the oracle, or those in the data set.
    """
    ends = {"before": dict(before), "after": dict(after)} | ({"average": dict(average)} if average else {})
    summary = {**ends, "seconds": round(seconds, 1), "oracle_calls": oracle_calls}
    write_json(folder / "summary.json", summary)


def write_samples(folder: Path, met: Sequence[Met]) -> None:
    """Answers of the policy beside the reference's, with the oracle's verdict, as ``samples.jsonl``."""
    write_json_lines(folder / "samples.jsonl", (asdict(item) for item in met))


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
    """Writes every log line to ``metrics.jsonl`` as JSON, one of step 0 first, and the recipe into every checkpoint.

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
        if not state.is_world_process_zero:
            return
        metrics, line = self.folder / "metrics.jsonl", json.dumps({"step": state.global_step, **self.labels, **logs})
        if state.global_step == 0 and metrics.exists():
            # A continuation evaluates its start anew, and may do so by another oracle.
            lines = metrics.read_text().splitlines(keepends=True)
            write_whole(metrics, "".join([f"{line}\n", *(other for other in lines if not self._is_start(other))]))
            return
        with metrics.open("a") as file:
            file.write(f"{line}\n")

    def _is_start(self, line: str) -> bool:
        """Whether a line is of step 0, and of this training among those that share the file."""
        values = json.loads(line)
        return values["step"] == 0 and self.labels.items() <= values.items()

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_whole(self.folder / f"checkpoint-{state.global_step}" / "recipe.yaml", self.recipe)


class OracleFigures(TrainerCallback):
    """Adds what the oracles answered and cost so far to every log line; it stands before whoever writes the line."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and self.accounts.is_used:
            logs |= {f"oracle_{name}": value for name, value in self.accounts.spent.as_numbers().items()}


@contextmanager
def oracle_accounts(folder: Path) -> Iterator[Accounts]:
    """Accounts of a run's oracles; they end in ``oracle.json`` and one line, also where the run breaks off."""
    accounts = Accounts(folder)
    try:
        yield accounts
    finally:
        # Every process has accounts; what they share is written by the first.
        if accounts.is_used and os.environ.get("RANK", "0") == "0":
            write_json(folder / "oracle.json", accounts.summary())
            run_console().print(f"oracle: {accounts.spent.describe()}")
        accounts.close()


# Keys of `training` that do not touch the weights: where they go, what is seen of them, how many prompts fit in memory.
_BESIDE = re.compile(
    r"resume_from_checkpoint|disable_tqdm|report_to|run_name|push_to_hub|per_device_eval_batch_size"
    r"|(logging|eval|save|hub|dataloader(?!_drop_last))_\w+"
)
# What may differ besides: where it is, how it is computed and looked at; of a continuation also how long it takes.
_FREE = re.compile(r"output_dir|evaluation\..+|data\.cache|anchors\.store|scoring\..+")
_LENGTH = re.compile(r"schedule\.rounds|training\.(max_steps|num_train_epochs)")
# How a launch divides an effective batch; where its size is compared, this may differ.
_DIVISION = ("per_device_train_batch_size", "gradient_accumulation_steps")


def deciding_training(training: Mapping[str, Any], *, batches_are_compared: bool = False) -> dict[str, Any]:
    """A recipe's ``training`` without what does not touch the weights.

    Args:
        training: keys of ``transformers.TrainingArguments``.
        batches_are_compared: by who trains, so that another number of processes may divide them otherwise.
    """
    free = _DIVISION if batches_are_compared else ()
    return {key: value for key, value in training.items() if not _BESIDE.fullmatch(key) and key not in free}


def check_same_recipe(
    checkpoint: Path, recipe: str, *, batches_are_compared: bool = False, begins: bool = False
) -> None:
    """Refuse to continue a run by another recipe, or to write another over it.

    Args:
        checkpoint: or the folder of a run. Where a checkpoint has no recipe that of its run counts; where a trainer in
            Python left neither, nothing is compared.
        recipe: the resolved one of what comes now.
        batches_are_compared: by who continues it.
        begins: whether it begins anew, and a longer run is another one.

    Raises:
        UserError: naming the keys that differ.
    """
    path = checkpoint / "recipe.yaml"
    if not path.exists() and checkpoint.name.startswith("checkpoint-"):
        # Whoever was killed between the state and the recipe of a checkpoint left none.
        path = checkpoint.parent / "recipe.yaml"
    if not path.exists():
        return
    # An empty block says as much as none.
    before, now = (
        {key: value for key, value in leaves(_deciding(tree, batches_are_compared)) if value != {}}
        for tree in (read_mapping(path), parse_text(recipe, "the recipe"))
    )
    differing = {
        key: values
        for key, values in differences(before, now).items()
        if not _FREE.fullmatch(key) and (begins or not _LENGTH.fullmatch(key))
    }
    if differing:
        said = ", ".join(f"{key} ({then} then, {now} now)" for key, (then, now) in differing.items())
        raise UserError(
            f"{checkpoint}: expected the recipe that made what it holds, found other values of {said}; set them back, "
            "or start anew in another output_dir"
        )


def check_begins_or_continues(
    folder: Path, checkpoint: Path | None, recipe: str, *, batches_are_compared: bool = False
) -> None:
    """Refuse to continue a checkpoint of another recipe, or to begin where there is a checkpoint or another's model.

    A run that began beside older checkpoints would remove them one by one, and ``last`` would continue them.

    Raises:
        UserError: naming the keys that differ, or the checkpoints.
    """
    if checkpoint is not None:
        check_same_recipe(checkpoint, recipe, batches_are_compared=batches_are_compared)
        return
    found = sorted(path.parent.name for path in folder.glob("checkpoint-*/trainer_state.json"))
    if found or (folder / "final").exists():
        check_same_recipe(folder, recipe, batches_are_compared=True, begins=True)
    if found:
        raise UserError(
            f"{folder}: expected no checkpoint where a run begins, found {', '.join(found)}; continue with "
            "training.resume_from_checkpoint=last, remove what is there, or give another output_dir"
        )


def _deciding(tree: dict[str, Any], batches_are_compared: bool) -> dict[str, Any]:
    """The recipe without what an oracle may cost, and what of its training does not touch the weights."""
    players = {
        name: {**spec, "oracle": deciding_keys(spec["oracle"])} for name, spec in (tree.get("players") or {}).items()
    }
    oracle = None if tree.get("oracle") is None else deciding_keys(tree["oracle"])
    training = deciding_training(tree.get("training") or {}, batches_are_compared=batches_are_compared)
    return {**tree, "oracle": oracle, "players": players, "training": training}

"""``alignment sft``: raise the likelihood of demonstrations, through ``trl.SFTTrainer`` on our token ids."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from datasets import Dataset
from rich.console import Console
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from alignment.checkpoints import find_checkpoint
from alignment.config.fitting import SFTRecipe
from alignment.data import EncodedRow, Row
from alignment.data.rows import describe_skipped
from alignment.errors import UserError
from alignment.files import write_json
from alignment.fitting.setup import WRITTEN_LAST, build_config, print_table
from alignment.folders import RunFiles, RunResult, check_begins_or_continues, write_header
from alignment.models import load_policy, load_tokenizer, lora_config
from alignment.optimizer_options import NamingTrainer
from alignment.preparation import encode_aloud, prepare_data, write_report
from alignment.progress import run_console
from alignment.ranks import Ranks
from alignment.rewards.pairs import check_plain, preferred
from alignment.weights import naming_targets

# What the table shows of TRL's metrics: theirs -> ours.
_SHOWN = {"eval_loss": "loss, nats a token", "eval_mean_token_accuracy": "token accuracy"}
# The label that torch's cross entropy leaves out.
_IGNORED = -100


class _Trainer(NamingTrainer, SFTTrainer):
    """TRL's."""


def run(recipe: SFTRecipe) -> RunResult:
    """Fine-tune by a recipe.

    Returns:
        Where the model is, and the metrics.

    Raises:
        UserError: for anything in the data or the recipe that cannot be trained on.
    """
    args = build_config(SFTConfig, recipe)
    is_first = args.process_index == 0
    console = run_console(quiet=not is_first)
    set_seed(recipe.seed)
    data = prepare_data(recipe.data, seed=recipe.seed, announce=console.print)
    train_rows = _demonstrations("training", data.train, console)
    eval_rows = _demonstrations("held-out", data.evaluation, console) if data.evaluation else ()
    tokenizer = load_tokenizer(recipe.policy, train_rows)
    train_set = encode_aloud("training", train_rows, tokenizer, recipe.data, console.print)
    eval_set = encode_aloud("held-out", eval_rows, tokenizer, recipe.data, console.print)
    folder = Path(recipe.output_dir)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, folder, written_last=WRITTEN_LAST)
    check_begins_or_continues(folder, checkpoint, recipe.to_yaml())
    if is_first:
        write_header(folder, recipe.to_yaml(), checkpoint)
        write_report(data, folder)
    model = load_policy(recipe.policy, tokenizer, seed=recipe.seed)
    adapter = None if recipe.policy.lora is None else lora_config(recipe.policy.lora, "CAUSAL_LM")
    # TRL makes the adapter itself: in what precision is a matter of the launch.
    with nullcontext() if adapter is None else naming_targets(model, adapter):
        trainer = _Trainer(
            model=model,
            args=args,
            train_dataset=as_dataset(train_set),
            eval_dataset=as_dataset(eval_set) if eval_set else None,
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[RunFiles(folder, recipe.to_yaml())],
        )
    # Not by evaluate(): a model that was prepared for it is not prepared for training on several processes. What is
    # continued has its start in its log.
    trainer.args.eval_on_start = bool(eval_set) and checkpoint is None
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    before = _shown(next(line for line in trainer.state.log_history if "eval_loss" in line)) if eval_set else {}
    after = _shown(trainer.evaluate()) if eval_set else {}
    result = RunResult(folder=folder, model_folder=folder / "final", before=before, after=after)
    trainer.save_model(str(result.model_folder))
    if is_first:
        write_json(folder / "summary.json", {"before": before, "after": after})
        print_table(before, after, console)
        console.print(f"model: {result.model_folder}")
    Ranks(trainer.args.process_index, trainer.args.world_size).part()
    return result


def as_dataset(encoded: Sequence[EncodedRow]) -> Dataset:
    """The columns that TRL takes as they are; the loss is on the demonstration, not on the prompt."""
    return Dataset.from_dict(
        {
            "input_ids": [[*item.prompt_ids, *item.completion_ids[0]] for item in encoded],
            "labels": [[_IGNORED] * len(item.prompt_ids) + list(item.completion_ids[0]) for item in encoded],
        }
    )


def _demonstrations(name: str, rows: Sequence[Row], console: Console) -> tuple[Row, ...]:
    """The preferred response of each row; a row that holds one response is a demonstration as it is."""
    shown: list[Row] = []
    undecided: list[str] = []
    for row in rows:
        check_plain(row, "alignment sft")
        best = preferred(row)
        if best is None:
            undecided.append(row.source)
        else:
            shown.append(replace(row, responses=(row.responses[best],), comparisons=(), scores=None))
    if undecided:
        left_out = describe_skipped({"without a preferred response": tuple(undecided)}, verb="left out")
        console.print(f"{name} demonstrations: {len(shown):,}; {left_out}")
    if not shown:
        raise UserError(
            f"expected responses that are preferred to all others, found none in the {len(rows)} {name} rows"
        )
    return tuple(shown)


def _shown(metrics: Mapping[str, float]) -> dict[str, float]:
    return {label: metrics[name] for name, label in _SHOWN.items()}

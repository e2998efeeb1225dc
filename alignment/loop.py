"""From a recipe to a run folder: read, build, train, evaluate before and after, save."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import torch
from rich.console import Console
from rich.table import Table
from transformers import set_seed

from alignment import iterative
from alignment.batches import rows_to_encode
from alignment.checkpoints import find_checkpoint
from alignment.config import Recipe, build_arguments, build_callbacks, build_measures
from alignment.diagnosis import known_failures
from alignment.errors import UserError
from alignment.folders import (
    OracleFigures,
    RunFiles,
    RunResult,
    check_begins_or_continues,
    oracle_accounts,
    run_card,
    write_header,
    write_samples,
    write_summary,
)
from alignment.generation import check_engine
from alignment.launch import check_deepspeed, check_launch, uses_deepspeed
from alignment.models import load_causal_model, load_policy, load_tokenizer, lora_config
from alignment.optimizer_options import check_optimizer
from alignment.oracles import Accounts, build_oracle
from alignment.preparation import encode_aloud, prepare_data, write_report
from alignment.progress import run_console
from alignment.report import LABELS, write_report_page
from alignment.trainer import PreferenceTrainer

_ROUND_FROM_DATA = (
    "note: this round takes its responses from a data set. The theory of '{name}' is about i.i.d. samples of the "
    "policy at the start of the round; other responses have another minimiser"
)


def run(recipe: Recipe) -> RunResult:
    """Train by a recipe.

    Prints what was read and skipped, shows a progress bar, and ends with a table of how the held-out metrics moved.
    Under a launcher every process runs this; the first one prints and writes.

    Returns:
        Where the model is, and the metrics.

    Raises:
        UserError: for anything in the data or the recipe that cannot be trained on.
        BudgetError: where the oracle's budget ends; what was paid for is kept, and a continuation uses it.
    """
    with oracle_accounts(Path(recipe.output_dir)) as accounts:
        result = iterative.run(recipe, accounts) if recipe.samples_in_rounds else _run(recipe, accounts)
    # After the accounts are closed: what oracles cost is in it.
    if os.environ.get("RANK", "0") == "0":
        page = write_report_page(result.folder)
        run_console().print(f"report: {page}")
    return result


def run_stage(recipe: Recipe, stage: iterative.Stage) -> None:
    """Take an iterative recipe's next round as far as one stage; see :func:`alignment.iterative.run_stage`."""
    with oracle_accounts(Path(recipe.output_dir)) as accounts:
        iterative.run_stage(recipe, stage, accounts)


def annotate(recipe: Recipe) -> None:
    """Compute and store the log-probs of frozen policies on a data set, or on the next round's, and stop there.

    Raises:
        UserError: as :func:`run`, and for a recipe that stores none.
    """
    if not recipe.anchors.store:
        raise UserError("expected anchors.store: true, which keeps log-probs on disk; found false: nothing to annotate")
    with oracle_accounts(Path(recipe.output_dir)) as accounts:
        if recipe.samples_in_rounds:
            iterative.run_stage(recipe, "annotate", accounts)
        else:
            _set_up(recipe, accounts, trains=False).trainer.args.ranks.part()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setup:
    """A run that is about to train.

    Attributes:
        trainer: with data and models.
        checkpoint: where it continues, or ``None``.
        console: for what is said.
        is_first: whether this process speaks and writes.
    """

    trainer: PreferenceTrainer
    checkpoint: Path | None
    console: Console
    is_first: bool


def _set_up(recipe: Recipe, accounts: Accounts, *, trains: bool) -> _Setup:
    """Everything before the first step; where nothing is trained nobody is asked, and no file of the run is begun."""
    method = recipe.build_method()
    if uses_deepspeed(recipe.training):
        check_deepspeed(on_cpu=not torch.cuda.is_available())
    args = build_arguments(recipe)
    check_launch(args)
    check_optimizer(args, iteration_steps=args.iteration_steps(method.needs))
    if method.needs.samples_in_batches:
        check_engine(args.engine, args.engine_options)
    # The arguments know the rank; Accelerate's own state would not look for processes on a CPU before it is told.
    is_first = args.process_index == 0
    console = run_console(quiet=not is_first)
    folder = Path(recipe.output_dir)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, folder)
    check_begins_or_continues(folder, checkpoint, recipe.to_yaml(), batches_are_compared=True)
    oracle = build_oracle(recipe.oracle, args.device, accounts) if trains and recipe.oracle is not None else None
    set_seed(recipe.seed)
    data = prepare_data(recipe.data, seed=recipe.seed, announce=console.print)
    tokenizer = load_tokenizer(recipe.policy, data.train)
    model = load_policy(recipe.policy, tokenizer, seed=recipe.seed)
    if method.needs.sampler == "prev":
        console.print(_ROUND_FROM_DATA.format(name=recipe.method["name"]))
    train_set, eval_set = (
        encode_aloud(name, rows_to_encode(rows, method.needs, args), tokenizer, recipe.data, console.print)
        for name, rows in (("training", data.train), ("held-out", data.evaluation))
    )
    judge = recipe.evaluation.oracle if trains and recipe.evaluation is not None else None
    if recipe.evaluation is not None and not eval_set:
        raise UserError("evaluation: expected held-out prompts, found none; raise data.eval_fraction")
    if is_first and trains:
        write_header(folder, recipe.to_yaml(), checkpoint)
        write_report(data, folder)
    trainer = _announced(
        console,
        lambda: PreferenceTrainer(
            model=model,
            ref_model=load_causal_model(recipe.policy.ref_model, recipe.policy) if recipe.policy.ref_model else None,
            args=args,
            train_dataset=train_set,
            eval_dataset=eval_set,
            processing_class=tokenizer,
            oracle=oracle,
            eval_oracle=None if judge is None else build_oracle(judge, args.device, accounts),
            measures=build_measures(recipe),
            peft_config=None if recipe.policy.lora is None else lora_config(recipe.policy.lora, "CAUSAL_LM"),
            method=method,
            callbacks=[OracleFigures(accounts), RunFiles(folder, recipe.to_yaml()), *build_callbacks(recipe)],
        ),
    )
    for line in (f"policy: {trainer.describe()}", *trainer.notes):
        console.print(line)
    return _Setup(trainer=trainer, checkpoint=checkpoint, console=console, is_first=is_first)


def _run(recipe: Recipe, accounts: Accounts) -> RunResult:
    setup = _set_up(recipe, accounts, trains=True)
    trainer, checkpoint, console = setup.trainer, setup.checkpoint, setup.console
    folder, has_held_out = Path(recipe.output_dir), trainer.eval_dataset is not None
    before = trainer.evaluate() if has_held_out else {}
    if checkpoint is not None:
        console.print(f"resuming from {checkpoint}")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = trainer.training_seconds()
    after = trainer.evaluate() if has_held_out else {}
    ranks = trainer.args.ranks
    met = () if trainer.match is None else ranks.gather(trainer.match.last)
    model_folder = folder / "final"
    trainer.save_model(str(model_folder))
    averaged = {}
    if trainer.average is not None:
        with trainer.average.in_place(trainer.model):
            trainer.engine.refresh()
            # Under a name of its own: it is no point of the policy's curve.
            averaged = trainer.evaluate(metric_key_prefix="average") if has_held_out else {}
            trainer.save_model(str(folder / "average"))
    # Processes add theirs up.
    oracle_calls = trainer.count_oracle_calls()
    before, after, averaged = _without_prefix(before), _without_prefix(after), _without_prefix(averaged)
    result = RunResult(folder=folder, model_folder=model_folder, before=before, after=after)
    if setup.is_first:
        write_summary(folder, before=before, after=after, average=averaged, seconds=seconds, oracle_calls=oracle_calls)
        write_samples(folder, met)
        (model_folder / "README.md").write_text(run_card(recipe, before=before, after=after))
        _print_summary(result, console)
        if trainer.args.push_to_hub:
            url = huggingface_hub.upload_folder(
                repo_id=trainer.hub_model_id, folder_path=model_folder, token=trainer.args.hub_token
            )
            console.print(f"pushed: {url}")
    trainer.engine.close()
    ranks.part()
    return result


class _ToConsole(logging.Handler):
    """Prints what is logged as one line."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(record.getMessage())


def _announced(console: Console, build: Callable[[], PreferenceTrainer]) -> PreferenceTrainer:
    """Build the trainer, and show what our modules log meanwhile."""
    logger = logging.getLogger("alignment")
    handler = _ToConsole(console)
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        return build()
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _without_prefix(metrics: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval_").removeprefix("average_"): value for name, value in metrics.items()}


def _print_summary(result: RunResult, console: Console) -> None:
    if result.after:
        table = Table("held-out rows", "before", "after", "change", box=None, pad_edge=False)
        for name, label in LABELS.items():
            if name in result.after and name in result.before:
                start, end = result.before[name], result.after[name]
                table.add_row(label, f"{start:.4f}", f"{end:.4f}", f"{end - start:+.4f}")
        console.print(table)
        if "win_rate_vs_ref" in result.after:
            low, high = (result.after[f"win_rate_vs_ref_{end}"] for end in ("low", "high"))
            on = f"on {result.after['win_rate_num_prompts']:,} held-out prompts"
            console.print(f"win rate at the end, 95 %: {low:.3f} to {high:.3f} {on}")
        for text in known_failures(result.before, result.after):
            console.print(f"note: {text}")
    console.print(f"model: {result.model_folder}")

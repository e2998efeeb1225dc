"""From a recipe to a run folder: read, build, train, evaluate before and after, save."""

import importlib.metadata
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    set_seed,
)

import alignment
from alignment.config import DataSource, LoRASpec, PolicySpec, Recipe, build_arguments
from alignment.data import EncodedRow, ReadResult, Row, encode_rows, read_rows, split_rows
from alignment.errors import UserError
from alignment.oracles import build_oracle
from alignment.tiny import tiny_model, tiny_tokenizer
from alignment.trainer import PreferenceTrainer, rows_to_encode

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


def run(recipe: Recipe) -> RunResult:
    """Train by a recipe.

    Prints what was read and skipped, shows a progress bar, and ends with a table of how the held-out metrics moved.
    Under a launcher every process runs this; the first one prints and writes.

    Returns:
        Where the model is, and the metrics.

    Raises:
        UserError: for anything in the data or the recipe that cannot be trained on.
    """
    method, args = recipe.build_method(), build_arguments(recipe)
    # The arguments know the rank; Accelerate's own state would not look for processes on a CPU before it is told.
    is_first = args.process_index == 0
    console = Console(stderr=True, quiet=not is_first, soft_wrap=True)
    set_seed(recipe.seed)
    train_rows, eval_rows = _read(recipe, console)
    model, tokenizer = _load_policy(recipe.policy, train_rows, seed=recipe.seed)
    samples = method.needs.sampler != "dataset"
    train_set, eval_set = (
        _encode(
            "held-out" if i else "training", rows_to_encode(rows, args) if samples else rows, tokenizer, recipe, console
        )
        for i, rows in enumerate((train_rows, eval_rows))
    )
    folder = Path(recipe.output_dir)
    if is_first:
        _write_header(folder, recipe)
    trainer = PreferenceTrainer(
        model=model,
        ref_model=_load_model(recipe.policy.ref_model, recipe.policy) if recipe.policy.ref_model else None,
        args=args,
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=tokenizer,
        oracle=None if recipe.oracle is None else build_oracle(recipe.oracle),
        peft_config=None if recipe.policy.lora is None else _lora_config(recipe.policy.lora),
        method=method,
        callbacks=[_MetricsFile(folder / "metrics.jsonl")],
    )
    console.print(f"policy: {_describe(trainer)}", markup=False, highlight=False)
    before = trainer.evaluate() if eval_set else {}
    trainer.train()
    after = trainer.evaluate() if eval_set else {}
    model_folder = folder / "final"
    trainer.save_model(str(model_folder))
    result = RunResult(folder=folder, model_folder=model_folder, before=before, after=after)
    if is_first:
        (folder / "summary.json").write_text(json.dumps({"before": before, "after": after}, indent=1) + "\n")
        _print_summary(result, console)
    # Ranks that leave a process group standing may abort on exit.
    trainer.accelerator.end_training()
    return result


def read_source(source: DataSource) -> ReadResult:
    """Read what a source of a recipe names: its keys are the options of :func:`alignment.data.read_rows`."""
    return read_rows(source.path, **source.model_dump(exclude={"path"}))


def _read(recipe: Recipe, console: Console) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    source = recipe.data.preferences or recipe.data.prompts
    assert isinstance(source, DataSource)
    result = read_source(source)
    console.print(f"data: {result.summary()}", markup=False, highlight=False)
    if source is recipe.data.preferences and set(result.formats) & {"prompts", "completions"}:
        raise UserError(
            f"{', '.join(source.path)}: expected feedback on responses in data.preferences, found the format "
            f"{' and '.join(dict.fromkeys(result.formats))}; map its columns, or name the file in data.prompts"
        )
    if recipe.data.eval_fraction == 0:
        return result.rows, ()
    return split_rows(result.rows, recipe.data.eval_fraction, recipe.seed)


def _encode(
    name: str, rows: tuple[Row, ...], tokenizer: PreTrainedTokenizerBase, recipe: Recipe, console: Console
) -> tuple[EncodedRow, ...]:
    if not rows:
        return ()
    result = encode_rows(
        rows,
        tokenizer,
        max_prompt_length=recipe.data.max_prompt_length,
        max_completion_length=recipe.data.max_completion_length,
    )
    console.print(f"{name}: {result.summary()}", markup=False, highlight=False)
    return result.rows


def _load_policy(
    spec: PolicySpec, rows: tuple[Row, ...], *, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if spec.tiny is not None:
        texts = [text for row in rows for text in (*(turn.content for turn in row.prompt), *row.responses)]
        tokenizer = tiny_tokenizer(texts, vocab_size=spec.tiny.vocab_size)
        sizes = spec.tiny.model_dump(exclude={"vocab_size"})
        return tiny_model(tokenizer, **sizes, seed=seed).to(_dtype(spec)), tokenizer
    assert spec.model is not None
    try:
        tokenizer = AutoTokenizer.from_pretrained(spec.model)
    except (OSError, ValueError) as error:
        raise UserError(
            f"policy.model: expected a model folder or a name on the Hub, got '{spec.model}' ({error})"
        ) from None
    if spec.chat_template is not None:
        tokenizer.chat_template = Path(spec.chat_template).read_text()
    if tokenizer.pad_token_id is None:
        # Masks decide everything; the token only fills gaps.
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return _load_model(spec.model, spec), tokenizer


def _load_model(name: str, spec: PolicySpec) -> PreTrainedModel:
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(name, dtype=_dtype(spec))
    except (OSError, ValueError) as error:
        raise UserError(f"policy: expected a causal language model at '{name}' ({error})") from None
    return model


def _dtype(spec: PolicySpec) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[spec.dtype]


def _lora_config(spec: LoRASpec) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        target_modules=spec.target_modules,
        task_type="CAUSAL_LM",
    )


def _describe(trainer: PreferenceTrainer) -> str:
    """What the launch really is: a launcher that silently runs one process is caught by eye here."""
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    batch = trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
    state = trainer.accelerator.state
    return (
        f"{parameters / 1e6:,.1f}M parameters, {trained / 1e6:,.1f}M trained, on {trainer.args.device}; "
        f"{state.num_processes} process(es), {state.distributed_type.value}; "
        f"effective batch {batch * state.num_processes} prompts"
    )


def _write_header(folder: Path, recipe: Recipe) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    versions = {"python": platform.python_version(), "alignment": alignment.__version__}
    versions |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    (folder / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")
    (folder / "metrics.jsonl").unlink(missing_ok=True)


class _MetricsFile(TrainerCallback):
    """Appends every log line as JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


_SHOWN = {
    "loss": "loss",
    "accuracy": "accuracy (chosen above rejected, against the reference)",
    "margin": "margin, nats",
    "chosen_logps": "log-prob of chosen, nats",
    "rejected_logps": "log-prob of rejected, nats",
    "win_rate_vs_ref": "win rate against the reference",
}


def _print_summary(result: RunResult, console: Console) -> None:
    if result.after:
        table = Table("held-out rows", "before", "after", "change", box=None, pad_edge=False)
        for name, label in _SHOWN.items():
            if f"eval_{name}" in result.after:
                start, end = result.before[f"eval_{name}"], result.after[f"eval_{name}"]
                table.add_row(label, f"{start:.4f}", f"{end:.4f}", f"{end - start:+.4f}")
        console.print(table)
    console.print(f"model: {result.model_folder}", markup=False, highlight=False)

"""An iterative run: rounds of rollout, judge and train, each a finished artefact before the next begins.

``round-N/answers.jsonl``, ``round-N/preferences.jsonl`` and ``round-N/model`` each have a manifest. Running the recipe
again skips what is finished, resumes the training that was interrupted, and refuses what another recipe made.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from alignment.artefacts import Artefact, read_rows, write_rows
from alignment.checkpoints import STATE_FILE, last_checkpoint
from alignment.config import Recipe, build_arguments
from alignment.data import EncodedRow, Row, encode_rows, stop_token_ids
from alignment.data.rows import describe_skipped
from alignment.errors import UserError
from alignment.folders import RunFiles, RunResult, check_same_recipe, write_header
from alignment.generation import Engine, build_engine, check_engine
from alignment.models import load_causal_model, load_policy, load_tokenizer, lora_config
from alignment.oracles import build_oracle
from alignment.policies import CausalLMPolicy
from alignment.preparation import prepare_data, write_report
from alignment.rounds import answer_prompts, compare_answers, win_rate
from alignment.trainer import PreferenceTrainer
from alignment.types import Oracle, Past


def run(recipe: Recipe) -> RunResult:
    """Train by an iterative recipe, one round after the other.

    Returns:
        The last round's model, with its win rate against the reference where prompts are held out.

    Raises:
        UserError: for anything in data or recipe that cannot be trained on, and for a run folder of another recipe.
    """
    args = build_arguments(recipe)
    if args.world_size > 1:
        raise UserError(
            f"schedule.kind: rounds run on one process for now, the launch has {args.world_size}; a round from a data "
            "set (schedule.first: dataset) runs on many"
        )
    check_engine(args.engine, args.engine_options)
    folder = Path(recipe.output_dir)
    check_same_recipe(folder, recipe.to_yaml())
    console = Console(stderr=True, soft_wrap=True)

    def announce(line: str) -> None:
        console.print(line, markup=False, highlight=False)

    set_seed(recipe.seed)
    data = prepare_data(recipe.data, seed=recipe.seed, announce=announce)
    tokenizer = load_tokenizer(recipe.policy, data.train)
    if not (folder / "recipe.yaml").exists():
        write_header(folder, recipe.to_yaml(), None)
    write_report(data, folder)
    assert recipe.oracle is not None
    campaign = _Campaign(
        recipe=recipe,
        folder=folder,
        tokenizer=tokenizer,
        oracle=build_oracle(recipe.oracle, args.device),
        prompts=_encode("training prompts", data.train, tokenizer, recipe, announce),
        held_out=_encode("held-out prompts", data.evaluation, tokenizer, recipe, announce),
        device=args.device,
        engine=build_engine(
            args.engine,
            args.engine_options,
            tokenizer,
            lora_rank=None if recipe.policy.lora is None else recipe.policy.lora.rank,
        ),
        announce=announce,
    )
    if campaign.held_out and not campaign.engine.takes_weights:
        announce(f"note: the engine '{args.engine}' keeps its weights; held-out answers are drawn by transformers")
    made_by: dict[str, Any] = {"policy": recipe.policy.model_dump(mode="json", exclude_none=True), "seed": recipe.seed}
    origin = Artefact(folder / "start", made_by).fingerprint
    rates = {}
    for number in range(1, recipe.schedule.rounds + 1):
        model = campaign.play(number, origin)
        origin = model.fingerprint
        rates = {name: value for name, value in model.notes()["metrics"].items() if name.startswith("win_rate")}
    campaign.engine.close()
    model_folder = folder / "final"
    shutil.rmtree(model_folder, ignore_errors=True)
    shutil.copytree(campaign.model_folder(recipe.schedule.rounds), model_folder)
    (folder / "summary.json").write_text(json.dumps({"before": {}, "after": rates}, indent=1) + "\n")
    announce(f"model: {model_folder}")
    return RunResult(folder=folder, model_folder=model_folder, before={}, after=rates)


def _encode(
    name: str,
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    announce: Callable[[str], None],
) -> tuple[EncodedRow, ...]:
    if not rows:
        return ()
    bare = [Row(prompt=row.prompt, weight=row.weight, source=row.source) for row in rows]
    result = encode_rows(
        bare,
        tokenizer,
        max_prompt_length=recipe.data.max_prompt_length,
        max_completion_length=recipe.sampling.max_new_tokens,
    )
    announce(f"{name}: {result.summary()}")
    return result.rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Campaign:
    """What all rounds share."""

    recipe: Recipe
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    oracle: Oracle
    prompts: tuple[EncodedRow, ...]
    held_out: tuple[EncodedRow, ...]
    device: torch.device
    engine: Engine
    announce: Callable[[str], None]

    def model_folder(self, number: int) -> Path:
        """Where a round leaves its model."""
        return self.folder / f"round-{number}" / "model"

    def play(self, number: int, origin: str) -> Artefact:
        """One round; the stages that are finished are skipped."""
        recipe, folder = self.recipe, self.folder / f"round-{number}"
        tree = recipe.model_dump(mode="json", exclude_none=True)
        schedule = tree["schedule"]
        answers = Artefact(
            folder / "answers.jsonl",
            {"policy": origin, "data": tree["data"], "sampling": tree["sampling"], "seed": recipe.seed}
            | (
                {"prompts": {"of": "split", "rounds": recipe.schedule.rounds}} if schedule["prompts"] == "split" else {}
            ),
        )
        preferences = Artefact(
            folder / "preferences.jsonl",
            {"answers": answers.fingerprint, "oracle": recipe.oracle, "pairs": schedule["pairs"]},
        )
        model = Artefact(
            folder / "model",
            {
                "preferences": preferences.fingerprint,
                "policy": origin,
                "method": recipe.method,
                "training": recipe.training,
                "anchors": tree["anchors"],
            },
        )
        if not answers.is_finished():
            self._answer(number, answers)
        if not preferences.is_finished():
            self._compare(number, answers, preferences)
        if model.is_finished():
            self.announce(f"round {number}: finished before, {self._describe(model.notes()['metrics'])}")
            return model
        self._train(number, preferences, model)
        return model

    def _answer(self, number: int, answers: Artefact) -> None:
        prompts = self.prompts
        if self.recipe.schedule.prompts == "split":
            prompts = prompts[number - 1 :: self.recipe.schedule.rounds]
        policy = self._speaker(self._policy(number - 1), self.engine)
        rows = answer_prompts(
            policy,
            prompts,
            num_completions=self.recipe.sampling.num_completions,
            batch_size=self._batch_size,
            generator=self._generator(number, 0),
        )
        empty = sum(not text for item in rows for text in item.row.responses)
        write_rows(answers.path, rows)
        answers.finish(rows=len(rows), empty_answers=empty)
        noted = f", {empty:,} of them empty" if empty else ""
        self.announce(
            f"round {number}: {len(rows) * self.recipe.sampling.num_completions:,} answers to {len(rows):,} prompts"
            f"{noted}"
        )

    def _compare(self, number: int, answers: Artefact, preferences: Artefact) -> None:
        compared = compare_answers(
            read_rows(answers.path),
            self.oracle,
            pairs=self.recipe.schedule.pairs,
            batch_size=self._batch_size,
            generator=self._generator(number, 1),
        )
        if not compared.rows:
            raise UserError(
                f"round {number}: no prompt has answers that can be compared ({describe_skipped(compared.skipped)}); "
                "raise sampling.temperature or sampling.num_completions"
            )
        write_rows(preferences.path, compared.rows)
        preferences.finish(rows=len(compared.rows), skipped={why: len(who) for why, who in compared.skipped.items()})
        count = sum(len(item.row.comparisons) for item in compared.rows)
        skipped = f"; {describe_skipped(compared.skipped)}" if compared.skipped else ""
        self.announce(f"round {number}: {count:,} comparisons of {len(compared.rows):,} prompts{skipped}")

    def _train(self, number: int, preferences: Artefact, model: Artefact) -> None:
        recipe, folder = self.recipe, model.path.parent
        args = build_arguments(recipe, output_dir=str(folder))
        set_seed(recipe.seed + number)
        policy = self._policy(number - 1)
        is_adapter = recipe.policy.lora is not None
        reference = self._reference()
        method = recipe.build_method()
        trainer = PreferenceTrainer(
            model=policy,
            # The base model without its adapter is the reference of an adapter.
            ref_model=reference,
            past_models=self._past(number),
            args=args,
            train_dataset=read_rows(preferences.path),
            processing_class=self.tokenizer,
            peft_config=lora_config(recipe.policy.lora, "CAUSAL_LM")
            if recipe.policy.lora is not None and not isinstance(policy, PeftModel)
            else None,
            method=method,
            callbacks=[RunFiles(folder, recipe.to_yaml(), round=number)],
        )
        whole = list(folder.glob(f"checkpoint-*/{STATE_FILE}"))
        checkpoint = last_checkpoint(folder) if whole else None
        write_header(folder, recipe.to_yaml(), checkpoint)
        if checkpoint is not None:
            check_same_recipe(checkpoint, recipe.to_yaml())
            self.announce(f"round {number}: resuming from {checkpoint}")
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        metrics = self._metrics(trainer, number, reference=reference, is_adapter=is_adapter)
        partial = folder / "model.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(model.path, ignore_errors=True)
        trainer.save_model(str(partial))
        partial.rename(model.path)
        model.finish(metrics=metrics)
        for path in folder.glob("checkpoint-*"):
            shutil.rmtree(path)
        self.announce(f"round {number}: trained, {self._describe(metrics)}")

    def _metrics(
        self, trainer: PreferenceTrainer, number: int, *, reference: PreTrainedModel | None, is_adapter: bool
    ) -> dict[str, float]:
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        metrics = {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}
        if not self.held_out:
            return metrics
        if is_adapter:
            with trainer.model.disable_adapter():
                theirs = self._held_out_answers(trainer.model, 0)
        else:
            theirs = self._held_out_answers(reference or self._policy(0), 0)
        rate = win_rate(self._held_out_answers(trainer.model, number), theirs, self.oracle)
        return metrics | {f"win_rate_{name}": value for name, value in asdict(rate).items()}

    def _held_out_answers(self, model: Any, number: int) -> tuple[EncodedRow, ...]:
        return answer_prompts(
            self._speaker(model, self.engine if self.engine.takes_weights else None, temperature=1.0),
            self.held_out,
            num_completions=1,
            batch_size=self._batch_size,
            generator=self._generator(number, 2),
        )

    def _describe(self, metrics: dict[str, float]) -> str:
        parts = []
        if "last_loss" in metrics:
            parts.append(f"loss {metrics['first_loss']:.4f} -> {metrics['last_loss']:.4f}")
        if "win_rate_mean" in metrics:
            parts.append(
                f"win rate against the reference {metrics['win_rate_mean']:.3f} "
                f"+- {metrics['win_rate_half_width']:.3f} on {metrics['win_rate_num_prompts']} held-out prompts"
            )
        return ", ".join(parts) or "nothing was logged"

    def _policy(self, number: int) -> Any:
        """The policy after a round; round 0 is the start, without an adapter."""
        spec = self.recipe.policy
        if number == 0:
            return load_policy(spec, self.tokenizer, seed=self.recipe.seed).to(self.device)
        if spec.lora is None:
            return load_causal_model(str(self.model_folder(number)), spec).to(self.device)
        base = load_policy(spec, self.tokenizer, seed=self.recipe.seed)
        return PeftModel.from_pretrained(base, str(self.model_folder(number)), is_trainable=True).to(self.device)

    def _reference(self) -> PreTrainedModel | None:
        """The reference, where it is no adapter's base model."""
        spec = self.recipe.policy
        if spec.ref_model is not None:
            return load_causal_model(spec.ref_model, spec)
        return None if spec.lora is not None else self._policy(0)

    def _past(self, number: int) -> list[Any]:
        """Policies at the start of earlier rounds, the latest first, as many as the method reads."""
        needs = self.recipe.build_method().needs
        window = max((spec.window for spec in needs.anchors if isinstance(spec, Past)), default=1)
        return [self._policy(earlier) for earlier in range(number - 2, max(-1, number - 1 - window), -1)]

    def _speaker(self, model: Any, engine: Engine | None, *, temperature: float | None = None) -> CausalLMPolicy:
        sampling = self.recipe.sampling
        if engine is not None:
            # Another model than before, or the same one trained further.
            engine.refresh()
        is_plain = temperature is not None
        return CausalLMPolicy(
            model,
            self.tokenizer,
            stop_token_ids=stop_token_ids(self.tokenizer),
            temperature=sampling.temperature if temperature is None else temperature,
            max_new_tokens=sampling.max_new_tokens,
            top_k=None if is_plain else sampling.top_k,
            engine=engine,
        )

    @property
    def _batch_size(self) -> int:
        return max(1, build_arguments(self.recipe).eval_batch_size)

    def _generator(self, number: int, stage: int) -> torch.Generator:
        """Another seed for every round and stage, a function of them: a stage done again gives the same."""
        return torch.Generator().manual_seed((self.recipe.seed * 10_007 + number) * 11 + stage)

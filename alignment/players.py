"""A player of an iterative run: one policy with its oracle, and the artefacts of its rounds. Most runs have one player.

A round goes answers -> preferences -> one model for each fit of the method; the last fit's model is the round's. What
made an artefact is a function of the round alone, so that each stage can be done, skipped or refused by itself.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from alignment import types
from alignment.anchors import FrozenPolicy
from alignment.artefacts import Artefact, read_rows, write_rows
from alignment.batches import WIN_RATE_LENGTH, EncodedRows, check_context, num_positions
from alignment.checkpoints import STATE_FILE, last_checkpoint
from alignment.config import Recipe, build_arguments, build_callbacks, build_measures
from alignment.data import EncodedRow, stop_token_ids
from alignment.data.rows import describe_skipped
from alignment.diagnosis import known_failures
from alignment.errors import UserError
from alignment.folders import RunFiles, check_same_recipe, deciding_training, write_header, write_samples
from alignment.generation import Engine
from alignment.oracles import content_digest, deciding_keys, num_questions
from alignment.policies import CausalLMPolicy
from alignment.progress import Announce
from alignment.ranks import Ranks
from alignment.round_models import RoundModels
from alignment.rounds import answer_prompts, compare_answers
from alignment.seeds import seed_of, seeds_of
from alignment.trainer import PreferenceTrainer
from alignment.types import Oracle, Past
from alignment.weights import TrainableWeights, forget_models


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """What a player reaches.

    Attributes:
        before: metrics at the start, by name.
        after: after the last round.
        average: of the average of all rounds, where it is kept.
        seconds: of all stages.
        oracle_calls: questions to its oracle.
    """

    before: dict[str, float]
    after: dict[str, float]
    average: dict[str, float]
    seconds: float
    oracle_calls: int


class Player:
    """A policy with its oracle in an iterative run.

    Args:
        name: empty for the only player.
        recipe: with this player's oracle and method.
        folder: where its rounds are.
        tokenizer: of the policy.
        prompts: encoded, without answers.
        held_out: likewise.
        device: where models go.
        ranks: the processes of the launch.
        batch_size: prompts that a process answers or asks about at once.
        effective_batch: prompts of an optimizer step, of all processes of this launch.
        announce: is told what was done.

    Attributes:
        engine: draws the answers; ``None`` where the stages that are to be done draw none.
        oracle: who compares its answers; ``None`` where none are compared.
        judge: who compares those to held-out prompts with the reference's; ``None`` where nothing is trained.
    """

    def __init__(
        self,
        *,
        name: str,
        recipe: Recipe,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        prompts: tuple[EncodedRow, ...],
        held_out: tuple[EncodedRow, ...],
        device: torch.device,
        ranks: Ranks,
        batch_size: int,
        effective_batch: int,
        announce: Announce,
    ) -> None:
        self.name, self.recipe, self.folder, self.tokenizer = name, recipe, folder, tokenizer
        self.prompts, self.held_out, self.ranks = prompts, held_out, ranks
        self.engine: Engine | None = None
        self.oracle: Oracle | None = None
        self.judge: Oracle | None = None
        self._prompts_digest = EncodedRows(prompts).digest()
        self.label = f" of {name}" if name else ""
        self._announce, self._batch_size = announce, batch_size
        self._effective_batch = effective_batch
        self._method = recipe.build_method()
        self._measures = build_measures(recipe)
        self._tree = recipe.model_dump(mode="json", exclude_none=True)
        self._others: Mapping[str, Player] = {}
        self._known: dict[tuple[str, int, int], Artefact] = {}
        self._models = RoundModels(recipe, tokenizer, device, self.start())

    def meet(self, others: Mapping[str, "Player"]) -> None:
        """Learn who the other players are."""
        self._others = others

    # What there is ---------------------------------------------------------------------------------------------------

    def start(self) -> Artefact:
        """The policy before the first round; it has no file of its own."""
        made_by = {"policy": self._tree["policy"], "seed": self.recipe.seed}
        return self._once("start", 0, 0, lambda: (self.folder / "start", made_by))

    def answers(self, number: int) -> Artefact:
        """What the policy says at the start of a round."""
        # Whether tokens are cached decides nothing.
        data = {key: value for key, value in self._tree["data"].items() if key != "cache"}
        made_by: dict[str, Any] = {"data": data, "sampling": self._tree["sampling"], "seed": self.recipe.seed}
        made_by["content of the prompts"] = self._prompts_digest
        if self.recipe.schedule.prompts == "split":
            made_by["prompts"] = {"of": "split", "rounds": self.recipe.schedule.rounds}
        return self._once(
            "answers",
            number,
            0,
            lambda: (
                self._round(number) / "answers.jsonl",
                {"policy": self.policy_after(number - 1).fingerprint} | made_by,
            ),
        )

    def preferences(self, number: int) -> Artefact:
        """What the oracle says of them."""
        assert self.recipe.oracle is not None
        oracle = self.recipe.oracle
        made_by = {"oracle": deciding_keys(oracle), "content of the oracle": content_digest(oracle)}
        made_by["pairs"] = self.recipe.schedule.pairs
        return self._once(
            "preferences",
            number,
            0,
            lambda: (
                self._round(number) / "preferences.jsonl",
                {"answers": self.answers(number).fingerprint} | made_by,
            ),
        )

    def fit(self, number: int, index: int) -> Artefact:
        """The model of a round's fit, from 0; the last one is the round's."""
        is_last = index == self._method.needs.fits - 1

        def make() -> tuple[Path, dict[str, Any]]:
            training = self.recipe.training
            made_by: dict[str, Any] = {
                "preferences": self.preferences(number).fingerprint,
                "policy": self._start_of(number, index).fingerprint,
                "method": self.recipe.method,
                "training": deciding_training(training, batches_are_compared=True),
            }
            if training.get("load_best_model_at_end"):
                # Else an evaluation only looks, and a checkpoint is gone afterwards.
                made_by |= {"training": training, "evaluation": self._tree.get("evaluation")}
            rivals = {rival: self._others[rival].policy_after(number - 1).fingerprint for rival in self._rivals}
            folder = self._round(number) if is_last else self._round(number) / f"fit-{index + 1}"
            return folder / "model", made_by | ({"players": rivals} if rivals else {})

        return self._once("fit", number, index, make)

    def policy_after(self, number: int) -> Artefact:
        """The policy after a round; round 0 is the start."""
        return self.fit(number, self._method.needs.fits - 1) if number else self.start()

    def frozen_after(self, number: int, *, beside: Any) -> FrozenPolicy:
        """The policy after a round, to be read while the model beside it is trained."""
        return self._models.frozen(self.policy_after(number), beside=beside)

    def has_finished(self, number: int) -> bool:
        """Whether the round's model is there.

        Raises:
            UserError: if it was made by something else.
        """
        return self.policy_after(number).is_finished()

    def has_done(self, number: int, stage: str) -> bool:
        """Whether a stage of a round has left what it makes; what ``annotate`` stores is found when it is looked for.

        Raises:
            UserError: if it was made by something else.
        """
        if stage == "annotate":
            return False
        made = {"rollout": self.answers, "judge": self.preferences, "train": self.policy_after}[stage]
        return made(number).is_finished()

    def _start_of(self, number: int, index: int) -> Artefact:
        """Where a fit starts: at the policy that sampled, or, of several fits, at the one before it (see ``Needs``)."""
        if index > 0:
            return self.fit(number, index - 1)
        if self._method.needs.fits == 1 or number == 1:
            return self.policy_after(number - 1)
        return self.fit(number - 1, 0)

    @property
    def _rivals(self) -> tuple[str, ...]:
        """The other players that the method reads."""
        return tuple(spec.name for spec in self._method.needs.anchors if isinstance(spec, types.Player))

    def _round(self, number: int) -> Path:
        return self.folder / f"round-{number}"

    def _once(self, kind: str, number: int, index: int, make: Callable[[], tuple[Path, dict[str, Any]]]) -> Artefact:
        key = (kind, number, index)
        if key not in self._known:
            self._known[key] = Artefact(*make())
        return self._known[key]

    # What is done ----------------------------------------------------------------------------------------------------

    def advance(self, number: int, stage: str) -> None:
        """One stage of a round: ``rollout``, ``judge``, ``annotate`` or ``train``; what is finished is skipped."""
        answers, preferences = self.answers(number), self.preferences(number)
        if stage == "rollout" and not answers.is_finished():
            self._answer(number, answers)
        if stage == "judge" and not preferences.is_finished():
            self._compare(number, answers, preferences)
        if stage == "annotate":
            # The trainer stores what it reads; a later fit starts from a model that is not there yet.
            self._make_trainer(number, 0)
            forget_models()
        if stage == "train":
            # The rounds are one training, whatever launches they are divided over.
            self._check_batch(self._start_of(number, 0))
            for index in range(self._method.needs.fits):
                model = self.fit(number, index)
                if model.is_finished():
                    self._check_batch(model)
                    described = _describe(model.notes()["metrics"])
                    self._say(number, f"{self._name_of(index)}finished before, {described}")
                else:
                    self._train(number, index, model)
                    forget_models()
                # The next fit reads what the first process writes.
                self.ranks.wait()
        # So do others.
        self.ranks.wait()

    def check_before(self, number: int, stage: str) -> None:
        """What a stage that runs by itself expects.

        Raises:
            UserError: if the stage before it has not been done.
        """
        if stage == "judge" and not self.answers(number).is_finished():
            raise UserError(
                f"{self.answers(number).path}: expected the answers of round {number}, found none; run "
                "`alignment rollout` first"
            )
        if stage == "annotate" and not self.preferences(number).is_finished():
            raise UserError(
                f"{self.preferences(number).path}: expected the comparisons of round {number}, found none; run "
                "`alignment judge` first"
            )

    def _check_batch(self, model: Artefact) -> None:
        """Refuse to go on from a model that was trained with another effective batch than this launch has."""
        if model == self.start():
            return
        before = model.notes()["effective_batch"]
        if before != self._effective_batch:
            raise UserError(
                f"{model.path}: trained with an effective batch of {before} prompts, and this launch on "
                f"{self.ranks.count} process(es) has {self._effective_batch}; change per_device_train_batch_size or "
                "gradient_accumulation_steps, or start anew in another output_dir"
            )

    def finish(self, rounds: int) -> Ends:
        """Copy the last round's model to ``final``, average where asked, and say what it reaches."""
        average: dict[str, float] = {}
        if self.ranks.is_first:
            final = self.folder / "final"
            shutil.rmtree(final, ignore_errors=True)
            shutil.copytree(self.policy_after(rounds).path, final)
            if self.recipe.average is not None:
                average = self._average(rounds, self.recipe.average.decay)
        metrics = self.policy_after(rounds).notes()["metrics"]
        after = {name: value for name, value in metrics.items() if name.startswith(("win_rate", "exact"))}
        for text in known_failures({}, after):
            self._announce(f"note{self.label}: {text}")
        numbers = range(1, rounds + 1)
        fits = [self.fit(number, index) for number in numbers for index in range(self._method.needs.fits)]
        stages = [*map(self.answers, numbers), *map(self.preferences, numbers), *fits]
        return Ends(
            before=self._named(self._measure(self._models.load(self.start()))) if self._measures else {},
            after=self._named(after),
            average=self._named(average),
            seconds=sum(stage.notes()["seconds"] for stage in stages),
            oracle_calls=sum(self.preferences(number).notes()["questions"] for number in numbers),
        )

    def _measure(self, model: Any) -> dict[str, float]:
        return {name: value for measure in self._measures for name, value in measure(model).items()}

    def _named(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Of one of several players, with its name."""
        prefix = f"{self.name}." if self.name else ""
        return {f"{prefix}{name}": value for name, value in metrics.items()}

    def _say(self, number: int, line: str) -> None:
        self._announce(f"round {number}{self.label}: {line}")

    def _name_of(self, index: int) -> str:
        return f"fit {index + 1} " if self._method.needs.fits > 1 else ""

    def _answer(self, number: int, answers: Artefact) -> None:
        prompts = self.prompts
        if self.recipe.schedule.prompts == "split":
            prompts = prompts[number - 1 :: self.recipe.schedule.rounds]
        started = time.perf_counter()
        policy = self._speaker(self._models.load(self.policy_after(number - 1)))
        limit = num_positions(policy.model.config)
        check_context((*self.prompts, *self.held_out), limit, max_new_tokens=self.recipe.sampling.max_new_tokens)
        check_context(self.held_out, limit, max_new_tokens=self.recipe.longest_answer, named=WIN_RATE_LENGTH)
        rows = answer_prompts(
            policy,
            prompts,
            num_completions=self.recipe.sampling.num_completions,
            batch_size=self._batch_size,
            seeds=self._seeds(number, "answers", len(prompts)),
            ranks=self.ranks,
        )
        empty = sum(not text for item in rows for text in item.row.responses)
        if self.ranks.is_first:
            write_rows(answers.path, rows)
            answers.finish(rows=len(rows), empty_answers=empty, seconds=time.perf_counter() - started)
        noted = f", {empty:,} of them empty" if empty else ""
        count = len(rows) * self.recipe.sampling.num_completions
        self._say(number, f"{count:,} answers to {len(rows):,} prompts{noted}")

    def _compare(self, number: int, answers: Artefact, preferences: Artefact) -> None:
        assert self.oracle is not None
        started, asked_before = time.perf_counter(), num_questions(self.oracle)
        rows = read_rows(answers.path)
        compared = compare_answers(
            rows,
            self.oracle,
            pairs=self.recipe.schedule.pairs,
            keep_alike=self._method.needs.feedback == "wins",
            batch_size=self._batch_size,
            seeds=self._seeds(number, "pairs", len(rows)),
            ranks=self.ranks,
        )
        if not compared.rows:
            raise UserError(
                f"round {number}{self.label}: no prompt has answers that can be compared "
                f"({describe_skipped(compared.skipped)}); raise sampling.temperature or sampling.num_completions"
            )
        asked = sum(self.ranks.gather([(self.ranks.index, num_questions(self.oracle) - asked_before)]))
        if self.ranks.is_first:
            write_rows(preferences.path, compared.rows)
            skips = {why: len(who) for why, who in compared.skipped.items()}
            seconds = time.perf_counter() - started
            preferences.finish(rows=len(compared.rows), skipped=skips, questions=asked, seconds=seconds)
        count = sum(len(item.row.comparisons) for item in compared.rows)
        skipped = f"; {describe_skipped(compared.skipped)}" if compared.skipped else ""
        self._say(number, f"{count:,} comparisons of {len(compared.rows):,} prompts{skipped}")

    def _make_trainer(self, number: int, index: int) -> PreferenceTrainer:
        """Of a round's fit, before its first step."""
        recipe, folder = self.recipe, self.fit(number, index).path.parent
        # The average is over rounds. Building arguments resets the state of Accelerate: never beside a trainer.
        args = build_arguments(recipe.model_copy(update={"average": None}), output_dir=str(folder))
        # Each fit in an order of its own: one that ends within an epoch would read the same prompts as that before.
        order = recipe.seed if args.data_seed is None else args.data_seed
        args.data_seed = seed_of(order, "order", number, index) % 2**32
        policy = self._models.begin(self._start_of(number, index))
        return PreferenceTrainer(
            model=policy,
            # The base model without its adapter is the reference of an adapter.
            ref_model=self._models.reference(),
            past_models=self._past(number, policy),
            players={rival: self._others[rival].frozen_after(number - 1, beside=policy) for rival in self._rivals},
            args=args,
            train_dataset=read_rows(self.preferences(number).path),
            eval_dataset=self.held_out or None,
            eval_oracle=self.judge,
            measures=self._measures,
            # A server that keeps its weights does not know the policy that is trained.
            engine=self.engine if self.engine is not None and self.engine.takes_weights else None,
            processing_class=self.tokenizer,
            method=self._method,
            callbacks=[RunFiles(folder, recipe.to_yaml(), round=number), *build_callbacks(recipe)],
        )

    def _train(self, number: int, index: int, model: Artefact) -> None:
        recipe, folder = self.recipe, model.path.parent
        trainer = self._make_trainer(number, index)
        whole = list(folder.glob(f"checkpoint-*/{STATE_FILE}"))
        checkpoint = last_checkpoint(folder) if whole else None
        if checkpoint is not None:
            check_same_recipe(checkpoint, recipe.to_yaml(), batches_are_compared=True)
            self._say(number, f"resuming from {checkpoint}")
        self.ranks.wait()
        if self.ranks.is_first:
            write_header(folder, recipe.to_yaml(), checkpoint)
        if index == 0:
            for note in (f"policy: {trainer.describe()}", *trainer.notes):
                self._say(number, note)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        seconds = trainer.training_seconds()
        metrics = _losses(trainer)
        if self.held_out:
            metrics |= {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
        partial = folder / "model.partial"
        if self.ranks.is_first:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(model.path, ignore_errors=True)
        met = () if trainer.match is None else self.ranks.gather(trainer.match.last)
        self.ranks.wait()
        trainer.save_model(str(partial))
        if self.ranks.is_first:
            partial.rename(model.path)
            model.finish(metrics=metrics, seconds=seconds, effective_batch=self._effective_batch)
            if self.held_out and index == self._method.needs.fits - 1:
                write_samples(self.folder, met)
            for path in folder.glob("checkpoint-*"):
                shutil.rmtree(path)
        self._say(number, f"{self._name_of(index)}trained, {_describe(metrics)}")

    def _average(self, rounds: int, decay: float) -> dict[str, float]:
        """The average of the models of all rounds, the start among them, and its exact figures."""
        model = self._models.begin(self.start())
        average = TrainableWeights(model)
        for number in range(1, rounds + 1):
            model = self._models.load(self.policy_after(number))
            average.average_in(model, number=number, decay=decay)
        with average.in_place(model):
            model.save_pretrained(str(self.folder / "average"))
            figures = self._measure(model)
        self.tokenizer.save_pretrained(str(self.folder / "average"))
        return figures

    def _past(self, number: int, policy: Any) -> list[FrozenPolicy]:
        """Policies at the start of earlier rounds, the latest first, as many as the method reads."""
        window = max((spec.window for spec in self._method.needs.anchors if isinstance(spec, Past)), default=1)
        earlier = range(number - 2, max(-1, number - 1 - window), -1)
        return [self.frozen_after(before, beside=policy) for before in earlier]

    def _speaker(self, model: Any) -> CausalLMPolicy:
        sampling = self.recipe.sampling
        assert self.engine is not None
        # Another model than before, or the same one trained further.
        self.engine.refresh()
        return CausalLMPolicy(
            model,
            self.tokenizer,
            stop_token_ids=stop_token_ids(self.tokenizer),
            temperature=sampling.temperature,
            max_new_tokens=sampling.max_new_tokens,
            top_k=sampling.top_k,
            engine=self.engine,
        )

    def _seeds(self, number: int, stage: str, count: int) -> list[int]:
        """One for each prompt of a round's stage: done again, in whatever batches, it gives the same.

        Players share them: those with the same oracle and the same start stay the same.
        """
        return seeds_of(count, self.recipe.seed, number, stage)


def _losses(trainer: PreferenceTrainer) -> dict[str, float]:
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}


def _describe(metrics: Mapping[str, float]) -> str:
    parts = []
    if "last_loss" in metrics:
        parts.append(f"loss {metrics['first_loss']:.4f} -> {metrics['last_loss']:.4f}")
    if "win_rate_vs_ref" in metrics:
        low, high = metrics["win_rate_vs_ref_low"], metrics["win_rate_vs_ref_high"]
        parts.append(
            f"win rate against the reference {metrics['win_rate_vs_ref']:.3f} (95 %: {low:.3f} to {high:.3f}) on "
            f"{metrics['win_rate_num_prompts']} held-out prompts"
        )
    return ", ".join(parts) or "nothing was logged"

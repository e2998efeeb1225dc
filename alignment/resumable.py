"""transformers' Trainer with checkpoints that are whole or not there, and that another launch may continue."""

import dataclasses
import shutil
import time
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import DistributedType
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

from alignment.arguments import AlignmentArguments
from alignment.checkpoints import (
    STATE_FILE,
    Division,
    join_parts,
    last_checkpoint,
    load_state,
    save_state,
    settle_joined,
)
from alignment.errors import BudgetError, UserError


class ResumableTrainer(Trainer):
    """What :class:`alignment.trainer.PreferenceTrainer` is apart from how it trains: saved, continued, described.

    Attributes:
        iteration_steps: optimizer steps of one; checkpoints stand between iterations. Set before ``super().__init__``.
        evaluation_seconds: spent in evaluations so far.
    """

    args: AlignmentArguments
    iteration_steps: int
    evaluation_seconds: float = 0.0
    # When training would have begun if nothing else had taken time: earlier launches count, evaluations do not.
    _began: float | None = None

    @abstractmethod
    def state_beside_weights(self) -> dict[str, Any]:
        """What continues besides weights, optimizer and random numbers, by name. All processes call it."""

    @abstractmethod
    def load_beside_weights(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_beside_weights` gave."""

    @property
    def step_in_iteration(self) -> int:
        """Which optimizer step of its iteration comes next, from 0."""
        return self.state.global_step % self.iteration_steps

    @property
    def sharding(self) -> str | None:
        """How weights or the optimizer's state are divided over processes; ``None`` where each has the whole."""
        if self.args.deepspeed_plugin is not None:
            return f"ZeRO-{self.args.deepspeed_plugin.zero_stage}"
        return "FSDP" if self.is_fsdp_enabled else None

    @property
    def _division(self) -> Division:
        return Division(
            num_processes=self.args.world_size, num_prompts=self.args.effective_batch, sharding=self.sharding
        )

    def describe(self) -> str:
        """What the launch really is: a launcher that silently runs one process is caught by eye here."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        state = self.accelerator.state
        launch = "1 process"
        if state.distributed_type != DistributedType.NO:
            talk = ", ".join(filter(None, (self.sharding, state.backend)))
            launch = f"{state.num_processes} process(es), {state.distributed_type.value} ({talk})"
        return (
            f"{parameters / 1e6:,.1f}M parameters, {trained / 1e6:,.1f}M trained, on {self.args.device}; {launch}; "
            f"effective batch {self.args.effective_batch} prompts"
        )

    def train(self, resume_from_checkpoint: str | bool | None = None, **trainer_options: Any) -> Any:
        """Train; with ``resume_from_checkpoint`` all that :meth:`state_beside_weights` speaks of continues as well.

        Args:
            resume_from_checkpoint: a folder, or true for the last whole checkpoint in ``args.output_dir``.
            **trainer_options: of ``transformers.Trainer.train``, verbatim.

        Raises:
            UserError: if there is no whole checkpoint.
            BudgetError: where the oracle's budget ends; on one process a checkpoint of the last iteration is left.
        """
        self._began = time.perf_counter() - self.evaluation_seconds
        if not resume_from_checkpoint:
            return self._train_within_budget(trainer_options)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(last_checkpoint(self.args.output_dir))
        state = load_state(resume_from_checkpoint)
        if not state["has_optimizer"]:
            raise UserError(
                f"resume_from_checkpoint: expected the optimizer's state in {resume_from_checkpoint}, which "
                "training.save_only_model left out; take its model as policy.model of a new run"
            )
        saved = Division(**{field.name: state[field.name] for field in dataclasses.fields(Division)})
        saved.check_continued_by(self._division)
        if saved.is_zero and saved.num_processes != self.args.world_size:
            join_parts(Path(resume_from_checkpoint), saved.num_processes)
            self.args.deepspeed_plugin.hf_ds_config.config["checkpoint"] = {"load_universal": True}
        self.load_beside_weights(state)
        self._began -= state["seconds"]
        return self._train_within_budget({**trainer_options, "resume_from_checkpoint": resume_from_checkpoint})

    def training_seconds(self) -> float:
        """Of sampling, judging and training so far, in all launches of the run, without evaluations."""
        assert self._began is not None
        return time.perf_counter() - self._began - self.evaluation_seconds

    def _train_within_budget(self, trainer_options: Mapping[str, Any]) -> Any:
        try:
            return super().train(**trainer_options)
        except BudgetError as error:
            # Inside an iteration the weights are nobody's policy, and other processes wait inside the step.
            is_whole = self.state.global_step > 0 and self.step_in_iteration == 0
            if not is_whole or self.args.world_size > 1:
                raise
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            if not (folder / STATE_FILE).exists():
                self._save_checkpoint(self.model, trial=None)
                self.callback_handler.on_save(self.args, self.state, self.control)
            raise BudgetError(f"{error}; {folder} continues it (training.resume_from_checkpoint=last)") from None

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        try:
            return super()._determine_best_metric(metrics, trial)
        except KeyError:
            known = ", ".join(name.removeprefix("eval_") for name in metrics if name.startswith("eval_"))
            asked = self.args.metric_for_best_model
            raise UserError(f"training.metric_for_best_model: expected one of {known}, got '{asked}'") from None

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        assert self.step_in_iteration == 0, "checkpoints are taken after the last step of an iteration"
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            # What is left of one that was broken off would be taken for a part of this one.
            shutil.rmtree(folder, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        # Older ones go when this one is whole.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        # Every process has written its part.
        self.accelerator.wait_for_everyone()
        beside = self.state_beside_weights()
        if self.args.should_save:
            beside |= {"has_optimizer": not self.args.save_only_model, "seconds": self.training_seconds()}
            save_state(folder, beside | dataclasses.asdict(self._division))
            rotate_checkpoints(
                output_dir=str(folder.parent),
                save_total_limit=limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Transformers' own; DeepSpeed has loaded the checkpoint before."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.is_deepspeed_enabled and self.model_wrapped.load_universal_checkpoint():
            settle_joined(self.model_wrapped, Path(checkpoint))

    def _run_epoch(self, *positional: Any, **named: Any) -> None:
        """Transformers' own; nothing where a checkpoint of the last step is continued: it would take one more."""
        if self.state.global_step < self.state.max_steps and not self.control.should_training_stop:
            super()._run_epoch(*positional, **named)
        self.control.should_training_stop |= self.state.global_step >= self.state.max_steps

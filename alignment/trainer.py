"""The one training skeleton: transformers' Trainer with a rollout before the loss and, where needed, two stages."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from accelerate.utils import AutocastKwargs
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
)

from alignment.anchors import AnchorSet, FrozenPolicy, own_anchors
from alignment.annotator import KL_LENGTH, KL_PROMPTS, Annotator, prompts_of_kl
from alignment.arguments import AlignmentArguments
from alignment.batches import (
    WIN_RATE_LENGTH,
    Collator,
    EncodedRows,
    StagedSampler,
    check_context,
    check_feedback,
    counted_once,
    encode_for,
    num_positions,
)
from alignment.data import Batch, EncodedRow, Row, stop_token_ids
from alignment.errors import UserError
from alignment.evaluation import ReferenceMatch
from alignment.functional import preference_metrics
from alignment.generation import build_engine
from alignment.generation.engine import Engine
from alignment.generation.weights import lora_rank
from alignment.groups import GroupWelfare, calibrate, check_panel
from alignment.iterations import (
    AdvanceAnchors,
    HoldAnchors,
    KeepAverage,
    RefreshEngine,
    WholeIterations,
    count_steps,
    per_iteration,
)
from alignment.launch import (
    check_deepspeed,
    check_launch,
    check_precision,
    check_sampling,
    check_stages,
    keep_optimizer,
)
from alignment.logps import choose_scoring, describe_scoring, has_dropout, score
from alignment.methods import build_method
from alignment.metrics import Means
from alignment.optim import ExtraGradient
from alignment.optimizer_options import NamingTrainer, check_follows_steps, check_optimizer
from alignment.oracles import PanelOracle, num_questions, settle
from alignment.policies import CausalLMPolicy
from alignment.resumable import ResumableTrainer
from alignment.rounds import answer_prompts
from alignment.seeds import seeds_of
from alignment.sharding import divide_again, is_divided, refresh_from_optimizer, rounded
from alignment.stages import Annotated, check_needs, describe_foreign_samples, prompt_weights
from alignment.store import store_folder, with_stored_anchors
from alignment.types import LossInputs, LossOutput, Measure, Method, Oracle
from alignment.weights import TrainableWeights, add_adapter

logger = logging.getLogger(__name__)

# Prompts whose answers by the reference give the spread of each reward of a panel.
_CALIBRATION_PROMPTS = 128


class PreferenceTrainer(NamingTrainer, ResumableTrainer):
    """Trains any method: the card says what the loss needs, and this loop supplies it.

    An iteration has as many optimizer steps as the method has stages, or as ``args.steps_per_rollout`` says.
    ``max_steps``, warm-up, logging, saving and evaluation in ``args`` count iterations; ``state.global_step`` counts
    optimizer steps.

    Args:
        model: the policy.
        ref_model: the reference; ``None`` means the start of training (with LoRA: the base model, adapter disabled).
        args: training, sampling and length limits.
        train_dataset: canonical rows, encoded or not; prompts alone suffice where the method samples.
        eval_dataset: rows held out, or ``None``.
        processing_class: the tokenizer.
        oracle: who judges samples; required where the method samples.
        peft_config: makes the policy a LoRA adapter.
        method: a built method, or a recipe's ``method:`` block; a facade has its own.
        method_options: options of a facade's method.
        callbacks: of transformers.
        past_models: policies at the start of earlier rounds, the latest first, for a method that reads them.
        players: the other players' policies by name, for a method that reads them.
        eval_oracle: who judges answers to held-out prompts against those of the reference; ``None`` for ``oracle``.
        measures: functions of the policy whose figures join those of every evaluation.
        engine: draws answers; ``None`` for the one that ``args`` describe where the method samples, else transformers.
        optimizers: optimizer and scheduler to use in place of those that ``args`` describe.

    Attributes:
        notes: how log-probs are computed, and why so, and whose samples are read; for the start of a log.

    Raises:
        UserError: if the method's needs are not met; nothing has been trained then.
    """

    method_name: ClassVar[str | None] = None

    def __init__(
        self,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        args: AlignmentArguments | None = None,
        train_dataset: Sequence[Row] | Sequence[EncodedRow] = (),
        eval_dataset: Sequence[Row] | Sequence[EncodedRow] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        oracle: Oracle | None = None,
        peft_config: PeftConfig | None = None,
        method: Method | Mapping[str, Any] | None = None,
        method_options: Mapping[str, Any] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        past_models: Sequence[FrozenPolicy] = (),
        players: Mapping[str, FrozenPolicy] = MappingProxyType({}),
        eval_oracle: Oracle | None = None,
        measures: Sequence[Measure] = (),
        engine: Engine | None = None,
        optimizers: tuple[Optimizer | None, LRScheduler | None] = (None, None),
    ) -> None:
        self.method = self._resolve_method(method, method_options)
        self.needs = self.method.needs
        check_needs(self.needs)
        self.oracle = oracle if oracle is None or isinstance(oracle, PanelOracle) else settle(oracle)
        self.measures = tuple(measures)
        # What the oracle has been asked for training, by this process.
        self.num_questions = 0
        if processing_class is None:
            raise UserError("expected processing_class=tokenizer, got None")
        if train_dataset is None:
            raise UserError("expected train_dataset=read_rows(...).rows, got None")
        if not isinstance(model, PreTrainedModel | PeftModel):
            raise UserError(
                f"expected model=AutoModelForCausalLM.from_pretrained(...), a model, got {type(model).__name__}"
            )
        if not isinstance(args, AlignmentArguments | None):
            raise UserError(f"expected args=AlignmentArguments(...), got {type(args).__name__}")
        if self.is_online and oracle is None:
            raise UserError(
                "the method samples from the policy and needs an oracle that answers on fresh samples, got None"
            )
        check_panel(self.needs, oracle)
        args = AlignmentArguments(output_dir="runs/trainer") if args is None else args
        check_launch(args)
        if args.deepspeed_plugin is not None:
            check_deepspeed(on_cpu=args.device.type == "cpu")
            check_stages(self.needs, args.deepspeed_plugin)
            if self.needs.stages > 1:
                keep_optimizer(args.deepspeed_plugin)
        self.sampling = args.sampling()
        check_sampling(self.needs, args, engine)
        self.iteration_steps = args.iteration_steps(self.needs)
        check_optimizer(args, iteration_steps=self.iteration_steps, given=optimizers)
        self._stop_token_ids = stop_token_ids(processing_class)
        if peft_config is not None:
            model = add_adapter(model, peft_config)
        check_precision(model, self.needs, args, keeps_average=args.average_decay is not None)
        train_rows = encode_for(self.needs, train_dataset, processing_class, args)
        check_feedback(train_rows, self.needs)
        eval_rows = encode_for(self.needs, eval_dataset, processing_class, args) if eval_dataset else ()
        if not eval_rows and args.eval_strategy != "no":
            raise UserError(
                "eval_strategy: expected held-out rows (eval_dataset, or in a recipe data.evaluation or "
                f"data.eval_fraction), got none with '{args.eval_strategy.value}'"
            )
        judge = self.oracle if eval_oracle is None else eval_oracle
        if args.engine != "enumerate":
            limit = num_positions(model.config)
            if self.is_online:
                check_context((*train_rows, *eval_rows), limit, max_new_tokens=args.max_new_tokens)
            else:
                is_base = ref_model is None and isinstance(model, PeftModel)
                asked = prompts_of_kl(eval_rows, self.needs, args, is_base=is_base)
                check_context(asked, limit, max_new_tokens=args.longest_sample(self.needs), named=KL_LENGTH)
            if judge is not None:
                longest = args.longest_answer(self.needs)
                check_context(eval_rows, limit, max_new_tokens=longest, named=WIN_RATE_LENGTH)
        super().__init__(
            model=model,
            args=count_steps(args, self.iteration_steps),
            data_collator=Collator(processing_class.pad_token_id),
            train_dataset=EncodedRows(train_rows),
            eval_dataset=EncodedRows(eval_rows) if eval_rows else None,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # Under DeepSpeed and FSDP Trainer leaves it where it was loaded until it is divided; it is copied before.
        if self.model.device.type != self.args.device.type:
            self.model.to(self.args.device)
        # compute_loss normalises over the effective batch itself and undoes the division by accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False
        self.engine = self._make_engine() if engine is None else engine
        self.notes = self._choose_scoring()
        if self.is_online:
            self.notes += describe_foreign_samples(self.needs, self.sampling)
        self.anchors = self._make_anchors(ref_model, past_models, players)
        if args.deepspeed_plugin is not None or self.accelerator.is_fsdp2:
            self.add_callback(HoldAnchors(self._hold_anchors))
        self.add_callback(RefreshEngine(self.engine))
        self.add_callback(WholeIterations(self.iteration_steps))
        self.add_callback(AdvanceAnchors(self.anchors, steps_between=self.iteration_steps * self.needs.inner_steps))
        self.average: TrainableWeights | None = None
        if args.average_decay is not None:
            self.average = TrainableWeights(self.model)
            self.add_callback(KeepAverage(self.average, decay=args.average_decay, steps=self.iteration_steps))
        self.match = self._make_match(ref_model, judge)
        if isinstance(oracle, PanelOracle) and oracle.uncalibrated:
            self._calibrate(oracle)
        self.groups = GroupWelfare(self.needs, len(oracle.members)) if isinstance(oracle, PanelOracle) else None
        self._rolled: list[Annotated] = []
        own, reason = own_anchors(
            self.needs, is_fresh=self.args.scoring_behaviour == "fresh", has_noise=has_dropout(self.model)
        )
        self.notes += reason
        self.annotator = Annotator(
            self.needs,
            sampling=self.sampling,
            oracle=self.oracle,
            anchors=self.anchors,
            make_policy=self._make_policy,
            seed=self.args.seed,
            without=own,
        )
        self._means = {"train": Means(), "eval": Means()}

    @property
    def is_online(self) -> bool:
        """Whether responses are sampled from the policy while it trains."""
        return self.needs.samples_in_batches

    def count_oracle_calls(self) -> int:
        """Verdicts that were trained on: questions to the oracle, or what the data set holds. All processes call it."""
        if self.is_online:
            return self._count_questions()
        assert isinstance(self.train_dataset, EncodedRows)
        return sum(item.row.num_verdicts for item in self.train_dataset.rows)

    def _count_questions(self) -> int:
        return int(self._total(torch.tensor(self.num_questions)))

    def _make_engine(self) -> Engine:
        """Who draws the answers; a method that reads a data set needs some only to estimate a KL."""
        if not self.is_online or self.sampling.engine == "enumerate":
            return build_engine("transformers", None, self._tokenizer())
        return build_engine(
            self.sampling.engine,
            self.args.engine_options,
            self._tokenizer(),
            lora_rank=lora_rank(self.model),
            num_processes=self.args.world_size,
        )

    def _make_anchors(
        self,
        ref_model: nn.Module | None,
        past_models: Sequence[FrozenPolicy],
        players: Mapping[str, FrozenPolicy],
    ) -> AnchorSet:
        """The anchors; where their log-probs are stored the rows carry them, and nothing is copied or kept."""
        stores = self.args.store_anchors and bool(self.needs.anchors)
        if stores and (self.is_online or self.needs.per_token):
            raise UserError("store_anchors: expected a method that reads its responses, summed, from a data set")
        for policy in (ref_model, *past_models, *players.values()):
            if isinstance(policy, nn.Module):
                policy.to(self.args.device)
        anchors = AnchorSet(
            self.needs,
            self.model,
            ref_model,
            past_models=past_models,
            players=players,
            copies_start=not stores,
            precision=self._precision,
            on_exchange=self.engine.refresh,
        )
        self.notes += anchors.describe(are_stored=stores)
        if not stores:
            return anchors
        for data in (self.train_dataset, self.eval_dataset):
            if isinstance(data, EncodedRows) and data.has_responses:
                data.rows = with_stored_anchors(
                    data.rows,
                    anchors,
                    folder=store_folder(),
                    batch_size=self.args.eval_batch_size,
                    announce=logger.info,
                    ranks=self.args.ranks,
                )
        return anchors.unread()

    def _hold_anchors(self) -> None:
        if self.accelerator.is_fsdp2:
            self.anchors.divide_as_fsdp2(self.accelerator)
        else:
            self.anchors.hold_as(self.model_wrapped, self.args.deepspeed_plugin.deepspeed_config)

    def _choose_scoring(self) -> tuple[str, ...]:
        """The policy, and whatever is copied from it, is scored as ``args`` say."""
        choose_scoring(self.model, self.args.scoring())
        sharing, *logits = describe_scoring(self.model, self.args.device)
        assert isinstance(self.train_dataset, EncodedRows)
        if self.train_dataset.has_responses:
            shared, dense = self.train_dataset.count_tokens()
            sharing += f"; the training rows have {shared:,} tokens that way, and {dense:,} in rows of one completion"
        return (sharing, *logits)

    def _calibrate(self, panel: PanelOracle) -> None:
        """Put the rewards of a panel on one scale, by two answers of the reference to each of the first prompts."""
        assert isinstance(self.train_dataset, EncodedRows)
        rows = self.train_dataset.rows[:_CALIBRATION_PROMPTS]
        with self.anchors.model("ref") as module:
            module.to(self.args.device)
            answered = answer_prompts(
                self._make_policy(module, 1.0),
                rows,
                num_completions=2,
                batch_size=self.args.eval_batch_size,
                seeds=seeds_of(len(rows), self.args.seed, "calibration"),
                ranks=self.args.ranks,
            )
        calibrate(panel, answered)

    def _precision(self, module: nn.Module) -> AbstractContextManager[None]:
        """That of the policy's forward in training, for what is compared with it, and for the policy before it begins.

        Autocast keeps no casts: weights may be exchanged for others.
        """
        if self.args.deepspeed_plugin is not None:
            return rounded(module, self.accelerator.mixed_precision)
        if self.accelerator.is_fsdp2 and is_divided(module):
            # It rounds weights and inputs by itself; Accelerate puts no autocast around the policy's forward.
            return nullcontext()
        return self.accelerator.autocast(AutocastKwargs(cache_enabled=False))

    def _make_match(self, ref_model: nn.Module | None, oracle: Oracle | None) -> ReferenceMatch | None:
        """Where prompts are held out and somebody judges: the reference's answers, before a weight has moved."""
        if oracle is None or not isinstance(self.eval_dataset, EncodedRows):
            return None

        @contextmanager
        def policy_of(name: str) -> Iterator[nn.Module]:
            if name == "ref" and ref_model is not None:
                with self._precision(ref_model):
                    yield ref_model
                return
            # Without a copy of it the policy is still the start of training.
            is_kept = "ref" in self.anchors.names or isinstance(self.model, PeftModel)
            with self.anchors.model(name if is_kept else "policy") as module:
                yield module

        return ReferenceMatch(
            self.eval_dataset.rows,
            oracle,
            policy_of=policy_of,
            speaker=None if self.sampling.engine == "enumerate" else self._make_speaker,
            temperature=self.args.win_rate_temperature,
            num_completions=self.args.win_rate_completions,
            num_prompts=self.args.win_rate_prompts,
            batch_size=self.args.eval_batch_size,
            seed=self.args.seed,
            process=(self.args.process_index, self.args.world_size),
            shows_progress=self.is_local_process_zero() and not self.args.disable_tqdm,
        )

    def _make_speaker(self, module: nn.Module) -> CausalLMPolicy:
        """Who answers held-out prompts."""
        longest = self.args.longest_answer(self.needs)
        return self._make_policy(module, self.args.win_rate_temperature, max_new_tokens=longest)

    def _make_policy(
        self, module: nn.Module, temperature: float, *, top_k: int | None = None, max_new_tokens: int | None = None
    ) -> CausalLMPolicy:
        """Who samples for a module, answers as long as in training or for the KL unless another length is given."""
        return CausalLMPolicy(
            module,
            self._tokenizer(),
            stop_token_ids=self._stop_token_ids,
            temperature=temperature,
            max_new_tokens=max_new_tokens or self.args.longest_sample(self.needs),
            top_k=top_k,
            engine=self.engine,
        )

    def _resolve_method(self, method: Method | Mapping[str, Any] | None, options: Mapping[str, Any] | None) -> Method:
        if self.method_name is not None:
            if method is not None:
                raise UserError(f"{type(self).__name__} has its own method; give its options in method_options")
            return build_method({"name": self.method_name, **(options or {})})
        if options is not None:
            raise UserError("method_options belong to a facade; give PreferenceTrainer a whole method block")
        if method is None or isinstance(method, str):
            raise UserError(f"expected method={{'name': {method or '...'!r}, ...}}, got {method!r}")
        return build_method(method) if isinstance(method, Mapping) else method

    # Batches ---------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Dataset[EncodedRow] | None = None) -> Sampler[int] | None:
        if self.iteration_steps == 1:
            return super()._get_train_sampler(train_dataset)
        chunk = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        assert isinstance(self.train_dataset, EncodedRows)
        return StagedSampler(
            self.train_dataset.rows,
            chunk=chunk,
            repeats=self.iteration_steps,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Batch]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """All micro-batches of one optimizer step: fetched, sampled, judged and annotated before the first gradient.

        Each stage of a method samples anew; the steps of one rollout share what its first one sampled.

        Returns:
            The annotated micro-batches, and the total weight of their prompts on all ranks.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        # A staged epoch has whole batches only.
        if batches and self.iteration_steps == 1:
            batches[-1] = {"batch": self._counted_once(batches[-1]["batch"], self.train_dataset)}
        if self.step_in_iteration == 0 or self.needs.stages > 1:
            asked_before = num_questions(self.oracle)
            purpose = f"step {self.state.global_step}"
            self._rolled = [self.annotator.annotate(inputs["batch"], purpose) for inputs in batches]
            if self.groups is not None:
                self._rolled = self.groups.combine(self._rolled, self._total, moves=True)
            self.num_questions += num_questions(self.oracle) - asked_before
        annotated = self._rolled
        if self.needs.stages > 1:
            wrapper = self._extragradient()
            wrapper.stage = self.step_in_iteration
            if wrapper.stage > 0:
                # Opponents came from the look-ahead point; the gradient is taken where the iteration started.
                wrapper.rewind()
                if self.is_deepspeed_enabled:
                    refresh_from_optimizer(self.model_wrapped)
                divide_again(self.model)
        total = torch.stack([prompt_weights(item, self.method).sum() for item in annotated]).sum()
        total = self.accelerator.reduce(total, reduction="sum")
        inputs = [
            {"input_ids": item.completions.input_ids_BGT, "annotated": item, "index": i}
            for i, item in enumerate(annotated)
        ]
        return inputs, total

    def _counted_once(self, batch: Batch, rows: Any) -> Batch:
        if self.args.dataloader_drop_last:
            return batch
        return counted_once(batch, self.accelerator.gradient_state, num_rows=len(rows), ranks=self.args.ranks)

    # Loss ------------------------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """This micro-batch's share of ``sum(weight_B loss_B) / sum(weight_B)`` over the effective batch of all ranks.

        Scaled so that Trainer's division by accumulation steps and the averaging of gradients over ranks give exactly
        that quotient.
        """
        assert not return_outputs and num_items_in_batch is not None
        annotated: Annotated = inputs["annotated"]
        x, output = self._forward(model, annotated)
        # Later steps on the same samples read what the first one found.
        self._rolled[inputs["index"]] = replace(annotated, anchors=x.anchors)
        weights_B = output.weight_B * annotated.row_weight_B
        self._record("train", x, output, weights_B, annotated.metrics)
        scale = self.current_gradient_accumulation_steps * self.args.world_size
        # An effective batch without a usable comparison has loss 0, not 0 / 0.
        total = torch.as_tensor(num_items_in_batch).clamp(min=torch.finfo(torch.float32).tiny)
        loss = (weights_B * output.loss_B).sum() * scale / total
        if not loss.isfinite():
            raise UserError(
                f"step {self.state.global_step + 1}: expected a finite loss, found {loss.item()}: the weights have "
                "diverged; lower training.learning_rate, or warm up (training.warmup_steps)"
            )
        return loss

    def _forward(self, model: nn.Module, annotated: Annotated) -> tuple[LossInputs, LossOutput]:
        scores = score(model, annotated.completions, confidence=self.needs.confidence)
        is_token_level = self.needs.per_token or self.needs.confidence
        own = dict.fromkeys(self.annotator.without, scores.logps_BG.detach())
        x = LossInputs(
            logps_BG=scores.logps_BG,
            lengths_BG=annotated.completions.lengths_BG,
            valid_BG=annotated.completions.valid_BG,
            feedback=annotated.feedback,
            weights_BG=annotated.weights_BG,
            anchors=own | dict(annotated.anchors),
            token_logps_BGT=scores.token_logps_BGT if is_token_level else None,
            token_mask_BGT=scores.token_mask_BGT if is_token_level else None,
            token_anchors=annotated.token_anchors,
            token_excess_BGT=scores.token_excess_BGT,
            mismatched_logps_B=self._mismatched_logps(model, annotated),
            mismatched_anchors=annotated.mismatched_anchors,
            batch_mean=self._batch_mean,
        )
        return x, self.method.loss(x)

    @torch.no_grad()
    def _mismatched_logps(self, model: nn.Module, annotated: Annotated) -> Tensor | None:
        return None if annotated.mismatched is None else score(model, annotated.mismatched).logps_BG[:, 0]

    def _total(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor.to(self.args.device), reduction="sum")

    def _batch_mean(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor.detach(), reduction="mean")

    # Optimizer -------------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The optimizer that ``args`` describe, wrapped for extragradient where the method has two stages."""
        optimizer = super().create_optimizer(model)
        if self.needs.stages > 1 and not isinstance(optimizer, ExtraGradient):
            self.optimizer = ExtraGradient(optimizer)
        return self.optimizer

    def _extragradient(self) -> ExtraGradient:
        """Our wrapper inside whatever Accelerate made of the optimizer."""
        optimizer = self.optimizer
        while not isinstance(optimizer, ExtraGradient):
            inner = vars(optimizer).get("optimizer")
            if inner is None:
                raise UserError(
                    f"the method has two stages, but the launch replaced the extragradient optimizer by "
                    f"{type(optimizer).__name__}; leave the optimizer out of the launcher's configuration"
                )
            optimizer = inner
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """The scheduler that ``args`` describe; all steps of an iteration have the same learning rate."""
        is_iterated = self.iteration_steps > 1 and self.lr_scheduler is None
        num_points = num_training_steps // self.iteration_steps if is_iterated else num_training_steps
        scheduler: Any = super().create_scheduler(num_points, optimizer)
        if not is_iterated:
            return scheduler
        check_follows_steps(scheduler, self.iteration_steps)
        scheduler.lr_lambdas = [per_iteration(function, self.iteration_steps) for function in scheduler.lr_lambdas]
        return scheduler

    # Log, evaluate ---------------------------------------------------------------------------------------------------

    def _record(
        self, split: str, x: LossInputs, output: LossOutput, weights_B: Tensor, sampled: Mapping[str, Tensor]
    ) -> None:
        values = {"loss": output.loss_B.detach(), **preference_metrics(x), **output.metrics, **sampled}
        self._means[split].add(values, weights_B)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the method's metrics, and the iteration, to what Trainer logs."""
        if "loss" in logs:
            logs = {**self._means["train"].take(self._total), **logs}
        logs["iteration"] = self.state.global_step // self.iteration_steps
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss and preference metrics on held-out rows; where somebody judges, the win rate against the reference.

        Rows that are prompts alone have no loss where the method reads its responses from data.

        Args:
            eval_dataset: other rows than those held out, encoded or not; for them there is no win rate.
            ignore_keys: of Trainer; not read.
            metric_key_prefix: begins every name.

        Returns:
            Means over prompts, named with the prefix.

        Raises:
            UserError: if there are no rows.
        """
        started = time.perf_counter()
        is_own = eval_dataset is None or eval_dataset is self.eval_dataset
        rows: Any = self.eval_dataset
        if not is_own:
            rows = EncodedRows(encode_for(self.needs, eval_dataset, self._tokenizer(), self.args))
        if not isinstance(rows, EncodedRows):
            raise UserError("evaluate: expected held-out rows, found none; give eval_dataset, here or to the trainer")
        self.model.eval()
        has_loss = self.is_online or rows.has_responses
        kls: list[Tensor] = []
        together = self.args.eval_batch_size * self.args.world_size
        for inputs in self.get_eval_dataloader(rows):
            batch = self._counted_once(inputs["batch"], rows)
            with torch.no_grad():
                if "ref" in self.anchors.names and len(kls) * together < KL_PROMPTS:
                    kls.append(self.annotator.kl_to_ref(batch))
                if not has_loss:
                    continue
                annotated = self.annotator.annotate(batch, "eval")
                if self.groups is not None:
                    (annotated,) = self.groups.combine([annotated], self._total, moves=False)
                with self._precision(self.model):
                    x, output = self._forward(self.model, annotated)
                self._record("eval", x, output, output.weight_B * annotated.row_weight_B, annotated.metrics)
        metrics = self._means["eval"].take(self._total)
        if kls:
            metrics["kl_to_ref"] = float(self.accelerator.gather(torch.cat(kls)).nanmean())
        if self.match is not None and is_own:
            wins_PK = self.match.wins(self.anchors.model, step=self.state.global_step)
            metrics |= self.match.metrics(self.accelerator.gather(wins_PK.to(self.args.device)))
        for measure in self.measures:
            metrics |= measure(self.model)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.model.train()
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.evaluation_seconds += time.perf_counter() - started
        return metrics

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        assert isinstance(self.processing_class, PreTrainedTokenizerBase)
        return self.processing_class

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not estimated: Trainer's rule of thumb knows neither groups nor rollouts."""
        return 0

    # Continue --------------------------------------------------------------------------------------------------------

    @cached_property
    def _rows_digest(self) -> str:
        assert isinstance(self.train_dataset, EncodedRows)
        return self.train_dataset.digest()

    def state_beside_weights(self) -> dict[str, Any]:
        """Slow targets, the panel's state, the count of questions of all processes, which rows, and the average."""
        return {
            "anchors": self.anchors.state_dict(),
            "groups": None if self.groups is None else self.groups.state,
            "num_questions": self._count_questions(),
            "rows": self._rows_digest,
            "average": None if self.average is None else self.average.values,
        }

    def load_beside_weights(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_beside_weights`.

        Raises:
            UserError: if other rows were trained on.
        """
        if state["rows"] != self._rows_digest:
            raise UserError(
                "resume_from_checkpoint: expected the training rows that the checkpoint has seen, found others: the "
                "data have changed; put them back, or start anew"
            )
        self.anchors.load_state_dict(state["anchors"])
        # The count of all, by whatever number of processes.
        self.num_questions = state["num_questions"] if self.is_world_process_zero() else 0
        if self.groups is not None:
            self.groups.state = state["groups"]
        if self.average is not None:
            self.average.load(state["average"])

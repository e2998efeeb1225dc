"""The one training skeleton: transformers' Trainer with a rollout before the loss and, where needed, two stages."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Dataset, Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
)

from alignment.anchors import AnchorSet
from alignment.arguments import AlignmentArguments
from alignment.batches import Collator, EncodedRows, StagedSampler, blanks_filled, check_feedback, rows_to_encode
from alignment.checkpoints import STATE_FILE, last_checkpoint
from alignment.data import (
    Batch,
    EncodedRow,
    Row,
    encode_rows,
    prompt_text,
    stop_token_ids,
    with_mismatched,
)
from alignment.errors import UserError
from alignment.functional import preference_metrics
from alignment.generation import build_engine, check_engine, engine_refusal
from alignment.generation.engine import Engine, check_context
from alignment.generation.weights import lora_rank
from alignment.groups import GroupWelfare, check_panel
from alignment.iterations import AdvanceAnchors, RefreshEngine, WholeIterations, count_stages, per_iteration
from alignment.launch import check_deepspeed
from alignment.methods import build_method
from alignment.optim import ExtraGradient
from alignment.oracles import PanelOracle, ask, preference_matrix
from alignment.policies import CausalLMPolicy, score
from alignment.stages import (
    Annotated,
    annotate,
    annotate_stored,
    check_needs,
    group_wins_of_pairs,
    judge,
    probabilities,
    prompts_only,
    rollout,
)
from alignment.store import store_folder, with_stored_anchors
from alignment.types import LossInputs, LossOutput, Method, Oracle

logger = logging.getLogger(__name__)

# Prompts of a process on which an evaluation estimates the KL to the reference: sampling costs more than scoring.
_KL_PROMPTS = 32


class PreferenceTrainer(Trainer):
    """Trains any method: the card says what the loss needs, and this loop supplies it.

    An iteration has as many optimizer steps as the method has stages. ``max_steps``, warm-up, logging, saving and
    evaluation in ``args`` count iterations; ``state.global_step`` counts optimizer steps.

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
        optimizers: optimizer and scheduler to use in place of those that ``args`` describe.

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
        past_models: Sequence[nn.Module] = (),
        optimizers: tuple[Optimizer | None, LRScheduler | None] = (None, None),
    ) -> None:
        self.method = self._resolve_method(method, method_options)
        self.needs = self.method.needs
        check_needs(self.needs)
        self.oracle = oracle
        if processing_class is None:
            raise UserError("expected processing_class=tokenizer, got None")
        if self.is_online and oracle is None:
            raise UserError(
                "the method samples from the policy and needs an oracle that answers on fresh samples, got None"
            )
        check_panel(self.needs, oracle)
        args = AlignmentArguments(output_dir="runs/trainer") if args is None else args
        if args.deepspeed_plugin is not None:
            check_deepspeed(self.needs, on_cpu=args.device.type == "cpu")
        self.sampling = args.sampling()
        self._check_engine(args)
        self._stop_token_ids = stop_token_ids(processing_class)
        if peft_config is not None:
            model = get_peft_model(model, peft_config)
        train_rows = self._encode(train_dataset, processing_class, args)
        check_feedback(train_rows, self.needs)
        super().__init__(
            model=model,
            args=count_stages(args, self.needs.stages),
            data_collator=Collator(processing_class.pad_token_id),
            train_dataset=EncodedRows(train_rows),
            eval_dataset=EncodedRows(self._encode(eval_dataset, processing_class, args)) if eval_dataset else None,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        # compute_loss normalises over the effective batch itself and undoes the division by accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False
        self.anchors = self._make_anchors(ref_model, past_models)
        self.engine = self._make_engine()
        self.add_callback(RefreshEngine(self.engine))
        self.add_callback(WholeIterations(self.needs.stages))
        self.add_callback(AdvanceAnchors(self.anchors, steps_between=self.needs.stages * self.needs.inner_steps))
        self.groups = GroupWelfare(self.needs, len(oracle.members)) if isinstance(oracle, PanelOracle) else None
        # The last stage: the first batch begins an iteration.
        self._stage = self.needs.stages - 1
        self._metrics: dict[str, tuple[float, float]] = {}

    @property
    def is_online(self) -> bool:
        """Whether responses are sampled from the policy while it trains."""
        return self.needs.samples_in_batches

    def _check_engine(self, args: AlignmentArguments) -> None:
        if self.is_online:
            check_engine(args.engine, args.engine_options)
            refusal = engine_refusal(args.engine, self.needs)
            if refusal is not None:
                raise UserError(refusal)

    def _make_engine(self) -> Engine:
        """Who draws the answers; a method that reads a data set needs some only to estimate a KL."""
        if not self.is_online or self.sampling.engine == "enumerate":
            return build_engine("transformers", None, self._tokenizer())
        for data in (self.train_dataset, self.eval_dataset):
            if isinstance(data, EncodedRows):
                lengths = [len(row.prompt_ids) for row in data.rows]
                check_context(self.model, lengths, self.sampling.max_new_tokens)
        return build_engine(
            self.sampling.engine,
            self.args.engine_options,
            self._tokenizer(),
            lora_rank=lora_rank(self.model),
            num_processes=self.args.world_size,
        )

    def _make_anchors(self, ref_model: nn.Module | None, past_models: Sequence[nn.Module]) -> AnchorSet:
        """The anchors; where their log-probs are stored the rows carry them, and nothing is copied or kept."""
        stores = self.args.store_anchors and bool(self.needs.anchors)
        if stores and (self.is_online or self.needs.per_token):
            raise UserError("store_anchors: expected a method that reads its responses, summed, from a data set")
        if ref_model is not None:
            ref_model.to(self.args.device)
        for module in past_models:
            module.to(self.args.device)
        anchors = AnchorSet(self.needs, self.model, ref_model, past_models=past_models, copies_start=not stores)
        if not stores:
            return anchors
        for data in (self.train_dataset, self.eval_dataset):
            if isinstance(data, EncodedRows):
                # One process of a node computes; the others then find its file.
                with self.args.main_process_first(desc="log-probs"):
                    data.rows = with_stored_anchors(
                        data.rows,
                        anchors,
                        folder=store_folder(),
                        batch_size=self.args.eval_batch_size,
                        announce=logger.info,
                    )
        return anchors.unread()

    def _resolve_method(self, method: Method | Mapping[str, Any] | None, options: Mapping[str, Any] | None) -> Method:
        if self.method_name is not None:
            if method is not None:
                raise UserError(f"{type(self).__name__} has its own method; give its options in method_options")
            return build_method({"name": self.method_name, **(options or {})})
        if options is not None:
            raise UserError("method_options belong to a facade; give PreferenceTrainer a whole method block")
        if method is None:
            raise UserError("expected method={'name': ..., ...}, got None")
        return build_method(method) if isinstance(method, Mapping) else method

    def _encode(
        self, rows: Sequence[Row] | Sequence[EncodedRow], tokenizer: PreTrainedTokenizerBase, args: AlignmentArguments
    ) -> tuple[EncodedRow, ...]:
        encoded = tuple(row for row in rows if isinstance(row, EncodedRow))
        if len(encoded) < len(rows):
            plain = tuple(row for row in rows if isinstance(row, Row))
            encoded = encode_rows(
                rows_to_encode(plain, self.needs, args),
                tokenizer,
                max_prompt_length=args.max_prompt_length,
                max_completion_length=args.max_new_tokens if self.is_online else args.max_completion_length,
            ).rows
        return with_mismatched(encoded) if self.needs.mismatched else encoded

    # Batches ---------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Dataset[EncodedRow] | None = None) -> Sampler[int] | None:
        if self.needs.stages == 1:
            return super()._get_train_sampler(train_dataset)
        chunk = self._train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        assert isinstance(self.train_dataset, EncodedRows)
        return StagedSampler(
            self.train_dataset.rows,
            chunk=chunk,
            stages=self.needs.stages,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Batch]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Tensor]:
        """All micro-batches of one optimizer step: fetched, sampled, judged and annotated before the first gradient.

        Returns:
            The annotated micro-batches, and the total weight of their prompts on all ranks.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._stage = (self._stage + 1) % self.needs.stages
        generator = torch.Generator().manual_seed(self._sample_seed())
        annotated = [self._annotate(inputs["batch"], generator) for inputs in batches]
        if self.groups is not None:
            annotated = self.groups.combine(annotated, self._total, moves=True)
        if self.needs.stages > 1:
            wrapper = self._extragradient()
            wrapper.stage = self._stage
            if self._stage > 0:
                # Opponents came from the look-ahead point; the gradient is taken where the iteration started.
                wrapper.rewind()
        total = torch.stack([self._weights(item).sum() for item in annotated]).sum()
        total = self.accelerator.reduce(total, reduction="sum")
        inputs = [{"input_ids": item.completions.input_ids_BGT, "annotated": item} for item in annotated]
        return inputs, total

    def _sample_seed(self) -> int:
        """Another seed for every run, step and rank; a function of them, so that a resumed run samples the same."""
        return (self.args.seed * 1_000_003 + self.state.global_step) * 65_537 + self.args.process_index

    def _annotate(self, batch: Batch, generator: torch.Generator) -> Annotated:
        if not self.is_online:
            completions, feedback = batch.completions, blanks_filled(batch, self.needs.feedback)
            if self.needs.feedback == "wins":
                completions, feedback = group_wins_of_pairs(completions, feedback)
            if batch.anchors:
                return annotate_stored(batch, completions, feedback)
            return annotate(
                completions,
                feedback,
                self.anchors,
                self.needs,
                weights_BG=None,
                row_weight_B=batch.row_weight_B,
                mismatched=batch.mismatched,
            )
        assert self.oracle is not None
        rolled = rollout(
            batch,
            needs=self.needs,
            sampling=self.sampling,
            make_policy=self._make_policy,
            policy_of=self.anchors.model,
            generator=generator,
        )
        feedback = judge(rolled, self.oracle, self.needs)
        return annotate(
            rolled.completions,
            feedback,
            self.anchors,
            self.needs,
            weights_BG=rolled.weights_BG,
            row_weight_B=batch.row_weight_B,
        )

    def _make_policy(self, module: nn.Module, temperature: float) -> CausalLMPolicy:
        return CausalLMPolicy(
            module,
            self._tokenizer(),
            stop_token_ids=self._stop_token_ids,
            temperature=temperature,
            max_new_tokens=self.sampling.max_new_tokens,
            top_k=self.sampling.top_k,
            engine=self.engine,
        )

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
        weights_B = output.weight_B * annotated.row_weight_B
        self._record("train", x, output, weights_B)
        scale = self.current_gradient_accumulation_steps * self.args.world_size
        # An effective batch without a usable comparison has loss 0, not 0 / 0.
        total = torch.as_tensor(num_items_in_batch).clamp(min=torch.finfo(torch.float32).tiny)
        return (weights_B * output.loss_B).sum() * scale / total

    def _forward(self, model: nn.Module, annotated: Annotated) -> tuple[LossInputs, LossOutput]:
        scores = score(model, annotated.completions, confidence=self.needs.confidence)
        is_token_level = self.needs.per_token or self.needs.confidence
        x = LossInputs(
            logps_BG=scores.logps_BG,
            lengths_BG=annotated.completions.lengths_BG,
            valid_BG=annotated.completions.valid_BG,
            feedback=annotated.feedback,
            weights_BG=annotated.weights_BG,
            anchors=annotated.anchors,
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

    def _weights(self, annotated: Annotated) -> Tensor:
        """What each prompt counts for; it depends on feedback and masks only, so zeros stand for log-probs."""
        zeros_BG = torch.zeros(annotated.completions.valid_BG.shape, device=annotated.completions.valid_BG.device)
        zeros_BGT = torch.zeros_like(annotated.completions.completion_mask_BGT, dtype=zeros_BG.dtype)
        x = LossInputs(
            logps_BG=zeros_BG,
            lengths_BG=annotated.completions.lengths_BG,
            valid_BG=annotated.completions.valid_BG,
            feedback=annotated.feedback,
            weights_BG=annotated.weights_BG,
            anchors=dict.fromkeys(self.needs.anchor_columns(), zeros_BG),
            token_logps_BGT=zeros_BGT,
            token_mask_BGT=annotated.completions.completion_mask_BGT,
            token_anchors=dict.fromkeys(self.needs.anchor_columns(), zeros_BGT),
            token_excess_BGT=zeros_BGT if self.needs.confidence else None,
            mismatched_logps_B=zeros_BG[:, 0],
            mismatched_anchors=dict.fromkeys(self.needs.anchor_columns(), zeros_BG[:, 0]),
        )
        with torch.no_grad():
            return self.method.loss(x).weight_B * annotated.row_weight_B

    # Optimizer -------------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The optimizer that ``args`` describe, wrapped for extragradient where the method has two stages."""
        # Older releases take no argument.
        optimizer = super().create_optimizer() if model is None else super().create_optimizer(model)
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
                    f"{type(optimizer).__name__}; with DeepSpeed offload set zero_force_ds_cpu_optimizer: false"
                )
            optimizer = inner
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """The scheduler that ``args`` describe; both stages of an iteration have the same learning rate."""
        stages = self.needs.stages
        if stages == 1 or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        scheduler = super().create_scheduler(num_training_steps // stages, optimizer)
        if not isinstance(scheduler, LambdaLR):
            raise UserError(
                f"lr_scheduler_type: expected one that is a function of the step (linear, cosine, constant, ...) for a "
                f"method with {stages} stages, got {type(scheduler).__name__}"
            )
        scheduler.lr_lambdas = [per_iteration(function, stages) for function in scheduler.lr_lambdas]
        return scheduler

    # Log, evaluate, save ---------------------------------------------------------------------------------------------

    def _record(self, split: str, x: LossInputs, output: LossOutput, weights_B: Tensor) -> None:
        values = {"loss": output.loss_B.detach(), **preference_metrics(x), **output.metrics}
        for name, value_B in values.items():
            total, weight = self._metrics.get(f"{split}_{name}", (0.0, 0.0))
            counted = weights_B * ~value_B.isnan()
            self._metrics[f"{split}_{name}"] = (
                total + float((counted * value_B.nan_to_num()).sum()),
                weight + float(counted.sum()),
            )

    def _take_metrics(self, split: str) -> dict[str, float]:
        """Weighted means since the last call, over all ranks."""
        names = sorted(name for name in self._metrics if name.startswith(f"{split}_"))
        if not names:
            return {}
        sums = torch.tensor([self._metrics.pop(name) for name in names], dtype=torch.float32, device=self.args.device)
        sums = self.accelerator.reduce(sums, reduction="sum")
        means = (sums[:, 0] / sums[:, 1]).tolist()
        return {name.removeprefix(f"{split}_"): value for name, value in zip(names, means, strict=True)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the method's metrics, and the iteration, to what Trainer logs."""
        if "loss" in logs:
            logs = {**self._take_metrics("train"), **logs}
        logs["iteration"] = self.state.global_step // self.needs.stages
        super().log(logs, start_time)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss and preference metrics on held-out rows; where the method samples, the win rate against the reference.

        Returns:
            Means over prompts, named with the prefix.
        """
        self.model.eval()
        generator = torch.Generator().manual_seed(self.args.seed)
        wins: list[Tensor] = []
        kls: list[Tensor] = []
        for inputs in self.get_eval_dataloader(eval_dataset):
            with torch.no_grad():
                if "ref" in self.anchors.names and len(kls) * self.args.eval_batch_size < _KL_PROMPTS:
                    kls.append(self._kl_to_ref(inputs["batch"], generator))
                if self.is_online and "ref" in self.anchors.names:
                    wins.append(self._wins_against_ref(inputs["batch"], generator))
                annotated = self._annotate(inputs["batch"], generator)
                if self.groups is not None:
                    (annotated,) = self.groups.combine([annotated], self._total, moves=False)
                x, output = self._forward(self.model, annotated)
                self._record("eval", x, output, output.weight_B * annotated.row_weight_B)
        metrics = self._take_metrics("eval")
        if kls:
            metrics["kl_to_ref"] = float(self.accelerator.gather(torch.cat(kls)).mean())
        if wins:
            metrics |= self._win_rates(self.accelerator.gather(torch.cat(wins)).mean(0))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.model.train()
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _win_rates(self, means_K: Tensor) -> dict[str, float]:
        """The mean over oracles; of a panel also that of each, and the lowest."""
        rates = {"win_rate_vs_ref": float(means_K.mean())}
        if isinstance(self.oracle, PanelOracle):
            rates |= {
                f"win_rate_vs_ref_{name}": float(mean) for name, mean in zip(self.oracle.names, means_K, strict=True)
            }
            rates["win_rate_vs_ref_worst"] = float(means_K.min())
        return rates

    def _kl_to_ref(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """KL(pi || ref) of each prompt [B], in nats: exact where enumerated; else an unbiased estimate from one sample.

        Of the first ``max_new_tokens`` tokens of an answer. A token counts ``r - 1 - log r`` with r = ref/pi: its mean
        under pi is the token's KL, and it is never negative.
        """
        if self.sampling.engine == "enumerate":
            policy_BG, ref_BG = (
                probabilities(batch.completions, self.anchors.model, name, 1.0) for name in ("policy", "ref")
            )
            return (torch.xlogy(policy_BG, policy_BG) - torch.xlogy(policy_BG, ref_BG)).sum(-1).float()
        with self.anchors.model("policy") as module:
            policy = CausalLMPolicy(
                module,
                self._tokenizer(),
                stop_token_ids=self._stop_token_ids,
                temperature=1.0,
                max_new_tokens=self.sampling.max_new_tokens,
                engine=self.engine,
            )
            answers = policy.sample(prompts_only(batch), num_completions=1, generator=generator)
            logps_BGT = score(module, answers).token_logps_BGT
        with self.anchors.model("ref") as module:
            log_r_BGT = score(module, answers).token_logps_BGT - logps_BGT
        return (torch.expm1(log_r_BGT) - log_r_BGT).sum((1, 2))

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        assert isinstance(self.processing_class, PreTrainedTokenizerBase)
        return self.processing_class

    def _wins_against_ref(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Win probability [B, K] of one response of the policy against one of the reference, both at temperature 1."""
        assert self.oracle is not None
        members = self.oracle.members if isinstance(self.oracle, PanelOracle) else (self.oracle,)
        prompts = [prompt_text(row) for row in batch.rows]
        if self.sampling.engine == "enumerate":
            return torch.stack([self._exact_wins_against_ref(batch, prompts, member) for member in members], dim=-1)
        bare = prompts_only(batch)
        texts = []
        for name in ("policy", "ref"):
            with self.anchors.model(name) as module:
                policy = self._make_policy(module, 1.0)
                answers = policy.sample(bare, num_completions=1, generator=generator)
                texts.append([group[0] for group in policy.texts(answers)])
        wins = [ask(member, prompts, *texts) for member in members]
        return torch.stack(wins, dim=-1).float().to(self.args.device)

    def _exact_wins_against_ref(self, batch: Batch, prompts: Sequence[str], oracle: Oracle) -> Tensor:
        prefs_BGG = preference_matrix(oracle, prompts, [list(row.responses) for row in batch.rows])
        policy_BG, ref_BG = (
            probabilities(batch.completions, self.anchors.model, name, 1.0).cpu() for name in ("policy", "ref")
        )
        return torch.einsum("bi,bij,bj->b", policy_BG, prefs_BGG, ref_BG).float().to(self.args.device)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not estimated: Trainer's rule of thumb knows neither groups nor rollouts."""
        return 0

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        assert self._stage == self.needs.stages - 1, "checkpoints are taken after the last stage of an iteration"
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            state = {"anchors": self.anchors.state_dict(), "groups": None if self.groups is None else self.groups.state}
            torch.save(state, folder / f"{STATE_FILE}.partial")
            (folder / f"{STATE_FILE}.partial").rename(folder / STATE_FILE)

    def train(self, resume_from_checkpoint: str | bool | None = None, **trainer_options: Any) -> Any:
        """Train; with ``resume_from_checkpoint`` the slow targets continue as well as the policy.

        Args:
            resume_from_checkpoint: a folder, or true for the last whole checkpoint in ``args.output_dir``.
            **trainer_options: of ``transformers.Trainer.train``, verbatim.

        Raises:
            UserError: if there is no whole checkpoint.
        """
        if not resume_from_checkpoint:
            return super().train(**trainer_options)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(last_checkpoint(self.args.output_dir))
        state_file = Path(resume_from_checkpoint) / STATE_FILE
        if not state_file.exists():
            raise UserError(f"resume_from_checkpoint: expected a whole checkpoint, found no {state_file}")
        state = torch.load(state_file, map_location=self.args.device)
        self.anchors.load_state_dict(state["anchors"])
        if self.groups is not None:
            self.groups.state = state["groups"].cpu()
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **trainer_options)

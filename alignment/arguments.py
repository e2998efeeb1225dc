"""``AlignmentArguments``: what a trainer is told, on top of ``transformers.TrainingArguments``."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations

from alignment.errors import UserError
from alignment.generation import read_options
from alignment.logps import Layout, Logits, Scoring
from alignment.ranks import Ranks
from alignment.stages import Sampling
from alignment.types import Needs

Freshness = Literal["auto", "fresh"]


def _is_rate(value: float) -> bool:
    return 0 <= value < math.inf


def _is_decay(value: float) -> bool:
    return 0 <= value < 1


def _is_count(value: float) -> bool:
    return value >= 1


# Fields of transformers -> what is in range, and how that is said. Transformers says it in the words of optimizers and
# loaders, after data and models are loaded, or not at all.
_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": (_is_rate, "a finite number of at least 0"),
    "weight_decay": (_is_rate, "a finite number of at least 0"),
    "adam_beta1": (_is_decay, "a number in [0, 1)"),
    "adam_beta2": (_is_decay, "a number in [0, 1)"),
    "adam_epsilon": (_is_rate, "a finite number of at least 0"),
    "max_steps": (lambda value: value == -1 or value >= 1, "at least 1, or -1 for num_train_epochs"),
    "per_device_train_batch_size": (_is_count, "at least 1"),
    "per_device_eval_batch_size": (_is_count, "at least 1"),
    "gradient_accumulation_steps": (_is_count, "at least 1"),
    "dataloader_num_workers": (lambda value: value >= 0, "at least 0"),
}


def range_problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Fields of ``transformers.TrainingArguments`` that no training is possible with, one line each.

    Args:
        values: by field; one that is not there has its default, which is in range.
    """
    for name, (is_in_range, expected) in _RANGES.items():
        if name in values and not is_in_range(values[name]):
            yield f"{name}: expected {expected}, got {values[name]}"
    num_epochs = values.get("num_train_epochs", 1)
    if values.get("max_steps", -1) == -1 and not 0 < num_epochs < math.inf:
        yield f"num_train_epochs: expected a finite number above 0 without max_steps, got {num_epochs}"
    interval = values.get("logging_steps", 1)
    is_whole = interval >= 1 and float(interval).is_integer()
    if values.get("logging_strategy", "steps") == "steps" and not (is_whole or 0 < interval < 1):
        yield f"logging_steps: expected a whole number above 0, or a fraction of the run below 1, got {interval}"


@dataclass
class AlignmentArguments(TrainingArguments):
    """``TrainingArguments`` and how responses are sampled and cut.

    The device is decided here: without CUDA, ``use_cpu`` is true. Columns are never removed, because the collator is
    ours; a loss that is not finite is not logged as 0; and nothing is reported to a tracker unless one is named.

    Attributes:
        num_completions: responses sampled for a prompt.
        temperature: of the sampler; infinite (uniform) only with ``engine="enumerate"``.
        max_new_tokens: the longest sampled response, in tokens; that of an evaluation for the KL to the reference is no
            longer than ``max_completion_length`` where responses come from data.
        engine: ``transformers``, ``vllm`` or ``openai``, or ``enumerate`` for all of ``responses`` with their exact
            probabilities.
        engine_options: of that engine (:mod:`alignment.generation.options`); ``None`` for its defaults.
        responses: the whole response set of an enumerable policy.
        opponent_temperature: of the opponent's sampler.
        opponent_completions: responses of the opponent for a prompt.
        top_k: of both samplers: keep the k most likely tokens; ``None`` for all.
        steps_per_rollout: optimizer steps on one rollout, for a method that allows it; an iteration is that many.
        average_decay: keep an average of the policy's weights over iterations; 1 is the plain mean.
        max_prompt_length: the longest prompt, in tokens; longer ones are skipped and counted.
        max_completion_length: the longest response that is read from data, in tokens; longer ones are cut and counted.
        store_anchors: compute the log-probs of frozen policies once for a data set, before training, and keep them on
            disk: no reference model during training, and no forward of it in a second run.
        scoring_layout: how log-probs are computed: ``prefix`` reads each prompt once for all of its responses,
            ``dense`` once for each, ``auto`` chooses for every batch.
        scoring_logits: ``chunked`` holds a bounded number of logits at a time, ``whole`` all of them, ``auto`` chooses.
        scoring_behaviour: whence come the log-probs of the policy that sampled, for a method that reads them: ``auto``
            takes them from its next forward where it is the same policy still, ``fresh`` from one of their own.
        win_rate_completions: answers to a held-out prompt, of the policy and of the reference, for the win rate.
        win_rate_temperature: of these answers; 0 takes the likeliest token at each step.
        win_rate_max_new_tokens: the longest of them; ``None`` for ``max_new_tokens`` where the method samples, else
            ``max_completion_length``.
        win_rate_prompts: held-out prompts that are answered; ``None`` for all.
    """

    remove_unused_columns: bool = False
    logging_nan_inf_filter: bool = False
    report_to: str | list[str] | None = "none"
    num_completions: int = 2
    temperature: float = 1.0
    max_new_tokens: int = 64
    engine: str = "transformers"
    engine_options: dict[str, Any] | None = None
    responses: list[str] | None = None
    opponent_temperature: float = 1.0
    opponent_completions: int = 1
    top_k: int | None = None
    steps_per_rollout: int = 1
    average_decay: float | None = None
    max_prompt_length: int = 512
    max_completion_length: int = 512
    store_anchors: bool = False
    scoring_layout: Layout = "auto"
    scoring_logits: Logits = "auto"
    scoring_behaviour: Freshness = "auto"
    win_rate_completions: int = 1
    win_rate_temperature: float = 1.0
    win_rate_max_new_tokens: int | None = None
    win_rate_prompts: int | None = None

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if self.remove_unused_columns:
            problems.append("remove_unused_columns: expected False (the collator needs every column), got True")
        if problems:
            raise UserError("\n".join(problems))
        if not torch.cuda.is_available():
            self.use_cpu = True
        super().__post_init__()
        # Several in one process would be DataParallel's, which divides batches that it does not understand.
        self._n_gpu = min(self.n_gpu, 1)

    @property
    def effective_batch(self) -> int:
        """Prompts of an optimizer step, of all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size

    @property
    def ranks(self) -> Ranks:
        """Which of the launch's processes this one is."""
        return Ranks(self.process_index, self.world_size)

    def iteration_steps(self, needs: Needs) -> int:
        """Optimizer steps of an iteration of a method."""
        return needs.stages * self.steps_per_rollout

    def longest_answer(self, needs: Needs) -> int:
        """Tokens of an answer to a held-out prompt, at most."""
        if self.win_rate_max_new_tokens is not None:
            return self.win_rate_max_new_tokens
        return self.max_new_tokens if needs.samples_in_batches else self.max_completion_length

    def longest_sample(self, needs: Needs) -> int:
        """Tokens of an answer that is sampled for training or for the KL to the reference, at most.

        Where responses come from data the policy is asked for no longer ones than it learns from.
        """
        return self.max_new_tokens if needs.samples_in_batches else min(self.max_new_tokens, self.max_completion_length)

    def sampling(self) -> Sampling:
        """How responses are drawn."""
        return Sampling(
            num_completions=self.num_completions,
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            engine=self.engine,
            opponent_temperature=self.opponent_temperature,
            opponent_completions=self.opponent_completions,
            top_k=self.top_k,
        )

    def scoring(self) -> Scoring:
        """How log-probs are computed."""
        return Scoring(layout=self.scoring_layout, logits=self.scoring_logits)


def _problems(args: AlignmentArguments) -> list[str]:
    problems = []
    try:
        read_options(args.engine, args.engine_options)
    except UserError as error:
        problems.append(str(error))
    if (args.engine == "enumerate") != bool(args.responses):
        problems.append("responses: expected the whole response set exactly where engine is 'enumerate'")
    for name in ("temperature", "opponent_temperature"):
        value = vars(args)[name]
        if not value > 0 or (math.isinf(value) and args.engine != "enumerate"):
            problems.append(
                f"{name}: expected a finite number above 0 (infinite for enumerated responses), got {value}"
            )
    kinds = {"scoring_layout": Layout, "scoring_logits": Logits, "scoring_behaviour": Freshness}
    for name, kind in kinds.items():
        if vars(args)[name] not in get_args(kind):
            problems.append(f"{name}: expected one of {', '.join(get_args(kind))}, got {vars(args)[name]}")
    if args.scoring_layout == "prefix" and args.scoring_logits == "whole":
        problems.append("scoring_logits: 'whole' is the model's own forward, which cannot read a prompt once: 'prefix'")
    if args.average_decay is not None and not 0 <= args.average_decay <= 1:
        problems.append(f"average_decay: expected a number in [0, 1], got {args.average_decay}")
    trackers = [args.report_to] if isinstance(args.report_to, str) else args.report_to or []
    for name in {*trackers} - {"none", "all", *get_available_reporting_integrations()}:
        problems.append(f"report_to: expected a tracker that is installed, got {name}; install its package")
    problems += range_problems(vars(args))
    for name in (
        "num_completions",
        "opponent_completions",
        "max_new_tokens",
        "steps_per_rollout",
        "max_prompt_length",
        "max_completion_length",
        "win_rate_completions",
        "win_rate_max_new_tokens",
        "win_rate_prompts",
    ):
        value = vars(args)[name]
        if value is not None and value < 1:
            problems.append(f"{name}: expected at least 1, got {value}")
    if not 0 <= args.win_rate_temperature < math.inf:
        problems.append(
            f"win_rate_temperature: expected a finite number of at least 0, got {args.win_rate_temperature}"
        )
    if args.win_rate_temperature == 0 and (args.win_rate_completions > 1 or args.engine == "enumerate"):
        problems.append("win_rate_temperature: 0 gives one answer to a prompt, sampled: expected a number above 0")
    return problems

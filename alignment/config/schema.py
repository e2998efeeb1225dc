"""The keys of a recipe: types, ranges and defaults. Each key has one owner; a key that nothing reads is an error."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, Field, model_validator

from alignment.config.block import Block
from alignment.config.compose import take_back
from alignment.config.data import DataSpec, plain_data
from alignment.config.parsing import dump_yaml
from alignment.generation.options import PolicyServerOptions, VLLMOptions
from alignment.methods import build_method
from alignment.types import Method, Needs

# Folders of players stand beside what else a run writes, and their policies beside the other anchors of a loss.
_PLAYER = re.compile(r"(?!(?:ref|prev|policy|final|average|past_\d+|round-\d+)$)[A-Za-z0-9_-]+")


class TinySpec(Block):
    """A causal language model of the Llama family with random weights, built from these sizes."""

    vocab_size: int = Field(default=2048, gt=0)
    hidden_size: int = Field(default=128, gt=0)
    num_layers: int = Field(default=2, gt=0)
    num_heads: int = Field(default=4, gt=0)
    intermediate_size: int | None = Field(default=None, gt=0)
    max_position_embeddings: int = Field(default=2048, gt=0)

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"expected hidden_size to be a multiple of num_heads, got {self.hidden_size} and {self.num_heads}"
            )
        return self


class LoRASpec(Block):
    """A low-rank adapter; ``alpha`` is twice the rank unless it is given."""

    rank: int = Field(gt=0)
    alpha: int | None = Field(default=None, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"

    @model_validator(mode="after")
    def _resolve_alpha(self) -> Self:
        if self.alpha is None:
            object.__setattr__(self, "alpha", 2 * self.rank)
        return self


class ModelSpec(Block):
    """The model that is trained."""

    model: str | None = None
    tiny: TinySpec | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    lora: LoRASpec | None = None
    load_in_4bit: bool = False
    attn_implementation: str | None = None
    chat_template: str | None = None

    @model_validator(mode="after")
    def _only_adapters_train_on_quantised_weights(self) -> Self:
        if self.load_in_4bit and (self.lora is None or self.tiny is not None):
            raise ValueError(
                "expected policy.lora and policy.model with policy.load_in_4bit: quantised weights stay fixed"
            )
        return self

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if (self.model is None) == (self.tiny is None):
            found = "neither" if self.model is None else "both (switch one off: policy.tiny=null or policy.model=null)"
            raise ValueError(f"expected exactly one of policy.model and policy.tiny, got {found}")
        return self

    @model_validator(mode="after")
    def _a_tiny_model_has_its_own_template(self) -> Self:
        if self.tiny is not None and self.chat_template is not None:
            raise ValueError(
                "expected policy.chat_template only with policy.model, got it with policy.tiny, whose tokenizer is "
                "made with a template of its own; remove it (policy.chat_template=null)"
            )
        return self


class PolicySpec(ModelSpec):
    """The model that is trained, and the reference that it is compared with (by default: the model before training)."""

    ref_model: str | None = None


class OpponentSpec(Block):
    """How the responses that the policy's are compared with are sampled."""

    temperature: float = Field(default=1.0, gt=0)
    num_completions: int = Field(default=1, gt=0)


class SamplingSpec(Block):
    """How responses are sampled; enumerated ones may have the temperature ``.inf``, which is uniform."""

    num_completions: int = Field(default=2, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=64, gt=0)
    engine: Literal["transformers", "vllm", "openai", "enumerate"] = "transformers"
    continuous_batching: bool | None = None
    vllm: VLLMOptions | None = None
    server: PolicyServerOptions | None = None
    responses: list[str] | None = Field(default=None, min_length=2)
    opponent: OpponentSpec = OpponentSpec()
    top_k: int | None = Field(default=None, gt=0)
    steps_per_rollout: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _only_enumeration_is_uniform(self) -> Self:
        temperatures = (self.temperature, self.opponent.temperature)
        if self.engine != "enumerate" and any(math.isinf(temperature) for temperature in temperatures):
            raise ValueError(f"expected finite temperatures with the engine '{self.engine}', got .inf")
        return self

    @model_validator(mode="after")
    def _options_are_of_the_engine(self) -> Self:
        owners = {"continuous_batching": "transformers", "vllm": "vllm", "server": "openai"}
        for key, owner in owners.items():
            if key in self.model_fields_set and self.engine != owner:
                raise ValueError(f"expected sampling.{key} only with the engine '{owner}', got '{self.engine}'")
        if self.engine == "openai" and self.server is None:
            raise ValueError("expected sampling.server with base_url and model for the engine 'openai', got none")
        return self

    @property
    def engine_options(self) -> dict[str, Any] | None:
        """The keys that belong to the engine; ``None`` for its defaults."""
        if self.continuous_batching is not None:
            return {"continuous_batching": self.continuous_batching}
        block = self.vllm or self.server
        return None if block is None else block.model_dump(exclude_unset=True)

    @model_validator(mode="after")
    def _responses_are_for_enumeration(self) -> Self:
        if (self.engine == "enumerate") != (self.responses is not None):
            found = "none" if self.responses is None else f"a list with the engine '{self.engine}'"
            raise ValueError(f"expected sampling.responses with the engine 'enumerate' and only there, got {found}")
        if self.responses is not None and len(set(self.responses)) < len(self.responses):
            raise ValueError("expected different responses in sampling.responses, got one twice")
        return self


class ScheduleSpec(Block):
    """Who makes the data: nobody (offline), the policy once a round (iterative), the policy in every batch (online).

    Attributes:
        kind: offline, iterative or online.
        rounds: of an iterative method; raised later, a run goes on.
        first: ``dataset`` takes the first and only round's responses and feedback from ``data.preferences``.
        pairs: which pairs of a prompt's answers are compared and trained on: all, one at random, the best against the
            worst, or a knockout tournament. The theory is about the first two.
        prompts: ``all`` of them in every round, or ``split`` evenly over the rounds.
    """

    kind: Literal["offline", "iterative", "online"]
    rounds: int = Field(default=1, gt=0)
    first: Literal["rollout", "dataset"] = "rollout"
    pairs: Literal["all", "random", "best_worst", "knockout"] = "all"
    prompts: Literal["all", "split"] = "all"


class AverageSpec(Block):
    """Keep an average of the policy's weights over iterations, exponential with this decay; 1 is the plain mean."""

    decay: float = Field(ge=0, le=1)


class AnchorsSpec(Block):
    """How the log-probs of frozen policies come about: fresh in every batch, or once for the data set, kept on disk."""

    store: bool = False


class ScoringSpec(Block):
    """How log-probs are computed, which changes their cost and not their value.

    Attributes:
        layout: ``prefix`` reads each prompt once for all of its responses, ``dense`` once for each.
        logits: ``chunked`` holds a bounded number of logits at a time, ``whole`` all of them.
        behaviour: ``auto`` takes the log-probs of the policy that sampled from its next forward, where that is the same
            policy still, ``fresh`` from a forward of their own.
    """

    layout: Literal["auto", "prefix", "dense"] = "auto"
    logits: Literal["auto", "chunked", "whole"] = "auto"
    behaviour: Literal["auto", "fresh"] = "auto"

    @model_validator(mode="after")
    def _own_forward_shares_nothing(self) -> Self:
        if self.layout == "prefix" and self.logits == "whole":
            raise ValueError("expected logits: auto or chunked with layout: prefix, got whole, the model's own forward")
        return self


class PlayerSpec(Block):
    """One of several players: its oracle, and the method's options that are its own."""

    oracle: dict[str, Any]
    method: dict[str, Any] = Field(default_factory=dict)


class EarlyStoppingSpec(Block):
    """Stop after ``patience`` evaluations that better ``training.metric_for_best_model`` by at most ``threshold``."""

    patience: int = Field(gt=0)
    threshold: float = Field(default=0.0, ge=0)


class ExactSpec(Block):
    """Exact figures of a model of the text game; the duality gap is that at this tau, 0 for the unregularised one."""

    tau: float = Field(ge=0, allow_inf_nan=False)


class AnsweringSpec(Block):
    """How prompts are answered that nothing is learned from; temperature 0 takes the likeliest token at each step."""

    num_completions: int = Field(default=1, gt=0)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _greedy_gives_one_answer(self) -> Self:
        if self.temperature == 0 and self.num_completions > 1:
            raise ValueError(
                f"expected num_completions: 1 at temperature 0, which gives one answer, got {self.num_completions}"
            )
        return self


class EvaluationSpec(AnsweringSpec):
    """The win rate against the reference on held-out prompts.

    Attributes:
        every: iterations between two evaluations; ``None`` leaves it to ``training.eval_strategy``.
        oracle: who judges; ``None`` for the training oracle.
        num_completions: answers to a prompt, of the policy and of the reference.
        temperature: of these answers; 0 takes the likeliest token at each step.
        max_new_tokens: the longest of them; ``None`` for what the recipe samples or reads from its data.
        num_prompts: a random choice of so many held-out prompts; ``None`` for all.
        opponents: whom the policy meets.
        exact: also exact figures, where the policy plays the text game.
    """

    every: int | None = Field(default=None, gt=0)
    oracle: dict[str, Any] | None = None
    max_new_tokens: int | None = Field(default=None, gt=0)
    num_prompts: int | None = Field(default=None, gt=0)
    opponents: list[Literal["ref"]] = Field(default=["ref"], min_length=1, max_length=1)
    exact: ExactSpec | None = None


class Recipe(Block):
    """A whole recipe. ``training`` holds fields of ``transformers.TrainingArguments``, verbatim.

    ``players`` stand in place of ``oracle``: each is a policy of its own with its own oracle.
    """

    method: dict[str, Any]
    policy: PolicySpec
    data: DataSpec
    oracle: dict[str, Any] | None = None
    players: dict[str, PlayerSpec] | None = None
    sampling: SamplingSpec = SamplingSpec()
    schedule: ScheduleSpec
    anchors: AnchorsSpec = AnchorsSpec()
    scoring: ScoringSpec = ScoringSpec()
    average: AverageSpec | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    evaluation: EvaluationSpec | None = None
    early_stopping: EarlyStoppingSpec | None = None
    output_dir: str = Field(min_length=1)
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _one_rhythm_of_evaluation(self) -> Self:
        every = None if self.evaluation is None else self.evaluation.every
        said = {"eval_strategy": "steps", "eval_steps": every}
        differing = [
            f"training.{key}: {self.training[key]}" for key in said if self.training.get(key, said[key]) != said[key]
        ]
        if every is not None and differing:
            raise ValueError(
                f"expected the rhythm of evaluation from evaluation.every alone, got {every} there and "
                f"{' and '.join(differing)}; remove one of them"
            )
        return self

    @model_validator(mode="after")
    def _exact_figures_are_of_the_text_game(self) -> Self:
        is_asked = self.evaluation is not None and self.evaluation.exact is not None
        if is_asked and not (self.policy.model or "").startswith("textgame://"):
            raise ValueError(
                "expected policy.model: textgame://model with evaluation.exact: its answers can all be enumerated; got "
                f"{'policy.tiny' if self.policy.model is None else self.policy.model}"
            )
        return self

    @model_validator(mode="after")
    def _early_stopping_has_a_metric(self) -> Self:
        needed = {"load_best_model_at_end": True, "metric_for_best_model": "a metric such as eval_accuracy"}
        missing = [f"training.{key}: {value}" for key, value in needed.items() if not self.training.get(key)]
        if self.early_stopping is not None and missing:
            raise ValueError(f"expected {' and '.join(missing)} with early_stopping".replace("True", "true"))
        return self

    @model_validator(mode="after")
    def _players_have_the_oracles(self) -> Self:
        if self.players is not None and self.oracle is not None:
            raise ValueError("expected oracle or players, got both: each player has its own oracle")
        if self.players is not None and len(self.players) < 2:
            raise ValueError("expected at least two players; a single one needs no name, but an oracle")
        odd = [name for name in self.players or () if not _PLAYER.fullmatch(name)]
        if odd:
            raise ValueError(
                "players: expected names of letters, digits, '_' and '-' that nothing else of a run has, got "
                f"'{odd[0]}'"
            )
        return self

    def by_player(self) -> dict[str, "Recipe"]:
        """The recipe of each player by name; of the only player, without a name, the whole."""
        if self.players is None:
            return {"": self}
        return {
            name: self.model_copy(
                update={"method": {**self.method, **spec.method}, "oracle": spec.oracle, "players": None}
            )
            for name, spec in self.players.items()
        }

    @property
    def judge(self) -> dict[str, Any] | None:
        """The oracle of held-out answers: that of the evaluation, or else of the training."""
        return self.oracle if self.evaluation is None or self.evaluation.oracle is None else self.evaluation.oracle

    @property
    def longest_answer(self) -> int:
        """Tokens of an answer to a held-out prompt, at most."""
        if self.evaluation is not None and self.evaluation.max_new_tokens is not None:
            return self.evaluation.max_new_tokens
        samples = self.samples_in_rounds or self.build_method().needs.samples_in_batches
        return self.sampling.max_new_tokens if samples else self.data.max_completion_length

    @property
    def samples_in_rounds(self) -> bool:
        """Whether each round's responses are sampled from the policy at its start."""
        return self.samples_in_rounds_of(self.build_method().needs)

    def samples_in_rounds_of(self, needs: Needs) -> bool:
        """The same for a method that has these needs, also while its options are mistaken."""
        schedule = self.schedule
        return schedule.kind == "iterative" and schedule.first == "rollout" and needs.schedule == "iterative"

    def build_method(self) -> Method:
        """The method with its options; of several players, that of the first."""
        return build_method(next(iter(self.by_player().values())).method)

    def to_yaml(self) -> str:
        """The resolved recipe as YAML that ``load_recipe`` reads back to an equal one."""
        tree = self.model_dump(mode="python", exclude_none=True)
        # Options of methods and oracles may be null on purpose.
        tree["method"] = dict(self.method)
        if self.oracle is not None:
            tree["oracle"] = dict(self.oracle)
        if self.players is not None:
            tree["players"] = {
                name: {"oracle": dict(spec.oracle)} | ({"method": dict(spec.method)} if spec.method else {})
                for name, spec in self.players.items()
            }
        if not (self.build_method().needs.samples_in_batches or self.samples_in_rounds):
            del tree["sampling"]
        elif self.sampling.vllm is not None:
            # Defaults of the other mode are keys that nothing reads.
            tree["sampling"]["vllm"] = self.sampling.vllm.model_dump(exclude_unset=True)
        if not self.anchors.store:
            del tree["anchors"]
        if self.scoring == ScoringSpec():
            del tree["scoring"]
        tree["data"] = plain_data(tree["data"])
        if self.build_method().needs.schedule != "iterative":
            tree["schedule"] = {"kind": self.schedule.kind}
        elif not self.samples_in_rounds:
            tree["schedule"] = {key: tree["schedule"][key] for key in ("kind", "rounds", "first")}
        return dump_yaml(_plain(tree))


# Blocks in which null means "as if the key were not there", so that an override can take back what a recipe set.
_NULLABLE = (
    *("policy", "data", "sampling", "schedule", "anchors", "scoring", "average", "training", "evaluation"),
    *("early_stopping", "mixture", "prompts", "length_control"),
)


def without_nulls(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree without keys whose value is null; ``method`` and ``oracle`` keep theirs."""
    kept = {key: value for key, value in tree.items() if value is not None}
    return {key: take_back(value) if key in _NULLABLE else value for key, value in kept.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def schema_keys(block: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all keys that the schema itself declares (not the options of methods, oracles, arguments)."""
    for name, spec in block.model_fields.items():
        yield prefix + name
        for nested in _blocks(spec.annotation):
            yield from schema_keys(nested, f"{prefix}{name}.")


def _blocks(kind: Any) -> Iterator[type[BaseModel]]:
    """The blocks that an annotation mentions, at whatever depth."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for part in get_args(kind):
        yield from _blocks(part)

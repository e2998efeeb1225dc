"""A run as its planner sees it: the recipe of one player, its method's needs, its policy, its launch, its rows."""

from dataclasses import dataclass

from transformers.training_args import OptimizerNames

from alignment.arguments import AlignmentArguments
from alignment.config import Recipe
from alignment.config.launch import Launch
from alignment.errors import UserError
from alignment.planning.outline import Outline
from alignment.planning.reading import Lengths
from alignment.types import Behaviour, Ema, Frozen, Needs, Past, Player, Previous

# Moments of a trained number in the state of an optimizer.
_MOMENTS = {"adamw_torch": 2, "adamw_torch_fused": 2, "sgd": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Frozen policies besides the one in training.

    Attributes:
        wholes: models that a device holds for them.
        adapters: adapters alone, likewise.
        forwards: of them whose log-probs are computed; those that are one policy count once.
    """

    wholes: int
    adapters: int
    forwards: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a model reads at a time, at most.

    Attributes:
        rows: R.
        width: W.
        scored: tokens of completions.
        is_shared: whether a row has its prompt once for all of its responses.
    """

    rows: int
    width: int
    scored: int
    is_shared: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is planned.

    Attributes:
        recipe: of one player.
        needs: of its method.
        outline: of its policy.
        launch: who holds what.
        args: of its trainer.
        lengths: of its rows.
    """

    recipe: Recipe
    needs: Needs
    outline: Outline
    launch: Launch
    args: AlignmentArguments
    lengths: Lengths

    @property
    def is_mixed(self) -> bool:
        """Whether launch or recipe ask for bf16 or fp16."""
        return self.launch.is_mixed or self.args.bf16 or self.args.fp16

    @property
    def size(self) -> int:
        """Bytes of a number in which layers compute."""
        return 2 if self.is_mixed or self.recipe.policy.dtype != "float32" else 4

    @property
    def is_autocast(self) -> bool:
        """Whether weights in float32 meet autocast: DeepSpeed and FSDP2 cast weights themselves."""
        return self.is_mixed and self.recipe.policy.dtype == "float32" and self.launch.sharding in ("none", "ddp")

    @property
    def trained_size(self) -> int:
        """Bytes of a trained number on its device.

        DeepSpeed has all weights in the precision of the launch, FSDP2 with mixed precision the trained ones in
        float32; elsewhere they stay as they are loaded.
        """
        if self.launch.is_zero:
            return 2 if self.is_mixed else 4
        return 4 if self.launch.sharding == "fsdp2" and self.is_mixed else self.outline.trained_size

    @property
    def weight_bytes(self) -> int:
        """Of all weights, before they are divided."""
        outline = self.outline
        if self.launch.is_zero:
            return outline.parameters * self.trained_size
        frozen = outline.loaded_bytes - outline.trained * outline.trained_size
        return frozen + outline.trained * self.trained_size

    @property
    def moments(self) -> int:
        """Of a trained number.

        Raises:
            UserError: for an optimizer whose state is not known here.
        """
        name = OptimizerNames(self.args.optim).value
        if name not in _MOMENTS:
            raise UserError(
                f"training.optim: expected one of {', '.join(_MOMENTS)}, whose state is known here, got '{name}'"
            )
        return _MOMENTS[name]

    @property
    def is_checkpointed(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        keys = ("gradient_checkpointing", "activation_checkpointing")
        return any(self.recipe.training.get(key) for key in keys)

    @property
    def optimizer_steps(self) -> int:
        """Of an iteration."""
        return self.needs.stages * self.args.steps_per_rollout

    @property
    def draws(self) -> bool:
        """Whether answers are sampled; enumerated ones are not."""
        samples = self.needs.samples_in_batches or self.recipe.samples_in_rounds
        return samples and self.recipe.sampling.engine != "enumerate"

    @property
    def rival_answers(self) -> int:
        """The opponent's answers to a prompt that are drawn for it."""
        return 0 if self.needs.opponent in ("none", "group") else self.recipe.sampling.opponent.num_completions

    @property
    def answers_at_once(self) -> int:
        """Answers to a prompt that are drawn together: those of both, where policy and opponent draw alike."""
        sampling = self.recipe.sampling
        is_one = (self.needs.sampler, self.needs.opponent) in (("policy", "fresh"), ("mixture", "mixture"))
        is_one &= sampling.temperature == sampling.opponent.temperature
        own, rival = sampling.num_completions, self.rival_answers
        return own + rival if is_one else max(own, rival)

    def copies(self) -> Copies:
        """What :class:`alignment.anchors.AnchorSet` holds in the last round, when it holds most."""
        recipe, needs, kinds = self.recipe, self.needs, self.needs.anchors
        is_adapter, in_rounds = self.outline.is_adapter, recipe.samples_in_rounds
        rounds = recipe.schedule.rounds if in_rounds else 1
        slow = sum(isinstance(spec, Ema) for spec in kinds)
        players = sum(isinstance(spec, Player) for spec in kinds)
        windows = [spec.window if isinstance(spec, Past) else 1 for spec in kinds if isinstance(spec, Past | Previous)]
        older = min(max(windows, default=1), rounds) - 1
        reads_ref = any(isinstance(spec, Frozen) for spec in kinds)
        asks_ref = reads_ref or needs.opponent in ("ref", "mixture") or needs.sampler == "mixture"
        loads_ref = asks_ref and (recipe.policy.ref_model is not None or (in_rounds and not is_adapter))
        # A new adapter does nothing yet: without it, its base is the start.
        is_base = is_adapter and rounds == 1 and needs.fits == 1
        copies_start = (asks_ref and not loads_ref and not is_adapter) or (bool(windows) and not is_base)
        shares_ref = reads_ref and not loads_ref and rounds == 1
        behaviour = any(isinstance(spec, Behaviour) for spec in kinds)
        # The first step of a rollout gives them (PreferenceTrainer).
        is_own = needs.stages == 1 and not needs.per_token and not self.outline.has_dropout
        forwards = int(reads_ref) + slow + players + int(behaviour and not is_own)
        forwards += older + 1 - int(shares_ref) if windows else 0
        if recipe.anchors.store:
            return Copies(wholes=0, adapters=0, forwards=forwards)
        held = int(copies_start) + slow + older + players
        return Copies(
            wholes=int(loads_ref) + (0 if is_adapter else held),
            adapters=held if is_adapter else 0,
            forwards=forwards,
        )

    def batch(self) -> Batch:
        """The largest micro-batch of training: every row as long as the longest."""
        recipe, outline, lengths = self.recipe, self.outline, self.lengths
        count, longest = lengths.responses, lengths.prompt + lengths.response
        shared = lengths.prompt + count * lengths.response
        # As alignment.logps decides it. A model that refuses to share is not found out here.
        pairs = 6 * outline.shape.width
        costs_less = shared * (pairs + shared) < count * longest * (pairs + 0.5 * longest)
        may_share = not (
            recipe.scoring.layout == "dense"
            or recipe.scoring.logits == "whole"
            or outline.attention not in ("sdpa", "eager", "flex_attention")
            or (outline.window is not None and longest > outline.window)
        )
        wants = recipe.scoring.layout == "prefix" or (costs_less and not outline.has_dropout)
        is_shared, prompts = may_share and wants, self.args.per_device_train_batch_size
        return Batch(
            rows=prompts if is_shared else prompts * count,
            width=shared if is_shared else longest,
            scored=prompts * count * lengths.response,
            is_shared=is_shared,
        )

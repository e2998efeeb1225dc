"""Anchors: the frozen policies whose log-probs a loss reads, and when they advance."""

import copy
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn

from alignment.errors import UserError
from alignment.logps import Scores, causal_lm, choose_scoring, score, scoring_of
from alignment.sharding import (
    divide_frozen,
    divide_frozen_as_fsdp2,
    is_divided,
    load_whole_state,
    move_towards,
    round_as,
    whole_state,
)
from alignment.types import Behaviour, Completions, Ema, Frozen, Needs, Past, Player, Previous
from alignment.weights import TrainableWeights

FrozenPolicy = nn.Module | TrainableWeights
"""A policy that does not move: a model, or weights that take the place of the trained ones."""


# What a configuration says besides how a forward is computed.
_ORIGINS = frozenset(
    {
        *("transformers_version", "architectures", "base_model_name_or_path", "revision"),
        # Those of the weights are hashed with them.
        *("dtype", "torch_dtype"),
        *("use_cache", "inference_mode"),
    }
)


class AnchorSet:
    """Frozen policies by name.

    The reference is ``ref_model`` where one is given, the base model with its adapter disabled where the policy is a
    LoRA adapter, and a frozen copy of the start otherwise. The previous policy, and in the first round all past ones,
    is the start of training; where the reference is that too, they share one module and one forward. A slow target is a
    copy of the policy. The behaviour policy is the policy itself at the time when it sampled: log-probs are taken
    before its next step.

    Copies of a LoRA policy hold its adapter alone and take its place in the one base model when they are asked.

    Args:
        needs: which anchors the loss reads.
        model: the policy, not wrapped for distribution.
        ref_model: the reference, or ``None``.
        past_models: policies at the start of earlier rounds, the latest first; where they end, the earliest one stands
            for all that would come before it.
        players: the other players' policies by name, for a method that reads them.
        copies_start: whether the start of training is copied. Without a copy the policy itself stands for it, which is
            right only until its first step.
        precision: a context in which a forward of a model has the precision that the launch gives the policy's;
            ``None`` for that of its weights.
        on_exchange: is called when the weights of the policy are exchanged for held ones, and when they are back; an
            engine that serves a copy of them must take them anew.

    Raises:
        UserError: for a player that is missing, or a kind of anchor that nobody supplies.
    """

    def __init__(
        self,
        needs: Needs,
        model: nn.Module,
        ref_model: nn.Module | None = None,
        *,
        past_models: Sequence[FrozenPolicy] = (),
        players: Mapping[str, FrozenPolicy] = MappingProxyType({}),
        copies_start: bool = True,
        precision: Callable[[nn.Module], AbstractContextManager[None]] | None = None,
        on_exchange: Callable[[], None] | None = None,
    ) -> None:
        self._policy, self._precision = model, precision or _as_it_is
        self._on_exchange = on_exchange or _nothing
        self._start: FrozenPolicy | None = None if copies_start else model
        self._behaviour = frozenset(spec.name for spec in needs.anchors if isinstance(spec, Behaviour))
        self._copies: dict[str, FrozenPolicy] = {}
        self._decays: dict[str, float] = {}
        self.names: tuple[str, ...] = ()
        for spec in needs.anchors:
            if isinstance(spec, Ema):
                self._copies[spec.name] = _frozen_copy(model)
                self._decays[spec.name] = spec.decay
            elif isinstance(spec, Frozen):
                self._keep_reference(spec.name, ref_model)
            elif isinstance(spec, Previous | Past):
                if not _is_base(model):
                    self._copies |= dict.fromkeys(spec.columns(), self._frozen_start())
                if past_models and isinstance(spec, Past):
                    older = [_frozen(policy) for policy in past_models]
                    columns = spec.columns()[1:]
                    self._copies |= {name: older[min(j, len(older) - 1)] for j, name in enumerate(columns)}
            elif isinstance(spec, Player):
                if spec.name not in players:
                    present = ", ".join(sorted(players)) or "none"
                    raise UserError(f"the method reads the player '{spec.name}'; the players besides it: {present}")
                self._copies[spec.name] = _frozen(players[spec.name])
            elif not isinstance(spec, Behaviour):
                raise UserError(
                    f"anchor '{spec.name}': expected a frozen or slowly moving policy, got {type(spec).__name__}"
                )
            self.names += spec.columns()
        if needs.opponent in ("ref", "mixture") or needs.sampler == "mixture":
            # It answers, whether or not the loss reads its log-probs.
            self._keep_reference("ref", ref_model)
        for held in self._copies.values():
            if isinstance(held, nn.Module):
                choose_scoring(held, scoring_of(model))

    def _keep_reference(self, name: str, ref_model: nn.Module | None) -> None:
        if ref_model is not None:
            self._copies[name] = _frozen(ref_model)
        elif not isinstance(self._policy, PeftModel):
            self._copies[name] = self._frozen_start()

    def _frozen_start(self) -> FrozenPolicy:
        if self._start is None:
            self._start = _frozen_copy(self._policy)
        return self._start

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return next(self._policy.parameters()).device

    def fingerprint(self, name: str) -> str:
        """A hash of a policy's weights and settings, without an adapter that is disabled, and of its precision."""
        is_base = name not in self._copies and name not in self._behaviour
        digest = hashlib.sha256()
        with self.model(name) as module:
            digest.update(_settings(module, is_base=is_base).encode())
            if torch.is_autocast_enabled(self.device.type):
                digest.update(str(torch.get_autocast_dtype(self.device.type)).encode())
            for key, tensor in sorted(module.state_dict().items()):
                if not tensor.numel():
                    raise UserError(
                        f"expected whole weights to store log-probs of '{name}', found '{key}' partitioned over "
                        "processes; set zero3_init_flag: false in the launcher's configuration"
                    )
                if not (is_base and "lora_" in key):
                    digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                    # As bytes: numpy knows no bfloat16.
                    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def score_one(self, name: str, completions: Completions) -> Tensor:
        """Log-probs [B, G] under one anchor."""
        with self.model(name) as module:
            return score(module, completions).logps_BG

    @contextmanager
    def model(self, name: str) -> Iterator[nn.Module]:
        """The module behind a name ("policy" is the one in training); inside the context it acts as that policy."""
        held = self._copies.get(name)
        if isinstance(held, nn.Module) and held is not self._policy:
            with self._precision(held):
                yield held
            return
        was_training = self._policy.training
        self._policy.eval()
        if isinstance(held, TrainableWeights):
            with held.in_place(self._policy):
                self._on_exchange()
                with self._precision(self._policy):
                    yield self._policy
            self._on_exchange()
        elif name in self._behaviour or name in self._copies or name == "policy":
            with self._precision(self._policy):
                yield self._policy
        else:
            # No copy: a LoRA policy without its adapter is the reference.
            assert isinstance(self._policy, PeftModel), f"no copy of '{name}'"
            with self._policy.disable_adapter(), self._precision(self._policy):
                yield self._policy
        self._policy.train(was_training)

    @torch.no_grad()
    def score(self, completions: Completions, *, without: Collection[str] = ()) -> dict[str, Scores]:
        """Log-probs of the completions under every anchor; names that stand for the same policy share a forward.

        Args:
            completions: of whatever policy.
            without: anchors whose log-probs come from elsewhere.
        """
        scores: dict[str, Scores] = {}
        scored: dict[object, Scores] = {}
        for name in (name for name in self.names if name not in without):
            policy = self._policy_of(name)
            if policy not in scored:
                with self.model(name) as module:
                    scored[policy] = score(module, completions)
            scores[name] = scored[policy]
        return scores

    def describe(self, *, are_stored: bool) -> tuple[str, ...]:
        """Whence the log-probs of frozen policies come, in a line; none where the loss reads none."""
        frozen = [name for name in self.names if name not in self._behaviour]
        number = len({self._policy_of(name) for name in frozen})
        how = "stored with the rows" if are_stored else f"{number} forward{'s' if number > 1 else ''} a batch"
        return (f"log-probs of frozen policies: {how} ({', '.join(frozen)})",) if frozen else ()

    def _policy_of(self, name: str) -> object:
        """Equal for names that stand for the same policy."""
        return self._copies.get(name, "behaviour" if name in self._behaviour else "base")

    def advance(self) -> None:
        """Move the slow targets: ``target <- decay * target + (1 - decay) * policy``."""
        for name, decay in self._decays.items():
            _move_towards(self._copies[name], self._policy, 1.0 - decay)

    def hold_as(self, engine: Any, config: Mapping[str, Any]) -> None:
        """Have frozen models held as DeepSpeed holds the policy: rounded alike, and at stage 3 divided over processes.

        Slow targets are not rounded: what moves them by little would be lost.

        Args:
            engine: of the policy.
            config: by which it was made.
        """
        slow = [self._copies[name] for name in self._decays]
        for held in self._undivided():
            if engine.zero_optimization_stage() == 3:
                divide_frozen(held, config, keeps_precision=held in slow)
            elif held not in slow:
                round_as(held, engine)

    def divide_as_fsdp2(self, accelerator: Accelerator) -> None:
        """Have FSDP2 divide frozen models over processes as it divides the policy, which the accelerator has prepared.

        Slow targets move in the precision that they have: weights are rounded for a forward only.
        """
        for held in self._undivided():
            divide_frozen_as_fsdp2(held, accelerator)

    def _undivided(self) -> tuple[nn.Module, ...]:
        """Frozen models besides the policy that every process has whole, and need not have."""
        models = (held for held in dict.fromkeys(self._copies.values()) if isinstance(held, nn.Module))
        return tuple(held for held in models if not (held is self._policy or is_divided(held) or _is_quantized(held)))

    def unread(self) -> "AnchorSet":
        """What is left once the log-probs of every anchor are known: no copies, and the base of an adapter by name."""
        base = tuple(name for name in self.names if name not in self._copies)
        left = AnchorSet(Needs(feedback="pairs"), self._policy, precision=self._precision)
        left.names = base
        return left

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Weights of the slow targets; frozen policies are not part of a checkpoint. All processes call it."""
        return {name: _weights_of(self._copies[name]) for name in self._decays}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Load the slow targets."""
        for name, weights in state.items():
            target = self._copies[name]
            if isinstance(target, TrainableWeights):
                target.load(weights)
            else:
                load_whole_state(target, weights)


def own_anchors(needs: Needs, *, is_fresh: bool, has_noise: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Anchors whose log-probs the policy's own forward gives: it sampled, and has not moved since.

    Args:
        needs: which anchors the loss reads.
        is_fresh: whether they are asked for by a forward of their own.
        has_noise: whether a forward in training has noise, as of dropout.

    Returns:
        Their names, and a line that says so, or why not, where the loss reads any.
    """
    behaviour = tuple(spec.name for spec in needs.anchors if isinstance(spec, Behaviour))
    if not behaviour:
        return (), ()
    reasons = {
        "scoring.behaviour: fresh": is_fresh,
        "past a look-ahead it is another policy": needs.stages > 1,
        "the loss reads them by token": needs.per_token,
        "dropout: a forward in training has noise": has_noise,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None:
        return (), (f"log-probs of the policy that sampled: from a forward of their own ({reason})",)
    return behaviour, ("log-probs of the policy that sampled: from its next forward (it has not moved since)",)


def _nothing() -> None:
    pass


def _settings(model: nn.Module, *, is_base: bool) -> str:
    """What is configured of a model, and of its adapter, but for where it comes from."""
    config = causal_lm(model).config.to_dict()
    kept = {"model": {key: value for key, value in config.items() if not key.startswith("_") and key not in _ORIGINS}}
    if isinstance(model, PeftModel) and not is_base:
        kept["adapter"] = {
            key: value for key, value in model.active_peft_config.to_dict().items() if key not in _ORIGINS
        }
    return json.dumps(
        kept, sort_keys=True, default=lambda value: sorted(value) if isinstance(value, set) else repr(value)
    )


def _as_it_is(model: nn.Module) -> AbstractContextManager[None]:
    return nullcontext()


def _is_base(model: nn.Module) -> bool:
    """Whether the policy is its base model with an adapter that does nothing yet, as LoRA's is at the start."""
    return isinstance(model, PeftModel) and not any(
        bool(parameter.any()) for name, parameter in model.named_parameters() if "lora_B" in name
    )


def _is_quantized(model: nn.Module) -> bool:
    """Whether its weights are codes, which can neither be rounded nor divided."""
    return not all(parameter.is_floating_point() for parameter in model.parameters())


def _frozen(policy: FrozenPolicy) -> FrozenPolicy:
    return policy if isinstance(policy, TrainableWeights) else policy.eval().requires_grad_(False)


def _frozen_copy(model: nn.Module) -> FrozenPolicy:
    if isinstance(model, PeftModel):
        return TrainableWeights(model)
    return copy.deepcopy(model).eval().requires_grad_(False)


def _weights_of(policy: FrozenPolicy) -> dict[str, Any]:
    return policy.values if isinstance(policy, TrainableWeights) else whole_state(policy)


def _move_towards(slow: FrozenPolicy, model: nn.Module, share: float) -> None:
    if isinstance(slow, TrainableWeights):
        slow.move_towards(model, share)
    else:
        move_towards(slow, model, share)

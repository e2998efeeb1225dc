"""Multiplayer Nash Preference Optimization: INPO's regression against several anchors.

Differs from the paper's released code: log-probs are summed, not averaged over tokens (the target 1/(2 eta) is far out
of reach of averages); weights must sum to 1, and a missing anchor is an error, where the release trains on with zeros;
``ref_weight`` is a number. The extra players act through the anchor only: the minimiser is not the paper's update with
averaged opponents [derived, checked].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from alignment.errors import UserError
from alignment.functional import preference_regression
from alignment.methods._card import Options, option
from alignment.types import AnchorSpec, Frozen, LossInputs, LossOutput, Needs, Paper, Past, Player, Solution


def mnpo_loss(x: LossInputs, anchors: Mapping[str, Tensor], weights: Mapping[str, float], *, eta: float) -> LossOutput:
    """Regression of a difference of log-ratios, to a weighted anchor, on ``(P(y > y') - 1/2) / eta``.

    arXiv 2509.23102, eq. 15: ``(d log pi - sum_j lambda_j d log pi_j - 1/(2 eta))^2``. The minimiser is
    ``prod_j pi_j^lambda_j exp(P(. > prev) / eta)``.

    Args:
        x: log-probs, masks and preferences.
        anchors: log-probs [B, G] of the reference, past policies or other players.
        weights: lambda_j, one per anchor.
        eta: inverse step size; the target is 1/(2 eta) nats.
    """
    anchor_BG = sum((weight * anchors[name] for name, weight in weights.items()), start=x.logps_BG.new_zeros(()))
    return preference_regression(x, x.logps_BG - anchor_BG, target=0.5 / eta)


@dataclass(frozen=True, slots=True, kw_only=True)
class MNPO(Options):
    """MNPO: ``time_dependent`` opponents are past policies, ``heterogeneous`` ones are other players with own oracles.

    The fixed point of the time-dependent form is the equilibrium at ``tau = ref_weight * eta``.

    Attributes:
        history_weights: lambda of ``past_0`` (the policy at the start of the round), ``past_1``, ...
        player_weights: lambda of each other player, by name; only where ``opponents`` is heterogeneous.
    """

    eta: float = option(
        paper="the paper chose 0.0075 (2509.23102, app. C)", above=0, example=0.0075, usual=(0.0075, 0.0075)
    )
    ref_weight: float = option(
        paper="the released code uses 1/3 in round 1, 0.85 in round 2 (2509.23102)", at_least=0, at_most=1, example=0.25
    )
    opponents: Literal["time_dependent", "heterogeneous"] = option(
        default="time_dependent", paper="time_dependent (TD-MNPO, 2509.23102)"
    )
    history_weights: tuple[float, ...] = option(
        default=(), paper="the released code means 0.25, 0.75 of the rest (2509.23102)", example=(0.5, 0.25)
    )
    player_weights: Mapping[str, float] | None = option(default=None, paper="equal weights (2509.23102)")

    no_solution: ClassVar[str] = "players with different oracles play a general-sum game, for which nothing is proven"
    paper: ClassVar[Paper] = Paper(
        title="Multiplayer Nash Preference Optimization",
        authors="Wu, Fang and others",
        year=2025,
        arxiv="2509.23102",
    )

    def __post_init__(self) -> None:
        Options.__post_init__(self)
        if (self.opponents == "heterogeneous") != bool(self.player_weights):
            raise UserError("method 'mnpo': expected player_weights exactly where opponents is 'heterogeneous'")
        if self.opponents == "heterogeneous" and self.history_weights:
            raise UserError("method 'mnpo': expected no history_weights where opponents is 'heterogeneous'")
        weights = self.anchor_weights()
        if min(weights.values()) < 0 or not math.isclose(math.fsum(weights.values()), 1.0, abs_tol=1e-9):
            shown = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
            raise UserError(f"method 'mnpo': expected anchor weights >= 0 that sum to 1, got {shown}")

    def anchor_weights(self) -> dict[str, float]:
        """Weight of every anchor column that the loss reads."""
        others = {f"past_{j}": weight for j, weight in enumerate(self.history_weights)} | dict(
            self.player_weights or {}
        )
        return {"ref": self.ref_weight, **others} if self.ref_weight else others

    @property
    def needs(self) -> Needs:
        anchors: list[AnchorSpec] = [Frozen("ref")] if self.ref_weight else []
        if self.history_weights:
            anchors.append(Past("past", window=len(self.history_weights)))
        anchors.extend(Player(name) for name in self.player_weights or ())
        return Needs(feedback="pairs", anchors=tuple(anchors), sampler="prev", schedule="iterative")

    @property
    def solution(self) -> Solution:
        if self.opponents == "heterogeneous":
            return "none"
        return "kl_nash" if self.ref_weight else "numeric"

    def loss(self, x: LossInputs) -> LossOutput:
        """The regression over all labelled pairs of each prompt."""
        weights = self.anchor_weights()
        return mnpo_loss(x, {name: x.anchor(name) for name in weights}, weights, eta=self.eta)


METHOD = MNPO

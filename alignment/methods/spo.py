"""Self-play Preference Optimization (minimaximalist): policy gradient on the win rate inside a group of own samples.

Differs from the paper, whose experiments are in control: the group form for language models is [derived] from its
self-play reduction. Advantages are not divided by their standard deviation, which would over-weight near-ties.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from alignment.functional import policy_gradient_loss, response_weights
from alignment.methods._card import Options, option
from alignment.types import AnchorSpec, Behaviour, Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def spo_loss(x: LossInputs, returns_BG: Tensor) -> LossOutput:
    """Policy gradient of the centred win rate against the rest of the group.

    arXiv 2401.04056 [derived]: ``-(1/G) sum_i SG[r_i - 1/2] log pi(y_i)``,
    ``r_i = (1/(G-1)) sum_{j != i} P(y_i > y_j)``. The opponent is frozen: differentiated on both sides the win rate
    of a policy against itself is 1/2, with gradient 0.

    Args:
        x: log-probs and masks.
        returns_BG: ``r_i - 1/2``, less a KL penalty where the game is regularised; no gradient flows through it.
    """
    return policy_gradient_loss(x, returns_BG)


def spo_clipped_loss(x: LossInputs, returns_BG: Tensor, behaviour_BG: Tensor, *, clip: float) -> LossOutput:
    """The same through sequence-level ratios to the sampling policy, clipped to ``[1 - clip, 1 + clip]`` as in PPO.

    Args:
        x: log-probs and masks.
        returns_BG: as for ``spo_loss``.
        behaviour_BG: log-probs under the policy that sampled.
        clip: half-width of the trust interval.
    """
    ratio_BG = (x.logps_BG - behaviour_BG).exp()
    returns_BG = returns_BG.detach()
    kept_BG = ratio_BG.clamp(1.0 - clip, 1.0 + clip)
    surrogate_BG = (ratio_BG * returns_BG).minimum(kept_BG * returns_BG)
    weights_BG = response_weights(x)
    loss_B = -(weights_BG * surrogate_BG).sum(1)
    clipped_B = (weights_BG * (ratio_BG != kept_BG)).sum(1)
    return LossOutput(
        loss_B=loss_B, weight_B=(weights_BG.sum(1) > 0).to(loss_B.dtype), metrics={"clipped": clipped_B.detach()}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SPO(Options):
    """SPO: no reward model; the guarantee is for the average policy unless ``kappa_ref`` regularises the game.

    Attributes:
        kappa_ref: KL strength towards the reference; above 0 the last iterate aims at the equilibrium at that tau.
        clip: half-width of the ratio clip; ``None`` for the plain policy gradient.
    """

    kappa_ref: float = option(default=0.0, paper="0 (unregularised; 2401.04056)", at_least=0)
    clip: float | None = option(default=None, paper="PPO's 0.2 is common [unverified] (2401.04056)", above=0, below=1)

    paper: ClassVar[Paper] = Paper(
        title="A Minimaximalist Approach to Reinforcement Learning from Human Feedback",
        authors="Swamy, Gokul and Dann, Christoph and Kidambi, Rahul and Wu, Zhiwei Steven and Agarwal, Alekh",
        year=2024,
        arxiv="2401.04056",
    )

    @property
    def needs(self) -> Needs:
        anchors: tuple[AnchorSpec, ...] = (Frozen("ref"),) if self.kappa_ref else ()
        if self.clip is not None:
            anchors += (Behaviour("behaviour"),)
        return Needs(feedback="wins", anchors=anchors, sampler="policy", opponent="group", schedule="online")

    @property
    def solution(self) -> Solution:
        return "kl_nash" if self.kappa_ref else "nash"

    @property
    def iterate(self) -> Literal["last", "average"]:
        return "last" if self.kappa_ref else "average"

    def loss(self, x: LossInputs) -> LossOutput:
        """The policy gradient of the group's win rates."""
        returns_BG = x.wins_BG - 0.5
        if self.kappa_ref:
            returns_BG = returns_BG - self.kappa_ref * (x.logps_BG - x.anchor("ref"))
        if self.clip is None:
            return spo_loss(x, returns_BG)
        return spo_clipped_loss(x, returns_BG, x.anchor("behaviour"), clip=self.clip)


METHOD = SPO

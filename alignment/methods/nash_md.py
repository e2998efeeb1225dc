"""Nash-MD-PG: policy gradient against a geometric mixture of the policy and the reference.

Differs from trl's former trainer: the KL gradient of a token carries all later log-ratios (reward-to-go), where theirs
carried its own only and was biased; preferences come from any pairwise oracle, not a difference of scalar rewards. The
paper's equations are [second-hand].
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from alignment.functional import policy_gradient_loss, response_weights
from alignment.methods import _papers as papers
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def nash_md_loss(x: LossInputs, ref_BG: Tensor, *, tau: float) -> LossOutput:
    """Policy gradient of ``P(y > mu) - tau log pi/ref(y)``, whole sequences.

    arXiv 2312.00886: ascend ``grad log pi(y) SG[P(y > y') - 1/2 - tau log pi/ref(y)]``, y ~ pi, y' ~ mu.

    Args:
        x: log-probs, masks, and wins against the mixture mu.
        ref_BG: log-probs under the reference.
        tau: KL strength towards the reference.
    """
    return policy_gradient_loss(x, x.wins_BG - 0.5 - tau * (x.logps_BG - ref_BG))


def nash_md_token_loss(x: LossInputs, ref_BGT: Tensor, *, tau: float) -> LossOutput:
    """The same expected gradient with less variance: a token's score carries only the log-ratios from it on.

    Args:
        x: as for ``nash_md_loss``, with per-token log-probs.
        ref_BGT: per-token log-probs under the reference.
        tau: KL strength towards the reference.
    """
    logps_BGT, _ = x.tokens()
    log_ratios_BGT = (logps_BGT - ref_BGT).detach()
    returns_BGT = (x.wins_BG - 0.5)[..., None] - tau * _to_go(log_ratios_BGT)
    weights_BG = response_weights(x)
    loss_B = -(weights_BG * (returns_BGT * logps_BGT).sum(-1)).sum(1)
    return LossOutput(loss_B=loss_B, weight_B=(weights_BG.sum(1) > 0).to(loss_B.dtype))


def _to_go(values_BGT: Tensor) -> Tensor:
    """Of each token the sum from it on; by additions alone, as on a GPU torch's ``cumsum`` has no order of its own."""
    summed = 1
    while summed < values_BGT.shape[-1]:
        values_BGT = values_BGT + F.pad(values_BGT[..., summed:], (0, summed))
        summed *= 2
    return values_BGT


@dataclass(frozen=True, slots=True, kw_only=True)
class NashMD(Options):
    """Nash-MD-PG: at its fixed point the mixture is the equilibrium at ``tau / (1 - mix)``."""

    tau: float = option(paper="the paper chose 0.008 (2312.00886)", above=0, example=0.008, usual=(0.008, 0.008))
    mix: float = option(
        paper="the paper's best are 0.125 to 0.375 (2312.00886, table 2)", at_least=0, at_most=1, example=0.125
    )
    kl: Literal["reward_to_go", "sequence"] = option(default="reward_to_go", paper="reward-to-go (2312.00886)")

    paper: ClassVar[Paper] = papers.NASH_MD

    @property
    def needs(self) -> Needs:
        return Needs(
            feedback="wins",
            anchors=(Frozen("ref"),),
            sampler="policy",
            opponent="mixture",
            mix=self.mix,
            schedule="online",
            per_token=self.kl == "reward_to_go",
        )

    @property
    def solution(self) -> Solution:
        return "kl_nash" if self.mix == 0 else "numeric"

    def loss(self, x: LossInputs) -> LossOutput:
        """The policy gradient in the chosen form."""
        if self.kl == "sequence":
            return nash_md_loss(x, x.anchor("ref"), tau=self.tau)
        return nash_md_token_loss(x, x.token_anchor("ref"), tau=self.tau)


METHOD = NashMD

"""Iterative Nash Policy Optimization: one mirror-descent step per round, each a regression on pairs of the last policy.

Differs from the paper: all pairs with soft labels by default. Best-against-worst selection with its deterministic label
is not i.i.d. from the last policy and has another minimiser (Lemma R in docs/methods/README.md).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.errors import UserError
from alignment.functional import preference_regression
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Previous, Solution


def inpo_loss(x: LossInputs, ref_BG: Tensor, prev_BG: Tensor, *, tau: float, eta: float) -> LossOutput:
    """Regression of a difference of log-ratios, to a mixed anchor, on ``(P(y > y') - 1/2) / eta``.

    arXiv 2407.00617, eq. 8: ``(h - 1/(2 eta))^2``, ``h = d log pi - (tau/eta) d log ref - (1 - tau/eta) d log prev``,
    where d is winner minus loser. The minimiser is ``prev^(1 - tau/eta) ref^(tau/eta) exp(P(. > prev) / eta)``,
    provided that both responses are i.i.d. from ``prev``.

    Args:
        x: log-probs, masks and preferences.
        ref_BG: log-probs under the reference.
        prev_BG: log-probs under the policy at the start of the round.
        tau: KL strength towards the reference; 0 leaves out the reference.
        eta: inverse step size; the target is 1/(2 eta) nats.
    """
    anchor_BG = (tau / eta) * ref_BG + (1.0 - tau / eta) * prev_BG
    return preference_regression(x, x.logps_BG - anchor_BG, target=0.5 / eta)


@dataclass(frozen=True, slots=True, kw_only=True)
class INPO(Options):
    """INPO: ``0 < tau <= eta``; at tau = 0 it would converge to the unregularised solution instead."""

    tau: float = option(paper="the paper uses eta / 3 (2407.00617, app. B)", above=0)
    eta: float = option(
        paper="the paper chose 0.005 from 0.1 to 0.002 (2407.00617, app. B)", above=0, usual=(0.002, 0.1)
    )

    needs: ClassVar[Needs] = Needs(
        feedback="pairs", anchors=(Frozen("ref"), Previous("prev")), sampler="prev", schedule="iterative"
    )
    solution: ClassVar[Solution] = "kl_nash"
    paper: ClassVar[Paper] = Paper(
        title="Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning",
        authors="Zhang, Yuheng and Yu, Dian and Peng, Baolin and Song, Linfeng and Tian, Ye and Huo, Mingyue and "
        "Jiang, Nan and Mi, Haitao and Yu, Dong",
        year=2024,
        arxiv="2407.00617",
    )

    def __post_init__(self) -> None:
        Options.__post_init__(self)
        if self.tau > self.eta:
            raise UserError(
                f"method 'inpo': expected tau <= eta (tau / eta is the weight of ref), got tau = {self.tau:g}, "
                f"eta = {self.eta:g}"
            )

    def loss(self, x: LossInputs) -> LossOutput:
        """The regression over all labelled pairs of each prompt."""
        return inpo_loss(x, x.anchor("ref"), x.anchor("prev"), tau=self.tau, eta=self.eta)


METHOD = INPO

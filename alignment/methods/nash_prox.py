"""Nash Prox: self-play policy gradient with a KL to a slow target, an inexact proximal-point step.

The second version of the Nash-MP paper is re-titled around this method; everything below its abstract is [unverified],
the gradient is [derived].
"""

from dataclasses import dataclass
from typing import ClassVar

from alignment.methods import _papers as papers
from alignment.methods._card import Options, option
from alignment.methods.nash_mp import nash_mp_loss
from alignment.types import Ema, Frozen, LossInputs, LossOutput, Needs, Paper, Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class NashProx(Options):
    """Nash Prox: the implicit step; its inner game has KL strength ``tau (1 + eta) / eta``: it contracts for any eta.

    Attributes:
        decay: of the slow target at every advance; 0 copies the policy.
        inner_steps: optimizer steps between two advances.
    """

    tau: float = option(paper="the paper's value is not known to us [unverified] (2505.19731)", above=0, example=0.01)
    eta: float = option(paper="any eta > 0 contracts by 1/(1 + eta) [derived] (2505.19731)", above=0, example=1.0)
    decay: float = option(default=0.0, paper="about 1 - 1/inner_steps [derived] (2505.19731)", at_least=0, below=1)
    inner_steps: int = option(default=1, paper="not known to us [unverified] (2505.19731)", at_least=1)

    solution: ClassVar[Solution] = "kl_nash"
    paper: ClassVar[Paper] = papers.NASH_MP

    @property
    def needs(self) -> Needs:
        return Needs(
            feedback="wins",
            anchors=(Frozen("ref"), Ema("target", decay=self.decay)),
            sampler="policy",
            opponent="fresh",
            schedule="online",
            inner_steps=self.inner_steps,
        )

    def loss(self, x: LossInputs) -> LossOutput:
        """Nash-MP's policy gradient; the opponent is the current policy."""
        return nash_mp_loss(x, x.anchor("ref"), x.anchor("target"), tau=self.tau, eta=self.eta)


METHOD = NashProx

"""IPO-MD: online IPO on pairs of the geometric mixture of the policy and the reference.

Differs from the paper: the regression form, as in ``online_ipo``. Equations of the paper are [second-hand].
"""

from dataclasses import dataclass
from typing import ClassVar

from alignment.methods import _papers as papers
from alignment.methods._card import Options, option
from alignment.methods.online_ipo import online_ipo_loss
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class IPOMD(Options):
    """IPO-MD: at its stationary point the mixture is the equilibrium at tau / (1 - mix) (2403.08635, prop. 5.2)."""

    tau: float = option(paper="the paper chose 1 (2403.08635)", above=0, example=1.0, usual=(0.1, 10))
    mix: float = option(
        paper="the paper chose 0.125 from {0.125, 0.25} (2403.08635)", at_least=0, below=1, example=0.125
    )

    paper: ClassVar[Paper] = papers.ONLINE_IPO

    @property
    def needs(self) -> Needs:
        return Needs(
            feedback="prefs",
            anchors=(Frozen("ref"),),
            sampler="mixture",
            mix=self.mix,
            opponent="none",
            schedule="online",
        )

    @property
    def solution(self) -> Solution:
        return "kl_nash" if self.mix == 0 else "numeric"

    def loss(self, x: LossInputs) -> LossOutput:
        """Online IPO's regression; both responses of every pair come from the mixture."""
        return online_ipo_loss(x, x.anchor("ref"), tau=self.tau)


METHOD = IPOMD

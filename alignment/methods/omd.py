"""Online mirror descent: EGPO's loss with one stage; it cycles where its step exceeds the local stability threshold.

Named "online IPO 1 (OMD)" in EGPO's released code. Not to be confused with ``online_ipo``, whose pair is on-policy.
"""

from dataclasses import dataclass
from typing import ClassVar

from alignment.methods import _papers as papers
from alignment.methods._card import Options, option
from alignment.methods.egpo import egpo_loss
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class OMD(Options):
    """OMD: the one-step baseline of EGPO; locally stable iff a < 2 / (1 + (s / tau)^2), see `games.omd_threshold`."""

    tau: float = option(
        paper="the released code of 2503.08942 uses 0.1 for language models, 0.01 for games", above=0, usual=(0.1, 0.1)
    )

    needs: ClassVar[Needs] = Needs(
        feedback="wins",
        anchors=(Frozen("ref"),),
        sampler="policy",
        full_support=True,
        opponent="fresh",
        schedule="online",
    )
    solution: ClassVar[Solution] = "kl_nash"
    paper: ClassVar[Paper] = papers.EGPO

    def loss(self, x: LossInputs) -> LossOutput:
        """EGPO's regression against the current policy."""
        return egpo_loss(x, x.anchor("ref"), tau=self.tau)


METHOD = OMD

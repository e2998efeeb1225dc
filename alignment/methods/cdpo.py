"""Conservative DPO: DPO on labels that are believed to be flipped with probability eps.

There is no paper: the loss is from a note by E. Mitchell (2023, no arXiv number); 2403.00409, which we cite, analyses
it under this name.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, differences
from alignment.methods._card import Options, option
from alignment.methods.dpo import dpo_loss
from alignment.methods.robust_dpo import RobustDPO
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def cdpo_loss(h: Tensor, *, beta: float, eps: float) -> Tensor:
    """Cross-entropy of a pair against the smoothed label ``1 - eps``.

    Analysed in arXiv 2403.00409: ``(1 - eps) DPO(h) + eps DPO(-h)``, ``DPO(h) = -log sigmoid(beta h)``.

    Args:
        h: difference of log-ratios, chosen minus rejected, in nats; any shape.
        beta: inverse temperature of the implicit score.
        eps: assumed probability that a label is flipped.

    Returns:
        The loss in nats, shape of ``h``; log 2 at ``h = 0``, smallest at ``beta h = logit(1 - eps)``.
    """
    return (1.0 - eps) * dpo_loss(h, beta=beta) + eps * dpo_loss(-h, beta=beta)


@dataclass(frozen=True, slots=True, kw_only=True)
class CDPO(Options):
    """cDPO: offline, one reference; a finite margin even where every label agrees."""

    beta: float = option(paper="HALOs' code uses 0.1", above=0, usual=(0.1, 0.1))
    eps: float = option(paper="the share of flipped labels; HALOs' code uses 0.2", at_least=0, below=0.5)

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = RobustDPO.paper

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected smoothed cross-entropy of the labelled pairs of each prompt."""
        h_BGG = differences(x.logps_BG - x.anchor("ref"))
        return comparison_loss(x, cdpo_loss(h_BGG, beta=self.beta, eps=self.eps))


METHOD = CDPO

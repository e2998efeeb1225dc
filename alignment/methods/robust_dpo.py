"""Robust DPO (rDPO): an estimate from noisy labels whose expectation is the DPO loss on clean ones.

Not ``rdpo``, the length-regularised method. A single pair has no minimum: where labels are surer than ``1 - eps`` the
loss falls without bound [derived], so watch it.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, differences
from alignment.methods._card import Options, option
from alignment.methods.dpo import dpo_loss
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def robust_dpo_loss(h: Tensor, *, beta: float, eps: float) -> Tensor:
    """Unbiased estimate of the DPO loss of a pair whose label is flipped with probability eps.

    arXiv 2403.00409, sec. 3.1: ``((1 - eps) DPO(h) - eps DPO(-h)) / (1 - 2 eps)``, ``DPO(h) = -log sigmoid(beta h)``.

    Args:
        h: difference of log-ratios, chosen minus rejected, in nats; any shape.
        beta: inverse temperature of the implicit score.
        eps: probability that a label is flipped.

    Returns:
        The loss in nats, shape of ``h``, of either sign; log 2 at ``h = 0``.
    """
    return ((1.0 - eps) * dpo_loss(h, beta=beta) - eps * dpo_loss(-h, beta=beta)) / (1.0 - 2.0 * eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustDPO(Options):
    """rDPO: offline, one reference; consistent under label noise of a known rate.

    The expected loss has a minimum where every preference lies in [eps, 1 - eps], as noisy labels do.
    """

    beta: float = option(paper="TRL quotes 0.01 from the paper (2403.00409, app. B)", above=0, usual=(0.01, 0.01))
    eps: float = option(paper="the share of flipped labels; TRL quotes 0.1 (2403.00409, sec. 6)", at_least=0, below=0.5)

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="Provably Robust DPO: Aligning Language Models with Noisy Feedback",
        authors="Chowdhury, Sayak Ray and Kini, Anush and Natarajan, Nagarajan",
        year=2024,
        arxiv="2403.00409",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected de-noised loss of the labelled pairs of each prompt."""
        h_BGG = differences(x.logps_BG - x.anchor("ref"))
        return comparison_loss(x, robust_dpo_loss(h_BGG, beta=self.beta, eps=self.eps))


METHOD = RobustDPO

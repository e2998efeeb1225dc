"""Length-normalised DPO: the implicit score of a response is its mean log-ratio per token.

The formula is TRL's ``sigmoid_norm`` [code]; that it comes from the Tulu 3 report is [unverified], as is the value.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, differences, per_token, softplus
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def sigmoid_norm_loss(h_mean: Tensor, *, beta: float) -> Tensor:
    """Negative log-likelihood of a pair.

    arXiv 2411.15124, length-normalised DPO: ``-log sigmoid(beta (ell_w / |yw| - ell_l / |yl|))``, ``ell = log pi/ref``.

    Args:
        h_mean: difference of log-ratios per token, chosen minus rejected, in nats per token; any shape.
        beta: inverse temperature of the implicit score; larger than DPO's, because a mean is smaller than a sum.

    Returns:
        The loss in nats, shape of ``h_mean``; log 2 at 0.
    """
    return softplus(-beta * h_mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class SigmoidNorm(Options):
    """Length-normalised DPO: offline, one reference; the Bradley-Terry optimum only where all lengths are 1."""

    beta: float = option(paper="5 is reported for Tulu 3, not verified (2411.15124)", above=0, usual=(5, 5))

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="Tulu 3: Pushing Frontiers in Open Language Model Post-Training",
        authors="Lambert, Nathan and Morrison, Jacob and Pyatkin, Valentina and others",
        year=2024,
        arxiv="2411.15124",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected negative log-likelihood of the labelled pairs of each prompt."""
        h_BGG = differences(per_token(x.logps_BG - x.anchor("ref"), x.lengths_BG))
        return comparison_loss(x, sigmoid_norm_loss(h_BGG, beta=self.beta))


METHOD = SigmoidNorm

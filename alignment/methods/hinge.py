"""The hinge loss on log-ratios: DPO's support-vector counterpart, "hinge-norm" of the RSO paper."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment.functional import comparison_loss, differences
from alignment.methods._card import Options, option
from alignment.types import Frozen, LossInputs, LossOutput, Needs, Paper, Solution


def hinge_loss(h: Tensor, *, beta: float) -> Tensor:
    """How far a pair falls short of a margin of 1.

    arXiv 2309.06657, the hinge-norm loss: ``max(0, 1 - beta h)``; the paper writes gamma for beta.

    Args:
        h: difference of log-ratios, chosen minus rejected, in nats; any shape.
        beta: inverse temperature of the implicit score.

    Returns:
        The loss, non-negative, shape of ``h``; 1 at ``h = 0``, 0 from ``h = 1/beta`` on.
    """
    return (1.0 - beta * h).clamp(min=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hinge(Options):
    """Hinge-norm: offline, one reference; pairs beyond the margin are left alone.

    Its optimum depends on which response wins more often, hardly on how often: it is piecewise linear.
    """

    beta: float = option(
        paper="TRL's default is 0.1; the paper tunes it as gamma (2309.06657)", above=0, usual=(0.1, 0.1)
    )

    needs: ClassVar[Needs] = Needs(feedback="pairs", anchors=(Frozen("ref"),))
    solution: ClassVar[Solution] = "numeric"
    paper: ClassVar[Paper] = Paper(
        title="Statistical Rejection Sampling Improves Preference Optimization",
        authors="Liu, Tianqi and Zhao, Yao and Joshi, Rishabh and Khalman, Misha and Saleh, Mohammad and Liu, Peter J. "
        "and Liu, Jialu",
        year=2023,
        arxiv="2309.06657",
    )

    def loss(self, x: LossInputs) -> LossOutput:
        """Expected shortfall of the labelled pairs of each prompt."""
        h_BGG = differences(x.logps_BG - x.anchor("ref"))
        return comparison_loss(x, hinge_loss(h_BGG, beta=self.beta))


METHOD = Hinge
